# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a file lie: its blocks, whatever maps them, as byte ranges of the image.

Three ways lead from a file to its blocks (extent tree, block map, inline data); above this module
they are one. Addresses are those of the newest copy, in its place or in the journal.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from penstock.formats.ext4.extents import MAPPED, UNWRITTEN, Piece, walk_extents
from penstock.formats.ext4.format import EXTENT_MAGIC, EXTENT_MAX_WRITTEN, InodeFlag
from penstock.formats.ext4.indirect import walk_indirect
from penstock.formats.ext4.inode import Inode
from penstock.formats.ext4.volume import JOURNAL_MAGIC, Volume

__all__ = ["Extent", "ExtentKind", "file_extents", "find_block", "seek", "walk"]

_EXTENTS: Final = int(InodeFlag.EXTENTS)
_INLINE_DATA: Final = int(InodeFlag.INLINE_DATA)
_MERGE_LIMIT: Final = 4096
"""Pieces put together into one extent at most: bounds the work of one step of the iterator."""
_SEEK_LIMIT: Final = 1 << 17
"""Pieces looked at in one search for data or a hole."""


class ExtentKind(enum.IntEnum):
    """What a range of a file is."""

    HOLE = 0
    MAPPED = 1
    UNWRITTEN = 2
    """Allocated, reads as zeros."""
    INLINE = 3
    """In the inode itself: read it with ``Ext4Reader.read``."""
    ESCAPED = 4
    """At ``address`` but for the first four bytes of its block, which the journal has replaced
    (they are C0 3B 39 98): read it with ``Ext4Reader.read``."""


class Extent(NamedTuple):
    """``length`` bytes of a file from ``offset``."""

    offset: int
    length: int
    kind: ExtentKind
    address: int
    """Byte address in the image; 0 unless MAPPED or ESCAPED."""


_unpack_root: Final = struct.Struct("<HHHH4xIHHI36x").unpack
"""Header (ExtentHeader) and first entry (ExtentLeaf) of the root of an extent tree."""

_HOLE: Final = ExtentKind.HOLE
_MAPPED: Final = ExtentKind.MAPPED
_UNWRITTEN: Final = ExtentKind.UNWRITTEN
_ESCAPED: Final = ExtentKind.ESCAPED


def walk(volume: Volume, inode: Inode, first: int, end: int) -> Iterator[Piece]:
    """The pieces of a file (not an inline one) that overlap logical blocks ``first`` to ``end``.

    What no piece tells of is a hole; the first and the last may reach beyond the range.

    Raises:
        CorruptImage, BadChecksum: its map is bad.
        OSError: the source's.
    """
    walk_map = walk_extents if inode.flags & _EXTENTS else walk_indirect
    pieces = walk_map(volume, inode, first, end)
    changes = volume.ranges.get(inode.ino)
    return pieces if changes is None else changes.merge(pieces, first, end)


def find_block(volume: Volume, inode: Inode, logical: int) -> int:
    """The block that holds block ``logical`` of a file; 0 = none. Raises as :func:`walk`."""
    for piece in walk(volume, inode, logical, logical + 1):
        if piece.state == MAPPED:
            return piece.physical + logical - piece.logical
    return 0


