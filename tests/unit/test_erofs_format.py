# SPDX-License-Identifier: Apache-2.0
"""EROFS as it is declared, beside the structures of fs/erofs/erofs_fs.h written down once more, by
the sizes of their members. What the kernel makes of it, tests/root/test_lens.py has."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest

from penstock.formats.erofs.format import (
    CHUNK_BITS_MASK,
    DEVICE_SLOT_SIZE,
    MAX_BLOCK_BITS,
    MIN_BLOCK_BITS,
    NID_UNIT,
    NULL_BLOCK,
    SUPER_MAGIC,
    SUPERBLOCK_OFFSET,
    ChunkFormat,
    ChunkIndex,
    DeviceSlot,
    Dirent,
    ExtendedInode,
    FileType,
    Incompat,
    Layout,
    Superblock,
    inode_format,
)
from penstock.formats.layout import offset_of, size_of, struct_of

U8, U16, U32, U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64

MEMBERS: dict[type[Any], list[tuple[str, Any]]] = {
    Superblock: [
        ("magic", U32), ("checksum", U32), ("feature_compat", U32), ("block_bits", U8),
        ("ext_slots", U8), ("root_nid", U16), ("inodes", U64), ("build_time", U64),
        ("build_time_nsec", U32), ("blocks", U32), ("meta_blkaddr", U32), ("xattr_blkaddr", U32),
        ("uuid", U8 * 16), ("volume_name", U8 * 16), ("feature_incompat", U32),
        ("algorithms", U16), ("extra_devices", U16), ("devt_slotoff", U16), ("dirblk_bits", U8),
        ("xattr_prefix_count", U8), ("xattr_prefix_start", U32), ("packed_nid", U64),
        ("_rest", U8 * 24),
    ],
    DeviceSlot: [
        ("tag", U8 * 64), ("blocks", U32), ("unified_address", U32), ("blocks_high", U16),
        ("unified_address_high", U16), ("_rest", U8 * 52),
    ],
    ExtendedInode: [
        ("format", U16), ("xattr_icount", U16), ("mode", U16), ("_union2", U16), ("size", U64),
        ("union", U32), ("ino", U32), ("uid", U32), ("gid", U32), ("mtime", U64),
        ("mtime_nsec", U32), ("links", U32), ("_rest", U8 * 16),
    ],
    ChunkIndex: [("block_high", U16), ("device", U16), ("block", U32)],
    Dirent: [("nid", U64), ("name_offset", U16), ("file_type", U8), ("_rest", U8)],
}  # fmt: skip


@pytest.mark.parametrize("cls", MEMBERS, ids=lambda cls: cls.__name__)
def test_members_and_where_they_are(cls: type[Any]) -> None:
    kind = type(cls.__name__, (ctypes.LittleEndianStructure,), {
        "_pack_": 1, "_fields_": MEMBERS[cls],
    })  # fmt: skip
    assert ctypes.sizeof(kind) == size_of(cls)
    named = [name for name, _ in MEMBERS[cls] if not name.startswith("_")]
    assert named == list(cls._fields)
    for name in named:
        field = getattr(kind, name)
        assert field.offset == offset_of(cls, name), name
    plain = struct_of(cls)
    assert plain.format[0] == "<"
    assert plain.size == size_of(cls)


def test_numbers() -> None:
    assert (SUPER_MAGIC, SUPERBLOCK_OFFSET) == (0xE0F5E1E2, 1024)
    assert (NID_UNIT, DEVICE_SLOT_SIZE, NULL_BLOCK) == (32, 128, 0xFFFFFFFF)
    assert (1 << MIN_BLOCK_BITS, 1 << MAX_BLOCK_BITS, CHUNK_BITS_MASK) == (512, 4096, 31)
    assert Incompat.CHUNKED_FILE | Incompat.DEVICE_TABLE == 0xC
    assert ChunkFormat.INDEXES & CHUNK_BITS_MASK == 0
    assert (FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK) == (1, 2, 7)


@pytest.mark.parametrize(
    ("layout", "extended", "number"),
    [
        (Layout.FLAT_PLAIN, False, 0),
        (Layout.FLAT_PLAIN, True, 1),
        (Layout.FLAT_INLINE, True, 5),
        (Layout.CHUNK_BASED, True, 9),
    ],
)
def test_formats_of_inodes(layout: Layout, extended: bool, number: int) -> None:
    assert inode_format(layout, extended=extended) == number


def test_a_chunk_as_bytes() -> None:
    packed = struct_of(ChunkIndex).pack(*ChunkIndex(0, 1, 0x01020304))
    assert packed == bytes.fromhex("0000 0100 04030201")
    assert struct.unpack("<Q", packed)[0] == 0x01020304 << 32 | 1 << 16
