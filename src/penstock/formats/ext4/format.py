# SPDX-License-Identifier: Apache-2.0
"""Facts of the ext4 format: feature bits, structures, numbers. No code that reads.

All integers on disk are little-endian. Offsets are in bytes from the start of their structure.

Specification: Documentation/filesystems/ext4 of the Linux kernel, and images made by the kernel and
by mke2fs where that is silent.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, NamedTuple

from penstock.formats.layout import at, packed

SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_SIZE: Final = 1024
SUPER_MAGIC: Final = 0xEF53
ROOT_INO: Final = 2
GOOD_OLD_FIRST_INO: Final = 11
GOOD_OLD_INODE_SIZE: Final = 128
MAX_BLOCK_LOG: Final = 6
"""Block size is 1024 << log; 64 KiB is the largest."""
MAX_BLOCK_SIZE: Final = 65536
MAX_CLUSTER_LOG: Final = 20
"""Cluster size is 1024 << log, at most 2^30 bytes."""
N_BLOCKS_BYTES: Final = 60
"""Bytes of ``i_block``: a block map, the root of an extent tree, inline data, or a symlink."""
NAME_MAX: Final = 255
CHECKSUM_CRC32C: Final = 1
DX_BLOCK_MASK: Final = 0x0FFF_FFFF


class Compat(enum.IntFlag):
    """Features that a reader or a writer may ignore."""

    DIR_PREALLOC = 0x1
    IMAGIC_INODES = 0x2
    HAS_JOURNAL = 0x4
    EXT_ATTR = 0x8
    RESIZE_INODE = 0x10
    DIR_INDEX = 0x20
    LAZY_BG = 0x40
    EXCLUDE_BITMAP = 0x100
    SPARSE_SUPER2 = 0x200
    FAST_COMMIT = 0x400
    STABLE_INODES = 0x800
    ORPHAN_FILE = 0x1000


class Incompat(enum.IntFlag):
    """Features that a reader must know."""

    COMPRESSION = 0x1
    FILETYPE = 0x2
    RECOVER = 0x4
    JOURNAL_DEV = 0x8
    META_BG = 0x10
    EXTENTS = 0x40
    BIT64 = 0x80
    MMP = 0x100
    FLEX_BG = 0x200
    EA_INODE = 0x400
    DIRDATA = 0x1000
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class RoCompat(enum.IntFlag):
    """Features that a writer must know."""

    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    BTREE_DIR = 0x4
    HUGE_FILE = 0x8
    GDT_CSUM = 0x10
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    HAS_SNAPSHOT = 0x80
    QUOTA = 0x100
    BIGALLOC = 0x200
    METADATA_CSUM = 0x400
    REPLICA = 0x800
    READONLY = 0x1000
    PROJECT = 0x2000
    SHARED_BLOCKS = 0x4000
    VERITY = 0x8000
    ORPHAN_PRESENT = 0x10000


FEATURE_NAMES: Final[dict[type[enum.IntFlag], dict[int, str]]] = {
    Compat: {
        Compat.DIR_PREALLOC: "dir_prealloc",
        Compat.IMAGIC_INODES: "imagic_inodes",
        Compat.HAS_JOURNAL: "has_journal",
        Compat.EXT_ATTR: "ext_attr",
        Compat.RESIZE_INODE: "resize_inode",
        Compat.DIR_INDEX: "dir_index",
        Compat.LAZY_BG: "lazy_bg",
        Compat.EXCLUDE_BITMAP: "snapshot_bitmap",
        Compat.SPARSE_SUPER2: "sparse_super2",
        Compat.FAST_COMMIT: "fast_commit",
        Compat.STABLE_INODES: "stable_inodes",
        Compat.ORPHAN_FILE: "orphan_file",
    },
    Incompat: {
        Incompat.COMPRESSION: "compression",
        Incompat.FILETYPE: "filetype",
        Incompat.RECOVER: "needs_recovery",
        Incompat.JOURNAL_DEV: "journal_dev",
        Incompat.META_BG: "meta_bg",
        Incompat.EXTENTS: "extent",
        Incompat.BIT64: "64bit",
        Incompat.MMP: "mmp",
        Incompat.FLEX_BG: "flex_bg",
        Incompat.EA_INODE: "ea_inode",
        Incompat.DIRDATA: "dirdata",
        Incompat.CSUM_SEED: "metadata_csum_seed",
        Incompat.LARGEDIR: "large_dir",
        Incompat.INLINE_DATA: "inline_data",
        Incompat.ENCRYPT: "encrypt",
        Incompat.CASEFOLD: "casefold",
    },
    RoCompat: {
        RoCompat.SPARSE_SUPER: "sparse_super",
        RoCompat.LARGE_FILE: "large_file",
        RoCompat.BTREE_DIR: "btree_dir",
        RoCompat.HUGE_FILE: "huge_file",
        RoCompat.GDT_CSUM: "uninit_bg",
        RoCompat.DIR_NLINK: "dir_nlink",
        RoCompat.EXTRA_ISIZE: "extra_isize",
        RoCompat.HAS_SNAPSHOT: "has_snapshot",
        RoCompat.QUOTA: "quota",
        RoCompat.BIGALLOC: "bigalloc",
        RoCompat.METADATA_CSUM: "metadata_csum",
        RoCompat.REPLICA: "replica",
        RoCompat.READONLY: "read-only",
        RoCompat.PROJECT: "project",
        RoCompat.SHARED_BLOCKS: "shared_blocks",
        RoCompat.VERITY: "verity",
        RoCompat.ORPHAN_PRESENT: "orphan_present",
    },
}
"""Names as ``mke2fs -O`` and ``dumpe2fs`` use them."""

SUPPORTED_INCOMPAT: Final = (
    Incompat.FILETYPE
    | Incompat.RECOVER
    | Incompat.META_BG
    | Incompat.EXTENTS
    | Incompat.BIT64
    | Incompat.MMP
    | Incompat.FLEX_BG
    | Incompat.EA_INODE
    | Incompat.CSUM_SEED
    | Incompat.LARGEDIR
    | Incompat.INLINE_DATA
    | Incompat.ENCRYPT
    | Incompat.CASEFOLD
)
"""What the reader knows. Encrypted content and case-insensitive matching are refused one file at a
time, so that the rest of the image can be read."""


def feature_names(flags: enum.IntFlag) -> list[str]:
    """The names of the bits set in ``flags``; a bit without a name as hexadecimal."""
    names = FEATURE_NAMES[type(flags)]
    bits = [1 << n for n in range(int(flags).bit_length()) if int(flags) >> n & 1]
    return [names.get(bit, f"{type(flags).__name__.lower()} {bit:#x}") for bit in bits]


class State(enum.IntFlag):
    """``s_state``."""

    VALID = 0x1
    ERROR = 0x2
    ORPHAN_FS = 0x4
    FC_REPLAY = 0x20


class SuperFlag(enum.IntFlag):
    """``s_flags``."""

    SIGNED_HASH = 0x1
    UNSIGNED_HASH = 0x2
    TEST_FILESYS = 0x4


@packed("<", SUPERBLOCK_SIZE)
class RawSuperblock(NamedTuple):
    """The superblock, at byte 1024 of the filesystem."""

    inodes_count: Annotated[int, at(0x000, "I")]
    blocks_count_lo: Annotated[int, at(0x004, "I")]
    r_blocks_count_lo: Annotated[int, at(0x008, "I")]
    free_blocks_count_lo: Annotated[int, at(0x00C, "I")]
    free_inodes_count: Annotated[int, at(0x010, "I")]
    first_data_block: Annotated[int, at(0x014, "I")]
    log_block_size: Annotated[int, at(0x018, "I")]
    log_cluster_size: Annotated[int, at(0x01C, "I")]
    blocks_per_group: Annotated[int, at(0x020, "I")]
    clusters_per_group: Annotated[int, at(0x024, "I")]
    inodes_per_group: Annotated[int, at(0x028, "I")]
    mtime: Annotated[int, at(0x02C, "I")]
    wtime: Annotated[int, at(0x030, "I")]
    mnt_count: Annotated[int, at(0x034, "H")]
    magic: Annotated[int, at(0x038, "H")]
    state: Annotated[int, at(0x03A, "H")]
    errors: Annotated[int, at(0x03C, "H")]
    minor_rev_level: Annotated[int, at(0x03E, "H")]
    creator_os: Annotated[int, at(0x048, "I")]
    rev_level: Annotated[int, at(0x04C, "I")]
    first_ino: Annotated[int, at(0x054, "I")]
    inode_size: Annotated[int, at(0x058, "H")]
    feature_compat: Annotated[int, at(0x05C, "I")]
    feature_incompat: Annotated[int, at(0x060, "I")]
    feature_ro_compat: Annotated[int, at(0x064, "I")]
    uuid: Annotated[bytes, at(0x068, "16s")]
    volume_name: Annotated[bytes, at(0x078, "16s")]
    last_mounted: Annotated[bytes, at(0x088, "64s")]
    reserved_gdt_blocks: Annotated[int, at(0x0CE, "H")]
    journal_uuid: Annotated[bytes, at(0x0D0, "16s")]
    journal_inum: Annotated[int, at(0x0E0, "I")]
    journal_dev: Annotated[int, at(0x0E4, "I")]
    last_orphan: Annotated[int, at(0x0E8, "I")]
    hash_seed: Annotated[bytes, at(0x0EC, "16s")]
    def_hash_version: Annotated[int, at(0x0FC, "B")]
    jnl_backup_type: Annotated[int, at(0x0FD, "B")]
    desc_size: Annotated[int, at(0x0FE, "H")]
    default_mount_opts: Annotated[int, at(0x100, "I")]
    first_meta_bg: Annotated[int, at(0x104, "I")]
    mkfs_time: Annotated[int, at(0x108, "I")]
    jnl_blocks: Annotated[bytes, at(0x10C, "68s")]
    blocks_count_hi: Annotated[int, at(0x150, "I")]
    r_blocks_count_hi: Annotated[int, at(0x154, "I")]
    free_blocks_count_hi: Annotated[int, at(0x158, "I")]
    min_extra_isize: Annotated[int, at(0x15C, "H")]
    want_extra_isize: Annotated[int, at(0x15E, "H")]
    flags: Annotated[int, at(0x160, "I")]
    mmp_update_interval: Annotated[int, at(0x166, "H")]
    mmp_block: Annotated[int, at(0x168, "Q")]
    log_groups_per_flex: Annotated[int, at(0x174, "B")]
    checksum_type: Annotated[int, at(0x175, "B")]
    error_count: Annotated[int, at(0x194, "I")]
    overhead_clusters: Annotated[int, at(0x248, "I")]
    backup_bgs_0: Annotated[int, at(0x24C, "I")]
    backup_bgs_1: Annotated[int, at(0x250, "I")]
    checksum_seed: Annotated[int, at(0x270, "I")]
    wtime_hi: Annotated[int, at(0x274, "B")]
    mtime_hi: Annotated[int, at(0x275, "B")]
    mkfs_time_hi: Annotated[int, at(0x276, "B")]
    encoding: Annotated[int, at(0x27C, "H")]
    encoding_flags: Annotated[int, at(0x27E, "H")]
    orphan_file_inum: Annotated[int, at(0x280, "I")]
    checksum: Annotated[int, at(0x3FC, "I")]


class DescFlag(enum.IntFlag):
    """``bg_flags``."""

    INODE_UNINIT = 0x1
    BLOCK_UNINIT = 0x2
    INODE_ZEROED = 0x4


@packed("<", 64)
class RawGroupDescriptor(NamedTuple):
    """A group descriptor of 64 bytes; one of 32 bytes ends at ``block_bitmap_hi``."""

    block_bitmap_lo: Annotated[int, at(0x00, "I")]
    inode_bitmap_lo: Annotated[int, at(0x04, "I")]
    inode_table_lo: Annotated[int, at(0x08, "I")]
    free_blocks_lo: Annotated[int, at(0x0C, "H")]
    free_inodes_lo: Annotated[int, at(0x0E, "H")]
    used_dirs_lo: Annotated[int, at(0x10, "H")]
    flags: Annotated[int, at(0x12, "H")]
    block_bitmap_csum_lo: Annotated[int, at(0x18, "H")]
    inode_bitmap_csum_lo: Annotated[int, at(0x1A, "H")]
    itable_unused_lo: Annotated[int, at(0x1C, "H")]
    checksum: Annotated[int, at(0x1E, "H")]
    block_bitmap_hi: Annotated[int, at(0x20, "I")]
    inode_bitmap_hi: Annotated[int, at(0x24, "I")]
    inode_table_hi: Annotated[int, at(0x28, "I")]
    free_blocks_hi: Annotated[int, at(0x2C, "H")]
    free_inodes_hi: Annotated[int, at(0x2E, "H")]
    used_dirs_hi: Annotated[int, at(0x30, "H")]
    itable_unused_hi: Annotated[int, at(0x32, "H")]


class InodeFlag(enum.IntFlag):
    """``i_flags``."""

    SECRM = 0x1
    UNRM = 0x2
    COMPR = 0x4
    SYNC = 0x8
    IMMUTABLE = 0x10
    APPEND = 0x20
    NODUMP = 0x40
    NOATIME = 0x80
    ENCRYPT = 0x800
    INDEX = 0x1000
    IMAGIC = 0x2000
    JOURNAL_DATA = 0x4000
    NOTAIL = 0x8000
    DIRSYNC = 0x10000
    TOPDIR = 0x20000
    HUGE_FILE = 0x40000
    EXTENTS = 0x80000
    VERITY = 0x100000
    EA_INODE = 0x200000
    DAX = 0x2000000
    INLINE_DATA = 0x10000000
    PROJINHERIT = 0x20000000
    CASEFOLD = 0x40000000


@packed("<", 160)
class RawInode(NamedTuple):
    """An inode with every field that the format has; older ones end earlier, at 128 +
    ``extra_isize``. Times are signed seconds, extended by two bits of the ``_extra`` word, whose
    other thirty are nanoseconds."""

    mode: Annotated[int, at(0x00, "H")]
    uid_lo: Annotated[int, at(0x02, "H")]
    size_lo: Annotated[int, at(0x04, "I")]
    atime: Annotated[int, at(0x08, "i")]
    ctime: Annotated[int, at(0x0C, "i")]
    mtime: Annotated[int, at(0x10, "i")]
    dtime: Annotated[int, at(0x14, "I")]
    gid_lo: Annotated[int, at(0x18, "H")]
    links_count: Annotated[int, at(0x1A, "H")]
    blocks_lo: Annotated[int, at(0x1C, "I")]
    flags: Annotated[int, at(0x20, "I")]
    version_lo: Annotated[int, at(0x24, "I")]
    block: Annotated[bytes, at(0x28, "60s")]
    generation: Annotated[int, at(0x64, "I")]
    file_acl_lo: Annotated[int, at(0x68, "I")]
    size_hi: Annotated[int, at(0x6C, "I")]
    blocks_hi: Annotated[int, at(0x74, "H")]
    file_acl_hi: Annotated[int, at(0x76, "H")]
    uid_hi: Annotated[int, at(0x78, "H")]
    gid_hi: Annotated[int, at(0x7A, "H")]
    checksum_lo: Annotated[int, at(0x7C, "H")]
    extra_isize: Annotated[int, at(0x80, "H")]
    checksum_hi: Annotated[int, at(0x82, "H")]
    ctime_extra: Annotated[int, at(0x84, "I")]
    mtime_extra: Annotated[int, at(0x88, "I")]
    atime_extra: Annotated[int, at(0x8C, "I")]
    crtime: Annotated[int, at(0x90, "i")]
    crtime_extra: Annotated[int, at(0x94, "I")]
    version_hi: Annotated[int, at(0x98, "I")]
    projid: Annotated[int, at(0x9C, "I")]


EXTENT_MAGIC: Final = 0xF30A
EXTENT_MAX_DEPTH: Final = 5
EXTENT_MAX_WRITTEN: Final = 0x8000
"""A longer ``ee_len`` is an unwritten extent of ``ee_len - 0x8000`` blocks."""


@packed("<", 12)
class ExtentHeader(NamedTuple):
    """Head of a node of an extent tree."""

    magic: Annotated[int, at(0x0, "H")]
    entries: Annotated[int, at(0x2, "H")]
    max: Annotated[int, at(0x4, "H")]
    depth: Annotated[int, at(0x6, "H")]


@packed("<", 12)
class ExtentLeaf(NamedTuple):
    """``len`` blocks from logical block ``block`` lie at ``start``."""

    block: Annotated[int, at(0x0, "I")]
    len: Annotated[int, at(0x4, "H")]
    start_hi: Annotated[int, at(0x6, "H")]
    start_lo: Annotated[int, at(0x8, "I")]


@packed("<", 12)
class ExtentIndex(NamedTuple):
    """The node at ``leaf`` has what is mapped from logical block ``block``."""

    block: Annotated[int, at(0x0, "I")]
    leaf_lo: Annotated[int, at(0x4, "I")]
    leaf_hi: Annotated[int, at(0x8, "H")]


@packed("<", 8)
class DirEntryHead(NamedTuple):
    """A directory entry before its name. Without the filetype feature ``file_type`` was once the
    high byte of ``name_len``, always 0; Linux leaves types there and ignores them."""

    inode: Annotated[int, at(0x0, "I")]
    rec_len: Annotated[int, at(0x4, "H")]
    name_len: Annotated[int, at(0x6, "B")]
    file_type: Annotated[int, at(0x7, "B")]


DIR_TAIL_HEAD: Final = b"\0\0\0\0\x0c\0\0\xde"
"""The fake entry, 12 bytes with the checksum after it, at the end of a checksummed leaf."""
DIR_TAIL_SIZE: Final = 12

DT_OF_FILE_TYPE: Final = bytes([0, 8, 4, 2, 6, 1, 12, 10]).ljust(256, b"\0")
"""DT_* of ``file_type``: unknown, regular, directory, character, block, fifo, socket, symlink."""


class HashVersion(enum.IntEnum):
    """Hashes of indexed directories; the last three are for bytes taken as unsigned."""

    LEGACY = 0
    HALF_MD4 = 1
    TEA = 2
    LEGACY_UNSIGNED = 3
    HALF_MD4_UNSIGNED = 4
    TEA_UNSIGNED = 5
    SIPHASH = 6


@packed("<", 8)
class DxRootInfo(NamedTuple):
    """At byte 0x18 of block 0 of an indexed directory."""

    hash_version: Annotated[int, at(0x4, "B")]
    info_length: Annotated[int, at(0x5, "B")]
    indirect_levels: Annotated[int, at(0x6, "B")]


XATTR_MAGIC: Final = 0xEA020000
XATTR_VALUE_MAX: Final = 65536


@packed("<", 32)
class XattrBlockHeader(NamedTuple):
    """Head of a block of extended attributes."""

    magic: Annotated[int, at(0x00, "I")]
    refcount: Annotated[int, at(0x04, "I")]
    blocks: Annotated[int, at(0x08, "I")]
    hash: Annotated[int, at(0x0C, "I")]
    checksum: Annotated[int, at(0x10, "I")]


@packed("<", 16)
class XattrEntry(NamedTuple):
    """An extended attribute before its name. ``value_inum`` names an inode with the value."""

    name_len: Annotated[int, at(0x0, "B")]
    name_index: Annotated[int, at(0x1, "B")]
    value_offs: Annotated[int, at(0x2, "H")]
    value_inum: Annotated[int, at(0x4, "I")]
    value_size: Annotated[int, at(0x8, "I")]
    hash: Annotated[int, at(0xC, "I")]


XATTR_PREFIXES: Final[dict[int, bytes]] = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    10: b"gnu.",
}
"""Prefix (or, for ACLs, whole name) of each ``name_index`` that the kernel shows to users."""
XATTR_INDEX_ACLS: Final = (2, 3)
XATTR_INDEX_SYSTEM: Final = 7

MMP_MAGIC: Final = 0x004D4D50
MMP_CLEAN: Final = 0xFF4D4D50
MMP_FSCK: Final = 0xE24D4D50


@packed("<", 1024)
class MmpBlock(NamedTuple):
    """Who has the filesystem mounted (multiple mount protection)."""

    magic: Annotated[int, at(0x00, "I")]
    seq: Annotated[int, at(0x04, "I")]
    time: Annotated[int, at(0x08, "Q")]
    nodename: Annotated[bytes, at(0x10, "64s")]
    bdevname: Annotated[bytes, at(0x50, "32s")]
    check_interval: Annotated[int, at(0x70, "H")]
    checksum: Annotated[int, at(0x3FC, "I")]
