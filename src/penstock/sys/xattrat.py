# SPDX-License-Identifier: Apache-2.0
"""Extended attributes of what a name in a directory is, of open files, and of neither.

Facts
    - setxattrat(2) and its like (Linux 6.13) take a directory and a name and do not follow it. With
      an empty name they take an open file, but no O_PATH descriptor (EBADF).
    - Before that kernel a file without a path has to be open for its attributes, so those of
      symlinks and of special files are out of reach: EOPNOTSUPP.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import threading
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Final

from penstock.sys.rawcalls import failed, get_errno, raw

__all__ = [
    "getxattrat",
    "has_xattrat",
    "have_xattrat",
    "listxattrat",
    "removexattrat",
    "setxattrat",
]

_NOFOLLOW: Final = 0x100
_ARGS: Final = struct.Struct("=QII")
_NO_ROOM: Final = _ARGS.pack(0, 0, 0)
_LARGEST: Final = 65_536
_getxattrat: Final = raw("getxattrat", c_int, c_char_p, c_uint, c_char_p, c_char_p, c_size_t)
_setxattrat: Final = raw("setxattrat", c_int, c_char_p, c_uint, c_char_p, c_char_p, c_size_t)
_listxattrat: Final = raw("listxattrat", c_int, c_char_p, c_uint, c_void_p, c_size_t)
_removexattrat: Final = raw("removexattrat", c_int, c_char_p, c_uint, c_char_p)


class _Buffer(threading.local):
    def __init__(self) -> None:
        self.value = ctypes.create_string_buffer(_LARGEST)
        self.args = _ARGS.pack(ctypes.addressof(self.value), _LARGEST, 0)


_buffer: Final = _Buffer()


def have_xattrat() -> bool:
    """Whether the kernel has these calls; asks it."""
    _listxattrat(-1, b".", _NOFOLLOW, None, 0)
    return get_errno() not in {errno.ENOSYS, errno.EPERM}


def getxattrat(fd: int, name: bytes, attribute: bytes) -> bytes:
    """A value.

    Raises:
        OSError: ENODATA, EOPNOTSUPP.
    """
    args = _buffer.args
    length = _getxattrat(fd, name, _NOFOLLOW, attribute, args, len(args))
    if length < 0:
        raise failed("getxattrat")
    return ctypes.string_at(_buffer.value, length)


def has_xattrat(fd: int, name: bytes, attribute: bytes) -> int:
    """Whether there is such an attribute: 0, or the errno that says why not."""
    length = _getxattrat(fd, name, _NOFOLLOW, attribute, _NO_ROOM, len(_NO_ROOM))
    return get_errno() if length < 0 else 0


def setxattrat(fd: int, name: bytes, attribute: bytes, value: bytes, flags: int) -> None:
    """Set a value: XATTR_CREATE 1, XATTR_REPLACE 2.

    Raises:
        OSError: EEXIST, ENODATA, ENOSPC, EOPNOTSUPP, EPERM.
    """
    held = ctypes.create_string_buffer(value, len(value) or 1)
    args = _ARGS.pack(ctypes.addressof(held), len(value), flags)
    if _setxattrat(fd, name, _NOFOLLOW, attribute, args, len(args)):
        raise failed("setxattrat")


def listxattrat(fd: int, name: bytes) -> list[bytes]:
    """All names."""
    names = _buffer.value
    length = _listxattrat(fd, name, _NOFOLLOW, names, _LARGEST)
    if length < 0:
        raise failed("listxattrat")
    return ctypes.string_at(names, length).split(b"\0")[:-1]


def removexattrat(fd: int, name: bytes, attribute: bytes) -> None:
    """Remove an attribute.

    Raises:
        OSError: ENODATA.
    """
    if _removexattrat(fd, name, _NOFOLLOW, attribute):
        raise failed("removexattrat")
