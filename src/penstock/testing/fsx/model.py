# SPDX-License-Identifier: Apache-2.0
"""The oracle: what every file must hold, and which descriptors and mappings of it are open.

A :class:`Node` is an inode, whether it has names or lives on by an open descriptor alone. Its bytes
are a bytearray as long as the file is. Nothing here asks the filesystem.
"""

from __future__ import annotations

import mmap
import os
import random
from functools import cache
from typing import Final

__all__ = ["BLOB", "PAGE", "Buffer", "Difference", "Mapping", "Node", "Slot", "compare", "payload"]

PAGE: Final = mmap.PAGESIZE
BLOB: Final = 1 << 20
"""Payloads start at one of so many places in a fixed sequence of random bytes."""

Buffer = bytes | bytearray | memoryview

_LONGEST: Final = 4 << 20
_STRIDE: Final = 4099
_ZEROS_EVERY: Final = 23
_SHOWN: Final = 24


class Difference(Exception):
    """The filesystem did not do as the model says.

    Args:
        what: which answer or content.
        offset: the first byte that differs, None where it is no content.
        got, wanted: the bytes around there, on both sides.
    """

    def __init__(
        self, what: str, offset: int | None = None, got: bytes = b"", wanted: bytes = b""
    ) -> None:
        super().__init__(what)
        self.what = what
        self.offset = offset
        self.got = got
        self.wanted = wanted


class Node:
    """What one inode must be."""

    __slots__ = ("changed", "data", "links", "mtime", "number", "stores")

    def __init__(self, number: int) -> None:
        self.number = number
        """Counts the inodes of a run, for people."""
        self.data = bytearray()
        self.links = 0
        self.stores = False
        """Whether a shared mapping was stored into since the last fsync."""
        self.mtime = 0
        """The largest seen so far, nanoseconds."""
        self.changed = 0
        """When the last change began by which mtime must be new, nanoseconds."""

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there; a gap before them reads as zeros."""
        self.resize(max(offset, len(self.data)))
        self.data[offset : offset + len(data)] = data

    def resize(self, size: int) -> None:
        """Cut off, or grow by zeros."""
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))

    def zero(self, offset: int, length: int, *, grow: bool = False) -> None:
        """Zeros there, not beyond the end unless the file is to grow."""
        if grow:
            self.resize(max(len(self.data), offset + length))
        end = min(offset + length, len(self.data))
        if end > offset:
            self.data[offset:end] = bytes(end - offset)


class Slot:
    """An open descriptor."""

    __slots__ = ("fd", "flags", "node", "position")

    def __init__(self, fd: int, node: Node, flags: int) -> None:
        self.fd = fd
        self.node = node
        self.flags = flags
        self.position = 0

    @property
    def readable(self) -> bool:
        """Whether it may be read."""
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        """Whether it may be written."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def append(self) -> bool:
        """Whether all writes go to the end."""
        return bool(self.flags & os.O_APPEND)

    @property
    def direct(self) -> bool:
        """Whether transfers must be aligned."""
        return bool(self.flags & os.O_DIRECT)


class Mapping:
    """A shared mapping of a range of a file."""

    __slots__ = ("memory", "node", "start", "writable")

    def __init__(self, memory: mmap.mmap, node: Node, start: int, writable: bool) -> None:
        self.memory = memory
        self.node = node
        self.start = start
        self.writable = writable

    @property
    def reach(self) -> int:
        """Bytes of the mapping that lie inside the file now; beyond them is SIGBUS."""
        return max(0, min(len(self.memory), len(self.node.data) - self.start))


@cache
def _blob() -> bytes:
    return random.Random("payloads").randbytes(BLOB + _LONGEST)


def payload(number: int, length: int) -> bytes:
    """What operation ``number`` writes; now and then zeros, which leave no other trace."""
    if number % _ZEROS_EVERY == 0:
        return bytes(length)
    start = number * _STRIDE % BLOB
    return _blob()[start : start + length]


def compare(got: Buffer, wanted: Buffer, base: int, what: str) -> None:
    """Both the same, or a :class:`Difference` at the first byte that is not.

    Args:
        got: what the filesystem said.
        wanted: what it should have.
        base: the offset of the first byte in the file.
        what: for people.
    """
    if got == wanted:
        return
    got, wanted = bytes(got), bytes(wanted)
    shared = min(len(got), len(wanted))
    low, high = 0, shared
    while low < high:  # the shortest prefix that differs
        middle = (low + high) // 2
        if got[low : middle + 1] == wanted[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    if low == shared and len(got) != len(wanted):
        what += f": {len(got)} bytes instead of {len(wanted)}"
    around = slice(low, low + _SHOWN)
    raise Difference(what, base + low, got[around], wanted[around])
