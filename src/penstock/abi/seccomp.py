# SPDX-License-Identifier: Apache-2.0
"""Seccomp and classic BPF, from ``linux/seccomp.h``, ``linux/filter.h``, ``linux/audit.h``."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from typing import Final

__all__ = [
    "AUDIT_ARCH",
    "BPF_MAX_INSTRUCTIONS",
    "DATA_ARCH",
    "DATA_ARGS",
    "DATA_NR",
    "SOCK_FILTER",
    "X32_BIT",
    "Action",
    "Bpf",
    "FilterFlag",
    "Operation",
]

SOCK_FILTER: Final = struct.Struct("<HBBI")
"""``struct sock_filter``: code, jump if true, jump if false, constant."""

BPF_MAX_INSTRUCTIONS: Final = 4096

DATA_NR: Final = 0
"""``struct seccomp_data``: the number of the system call, 32 bits."""

DATA_ARCH: Final = 4
"""The architecture, 32 bits."""

DATA_ARGS: Final = 16
"""Six arguments of 64 bits, low half first on little-endian machines."""

AUDIT_ARCH: Final[Mapping[str, int]] = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
"""AUDIT_ARCH_*, by machine as uname(2) calls it."""

X32_BIT: Final = 0x4000_0000
"""__X32_SYSCALL_BIT: in the number of each call of x86-64's ABI with short pointers."""


class Bpf(enum.IntEnum):
    """Codes of the instructions that filters are made of here."""

    LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
    AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
    JEQ = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
    JGE = 0x35  # BPF_JMP | BPF_JGE | BPF_K
    RETURN = 0x06  # BPF_RET | BPF_K


class Action(enum.IntEnum):
    """SECCOMP_RET_*: what becomes of a call. The lower 16 bits are data, such as an errno."""

    KILL_PROCESS = 0x8000_0000
    ERRNO = 0x0005_0000
    ALLOW = 0x7FFF_0000


class Operation(enum.IntEnum):
    """SECCOMP_*: what seccomp(2) is asked for."""

    SET_MODE_STRICT = 0
    SET_MODE_FILTER = 1
    GET_ACTION_AVAIL = 2


class FilterFlag(enum.IntFlag):
    """SECCOMP_FILTER_FLAG_*."""

    TSYNC = 1 << 0
    LOG = 1 << 1
