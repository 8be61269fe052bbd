# SPDX-License-Identifier: Apache-2.0
"""Calls with exactly the arguments that they are given: for tests of filesystems.

Where ``os`` asks for the size first, tries again or follows no more than it has to, these do not.
"""

from __future__ import annotations

import ctypes
import os

from penstock.sys.libc import call

__all__ = ["getxattr_into", "listxattr_into"]


def getxattr_into(path: str | os.PathLike[str], name: str, size: int) -> int:
    """getxattr(2) with a buffer of ``size`` bytes: the length of the value."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    where = os.fsencode(path)
    return call("getxattr", where, name.encode(), buffer, ctypes.c_size_t(size), path=where)


def listxattr_into(path: str | os.PathLike[str], size: int) -> int:
    """listxattr(2) with a buffer of ``size`` bytes: the length of the list."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    where = os.fsencode(path)
    return call("listxattr", where, buffer, ctypes.c_size_t(size), path=where)
