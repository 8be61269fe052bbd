# SPDX-License-Identifier: Apache-2.0
"""System calls of the cases, their flags, and a short way to open files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from penstock.sys.exact import getxattr_into, listxattr_into
from penstock.sys.files import (
    Dirent,
    birth_time_ns,
    fallocate,
    getdents,
    link_descriptor,
    rename2,
)
from penstock.sys.handles import file_handle, open_handle
from penstock.sys.libc import call

__all__ = [
    "EXCHANGE",
    "FALLOC_COLLAPSE_RANGE",
    "FALLOC_INSERT_RANGE",
    "FALLOC_KEEP_SIZE",
    "FALLOC_PUNCH_HOLE",
    "FALLOC_ZERO_RANGE",
    "FS_APPEND_FL",
    "FS_IMMUTABLE_FL",
    "NOREPLACE",
    "UTIME_NOW",
    "UTIME_OMIT",
    "WHITEOUT",
    "Dirent",
    "birth_time_ns",
    "clone",
    "clone_range",
    "fallocate",
    "file_handle",
    "forget",
    "getdents",
    "getxattr_into",
    "inode_flags",
    "link_descriptor",
    "listxattr_into",
    "next_tick",
    "open_handle",
    "opened",
    "rename2",
    "set_inode_flags",
    "syncfs",
    "utimens",
]

NOREPLACE: Final = 1
EXCHANGE: Final = 2
WHITEOUT: Final = 4
FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_COLLAPSE_RANGE: Final = 0x08
FALLOC_ZERO_RANGE: Final = 0x10
FALLOC_INSERT_RANGE: Final = 0x20
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
FS_IMMUTABLE_FL: Final = 0x10
FS_APPEND_FL: Final = 0x20

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_FICLONE: Final = 0x4004_9409
_FICLONERANGE: Final = 0x4020_940D
_FS_IOC_GETFLAGS: Final = 0x8008_6601
_FS_IOC_SETFLAGS: Final = 0x4008_6602
_PATIENCE: Final = 1.0
"""Seconds."""


@contextlib.contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """An open descriptor, closed at the end."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def forget(fd: int) -> None:
    """Have the kernel drop what it has cached of a file, so that the filesystem itself is asked for
    what is read next (where it keeps its data in the cache alone, nothing is dropped)."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def next_tick(place: Path) -> None:
    """Wait until the clock of timestamps goes on, which it does every few milliseconds.

    Raises:
        AssertionError: it stands still, or files do not show it.
    """
    tick = place / "tick"
    tick.write_bytes(b"")
    before = os.stat(tick).st_mtime_ns
    deadline = time.monotonic() + _PATIENCE
    while os.stat(tick).st_mtime_ns <= before:
        if time.monotonic() > deadline:
            raise AssertionError(f"a file written for {_PATIENCE:.0f} s keeps its first mtime")
        tick.write_bytes(b"tick")
    tick.unlink()


def utimens(
    path: Path, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True
) -> None:
    """utimensat(2) with its own arguments: (seconds, nanoseconds or UTIME_*) each."""
    times = struct.pack("qqqq", *atime, *mtime)
    flags = 0 if follow else _AT_SYMLINK_NOFOLLOW
    call("utimensat", _AT_FDCWD, os.fsencode(path), times, flags, path=os.fsencode(path))


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    call("syncfs", fd)


def inode_flags(fd: int) -> int:
    """FS_*_FL of an open file."""
    buffer = bytearray(8)
    fcntl.ioctl(fd, _FS_IOC_GETFLAGS, buffer)
    return int(struct.unpack_from("I", buffer)[0])


def set_inode_flags(fd: int, flags: int) -> None:
    """Give an open file its FS_*_FL."""
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("Q", flags))


def clone(target: int, source: int) -> None:
    """FICLONE: have a file share all blocks of another."""
    fcntl.ioctl(target, _FICLONE, source)


def clone_range(target: int, source: int, offset: int, length: int, to: int) -> None:
    """FICLONERANGE: have a file share some blocks of another."""
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("qQQQ", source, offset, length, to))
