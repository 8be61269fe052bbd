# SPDX-License-Identifier: Apache-2.0
"""Use an image in every way that a server does, and hold the reader to its promises.

Whatever the bytes: nothing but :class:`FormatError` and ``OSError`` leaves the reader, no call
takes longer than two seconds, no answer is larger than what was asked for.
"""

from __future__ import annotations

import errno
import itertools
import stat
import time
from collections.abc import Callable
from typing import TypeVar

from penstock.formats.errors import FormatError
from penstock.formats.ext4.inode import Inode
from penstock.formats.ext4.reader import Ext4Reader

__all__ = ["MemorySource", "explore"]

T = TypeVar("T")
SECONDS = 2.0
_MAX_INODES = 150
_MAX_ENTRIES = 300
_MAX_EXTENTS = 50
_READ = 65536


class MemorySource:
    """Bytes as a block source."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.size = len(data)

    def pread(self, length: int, offset: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(errno.EIO, f"read of {length} bytes at {offset} of {self.size}")
        return bytes(self.data[offset : offset + length])


def _try(call: Callable[[], T]) -> T | None:
    """The answer of one call; None if the image was at fault. Fails if it took too long."""
    begun = time.perf_counter()
    try:
        return call()
    except (FormatError, OSError):
        return None
    finally:
        taken = time.perf_counter() - begun
        assert taken < SECONDS, f"a call took {taken:.1f} s"


def explore(source: MemorySource, *, verify: bool) -> int:
    """Open an image and use it; returns how many inodes could be read."""
    reader = _try(lambda: Ext4Reader(source, verify=verify))
    if reader is None:
        return 0
    assert isinstance(reader, Ext4Reader)
    _try(reader.statfs)
    pending = [2, 8, 11, 12, 13]
    seen: set[int] = set()
    readable = 0
    while pending and len(seen) < _MAX_INODES:
        ino = pending.pop(0)
        if ino in seen:
            continue
        seen.add(ino)
        inode = _try(lambda ino=ino: reader.inode(ino))  # type: ignore[misc]
        if inode is not None:
            readable += 1
            pending += _use(reader, inode)
    return readable


def _use(reader: Ext4Reader, inode: Inode) -> list[int]:
    """Everything that can be done with an inode; returns the inodes that it leads to."""
    for name in _try(lambda: reader.listxattr(inode)) or ():
        value = _try(lambda name=name: reader.getxattr(inode, name))  # type: ignore[misc]
        assert value is None or len(value) <= 2 * 65536
    _try(lambda: reader.xattrs(inode))
    _try(lambda: reader.readlink(inode))
    _extents(reader, inode)
    for offset in {0, inode.size // 2, max(inode.size - _READ, 0)}:
        data = _try(lambda offset=offset: reader.read(inode, offset, _READ))  # type: ignore[misc]
        assert data is None or len(data) == min(_READ, inode.size - offset)
    return _list(reader, inode) if stat.S_ISDIR(inode.mode) else []


def _extents(reader: Ext4Reader, inode: Inode) -> None:
    extents = _try(lambda: reader.extents(inode))
    position = 0
    for _ in range(_MAX_EXTENTS):
        extent = _try(lambda: next(extents, None)) if extents is not None else None
        if extent is None:
            return
        assert extent.offset == position
        assert extent.length > 0
        position += extent.length
        assert position <= inode.size


def _list(reader: Ext4Reader, inode: Inode) -> list[int]:
    records = _try(lambda: reader.readdir(inode))
    found = []
    cookie = 0
    for _ in range(_MAX_ENTRIES):
        record = _try(lambda: next(records, None)) if records is not None else None
        if record is None:
            break
        assert record.next_cookie > cookie
        cookie = record.next_cookie
        assert 0 < len(record.name) <= 255
        assert b"/" not in record.name
        assert b"\0" not in record.name
        found.append(record)
    for record in itertools.islice(found, 20):
        _try(lambda name=record.name: reader.lookup(inode, name))  # type: ignore[misc]
    _try(lambda: reader.lookup(inode, b"no such name"))
    _try(lambda: list(itertools.islice(reader.readdir(inode, cookie // 2 + 1), 10)))
    return [record.ino for record in found]
