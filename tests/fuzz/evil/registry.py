# SPDX-License-Identifier: Apache-2.0
"""What makers of hostile images have in common: where they are entered, and small structures."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from tests.fuzz.bases import Image
from tests.fuzz.edit import Editor

Maker = Callable[[], Image]
EVIL: Final[dict[str, Maker]] = {}
"""All makers by name."""
LARGE: Final[set[str]] = set()
"""Names of those that cannot be written to a file of some MiB."""

FILE: Final = {"csum": 24, "plain": 24, "inline": 24, "gdt": 20, "dirty": 14}
DIR: Final = {"csum": 25, "plain": 25, "inline": 25, "gdt": 98, "dirty": 13}
LINK: Final = 32
MANY: Final = 33
EXTENTS: Final = 0x80000
INDEX: Final = 0x1000
EA_INODE: Final = 0x200000
DIR_MODE: Final = 0o40755


def evil(make: Maker) -> Maker:
    """Enter a maker under its own name."""
    EVIL[make.__name__] = make
    return make


def variants(name: str, makers: dict[str, Maker], *, large: bool = False) -> None:
    """Enter makers under a common name."""
    EVIL.update({f"{name}:{key}": maker for key, maker in makers.items()})
    if large:
        LARGE.update(f"{name}:{key}" for key in makers)


def node_header(entries: int, depth: int, room: int = 4) -> bytes:
    """Head of a node of an extent tree."""
    return struct.pack("<HHHHI", 0xF30A, entries, room, depth, 0)


def extent_index(logical: int, block: int) -> bytes:
    """An entry of an inner node."""
    return struct.pack("<IIHH", logical, block & 0xFFFFFFFF, block >> 32, 0)


def extent(logical: int, length: int, block: int) -> bytes:
    """An entry of a leaf."""
    return struct.pack("<IHHI", logical, length, block >> 32, block & 0xFFFFFFFF)


def extent_root(depth: int, *entries: bytes) -> bytes:
    """An ``i_block`` with a tree."""
    return (node_header(len(entries), depth) + b"".join(entries)).ljust(60, b"\0")


def entry(ino: int, name: bytes, length: int, kind: int = 1) -> bytes:
    """An entry of a directory, ``length`` bytes."""
    head = struct.pack("<IHBB", ino, length, len(name) & 0xFF, kind)
    return (head + name).ljust(length, b"\0")[:length]


def block_of(editor: Editor, ino: int) -> int:
    """The first block of a small directory."""
    at = editor.inode_at(ino) + 0x28
    if editor.get(at, "H") == 0xF30A:
        return int(editor.get(at + 20, "I"))
    return int(editor.get(at, "I"))


def map_of(editor: Editor, ino: int, *words: int, **fields: int) -> None:
    """Give an inode a map of these fifteen blocks."""
    editor.set_inode(ino, block=struct.pack("<15I", *words), **fields)
