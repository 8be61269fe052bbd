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
from typing import Final

from penstock.sys.libc import syscall

__all__ = ["getxattrat", "have_xattrat", "listxattrat", "removexattrat", "setxattrat"]

_NOFOLLOW: Final = 0x100
_ARGS: Final = struct.Struct("=QII")
_LARGEST: Final = 65_536


class _Buffer(threading.local):
    def __init__(self) -> None:
        self.value = ctypes.create_string_buffer(_LARGEST)


_buffer: Final = _Buffer()


def have_xattrat() -> bool:
    """Whether the kernel has these calls; asks it."""
    try:
        syscall("listxattrat", -1, b".", _NOFOLLOW, None, 0)
    except OSError as error:
        return error.errno not in {errno.ENOSYS, errno.EPERM}
    return True


def getxattrat(fd: int, name: bytes, attribute: bytes) -> bytes:
    """A value. Raises ENODATA, EOPNOTSUPP."""
    value = _buffer.value
    args = _ARGS.pack(ctypes.addressof(value), _LARGEST, 0)
    length = syscall("getxattrat", fd, name, _NOFOLLOW, attribute, args, len(args))
    return ctypes.string_at(value, length)


def setxattrat(fd: int, name: bytes, attribute: bytes, value: bytes, flags: int) -> None:
    """Set a value: XATTR_CREATE 1, XATTR_REPLACE 2."""
    held = ctypes.create_string_buffer(value, len(value) or 1)
    args = _ARGS.pack(ctypes.addressof(held), len(value), flags)
    syscall("setxattrat", fd, name, _NOFOLLOW, attribute, args, len(args))


def listxattrat(fd: int, name: bytes) -> list[bytes]:
    """All names."""
    names = _buffer.value
    length = syscall("listxattrat", fd, name, _NOFOLLOW, names, _LARGEST)
    return ctypes.string_at(names, length).split(b"\0")[:-1]


def removexattrat(fd: int, name: bytes, attribute: bytes) -> None:
    """Remove an attribute. Raises ENODATA."""
    syscall("removexattrat", fd, name, _NOFOLLOW, attribute)