def seek(volume: Volume, inode: Inode, start: int, *, data: bool) -> int | None:
    """The first byte from ``start`` on that is data, or that is a hole (``data`` false).

    What is unwritten is a hole, and the end of a file is one. A map of very many pieces is not
    looked through to its end: what comes after them is taken for data, which is always true enough.

    Args:
        volume: the filesystem.
        inode: a file.
        start: before its end.
        data: what to look for.

    Returns:
        None if there is no more data.

    Raises:
        CorruptImage, BadChecksum: its map is bad.
        OSError: the source's.
    """
    if inode.flags & _INLINE_DATA:
        return start if data else inode.size
    size = volume.block_size
    position = start
    pieces = walk(volume, inode, start // size, -(-inode.size // size))
    for count, piece in enumerate(pieces):
        low = piece.logical * size
        high = low + piece.length * size
        if high <= position:
            continue
        if count >= _SEEK_LIMIT:
            return position if data else inode.size
        if data and piece.state == MAPPED:
            return max(position, low) if max(position, low) < inode.size else None
        if not data and (low > position or piece.state != MAPPED):
            break
        position = high
        if position >= inode.size:
            break
    return None if data else min(position, inode.size)


def file_extents(volume: Volume, inode: Inode, start: int, end: int) -> Iterator[Extent]:
    """The bytes ``start`` to ``end`` (exclusive) of a file as extents, in order, without gaps.

    Neighbours that continue each other are one extent (up to 4096 pieces of the file's map).

    Raises:
        CorruptImage, BadChecksum: its map is bad.
        OSError: the source's.
    """
    if inode.flags & _INLINE_DATA:
        return _inline(inode, start, end)
    whole = _one_extent(volume, inode, start, end)
    if whole is not None:
        return iter((whole,))
    return _merge(_ranges(volume, inode, start, end))


def _inline(inode: Inode, start: int, end: int) -> Iterator[Extent]:
    stop = min(end, inode.size)
    if start < stop:
        yield Extent(start, stop - start, ExtentKind.INLINE, 0)
        start = stop
    if start < end:
        yield Extent(start, end - start, _HOLE, 0)


def _one_extent(volume: Volume, inode: Inode, start: int, end: int) -> Extent | None:
    """The range, if the file is one extent that holds it: most files are, and this is quick."""
    if volume.map is not None or not inode.flags & _EXTENTS or start >= end:
        return None
    magic, entries, _, depth, logical, length, high, low = _unpack_root(inode.block)
    if (
        magic != EXTENT_MAGIC
        or entries != 1
        or depth
        or logical
        or length > EXTENT_MAX_WRITTEN
        or end > length * volume.block_size
    ):
        return None
    physical = low | high << 32
    volume.check_range(physical, length, f"inode {inode.ino}: extent root")
    return Extent(start, end - start, _MAPPED, physical * volume.block_size + start)


def _merge(ranges: Iterator[Extent]) -> Iterator[Extent]:
    """Put neighbours that continue each other together."""
    last: Extent | None = None
    merged = 0
    for extent in ranges:
        if last is not None:
            if (
                merged < _MERGE_LIMIT
                and extent.kind == last.kind != _ESCAPED
                and (extent.kind != _MAPPED or extent.address == last.address + last.length)
            ):
                last = Extent(last.offset, last.length + extent.length, last.kind, last.address)
                merged += 1
                continue
            yield last
        last = extent
        merged = 0
    if last is not None:
        yield last


def _ranges(volume: Volume, inode: Inode, start: int, end: int) -> Iterator[Extent]:
    """As :func:`file_extents`, but one range for each piece or hole."""
    size = volume.block_size
    position = start
    for piece in walk(volume, inode, start // size, -(-end // size)):
        low = piece.logical * size
        high = min(low + piece.length * size, end)
        if high <= position:
            continue
        if low > position:
            yield Extent(position, low - position, _HOLE, 0)
            position = low
        if piece.state == MAPPED:
            for address, length, escaped in _cut(volume, piece, position - low, high - low):
                yield Extent(position, length, _ESCAPED if escaped else _MAPPED, address)
                position += length
        else:
            kind = _UNWRITTEN if piece.state == UNWRITTEN else _HOLE
            yield Extent(position, high - position, kind, 0)
            position = high
    if position < end:
        yield Extent(position, end - position, _HOLE, 0)


def _cut(volume: Volume, piece: Piece, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Bytes ``start`` to ``end`` of a mapped piece: (address, length, escaped)."""
    size = volume.block_size
    if volume.map is None:
        yield piece.physical * size + start, end - start, False
        return
    first = start // size
    position = first * size
    for address, length, escaped in volume.locate(piece.physical + first, -(-end // size) - first):
        low = max(start - position, 0)
        high = min(end - position, length)
        # Only the first four bytes of an escaped block are not as they stand in the log.
        yield address + low, high - low, escaped and low < len(JOURNAL_MAGIC)
        position += length
