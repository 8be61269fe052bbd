# SPDX-License-Identifier: Apache-2.0
"""Reading directories in large pieces: getdents64(2) with the kernel's own positions."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from ctypes import c_int, c_size_t, c_ssize_t, c_void_p
from typing import Any, Final

from penstock.sys.libc import libc

__all__ = ["read_directory"]

_SIZE: Final = 64 << 10
_HEAD: Final = 19
_RECORD: Final = struct.Struct("<QQHB").unpack_from


def _prototype() -> Any:
    function = libc["getdents64"]
    function.argtypes = (c_int, c_void_p, c_size_t)
    function.restype = c_ssize_t
    return function


_getdents64: Final = _prototype()


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
        code = ctypes.get_errno()
        raise OSError(code, f"getdents64: {os.strerror(code)}")
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
