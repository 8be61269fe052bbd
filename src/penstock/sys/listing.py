# SPDX-License-Identifier: Apache-2.0
"""Reading directories in large pieces: getdents64(2) with the kernel's own positions."""

from __future__ import annotations

import ctypes
import struct
import threading
from ctypes import c_int, c_size_t, c_ssize_t, c_void_p
from typing import Final

from penstock.sys.rawcalls import failed, prototype

__all__ = ["read_directory"]

_SIZE: Final = 64 << 10
_HEAD: Final = 19
_RECORD: Final = struct.Struct("<QQHB").unpack_from


_getdents64: Final = prototype("getdents64", c_int, c_void_p, c_size_t, restype=c_ssize_t)


class _Buffer(threading.local):
    def __init__(self) -> None:
        self.room = ctypes.create_string_buffer(_SIZE)


_buffer: Final = _Buffer()


def read_directory(fd: int) -> list[tuple[bytes, int, int, int]]:
    """The next entries of an open directory, some 2,000: (name, inode number, position after it as
    an unsigned number, DT_*). Empty at the end.

    Raises:
        OSError: what the kernel answers.
    """
    room = _buffer.room
    filled = _getdents64(fd, room, _SIZE)
    if filled < 0:
        raise failed("getdents64")
    data = ctypes.string_at(room, filled)
    find = data.index
    entries: list[tuple[bytes, int, int, int]] = []
    at = 0
    while at < filled:
        ino, following, length, kind = _RECORD(data, at)
        start = at + _HEAD
        entries.append((data[start : find(0, start)], ino, following, kind))
        at += length
    return entries
