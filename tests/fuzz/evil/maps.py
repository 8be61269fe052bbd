# SPDX-License-Identifier: Apache-2.0
"""Maps of files that loop, multiply, or lead nowhere: extent trees and block maps."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from tests.fuzz.bases import Image
from tests.fuzz.edit import Editor
from tests.fuzz.evil.registry import (
    DIR_MODE,
    EVIL,
    LARGE,
    Maker,
    entry,
    evil,
    extent,
    extent_index,
    extent_root,
    map_of,
    node_header,
    variants,
)

# Extent trees


def _node(editor: Editor, ino: int, block: int, depth: int, entries: list[bytes]) -> None:
    room = (editor.block_size - 16) // 12
    editor.put_block(block, node_header(len(entries), depth, room) + b"".join(entries))
    editor.seal_extents(ino, block)


@evil
def extent_node_is_its_own_child() -> Image:
    editor = Editor("csum")
    block = editor.free_block()
    _node(editor, 24, block, 1, [extent_index(0, block)])
    editor.set_inode(24, block=extent_root(1, extent_index(0, block)), size_lo=1 << 30)
    return editor


@evil
def extent_nodes_in_a_circle() -> Image:
    editor = Editor("csum")
    blocks = [editor.free_block() for _ in range(5)]
    for step, block in enumerate(blocks):
        _node(editor, 24, block, 4 - step, [extent_index(0, blocks[(step + 1) % 5])])
    editor.set_inode(24, block=extent_root(5, extent_index(0, blocks[0])), size_lo=1 << 30)
    return editor


@evil
def extent_tree_of_depth_five_for_one_block() -> Image:
    editor = Editor("csum")
    blocks = [editor.free_block() for _ in range(5)]
    for step, block in enumerate(blocks):
        entry = extent(0, 1, 900) if step == 4 else extent_index(0, blocks[step + 1])
        _node(editor, 24, block, 4 - step, [entry])
    editor.set_inode(24, block=extent_root(5, extent_index(0, blocks[0])), size_lo=1 << 30)
    return editor


@evil
def extent_nodes_share_their_children() -> Image:
    """340 entries in each of five levels, all leading to the next one: 340^5 paths."""
    editor = Editor("csum")
    blocks = [editor.free_block() for _ in range(5)]
    for step, block in enumerate(blocks):
        if step == 4:
            entries = [extent(index, 1, 900) for index in range(340)]
        else:
            entries = [extent_index(index, blocks[step + 1]) for index in range(340)]
        _node(editor, 24, block, 4 - step, entries)
    entries = [extent_index(index * 2, blocks[0]) for index in range(4)]
    editor.set_inode(24, block=extent_root(5, *entries), size_lo=0xFFFFFFFF, size_hi=0xFFF)
    return editor


def _bad_header(depth: int, entries: int, room: int, magic: int = 0xF30A) -> Maker:
    def make() -> Image:
        editor = Editor("csum")
        head = struct.pack("<HHHHI", magic, entries, room, depth, 0)
        editor.set_inode(24, block=head + editor.pread(48, editor.inode_at(24) + 0x34))
        return editor

    return make


variants(
    "extent_header",
    {
        "depth 65535": _bad_header(65535, 1, 4),
        "depth 6": _bad_header(6, 1, 4),
        "entries 65535": _bad_header(0, 65535, 65535),
        "entries 5": _bad_header(0, 5, 5),
        "room 0": _bad_header(0, 1, 0),
        "no entries at depth 1": _bad_header(1, 0, 4),
        "magic": _bad_header(0, 1, 4, 0xF30B),
    },
)


def _extent(*entries: bytes) -> Maker:
    def make() -> Image:
        editor = Editor("csum")
        editor.set_inode(24, block=extent_root(0, *entries), size_lo=0, size_hi=0xFFF)
        return editor

    return make


variants(
    "extent",
    {
        "beyond the device": _extent(extent(0, 100, 1 << 40)),
        "across the end": _extent(extent(0, 0x7FFF, 2500)),
        "of no blocks": _extent(extent(0, 0, 900)),
        "block zero": _extent(extent(0, 5, 0)),
        "overlapping": _extent(extent(0, 10, 900), extent(5, 10, 900)),
        "descending": _extent(extent(50, 10, 900), extent(5, 10, 900)),
        "at the last logical block": _extent(extent(0xFFFFFFFF, 1, 900)),
        "past the last logical block": _extent(extent(0xFFFFFFFF, 2, 900)),
        "unwritten to the end": _extent(extent(0, 0xFFFF, 900), extent(0xFFFF0000, 0x8001, 1)),
    },
)


class _Swarm(Editor):
    """A file, or a directory, of some ten million extents, the leaves made when they are read."""

    LEAVES: Final = 340 * 118
    FIRST: Final = 10_000

    def __init__(self, length: int, mode: int, target: int = 900) -> None:
        super().__init__("csum")
        self._length = length
        self._target = target
        groups = 4
        self.set_super(blocks_count_lo=groups * 32768, inodes_count=groups * 64)
        self.size = groups * 32768 * self.block_size
        self.set_super(feature_incompat=self.sb.feature_incompat | 0x4000)  # large directories
        size = self.LEAVES * 340 * 2 * 4096
        top = self.free_block()
        nodes = [self.free_block() for _ in range(self.LEAVES // 340)]
        for number, node in enumerate(nodes):
            first = number * 340
            entries = [
                extent_index((first + step) * 680, self.FIRST + first + step) for step in range(340)
            ]
            _node(self, 24, node, 1, entries)
        _node(self, 24, top, 2, [extent_index(n * 340 * 680, node) for n, node in enumerate(nodes)])
        block = extent_root(3, extent_index(0, top))
        self.set_inode(24, block=block, size_lo=size & 0xFFFFFFFF, size_hi=size >> 32, mode=mode)
        self._seed = self.inode_seed(24)

    def pread(self, length: int, offset: int) -> bytes:
        number, rest = divmod(offset, self.block_size)
        leaf = number - self.FIRST
        if not rest and length == self.block_size and 0 <= leaf < self.LEAVES:
            return self._leaf_block(leaf)
        return super().pread(length, offset)

    def _leaf_block(self, leaf: int) -> bytes:
        import crc32c

        words = [(leaf * 680 + step * 2, self._length, 0, self._target) for step in range(340)]
        body = node_header(340, 0, 340) + b"".join(struct.pack("<IHHI", *word) for word in words)
        value = crc32c.crc32c(body, self._seed ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
        return (body + struct.pack("<I", value)).ljust(self.block_size, b"\0")


def _swarm(length: int, mode: int) -> Maker:
    return lambda: _Swarm(length, mode)


variants(
    "swarm_of_extents",
    {
        "unwritten file": _swarm(0x8001, 0o100644),
        "mapped file": _swarm(1, 0o100644),
        "unwritten directory": _swarm(0x8001, DIR_MODE),
        "directory": _swarm(1, DIR_MODE),
    },
)
LARGE.update(name for name in EVIL if name.startswith("swarm_of_extents"))


# Block maps


@evil
def indirect_block_is_its_own_child() -> Image:
    editor = Editor("plain")
    block = editor.free_block()
    editor.put_block(block, struct.pack("<I", block) * 256)
    map_of(editor, 24, *[block] * 15, size_lo=0xFFFFFFFF, size_hi=3)
    return editor


def _pyramid(words: Callable[[int], list[int]], mode: int, data: bytes, size_hi: int = 3) -> Maker:
    """A map of three levels, each block of which names one block all over.

    ``words`` makes the lowest one's, of the number of the block that holds ``data``.
    """

    def make() -> Image:
        editor = Editor("plain")
        blocks = [editor.free_block() for _ in range(4)]
        editor.put_block(blocks[3], data)
        editor.put_block(blocks[2], struct.pack("<256I", *words(blocks[3])))
        for upper, lower in ((0, 1), (1, 2)):
            editor.put_block(blocks[upper], struct.pack("<I", blocks[lower]) * 256)
        low = editor.free_block()
        editor.put_block(low, struct.pack("<256I", *words(blocks[3])))
        fields = {"size_lo": 0xFFFFFFFF, "size_hi": size_hi, "mode": mode, "flags": 0}
        map_of(editor, 24, *[blocks[3]] * 12, low, blocks[1], blocks[0], **fields)
        return editor

    return make


_all = lambda block: [block] * 256  # noqa: E731
_first = lambda block: [block] + [0] * 255  # noqa: E731
_last = lambda block: [0] * 255 + [block]  # noqa: E731
_other = lambda block: [block, 0] * 128  # noqa: E731
_empty_block: Final = entry(0, b"", 1024)
_empty_chain: Final = entry(0, b"", 12) * 84 + entry(0, b"", 16)
_misses: Final = entry(12, b"x" * 244, 252) * 3 + entry(12, b"absent" * 40, 268)
_one_name: Final = entry(12, b"one", 1024)
_many_names: Final = b"".join(entry(12, b"%03d" % n, 12) for n in range(84)) + entry(12, b"z", 16)

variants(
    "pyramid",
    {
        "file of one block": _pyramid(_all, 0o100644, b"d" * 1024),
        "file with a hole in each": _pyramid(_first, 0o100644, b"d" * 1024),
        "file, last of each": _pyramid(_last, 0o100644, b"d" * 1024),
        "file, every other": _pyramid(_other, 0o100644, b"d" * 1024),
        "directory of empty blocks": _pyramid(_all, DIR_MODE, _empty_block),
        "directory of empty entries": _pyramid(_all, DIR_MODE, _empty_chain),
        "directory of near misses": _pyramid(_all, DIR_MODE, _misses),
        "directory of one name": _pyramid(_all, DIR_MODE, _one_name),
        "directory of many names": _pyramid(_all, DIR_MODE, _many_names),
        "directory of zeros": _pyramid(_all, DIR_MODE, b""),
        "directory of holes": _pyramid(_last, DIR_MODE, _empty_block),
        "directory, every other": _pyramid(_other, DIR_MODE, _empty_chain),
    },
)


@evil
def directory_of_rare_names() -> Image:
    """A name, then 255 blocks without one, and so on."""
    image = _pyramid(_all, DIR_MODE, _empty_chain)()
    assert isinstance(image, Editor)
    names = image.free_block()
    image.put_block(names, _one_name)
    low = image.get(image.inode_at(24) + 0x28 + 48, "I")
    image.put(low * 1024, "I", names)
    dind = image.get(image.inode_at(24) + 0x28 + 52, "I")
    image.put(image.get(dind * 1024, "I") * 1024, "I", names)
    return image
