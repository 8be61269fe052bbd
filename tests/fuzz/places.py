# SPDX-License-Identifier: Apache-2.0
"""Where the fields of all structures of a base are, each with what puts its checksum right."""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

from penstock.formats.ext4.extents import MAPPED
from penstock.formats.ext4.format import (
    DxRootInfo,
    ExtentHeader,
    ExtentIndex,
    ExtentLeaf,
    RawGroupDescriptor,
    RawInode,
    RawSuperblock,
    XattrBlockHeader,
    XattrEntry,
)
from penstock.formats.ext4.inode import Inode
from penstock.formats.ext4.jbd2 import CommitBlock, JournalSuperblock
from penstock.formats.ext4.mapping import walk
from penstock.formats.ext4.reader import Ext4Reader
from tests.fuzz.edit import Editor, field_places

__all__ = ["Field", "fields", "values"]

Seal: TypeAlias = Callable[[Editor], None]
_EXTENTS: Final = 0x80000
_INDEX: Final = 0x1000
_INLINE: Final = 0x10000000
_SPECIAL: Final = (2, 7, 8)


class Field(NamedTuple):
    """One field of one structure."""

    name: str
    offset: int
    size: int
    seal: Seal


def _whole(cls: type, what: str, base: int, seal: Seal, *, limit: int = 1 << 30) -> Iterator[Field]:
    """All fields of a structure that end before byte ``limit`` of it."""
    for name, (offset, code) in field_places(cls).items():
        size = min(struct.calcsize("<" + code), 8)
        if offset + size <= limit:
            yield Field(f"{what}.{name}", base + offset, size, seal)


def _extent_node(editor: Editor, ino: int, at: int, seal: Seal, what: str) -> Iterator[Field]:
    """A node of an extent tree, and those below it."""
    yield from _whole(ExtentHeader, what, at, seal)
    _, entries, _, depth = struct.unpack("<HHHH", editor.pread(8, at))
    cls = ExtentIndex if depth else ExtentLeaf
    for index in sorted({0, 1, entries - 1} & set(range(entries))):
        yield from _whole(cls, f"{what}[{index}]", at + 12 + 12 * index, seal)
        if depth:
            block = editor.get(at + 12 + 12 * index + 4, "I")
            below = functools.partial(Editor.seal_extents, ino=ino, block=block)
            where = block * editor.block_size
            yield from _extent_node(editor, ino, where, below, f"{what}/{block}")


def _indirect(editor: Editor, block: int, level: int, what: str) -> Iterator[Field]:
    """An indirect block, and those below it."""
    at = block * editor.block_size
    words = struct.unpack(f"<{editor.block_size // 4}I", editor.block(block))
    used = [index for index, word in enumerate(words) if word]
    for index in {0, 1, *used[:1], *used[-1:]}:
        yield Field(f"{what}[{index}]", at + 4 * index, 4, lambda _: None)
        if level > 1 and words[index]:
            yield from _indirect(editor, words[index], level - 1, f"{what}[{index}]")


def _map(editor: Editor, inode: Inode, what: str, seal: Seal) -> Iterator[Field]:
    """What ``i_block`` holds."""
    at = editor.inode_at(inode.ino) + 0x28
    if inode.flags & _EXTENTS:
        yield from _extent_node(editor, inode.ino, at, seal, f"{what}.extents")
        return
    for index in range(15):
        yield Field(f"{what}.block[{index}]", at + 4 * index, 4, seal)
    if inode.flags & _INLINE or not (inode.is_regular or inode.is_dir):
        return
    for level in (1, 2, 3):
        block = editor.get(at + 4 * (11 + level), "I")
        if block:
            yield from _indirect(editor, block, level, f"{what}.indirect{level}")


def _xattrs(editor: Editor, base: int, first: int, what: str, seal: Seal) -> Iterator[Field]:
    """A list of attributes: entries from ``first`` on, values counted from ``base``."""
    position = first
    while editor.get(position, "I"):
        yield from _whole(XattrEntry, f"{what}[{position - first}]", position, seal)
        name = editor.get(position, "B")
        yield Field(f"{what}[{position - first}].name", position + 16, 1, seal)
        size, offset = editor.get(position + 8, "I"), editor.get(position + 2, "H")
        if size >= 4 and not editor.get(position + 4, "I"):
            yield Field(f"{what}[{position - first}].value", base + offset, 4, seal)
        position += 16 + name + 3 & ~3
    yield Field(f"{what}.end", position, 4, seal)


def _entries(at: int, data: bytes, start: int, what: str, seal: Seal) -> Iterator[Field]:
    """The first three and the last two entries of a chain."""
    found = []
    while start + 8 <= len(data):
        length = struct.unpack_from("<H", data, start + 4)[0]
        found.append(start)
        if length < 8:
            break
        start += length
    for start in found if len(found) < 6 else (*found[:3], *found[-2:]):
        for name, offset, size in (
            ("inode", 0, 4), ("rec_len", 4, 2), ("name_len", 6, 1), ("type", 7, 1), ("name", 8, 1),
        ):  # fmt: skip
            if start + offset + size <= len(data):
                yield Field(f"{what}@{start}.{name}", at + start + offset, size, seal)


