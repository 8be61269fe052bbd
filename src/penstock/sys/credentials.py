# SPDX-License-Identifier: Apache-2.0
"""The identity with which a thread uses files: setfsuid(2), setfsgid(2), setgroups(2).

Facts about the identity of threads
    - In the kernel each thread has its own. The C library's setgroups tells all threads of the
      process, so here the system call itself is used, which tells the calling one alone.
    - setfsuid and setfsgid never say that they were refused; asked for an id that does not exist
      they change nothing and return the one in force.
    - A filesystem user id other than 0 takes the capabilities over files out of effect; they can be
      put back as long as they are permitted (:func:`penstock.sys.capabilities.keep_only`).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from penstock.sys.libc import call, syscall

__all__ = ["use_files_as"]

_NO_ID: Final = 0xFFFF_FFFF


def use_files_as(user: int, group: int) -> None:
    """Have the calling thread use files as this user and group, without other groups.

    Raises:
        OSError: EPERM, ENOSYS (an architecture whose numbers are not known).
    """
    syscall("setgroups", 0, None)
    for name, wanted in (("setfsgid", group), ("setfsuid", user)):
        call(name, wanted)
        if call(name, _NO_ID) != wanted:
            raise PermissionError(errno.EPERM, f"{name}: {os.strerror(errno.EPERM)}")
