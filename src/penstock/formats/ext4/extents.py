# SPDX-License-Identifier: Apache-2.0
"""Extent trees: which blocks a file has, as a lazy walk from any logical block on.

Invariants: the depth falls by one from node to node, so no loop in the tree can hold the walk;
every node read from a block has an entry, so every node leads to a piece; a node is verified once
and then kept decoded.

Specification: Documentation/filesystems/ext4/ifork.rst (Extent Tree).
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from penstock.formats.crc import crc32c
from penstock.formats.errors import BadChecksum, CorruptImage
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.format import ExtentHeader, ExtentIndex, ExtentLeaf
from penstock.formats.ext4.inode import Inode
from penstock.formats.ext4.volume import Volume
from penstock.formats.layout import struct_of, unpack

__all__ = ["MAPPED", "UNMAPPED", "UNWRITTEN", "Piece", "walk_extents"]

_HEADER_SIZE: Final = 12
_ENTRY_SIZE: Final = 12
_ROOT_MAX: Final = 4
_LAST_BLOCK: Final = 1 << 32
_leaves: Final = struct_of(ExtentLeaf).iter_unpack
_indexes: Final = struct_of(ExtentIndex).iter_unpack
_u32: Final = struct.Struct("<I").unpack_from

UNMAPPED: Final = 0
MAPPED: Final = 1
UNWRITTEN: Final = 2


class Piece(NamedTuple):
    """``length`` blocks of a file from logical block ``logical`` lie at ``physical``."""

    logical: int
    length: int
    physical: int
    state: int
    """UNMAPPED (a hole; ``physical`` is 0), MAPPED or UNWRITTEN (reads as zeros)."""


class _Node(NamedTuple):
    depth: int
    starts: array[int]
    """First logical block of each entry."""
    pieces: list[Piece]
    """The entries of a leaf."""
    children: list[int]
    """The blocks that the entries of an index node name."""


def walk_extents(volume: Volume, inode: Inode, first: int, end: int) -> Iterator[Piece]:
    """The pieces of a file that overlap logical blocks ``first`` to ``end`` (exclusive), in order.

    Holes are not told; the first and the last piece may reach beyond the range.

    Raises:
        CorruptImage, BadChecksum: a node is bad.
        OSError: the source's.
    """
    node = _decode(volume, f"inode {inode.ino}: extent root", inode.block, None)
    stack = [(node, max(bisect_right(node.starts, first) - 1, 0), _LAST_BLOCK)]
    while stack:
        node, index, high = stack.pop()
        if node.depth == 0:
            for piece in node.pieces[index:]:
                if piece.logical >= end:
                    return
                if piece.logical + piece.length > first:
                    yield piece
        elif index < len(node.starts) and node.starts[index] < end:
            low = node.starts[index]
            limit = high
            if index + 1 < len(node.starts):
                limit = node.starts[index + 1]
                stack.append((node, index + 1, high))
            child = _child(volume, inode, node.children[index], node.depth - 1, low, limit)
            stack.append((child, max(bisect_right(child.starts, first) - 1, 0), limit))


def _child(volume: Volume, inode: Inode, block: int, depth: int, low: int, high: int) -> _Node:
    key = (inode.ino, block)
    kept = volume.parsed.get(key)
    if isinstance(kept, _Node) and kept.depth == depth:
        node = kept
    else:
        what = f"inode {inode.ino}: extent block {block}"
        volume.check_range(block, 1, what)
        data = volume.read_block(block)
        if volume.metadata_csum:
            _verify(what, inode, data)
        node = _decode(volume, what, data, depth)
        volume.parsed.put(key, node, len(data) + 200 * len(node.starts))
    if node.starts[0] < low or _end(node) > high:
        raise CorruptImage(
            f"inode {inode.ino}: extent block {block} maps blocks outside {low} to {high - 1}, "
            "which its parent gives it"
        )
    return node


def _end(node: _Node) -> int:
    """The logical block after the last one that a node speaks of for certain."""
    if node.depth:
        return node.starts[-1] + 1
    last = node.pieces[-1]
    return last.logical + last.length


def _verify(what: str, inode: Inode, data: bytes) -> None:
    tail = _HEADER_SIZE + _ENTRY_SIZE * (data[4] | data[5] << 8)
    if tail + 4 > len(data):
        raise CorruptImage(f"{what}: room for entries is beyond the block")
    value = ~crc32c(memoryview(data)[:tail], inode.seed) & 0xFFFF_FFFF
    stored: int = _u32(data, tail)[0]
    if value != stored:
        raise BadChecksum(f"{what}: checksum {stored:#010x}, computed {value:#010x}")


def _decode(volume: Volume, what: str, data: bytes, depth: int | None) -> _Node:
    """Decode a node; ``depth`` is what its parent says it must be, None for a root."""
    header = unpack(ExtentHeader, data)
    room = (len(data) - _HEADER_SIZE) // _ENTRY_SIZE
    if header.magic != fmt.EXTENT_MAGIC:
        raise CorruptImage(f"{what}: magic is {header.magic:#06x}, expected 0xf30a")
    if not header.entries <= header.max <= room:
        raise CorruptImage(
            f"{what}: {header.entries} entries of {header.max}, but {room} fit into it"
        )
    if header.depth > fmt.EXTENT_MAX_DEPTH if depth is None else header.depth != depth:
        raise CorruptImage(f"{what}: depth is {header.depth}, expected {depth}")
    if not header.entries and (depth is not None or header.depth):
        raise CorruptImage(f"{what}: has no entries")
    entries = data[_HEADER_SIZE : _HEADER_SIZE + _ENTRY_SIZE * header.entries]
    if header.depth:
        return _decode_index(what, entries, header.depth)
    return _decode_leaf(volume, what, entries)


def _decode_index(what: str, entries: bytes, depth: int) -> _Node:
    starts = array("I")
    children = []
    after = 0
    for logical, low, high in _indexes(entries):
        if logical < after:
            raise CorruptImage(f"{what}: entries are not in order")
        after = logical + 1
        starts.append(logical)
        children.append(low | high << 32)
    return _Node(depth, starts, [], children)


def _decode_leaf(volume: Volume, what: str, entries: bytes) -> _Node:
    starts = array("I")
    pieces = []
    after = 0
    for logical, count, high, low in _leaves(entries):
        state = MAPPED
        if count > fmt.EXTENT_MAX_WRITTEN:
            count -= fmt.EXTENT_MAX_WRITTEN
            state = UNWRITTEN
        physical = low | high << 32
        if logical < after or not count or logical + count > _LAST_BLOCK:
            raise CorruptImage(
                f"{what}: {count} blocks at {logical} are empty, out of order or out of range"
            )
        if not (physical > 0 and physical + count <= volume.blocks_count):
            volume.check_range(physical, count, what)
        after = logical + count
        starts.append(logical)
        pieces.append(Piece(logical, count, physical, state))
    return _Node(0, starts, pieces, [])
