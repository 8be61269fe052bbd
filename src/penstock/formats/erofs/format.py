# SPDX-License-Identifier: Apache-2.0
"""Facts of the EROFS format: structures, numbers. No code that reads or writes.

All integers on disk are little-endian. Offsets are in bytes from the start of their structure.

Specification: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of the Linux kernel.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, NamedTuple

from penstock.formats.layout import at, packed

__all__ = [
    "CHUNK_BITS_MASK",
    "DEVICE_SLOT_SIZE",
    "MAX_BLOCK_BITS",
    "MIN_BLOCK_BITS",
    "NID_UNIT",
    "NULL_BLOCK",
    "SUPERBLOCK_OFFSET",
    "SUPER_MAGIC",
    "ChunkFormat",
    "ChunkIndex",
    "DeviceSlot",
    "Dirent",
    "ExtendedInode",
    "FileType",
    "Incompat",
    "Layout",
    "Superblock",
    "inode_format",
]

SUPERBLOCK_OFFSET: Final = 1024
SUPER_MAGIC: Final = 0xE0F5E1E2
NID_UNIT: Final = 32
"""An inode lies at ``meta_blkaddr`` blocks and so many bytes for each of its number."""
MIN_BLOCK_BITS: Final = 9
MAX_BLOCK_BITS: Final = 12
"""The kernel takes blocks up to its own page size; 4 KiB it takes everywhere."""
DEVICE_SLOT_SIZE: Final = 128
"""``devt_slotoff`` counts in this unit."""
NULL_BLOCK: Final = 0xFFFF_FFFF
"""The block of a chunk that is a hole."""
CHUNK_BITS_MASK: Final = 0x1F
"""Of a chunk format: log2 of the chunk's size in blocks."""


class Incompat(enum.IntFlag):
    """Features that a reader must know."""

    LZ4_0PADDING = 0x1
    COMPR_CFGS = 0x2
    CHUNKED_FILE = 0x4
    DEVICE_TABLE = 0x8
    ZTAILPACKING = 0x10
    FRAGMENTS = 0x20
    XATTR_PREFIXES = 0x40
    BIT48 = 0x80
    METABOX = 0x100


class Layout(enum.IntEnum):
    """How the data of an inode lies: bits 1 to 3 of its format."""

    FLAT_PLAIN = 0
    COMPRESSED_FULL = 1
    FLAT_INLINE = 2
    COMPRESSED_COMPACT = 3
    CHUNK_BASED = 4


class ChunkFormat(enum.IntFlag):
    """Bits of a chunk format beside the chunk's size."""

    INDEXES = 0x20
    BIT48 = 0x40


class FileType(enum.IntEnum):
    """What a directory says of an entry."""

    UNKNOWN = 0
    REGULAR = 1
    DIRECTORY = 2
    CHARACTER = 3
    BLOCK = 4
    FIFO = 5
    SOCKET = 6
    SYMLINK = 7


def inode_format(layout: Layout, *, extended: bool) -> int:
    """``i_format`` of an inode."""
    return int(extended) | layout << 1


@packed("<", 128)
class Superblock(NamedTuple):
    """At :data:`SUPERBLOCK_OFFSET`."""

    magic: Annotated[int, at(0, "I")]
    checksum: Annotated[int, at(4, "I")]
    feature_compat: Annotated[int, at(8, "I")]
    block_bits: Annotated[int, at(12, "B")]
    ext_slots: Annotated[int, at(13, "B")]
    root_nid: Annotated[int, at(14, "H")]
    inodes: Annotated[int, at(16, "Q")]
    build_time: Annotated[int, at(24, "Q")]
    build_time_nsec: Annotated[int, at(32, "I")]
    blocks: Annotated[int, at(36, "I")]
    meta_blkaddr: Annotated[int, at(40, "I")]
    xattr_blkaddr: Annotated[int, at(44, "I")]
    uuid: Annotated[bytes, at(48, "16s")]
    volume_name: Annotated[bytes, at(64, "16s")]
    feature_incompat: Annotated[int, at(80, "I")]
    algorithms: Annotated[int, at(84, "H")]
    extra_devices: Annotated[int, at(86, "H")]
    devt_slotoff: Annotated[int, at(88, "H")]
    dirblk_bits: Annotated[int, at(90, "B")]
    xattr_prefix_count: Annotated[int, at(91, "B")]
    xattr_prefix_start: Annotated[int, at(92, "I")]
    packed_nid: Annotated[int, at(96, "Q")]


@packed("<", DEVICE_SLOT_SIZE)
class DeviceSlot(NamedTuple):
    """One device of the device table."""

    tag: Annotated[bytes, at(0, "64s")]
    blocks: Annotated[int, at(64, "I")]
    unified_address: Annotated[int, at(68, "I")]
    blocks_high: Annotated[int, at(72, "H")]
    unified_address_high: Annotated[int, at(74, "H")]


@packed("<", 64)
class ExtendedInode(NamedTuple):
    """An inode of 64 bytes; chunk indexes follow it."""

    format: Annotated[int, at(0, "H")]
    xattr_icount: Annotated[int, at(2, "H")]
    mode: Annotated[int, at(4, "H")]
    size: Annotated[int, at(8, "Q")]
    union: Annotated[int, at(16, "I")]
    """The chunk format, the first block or the device, by layout and type."""
    ino: Annotated[int, at(20, "I")]
    uid: Annotated[int, at(24, "I")]
    gid: Annotated[int, at(28, "I")]
    mtime: Annotated[int, at(32, "Q")]
    mtime_nsec: Annotated[int, at(40, "I")]
    links: Annotated[int, at(44, "I")]


@packed("<", 8)
class ChunkIndex(NamedTuple):
    """Where one chunk begins; a hole has :data:`NULL_BLOCK`."""

    block_high: Annotated[int, at(0, "H")]
    device: Annotated[int, at(2, "H")]
    """0 = the primary one, else the number of a device of the table, from 1."""
    block: Annotated[int, at(4, "I")]


@packed("<", 12)
class Dirent(NamedTuple):
    """One entry of a directory block; names follow the last one."""

    nid: Annotated[int, at(0, "Q")]
    name_offset: Annotated[int, at(8, "H")]
    file_type: Annotated[int, at(10, "B")]
