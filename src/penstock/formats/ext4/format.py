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
MAX_CLUSTER_LOG: Final = 20
"""Cluster size is 1024 << log, at most 2^30 bytes."""
N_BLOCKS_BYTES: Final = 60
"""Bytes of ``i_block``: a block map, the root of an extent tree, inline data, or a symlink."""
NAME_MAX: Final = 255
CHECKSUM_CRC32C: Final = 1
DIR_HASH_MASK: Final = 0x0FFF_FFFF


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
