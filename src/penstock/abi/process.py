# SPDX-License-Identifier: Apache-2.0
"""Numbers that concern processes: clone(2), unshare(2), prctl(2).

From ``linux/sched.h``, ``linux/prctl.h``, ``linux/securebits.h``,
``linux/proc_ns.h`` and ``linux/highuid.h``.
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = [
    "FIRST_PID_NAMESPACE",
    "FIRST_USER_NAMESPACE",
    "NOBODY",
    "PTHREAD_FLAGS",
    "CloneFlag",
    "Prctl",
    "Securebits",
]


class CloneFlag(enum.IntFlag):
    """CLONE_NEW*: kinds of namespaces."""

    NEWTIME = 0x0000_0080
    NEWNS = 0x0002_0000
    NEWCGROUP = 0x0200_0000
    NEWUTS = 0x0400_0000
    NEWIPC = 0x0800_0000
    NEWUSER = 0x1000_0000
    NEWPID = 0x2000_0000
    NEWNET = 0x4000_0000


FIRST_USER_NAMESPACE: Final = 0xEFFF_FFFD
FIRST_PID_NAMESPACE: Final = 0xEFFF_FFFC
"""The machine's own namespaces have these inode numbers on every Linux (linux/proc_ns.h)."""

NOBODY: Final = 65534
"""User and group of whoever has no rights: what the kernel shows for ids that are not mapped
(DEFAULT_OVERFLOWUID, linux/highuid.h)."""

PTHREAD_FLAGS: Final = 0x003D_0F00
"""What C libraries give clone(2) for a thread: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS,
PARENT_SETTID, CHILD_CLEARTID."""


class Prctl(enum.IntEnum):
    """PR_*: what prctl(2) is asked for."""

    SET_PDEATHSIG = 1
    GET_DUMPABLE = 3
    SET_DUMPABLE = 4
    SET_NAME = 15
    GET_SECCOMP = 21
    CAPBSET_READ = 23
    CAPBSET_DROP = 24
    GET_SECUREBITS = 27
    SET_SECUREBITS = 28
    SET_NO_NEW_PRIVS = 38
    GET_NO_NEW_PRIVS = 39
    CAP_AMBIENT = 47
    SET_IO_FLUSHER = 57
    GET_IO_FLUSHER = 58


class Securebits(enum.IntFlag):
    """SECBIT_*: what user 0 is no longer given for being user 0. Each has a lock."""

    NOROOT = 1 << 0
    NOROOT_LOCKED = 1 << 1
    NO_SETUID_FIXUP = 1 << 2
    NO_SETUID_FIXUP_LOCKED = 1 << 3
    KEEP_CAPS = 1 << 4
    KEEP_CAPS_LOCKED = 1 << 5
    NO_CAP_AMBIENT_RAISE = 1 << 6
    NO_CAP_AMBIENT_RAISE_LOCKED = 1 << 7