def _directory(editor: Editor, reader: Ext4Reader, inode: Inode, what: str) -> Iterator[Field]:
    size = editor.block_size
    blocks = [
        (piece.logical + step, piece.physical + step)
        for piece in walk(reader._volume, inode, 0, -(-inode.size // size))
        if piece.state == MAPPED
        for step in range(piece.length)
    ]
    for logical, block in blocks[:3] + blocks[3:][-1:]:
        at = block * size
        name = f"{what}/{logical}"
        if inode.flags & _INDEX and logical == 0:
            seal: Seal = functools.partial(
                Editor.seal_node, ino=inode.ino, block=block, entries=0x20
            )
            yield from _whole(DxRootInfo, f"{name}.root", at + 0x18, seal)
            count = editor.get(at + 0x22, "H")
            for index in range(min(count, 3)):
                yield Field(f"{name}.hash{index}", at + 0x20 + 8 * index, 4, seal)
                yield Field(f"{name}.block{index}", at + 0x24 + 8 * index, 4, seal)
            yield from _entries(at, editor.block(block)[:0x18], 0, name, seal)
        else:
            seal = functools.partial(Editor.seal_leaf, ino=inode.ino, block=block)
            yield from _entries(at, editor.block(block), 0, name, seal)


def _inode(editor: Editor, reader: Ext4Reader, ino: int) -> Iterator[Field]:
    """An inode and all that belongs to it alone."""
    inode = reader._inodes.inode(ino)
    what = f"inode {ino}"
    at = editor.inode_at(ino)
    seal: Seal = functools.partial(Editor.seal_inode, ino=ino)
    yield from _whole(RawInode, what, at, seal, limit=editor.sb.inode_size)
    yield from _map(editor, inode, what, seal)
    if editor.sb.inode_size > 128:
        first = at + 128 + editor.get(at + 128, "H")
        if editor.get(first, "I") == 0xEA020000:
            yield Field(f"{what}.ibody.magic", first, 4, seal)
            yield from _xattrs(editor, first + 4, first + 4, f"{what}.ibody", seal)
    if inode.file_acl:
        base = inode.file_acl * editor.block_size
        seal_block = functools.partial(Editor.seal_xattrs, block=inode.file_acl)
        yield from _whole(XattrBlockHeader, f"{what}.xattrs", base, seal_block)
        yield from _xattrs(editor, base, base + 32, f"{what}.xattrs", seal_block)
    if not inode.is_dir:
        return
    if inode.flags & _INLINE:
        content = editor.pread(60, at + 0x28)
        yield from _entries(at + 0x28, content, 4, f"{what}.inline", seal)
    else:
        yield from _directory(editor, reader, inode, what)


def _journal(editor: Editor) -> Iterator[Field]:
    """The superblock of the journal; of a log in use also its first blocks."""
    blocks = editor.geometry.journal
    if not blocks:
        return
    at = blocks[0] * editor.block_size
    yield from _whole(JournalSuperblock, "journal", at, Editor.seal_journal_super)
    for block in blocks[1:]:
        magic, kind = struct.unpack(">II", editor.pread(8, block * editor.block_size))
        start = block * editor.block_size
        if magic == 0xC03B3998 and kind in {1, 2, 5}:
            seal = functools.partial(Editor.seal_log_block, block=block)
            yield from _whole(CommitBlock, f"log block {block}", start, seal)
            for word in range(12, 64, 4):
                yield Field(f"log block {block}+{word}", start + word, 4, seal)
        elif struct.unpack_from("<H", editor.pread(2, start))[0] == 9:  # a fast commit
            for word in range(0, 256, 2):
                yield Field(f"fast commit {block}+{word}", start + word, 2, lambda _: None)


@functools.cache
def fields(name: str) -> tuple[Field, ...]:
    """The fields of a base, about a thousand."""
    editor = Editor(name)
    reader = Ext4Reader(editor)
    found = list(_whole(RawSuperblock, "superblock", 1024, Editor.seal_super))
    for group, at in enumerate(editor.geometry.descriptors):
        seal = functools.partial(Editor.seal_group, group=group)
        found += _whole(RawGroupDescriptor, f"group {group}", at, seal, limit=editor.sb.desc_size)
    found += _journal(editor)
    for ino in range(1, editor.sb.inodes_count + 1):
        links = editor.get_inode(ino, "links_count")
        if links and (ino in _SPECIAL or ino >= editor.sb.first_ino):
            found += _inode(editor, reader, ino)
    return tuple(found)


def values(size: int, now: int, chance: random.Random) -> list[int]:
    """What to put into a field of ``size`` bytes that is ``now``: extremes, neighbours, chance."""
    bits = 8 * size
    top = (1 << bits) - 1
    found = [
        0, 1, top, top - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1, now + 1 & top, now - 1 & top,
        now ^ 1 << chance.randrange(bits), chance.randrange(1 << bits),
        chance.randrange(1 << chance.randrange(1, bits + 1)),
    ]  # fmt: skip
    return [value for value in dict.fromkeys(found) if value != now]
