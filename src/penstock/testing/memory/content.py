# SPDX-License-Identifier: Apache-2.0
"""The bytes of one sparse file, in blocks of 4 KiB.

A block is absent (a hole), allocated (reads as zeros, a hole to SEEK_DATA, as in tmpfs) or written.
Loops are bounded by the blocks that exist, never by a length that a caller names, so that files of
many terabytes cost what was written into them.

Invariant: bytes past ``size`` in a block are zero. Not thread-safe.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from penstock.fs import FsError
from penstock.testing.memory.space import Space

__all__ = ["BLOCK", "Content"]

BLOCK: Final = 4096
"""Bytes of a block."""

_ZEROS: Final = bytes(BLOCK)


class Content:
    """A sparse array of bytes.

    Args:
        space: pays for the blocks.
    """

    __slots__ = ("_blocks", "_space", "size")

    def __init__(self, space: Space) -> None:
        self._space = space
        self._blocks: dict[int, bytearray | None] = {}
        self.size = 0

    @property
    def allocated(self) -> int:
        """Bytes of space that the file takes."""
        return len(self._blocks) * BLOCK

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``, cut at end of file."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        parts: list[bytes | bytearray | memoryview] = []
        for index, start, end in _pieces(offset, length):
            block = self._blocks.get(index) or _ZEROS
            parts.append(block if end - start == BLOCK else memoryview(block)[start:end])
        return b"".join(parts)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Put ``data`` at ``offset``; how many bytes there was space for.

        Raises:
            FsError: ENOSPC if there was none at all.
        """
        done = 0
        for index, start, end in _pieces(offset, len(data)):
            block = self._blocks.get(index)
            if block is None:
                try:
                    block = self._new_block(index)
                except FsError:
                    if not done:
                        raise
                    break
            block[start:end] = data[done : done + end - start]
            done += end - start
        self.size = max(self.size, offset + done) if done else self.size
        return done

    def _new_block(self, index: int) -> bytearray:
        if index not in self._blocks:
            self._space.take(BLOCK)
        block = self._blocks[index] = bytearray(BLOCK)
        return block

    def truncate(self, size: int) -> None:
        """Make the file ``size`` bytes long; what is cut off, blocks beyond the end included, is
        given back."""
        if size <= self.size:
            self._drop(-(-size // BLOCK), None)
            self._clear(size, -size % BLOCK)
        self.size = size

    def punch(self, offset: int, length: int) -> None:
        """Make a range a hole: whole blocks are given back, the rest is zeroed."""
        first, last, edges = _whole_blocks(offset, length)
        self._drop(first, last)
        for start, count in edges:
            self._clear(start, count)

    def allocate(self, offset: int, length: int) -> None:
        """Have space for a range without changing what it reads as.

        Raises:
            FsError: ENOSPC; nothing has changed then.
        """
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        self._space.take((last - first - len(self._inside(first, last))) * BLOCK)
        for index in range(first, last):
            self._blocks.setdefault(index, None)

    def zero(self, offset: int, length: int) -> None:
        """Have space for a range, reading as zeros. Raises as :meth:`allocate`."""
        self.allocate(offset, length)
        first, last, edges = _whole_blocks(offset, length)
        for index in range(first, last):
            self._blocks[index] = None
        for start, count in edges:
            self._clear(start, count)

    def seek(self, offset: int, whence: int) -> int:
        """SEEK_DATA or SEEK_HOLE.

        Raises:
            FsError: ENXIO at or beyond the end, or if no data follows; EINVAL for other whences.
        """
        if whence not in {os.SEEK_DATA, os.SEEK_HOLE}:
            raise FsError(errno.EINVAL, f"whence {whence} is neither SEEK_DATA nor SEEK_HOLE")
        if not 0 <= offset < self.size:
            raise FsError(errno.ENXIO, f"offset {offset} is not inside {self.size} bytes")
        index = offset // BLOCK
        if whence == os.SEEK_HOLE:
            while self._blocks.get(index) is not None:
                index += 1
            return min(max(offset, index * BLOCK), self.size)
        if self._blocks.get(index) is not None:
            return offset
        later = min((i for i, b in self._blocks.items() if i > index and b is not None), default=-1)
        if not 0 <= later * BLOCK < self.size:
            raise FsError(errno.ENXIO, f"there is no data from offset {offset} on")
        return later * BLOCK

    def is_allocated(self, index: int) -> bool:
        """Whether block ``index`` takes space."""
        return index in self._blocks

    def free(self) -> None:
        """Give everything back."""
        self._drop(0, None)
        self.size = 0

    def _inside(self, first: int, last: int | None) -> list[int]:
        """The blocks that exist of [first, last), by whichever way is shorter."""
        if last is not None and last - first < len(self._blocks):
            return [index for index in range(first, last) if index in self._blocks]
        end = float("inf") if last is None else last
        return [index for index in self._blocks if first <= index < end]

    def _drop(self, first: int, last: int | None) -> None:
        for index in self._inside(first, last):
            del self._blocks[index]
            self._space.take(-BLOCK)

    def _clear(self, offset: int, length: int) -> None:
        """Zero a range inside one block, if the block has been written."""
        block = self._blocks.get(offset // BLOCK)
        if block is not None and length:
            start = offset % BLOCK
            block[start : start + length] = bytes(length)


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """A range as (block, first byte in it, byte after the last in it)."""
    end = offset + length
    while offset < end:
        index, start = divmod(offset, BLOCK)
        stop = min(BLOCK, start + end - offset)
        yield index, start, stop
        offset += stop - start


def _whole_blocks(offset: int, length: int) -> tuple[int, int, list[tuple[int, int]]]:
    """The blocks wholly inside a range, [first, last), and the (offset, length) of its edges."""
    end = offset + length
    first, last = -(-offset // BLOCK), end // BLOCK
    if first > last:
        return first, first, [(offset, length)]
    return first, last, [(offset, first * BLOCK - offset), (last * BLOCK, end - last * BLOCK)]
