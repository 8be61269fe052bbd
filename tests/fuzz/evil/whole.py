# SPDX-License-Identifier: Apache-2.0
"""Superblocks, groups, journals, and images that are wrong altogether."""

from __future__ import annotations

import random
import struct
from typing import Final

from tests.fuzz.bases import BASES, Image, load
from tests.fuzz.edit import Editor
from tests.fuzz.evil.registry import EVIL, LARGE, Maker, evil, extent, extent_root, map_of, variants

# Superblocks


def _super(base: str, size: int | None = None, **fields: int | bytes) -> Maker:
    def make() -> Image:
        editor = Editor(base)
        editor.set_super(**fields)
        editor.size = size or editor.size
        return editor

    return make


_ONES: Final = 0xFFFFFFFF
_VAST: Final = {
    # Sizes that fit together: a filesystem of very many groups, of which the first one is there.
    "2^32 blocks": (1 << 45, {"blocks_count_lo": 0, "blocks_count_hi": 1,
                              "inodes_count": 64 * (1 << 17)}),
    "all inodes": (1 << 53, {"blocks_count_lo": 0, "blocks_count_hi": 511,
                             "inodes_count": 64 * 511 * (1 << 17)}),
    "groups of 8 blocks": (1 << 40, {"blocks_count_lo": 8 * ((1 << 26) - 1),
                                     "blocks_per_group": 8, "clusters_per_group": 8,
                                     "inodes_count": 64 * ((1 << 26) - 1)}),
}  # fmt: skip
variants("vast", {name: _super("csum", size, **kw) for name, (size, kw) in _VAST.items()})
LARGE.update(name for name in EVIL if name.startswith("vast"))
variants(
    "superblock",
    {
        f"{base} {field}={value:#x}": _super(base, **{field: value})
        for base in ("csum", "plain")
        for field, value in (
            ("inodes_count", _ONES), ("inodes_count", 0), ("blocks_count_lo", _ONES),
            ("blocks_count_lo", 0), ("blocks_count_hi", _ONES), ("inodes_per_group", 0),
            ("inodes_per_group", 1), ("inodes_per_group", _ONES), ("blocks_per_group", 0),
            ("blocks_per_group", 1), ("blocks_per_group", _ONES), ("desc_size", 0),
            ("desc_size", 1), ("desc_size", 33), ("desc_size", 65535), ("desc_size", 0x8000),
            ("log_block_size", 31), ("log_block_size", _ONES), ("log_block_size", 7),
            ("log_block_size", 6), ("log_cluster_size", 31), ("first_data_block", _ONES),
            ("first_data_block", 2), ("inode_size", 0), ("inode_size", 127), ("inode_size", 65535),
            ("inode_size", 0x8000), ("rev_level", 0), ("rev_level", 2), ("first_ino", 0),
            ("first_ino", _ONES), ("feature_incompat", _ONES), ("feature_incompat", 0),
            ("feature_ro_compat", _ONES), ("feature_compat", _ONES), ("checksum_type", 0),
            ("first_meta_bg", _ONES), ("reserved_gdt_blocks", 0xFFFF), ("journal_inum", _ONES),
            ("mmp_block", (1 << 64) - 1), ("overhead_clusters", _ONES), ("flags", _ONES),
            ("r_blocks_count_lo", _ONES), ("free_blocks_count_lo", _ONES), ("hash_seed", 0),
        ) if field != "hash_seed"
    },
)  # fmt: skip
variants(
    "superblock_features",
    {
        "recovery without journal": _super("csum", feature_incompat=0x2C6, feature_compat=0x38),
        "recovery of an empty journal": _super("csum", feature_incompat=0x2C6),
        "meta_bg": _super("csum", feature_incompat=0x2D2, first_meta_bg=0),
        "bigalloc": _super("plain", feature_ro_compat=0x203, log_cluster_size=4),
        "multiple mount protection": _super("csum", feature_incompat=0x3C2, mmp_block=900),
        "control characters": _super("csum", volume_name=b"\x1b[2J\nlabel\r\0\xff\xfe\x07abc"),
    },
)


def _group(base: str, offset: int, code: str, value: int) -> Maker:
    def make() -> Image:
        editor = Editor(base)
        editor.put(editor.geometry.descriptors[0] + offset, code, value)
        editor.seal_group(0)
        return editor

    return make


