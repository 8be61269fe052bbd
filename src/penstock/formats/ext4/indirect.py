# SPDX-License-Identifier: Apache-2.0
"""Block maps of ext2 and ext3: twelve direct blocks, then one, two and three levels of indirection.

They have no checksums and no unwritten blocks. A zero stands for a hole, of one block or of all
that an indirect block would map. Holes of whole indirect blocks are told as pieces, so that a walk
over a map of nothing but holes makes bounded steps.

Specification: Documentation/filesystems/ext4/blockmap.rst.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from typing import Final

from penstock.formats.ext4.extents import MAPPED, UNMAPPED, Piece
from penstock.formats.ext4.inode import Inode
from penstock.formats.ext4.volume import Volume

__all__ = ["max_blocks", "walk_indirect"]

_DIRECT: Final = 12


def _words(data: bytes) -> array[int]:
    words = array("I", data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def max_blocks(block_size: int) -> int:
    """Logical blocks that a map can have."""
    per = block_size // 4
    return _DIRECT + per + per**2 + per**3


def walk_indirect(volume: Volume, inode: Inode, first: int, end: int) -> Iterator[Piece]:
    """The pieces of a file that overlap logical blocks ``first`` to ``end`` (exclusive), in order.

    Blocks that no piece tells of are holes.

    Raises:
        CorruptImage: a block is outside the filesystem.
        OSError: the source's.
    """
    words = _words(inode.block)
    yield from _runs(volume, inode, words[:_DIRECT], 0, first, end)
    start = _DIRECT
    span = 1
    for level, block in enumerate(words[_DIRECT:], 1):
        span *= volume.block_size // 4
        if start < end and start + span > first:
            yield from _tree(volume, inode, block, level, start, span, first, end)
        start += span


def _tree(
    volume: Volume,
    inode: Inode,
    block: int,
    level: int,
    start: int,
    span: int,
    first: int,
    end: int,
) -> Iterator[Piece]:
    """What an indirect block maps: ``span`` logical blocks from ``start``."""
    if block == 0:
        yield Piece(start, span, 0, UNMAPPED)
        return
    volume.check_range(block, 1, f"inode {inode.ino}: indirect block")
    data = volume.read_block(block)
    if data == bytes(len(data)):
        yield Piece(start, span, 0, UNMAPPED)
        return
    words = _words(data)
    if level == 1:
        yield from _runs(volume, inode, words, start, first, end)
        return
    step = span // len(words)
    index = max(first - start, 0) // step
    for child in words[index:]:
        low = start + index * step
        if low >= end:
            return
        yield from _tree(volume, inode, child, level - 1, low, step, first, end)
        index += 1


def _runs(
    volume: Volume, inode: Inode, words: array[int], start: int, first: int, end: int
) -> Iterator[Piece]:
    """Runs of adjacent blocks among pointers to the blocks from ``start`` on."""
    index = max(first - start, 0)
    stop = min(len(words), end - start)
    while index < stop:
        block = words[index]
        if block == 0:
            index += 1
            continue
        run = index + 1
        while run < stop and words[run] == block + run - index:
            run += 1
        volume.check_range(block, run - index, f"inode {inode.ino}: block map")
        yield Piece(start + index, run - index, block, MAPPED)
        index = run
