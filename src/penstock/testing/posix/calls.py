# SPDX-License-Identifier: Apache-2.0
"""System calls of the cases that Python's ``os`` lacks, and short ways to open and write."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from penstock.sys.libc import call

__all__ = [
    "EXCHANGE",
    "FALLOC_KEEP_SIZE",
    "FALLOC_PUNCH_HOLE",
    "NOREPLACE",
    "WHITEOUT",
    "Dirent",
    "birth_time_ns",
    "fallocate",
    "getdents",
    "link_descriptor",
    "opened",
    "rename2",
]

NOREPLACE: Final = 1
EXCHANGE: Final = 2
WHITEOUT: Final = 4
FALLOC_KEEP_SIZE: Final = 1
FALLOC_PUNCH_HOLE: Final = 2

_AT_FDCWD: Final = -100
_AT_SYMLINK_FOLLOW: Final = 0x400
_STATX_BTIME: Final = 0x800
_STATX_SIZE: Final = 256
_STATX_BTIME_OFFSET: Final = 80
_DIRENT: Final = struct.Struct("<QqHB")


@contextlib.contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """An open descriptor, closed at the end."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def rename2(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    call("renameat2", _AT_FDCWD, bytes(old), _AT_FDCWD, bytes(new), flags, path=str(new))


def link_descriptor(fd: int, new: Path) -> None:
    """linkat(2) of an open file, by its link in /proc. (os.link does not follow it.)"""
    source = f"/proc/self/fd/{fd}".encode()
    call("linkat", _AT_FDCWD, source, _AT_FDCWD, bytes(new), _AT_SYMLINK_FOLLOW, path=str(new))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    call("fallocate", fd, mode, ctypes.c_long(offset), ctypes.c_long(length))


def birth_time_ns(path: Path) -> int | None:
    """The time of birth by statx(2), nanoseconds; None if the filesystem does not say."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    call("statx", _AT_FDCWD, bytes(path), 0, _STATX_BTIME, buffer, path=str(path))
    (mask,) = struct.unpack_from("<I", buffer)
    seconds, nanoseconds = struct.unpack_from("<qI", buffer, _STATX_BTIME_OFFSET)
    return int(seconds) * 1_000_000_000 + int(nanoseconds) if mask & _STATX_BTIME else None


class Dirent(NamedTuple):
    """One record of getdents64(2)."""

    name: bytes
    ino: int
    next: int
    """Position after this entry, for lseek(2)."""
    type: int


def getdents(fd: int, size: int = 4096) -> list[Dirent]:
    """getdents64(2): the next entries of an open directory, as many as fit into ``size`` bytes."""
    buffer = ctypes.create_string_buffer(size)
    filled = call("getdents64", fd, buffer, ctypes.c_size_t(size))
    entries: list[Dirent] = []
    offset = 0
    while offset < filled:
        ino, following, length, kind = _DIRENT.unpack_from(buffer, offset)
        name = buffer.raw[offset + _DIRENT.size : offset + length].split(b"\0", 1)[0]
        entries.append(Dirent(name, ino, following, kind))
        offset += length
    return entries