variants(
    "group",
    {
        f"{base} table={value:#x}": _group(base, 8, "I", value)
        for base in ("csum", "plain", "gdt")
        for value in (0, 1, 2, _ONES, 900, 4095)
    },
)


# Journals


@evil
def journal_maps_one_block_all_over() -> Image:
    editor = Editor("dirty")
    block = editor.geometry.journal[1]
    first = extent(0, 1, editor.geometry.journal[0])
    editor.set_inode(8, block=extent_root(0, first, *[extent(1 + n, 1, block) for n in range(3)]))
    return editor


@evil
def journal_holds_itself() -> Image:
    """Copies of the journal's own blocks, of the superblock and of the descriptors."""
    editor = Editor("dirty")
    log = editor.geometry.journal[1]
    for index, target in enumerate((log, editor.geometry.journal[0], 1, 2, log + 1)):
        editor.put(log * editor.block_size + 12 + 16 * index, ">I", target)
    editor.seal_log_block(log)
    return editor


@evil
def journal_inode_is_the_root() -> Image:
    editor = Editor("dirty")
    editor.set_super(journal_inum=2)
    return editor


def _endless_journal(kind: int, *, blocks: int = (1 << 18) - 100) -> Maker:
    """A journal of 262,044 blocks: its superblock, and then one block of its log all over."""

    def make() -> Image:
        editor = Editor("dirty")
        groups = 256
        editor.set_super(blocks_count_lo=groups * 8192, inodes_count=groups * 64, jnl_backup_type=0)
        editor.size = groups * 8192 * 1024
        head, log = editor.geometry.journal[:2]
        tid = editor.get(head * 1024 + 0x18, ">I")
        body = struct.pack(">III", 0xC03B3998, kind, tid)
        if kind == 1:
            body += struct.pack(">IIII", 900, 0x8, 0, 0)
        elif kind == 5:
            body += struct.pack(">I", 1000) + struct.pack(">Q", 900) * 123
        editor.put_block(log, body)
        editor.seal_log_block(log)
        ind, dind, tind = (editor.free_block() for _ in range(3))
        for upper, lower in ((ind, log), (dind, ind), (tind, dind)):
            editor.put_block(upper, struct.pack("<I", lower) * 256)
        size = blocks * 1024
        map_of(editor, 8, head, *[log] * 11, ind, dind, tind, flags=0, size_lo=size, size_hi=0)
        editor.put(head * 1024 + 0x10, ">I", blocks)
        editor.put(head * 1024 + 0x14, ">I", 1)
        editor.put(head * 1024 + 0x1C, ">I", 1)
        editor.seal_journal_super()
        return editor

    return make


variants(
    "endless_journal",
    {
        "of descriptors": _endless_journal(1),
        "of revocations": _endless_journal(5),
        "of commits": _endless_journal(2),
        "of two million blocks": _endless_journal(1, blocks=1 << 21),
    },
)
LARGE.update(name for name in EVIL if name.startswith("endless_journal"))


# Whole images


def _filled(pattern: bytes, size: int) -> Maker:
    return lambda: Image((pattern * (size // len(pattern) + 1))[:size])


def _with_super(pattern: bytes, base: str) -> Maker:
    """A sound superblock and descriptors, and nothing but ``pattern`` behind them."""

    def make() -> Image:
        data = load(base)
        head = data[: 8192 if base == "csum" else 4096]
        rest = len(data) - len(head)
        return Image(head + (pattern * (rest // len(pattern) + 1))[:rest])

    return make


_chance = random.Random(20)
variants(
    "filled",
    {
        "zeros": _filled(b"\0", 1 << 20),
        "ones": _filled(b"\xff", 1 << 20),
        "chance": _filled(_chance.randbytes(1 << 20), 1 << 20),
        "nothing": _filled(b"\0", 0),
        "one byte": _filled(b"\0", 1),
        "2047 bytes": _filled(b"\0", 2047),
        **{f"{base} then zeros": _with_super(b"\0", base) for base in BASES},
        **{f"{base} then ones": _with_super(b"\xff", base) for base in BASES},
        **{f"{base} then chance": _with_super(_chance.randbytes(4096), base) for base in BASES},
        "tables of superblocks": _with_super(load("plain")[1024:2048], "plain"),
    },
)
