# SPDX-License-Identifier: Apache-2.0
"""Calls with exactly the arguments that they are given: for tests of filesystems.

Where ``os`` asks for the size first, tries again or follows no more than it has to, these do not.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from penstock.sys.libc import call

__all__ = ["file_handle", "getxattr_into", "listxattr_into", "open_handle"]

_AT_FDCWD: Final = -100
_HANDLE: Final = struct.Struct("Ii")
_HANDLE_BYTES: Final = 128


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


def file_handle(path: str | os.PathLike[str]) -> bytes:
    """name_to_handle_at(2): a name for a file that outlives its names (``struct file_handle``)."""
    space = _HANDLE.pack(_HANDLE_BYTES, 0)
    buffer = ctypes.create_string_buffer(space, _HANDLE.size + _HANDLE_BYTES)
    mount = ctypes.c_int()
    where = os.fsencode(path)
    call("name_to_handle_at", _AT_FDCWD, where, buffer, ctypes.byref(mount), 0, path=where)
    (length, _) = _HANDLE.unpack_from(buffer)
    return buffer.raw[: _HANDLE.size + length]


def open_handle(mount: int, handle: bytes, flags: int = os.O_RDONLY) -> int:
    """open_by_handle_at(2): the file of a handle, open; ``mount`` is any file of the filesystem."""
    return call("open_by_handle_at", mount, handle, flags)
