# SPDX-License-Identifier: Apache-2.0
"""Directories and hash trees that lie."""

from __future__ import annotations

import struct
from collections.abc import Callable

from penstock.formats.ext4.hash import name_hash, unsigned_version
from tests.fuzz.bases import Image
from tests.fuzz.edit import Editor
from tests.fuzz.evil.registry import DIR, EXTENTS, MANY, Maker, block_of, entry, evil, variants

# Directories


def _directory(name: str, *entries: bytes) -> Image:
    """A base whose directory has these entries after its dots; the last one reaches the end."""
    editor = Editor(name)
    ino = DIR[name]
    block = block_of(editor, ino)
    data = entry(ino, b".", 12, 2) + entry(2, b"..", 12, 2) + b"".join(entries)
    end = editor.block_size - (12 if editor.csum else 0)
    left = end - len(data)
    if left >= 12:
        data += entry(0, b"", left)
    editor.put_block(block, data[: editor.block_size])
    editor.seal_leaf(ino, block)
    return editor


def _names(*entries: tuple[int, bytes]) -> Maker:
    packed = [entry(ino, name, 8 + len(name) + 3 & ~3, 2) for ino, name in entries]
    return lambda: _directory("csum", *packed)


variants(
    "directory_names",
    {
        "itself and above": _names((25, b"self"), (2, b"root"), (20, b"sub"), (25, b"self2")),
        "special inodes": _names(*[(n, b"ino%d" % n) for n in range(1, 12)]),
        "absent inodes": _names((64, b"free"), (65, b"over"), (0xFFFFFFFF, b"last")),
        "slash": _names((12, b"a/b")),
        "only slash": _names((12, b"/")),
        "NUL": _names((12, b"a\0b")),
        "dots again": _names((12, b"."), (24, b".."), (12, b"."), (12, b"...")),
        "one name twice": _names((12, b"twice"), (13, b"twice"), (20, b"twice")),
        "odd names": _names((12, b"\n\x1b[31m"), (12, b"\xff\xfe"), (12, b" "), (12, b"-rf")),
    },
)


def _length(base: str, length: int, name_length: int = 1) -> Maker:
    def make() -> Image:
        entry = struct.pack("<IHBB", 12, length, name_length, 1) + b"nnnnnnnn"
        return _directory(base, entry + b"n" * 300)

    return make


variants(
    "entry_length",
    {
        f"{base} {length}/{name}": _length(base, length, name)
        for base in ("csum", "plain", "gdt")
        for length, name in (
            (0, 1), (1, 1), (3, 1), (4, 1), (8, 0), (8, 1), (11, 3), (12, 0), (12, 4), (12, 5),
            (16, 255), (0xFFFF, 255), (0xFFFC, 1), (4096, 1), (4072, 1), (4060, 255), (1000, 9),
        )
    },
)  # fmt: skip


@evil
def directory_tree_is_a_circle() -> Image:
    """sub/deeper holds a name for sub, and the other way round."""
    editor = Editor("csum")
    for ino, child in ((21, 20), (20, 21)):
        block = block_of(editor, ino)
        data = entry(ino, b".", 12, 2) + entry(child, b"..", 12, 2)
        data += entry(child, b"around", 4084 - 24, 2)
        editor.put_block(block, data)
        editor.seal_leaf(ino, block)
    return editor


def _root_inode(base: str, **fields: int | bytes) -> Maker:
    def make() -> Image:
        editor = Editor(base)
        editor.set_inode(2, **fields)
        return editor

    return make


variants(
    "root_inode",
    {
        "a file": _root_inode("csum", mode=0o100644),
        "a symlink": _root_inode("plain", mode=0o120777),
        "free": _root_inode("csum", links_count=0),
        "no type": _root_inode("csum", mode=0o755),
        "encrypted": _root_inode("csum", flags=EXTENTS | 0x800),
        "empty": _root_inode("csum", size_lo=0),
        "huge": _root_inode("csum", size_lo=0xFFFFFFFF),
        "without blocks": _root_inode("plain", block=bytes(60)),
        "all ones": _root_inode("plain", block=b"\xff" * 60),
        "inline": _root_inode("inline", flags=0x10000000, size_lo=60),
        "extra 65535": _root_inode("csum", extra_isize=65535),
    },
)


# Hash trees


def _tree(levels: int, child: Callable[[int], int], hash: int = 0) -> Maker:
    """The indexed directory with a root whose entries name blocks by ``child``."""

    def make() -> Image:
        editor = Editor("csum")
        editor.set_super(feature_incompat=editor.sb.feature_incompat | 0x4000)
        block = block_of(editor, MANY)
        at = block * 4096
        limit = editor.get(at + 0x20, "H")
        editor.put(at + 0x1E, "B", levels)
        editor.put(at + 0x22, "H", limit)
        entries = b"".join(struct.pack("<II", hash, child(n)) for n in range(1, limit))
        editor.write(at + 0x24, struct.pack("<I", child(0)) + entries)
        editor.seal_node(MANY, block, 0x20)
        if levels:  # block 1 becomes a node that names the same blocks
            node = (block + 1) * 4096
            editor.write(node, struct.pack("<IHBB", 0, 4096, 0, 0))
            room = (4096 - 8 - 8) // 8
            entries = b"".join(struct.pack("<II", hash, child(n)) for n in range(1, room))
            editor.write(node + 8, struct.pack("<HHI", room, room, child(0)) + entries)
            editor.seal_node(MANY, block + 1, 8)
        return editor

    return make


def _some_hash(name: bytes) -> int:
    sb = Editor("csum").sb
    version = unsigned_version(1) if sb.raw.flags & 2 else 1
    value = name_hash(name, version, sb.raw.hash_seed)
    assert value is not None
    return value | 1


variants(
    "hash_tree",
    {
        "root names itself": _tree(0, lambda _: 0),
        "root names itself below": _tree(1, lambda _: 0),
        "node names itself": _tree(2, lambda _: 1),
        "beyond the directory": _tree(0, lambda _: 0x0FFFFFFF),
        "three levels of one": _tree(3, lambda _: 1),
        "255 levels": _tree(255, lambda _: 1),
        "one leaf for one hash": _tree(0, lambda _: 2, _some_hash(b"absent")),
        "all leaves for one hash": _tree(2, lambda n: 1 if n % 2 else 2, _some_hash(b"absent")),
    },
)
