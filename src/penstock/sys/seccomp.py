# SPDX-License-Identifier: Apache-2.0
"""Seccomp filters: installing one. What they say is written in :mod:`penstock.contain.filter`.

Facts about filters
    - A filter stays for ever and is inherited. Of several, the strictest answer counts.
    - Since Linux 5.11 the kernel remembers which calls a filter allows whatever their arguments
      are; those then cost nothing.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from ctypes import POINTER, Structure, byref, c_char, c_ushort, cast, create_string_buffer
from typing import Final

from penstock.abi.process import Prctl
from penstock.abi.seccomp import AUDIT_ARCH, SOCK_FILTER, FilterFlag, Operation
from penstock.sys.libc import call, syscall

__all__ = ["install", "is_supported", "machine"]

_WIDE: Final = 1 << 32


class _Program(Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", c_ushort), ("filter", POINTER(c_char)))


@functools.cache
def machine() -> str:
    """This process's architecture, as the tables of system calls name it. Remembered, since a
    filter may forbid to ask.

    Raises:
        OSError: ENOSYS: there is no table for it (or this is a 32-bit process).
    """
    name = os.uname().machine
    if name not in AUDIT_ARCH or sys.maxsize < _WIDE:
        raise OSError(errno.ENOSYS, f"no table of system calls for {name}")
    return name


def is_supported() -> bool:
    """Whether the kernel has seccomp; the mode of this process is asked for."""
    try:
        call("prctl", int(Prctl.GET_SECCOMP), 0, 0, 0, 0)
    except OSError:
        return False
    return True


def install(program: bytes, *, tsync: bool = False) -> None:
    """Install a filter, for the calling thread and what it starts.

    Args:
        program: instructions, each a ``struct sock_filter``.
        tsync: for all threads of the process at once.

    Raises:
        OSError: EPERM or EACCES without no_new_privs or CAP_SYS_ADMIN, EINVAL (no filters in this
            kernel, or not a program), ENOSYS; EBUSY: a thread has filters of its own.
    """
    buffer = create_string_buffer(program, len(program))
    header = _Program(len(program) // SOCK_FILTER.size, cast(buffer, POINTER(c_char)))
    flags = FilterFlag.TSYNC if tsync else FilterFlag(0)
    thread = syscall("seccomp", int(Operation.SET_MODE_FILTER), int(flags), byref(header))
    if thread:
        raise OSError(errno.EBUSY, f"seccomp: thread {thread} has filters of its own")
