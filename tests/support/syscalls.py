# SPDX-License-Identifier: Apache-2.0
"""C library functions that tests need and Python does not have.

All of them release the interpreter's lock while they run. Structures are those of <bits/statx.h>
and <fcntl.h> on x86-64 and aarch64, which agree.
"""

from __future__ import annotations

import ctypes
import os
import struct
from types import TracebackType
from typing import NamedTuple, Self

__all__ = ["DirStream", "Handle", "Statx", "handle_of", "open_handle", "statx"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.opendir.argtypes = [ctypes.c_char_p]
_libc.readdir.restype = ctypes.c_void_p
_libc.readdir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.seekdir.restype = None
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.closedir.argtypes = [ctypes.c_void_p]

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BASIC_BTIME = 0xFFF
_BTIME = 0x800
_MAX_HANDLE = 128


def _failure(path: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


class Statx(NamedTuple):
    """The part of struct statx that ``os.stat`` does not show."""

    mask: int
    born_ns: int | None
    """Birth time, ns since 1970; None where the filesystem has none."""


def statx(path: bytes) -> Statx:
    """statx(2) without following a symlink.

    Raises:
        OSError: as the call says.
    """
    buffer = ctypes.create_string_buffer(256)
    result = _libc.statx(_AT_FDCWD, path, _AT_SYMLINK_NOFOLLOW, _STATX_BASIC_BTIME, buffer)
    if result:
        raise _failure(path)
    (mask,) = struct.unpack_from("<I", buffer, 0)
    seconds, nanoseconds = struct.unpack_from("<qI", buffer, 80)
    return Statx(mask, seconds * 10**9 + nanoseconds if mask & _BTIME else None)


class Handle(NamedTuple):
    """A file handle as an NFS server gives it to its clients."""

    type: int
    data: bytes


def handle_of(path: bytes) -> Handle:
    """name_to_handle_at(2) without following a symlink.

    Raises:
        OSError: as the call says.
    """
    buffer = ctypes.create_string_buffer(8 + _MAX_HANDLE)
    struct.pack_into("<I", buffer, 0, _MAX_HANDLE)
    mount_id = ctypes.c_int()
    if _libc.name_to_handle_at(_AT_FDCWD, path, buffer, ctypes.byref(mount_id), 0):
        raise _failure(path)
    size, kind = struct.unpack_from("<Ii", buffer, 0)
    return Handle(kind, buffer.raw[8 : 8 + size])


def open_handle(mount: int, handle: Handle, flags: int) -> int:
    """open_by_handle_at(2): a new descriptor.

    Args:
        mount: a descriptor of anything in the filesystem.
        handle: of the file.
        flags: of open(2).

    Raises:
        OSError: as the call says.
    """
    data = struct.pack("<Ii", len(handle.data), handle.type) + handle.data
    fd: int = _libc.open_by_handle_at(mount, data, flags)
    if fd < 0:
        raise _failure(b"file handle")
    return fd


class DirStream:
    """A directory as the C library reads it, with telldir(3) and seekdir(3)."""

    def __init__(self, path: bytes) -> None:
        """Open it.

        Raises:
            OSError: as opendir(3) says.
        """
        stream = _libc.opendir(path)
        if not stream:
            raise _failure(path)
        self._stream: int | None = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            _libc.closedir(self._stream)
            self._stream = None

    def read(self) -> tuple[bytes, int] | None:
        """The next name and its inode number; None at the end.

        Raises:
            OSError: as readdir(3) says.
        """
        ctypes.set_errno(0)
        entry = _libc.readdir(self._stream)
        if not entry:
            if ctypes.get_errno():
                raise _failure(b"readdir")
            return None
        (ino,) = struct.unpack("<Q", ctypes.string_at(entry, 8))
        return ctypes.string_at(entry + 19), ino

    def tell(self) -> int:
        """The place of the next entry."""
        return int(_libc.telldir(self._stream))

    def seek(self, place: int) -> None:
        """Go on at a place that :meth:`tell` told, of this stream or of another."""
        _libc.seekdir(self._stream, place)
