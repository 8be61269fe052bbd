# SPDX-License-Identifier: Apache-2.0
"""The superblock: decoded, checked, and the geometry that follows from it.

Everything else in the reader trusts the numbers of a :class:`Superblock`: sizes are powers of two
in their ranges, counts agree with each other, and the filesystem lies wholly inside the image.

Specification: Documentation/filesystems/ext4/super.rst, blockgroup.rst.
"""

from __future__ import annotations

import dataclasses
import uuid as uuid_module
from typing import Final

from penstock.formats.crc import raw_crc32c
from penstock.formats.errors import BadChecksum, CorruptImage, UnsupportedFeature
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.format import Compat, Incompat, RawSuperblock, RoCompat
from penstock.formats.layout import unpack

__all__ = ["Superblock", "parse_superblock"]

_ALL_ONES: Final = 0xFFFF_FFFF
_CHECKSUM_AT: Final = 0x3FC
_MAX_DESC_SIZE: Final = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Superblock:
    """A checked superblock. Sizes in bytes, counts of blocks in filesystem blocks."""

    raw: RawSuperblock
    """Every field as it is on disk."""
    compat: Compat
    incompat: Incompat
    ro_compat: RoCompat
    block_size: int
    cluster_ratio: int
    """Blocks in a cluster; 1 unless bigalloc."""
    blocks_count: int
    first_data_block: int
    blocks_per_group: int
    groups: int
    desc_size: int
    inode_size: int
    inodes_count: int
    inodes_per_group: int
    first_ino: int
    seed: int
    """Initial value of metadata checksums (:func:`~penstock.formats.crc.raw_crc32c`)."""

    @property
    def feature_compat(self) -> int:
        """``s_feature_compat`` as a number."""
        return self.raw.feature_compat

    @property
    def feature_incompat(self) -> int:
        """``s_feature_incompat`` as a number."""
        return self.raw.feature_incompat

    @property
    def uuid(self) -> bytes:
        """The 16 bytes of the filesystem's UUID."""
        return self.raw.uuid

    @property
    def uuid_text(self) -> str:
        """The UUID as text."""
        return str(uuid_module.UUID(bytes=self.raw.uuid))

    @property
    def label(self) -> str:
        """The volume name."""
        return self.raw.volume_name.split(b"\0", 1)[0].decode("utf-8", "replace")

    @property
    def features(self) -> list[str]:
        """Names of all features, as mke2fs names them; unknown ones as hexadecimal."""
        return [
            name
            for flags in (self.compat, self.incompat, self.ro_compat)
            for name in fmt.feature_names(flags)
        ]

    @property
    def metadata_csum(self) -> bool:
        """Whether metadata blocks carry CRC-32C checksums."""
        return bool(self.ro_compat & RoCompat.METADATA_CSUM)

    @property
    def journal_inum(self) -> int:
        """Inode of the journal; 0 if it lies on another device or there is none."""
        return self.raw.journal_inum if self.compat & Compat.HAS_JOURNAL else 0

    @property
    def jnl_blocks(self) -> bytes | None:
        """Backup of the journal inode: 60 bytes of ``i_block``, then size_hi and size_lo (u32)."""
        return self.raw.jnl_blocks if self.raw.jnl_backup_type == 1 else None

    @property
    def needs_recovery(self) -> bool:
        """Whether the journal holds transactions that are not in place yet."""
        return bool(self.incompat & Incompat.RECOVER)

    @property
    def size(self) -> int:
        """Bytes of the filesystem."""
        return self.blocks_count * self.block_size

    @property
    def desc_blocks(self) -> int:
        """Blocks that hold all group descriptors."""
        return -(-self.groups * self.desc_size // self.block_size)

    def group_first_block(self, group: int) -> int:
        """First block of a group."""
        return self.first_data_block + group * self.blocks_per_group

    def has_super(self, group: int) -> bool:
        """Whether a group begins with a copy of the superblock."""
        if group == 0:
            return True
        if self.compat & Compat.SPARSE_SUPER2:
            return group in {self.raw.backup_bgs_0, self.raw.backup_bgs_1}
        if group == 1 or not self.ro_compat & RoCompat.SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


def parse_superblock(data: bytes, image_size: int, *, verify: bool = True) -> Superblock:
    """Decode and check a superblock.

    Args:
        data: its 1024 bytes.
        image_size: bytes of the image; the filesystem must fit.
        verify: check its checksum.

    Raises:
        CorruptImage: it is none, or its numbers contradict each other or the image.
        BadChecksum: its checksum does not match.
        UnsupportedFeature: it names features that the reader does not know.
    """
    raw = unpack(RawSuperblock, data)
    if raw.magic != fmt.SUPER_MAGIC:
        raise CorruptImage(
            f"not an ext4 filesystem: superblock magic is {raw.magic:#06x}, expected 0xef53"
        )
    if verify:
        _verify_checksum(raw, data)
    _check_features(raw)
    sb = _geometry(raw)
    _check_groups(sb)
    if sb.size > image_size:
        raise CorruptImage(
            f"the image is truncated: the filesystem has {sb.blocks_count} blocks of "
            f"{sb.block_size} bytes ({sb.size} bytes), the image has {image_size} bytes"
        )
    return sb


def _verify_checksum(raw: RawSuperblock, data: bytes) -> None:
    if not raw.feature_ro_compat & RoCompat.METADATA_CSUM:
        return
    if raw.checksum_type != fmt.CHECKSUM_CRC32C:
        raise UnsupportedFeature(f"checksum type {raw.checksum_type} (1, crc32c, is known)")
    computed = raw_crc32c(_ALL_ONES, data[:_CHECKSUM_AT])
    if computed != raw.checksum:
        raise BadChecksum(
            f"superblock: wrong checksum {raw.checksum:#010x} (computed {computed:#010x})"
        )


def _check_features(raw: RawSuperblock) -> None:
    if raw.rev_level > 1:
        raise UnsupportedFeature(f"revision level {raw.rev_level} of the format")
    if raw.feature_incompat & Incompat.JOURNAL_DEV:
        raise UnsupportedFeature("journal_dev: this is an external journal, not a filesystem")
    unknown = Incompat(raw.feature_incompat & ~int(fmt.SUPPORTED_INCOMPAT))
    if unknown:
        raise UnsupportedFeature(
            f"filesystem features not supported: {', '.join(fmt.feature_names(unknown))}"
        )


def _range(value: int, low: int, high: int, name: str) -> int:
    if not low <= value <= high:
        raise CorruptImage(f"superblock: {name} is {value}, expected {low} to {high}")
    return value


def _power_of_two(value: int, low: int, high: int, name: str) -> int:
    if value & (value - 1):
        raise CorruptImage(f"superblock: {name} is {value}, expected a power of two")
    return _range(value, low, high, name)


def _geometry(raw: RawSuperblock) -> Superblock:
    compat = Compat(raw.feature_compat)
    incompat = Incompat(raw.feature_incompat)
    ro_compat = RoCompat(raw.feature_ro_compat)
    block_size = 1024 << _range(raw.log_block_size, 0, fmt.MAX_BLOCK_LOG, "log_block_size")
    ratio = 1
    if ro_compat & RoCompat.BIGALLOC:
        low, high = raw.log_block_size, fmt.MAX_CLUSTER_LOG
        ratio = 1 << (_range(raw.log_cluster_size, low, high, "log_cluster_size") - low)
    old = raw.rev_level == 0
    inode_size = fmt.GOOD_OLD_INODE_SIZE if old else raw.inode_size
    _power_of_two(inode_size, fmt.GOOD_OLD_INODE_SIZE, block_size, "inode_size")
    desc_size = 32
    blocks_count = raw.blocks_count_lo
    if incompat & Incompat.BIT64:
        desc_size = _power_of_two(raw.desc_size, 64, min(_MAX_DESC_SIZE, block_size), "desc_size")
        blocks_count |= raw.blocks_count_hi << 32
    first_data_block = raw.first_data_block
    expected = 1 if block_size == 1024 and ratio == 1 else 0
    _range(first_data_block, 0, expected, "first_data_block")
    _range(blocks_count, first_data_block + 1, 1 << 48, "blocks_count")
    _range(raw.blocks_per_group, 8, (1 << 16) * ratio * 8, "blocks_per_group")
    seeded = bool(incompat & Incompat.CSUM_SEED)
    return Superblock(
        raw=raw,
        compat=compat,
        incompat=incompat,
        ro_compat=ro_compat,
        block_size=block_size,
        cluster_ratio=ratio,
        blocks_count=blocks_count,
        first_data_block=first_data_block,
        blocks_per_group=raw.blocks_per_group,
        groups=-(-(blocks_count - first_data_block) // raw.blocks_per_group),
        desc_size=desc_size,
        inode_size=inode_size,
        inodes_count=raw.inodes_count,
        inodes_per_group=raw.inodes_per_group,
        first_ino=fmt.GOOD_OLD_FIRST_INO if old else raw.first_ino,
        seed=raw.checksum_seed if seeded else raw_crc32c(_ALL_ONES, raw.uuid),
    )


def _check_groups(sb: Superblock) -> None:
    raw = sb.raw
    if sb.cluster_ratio > 1 and raw.clusters_per_group * sb.cluster_ratio != sb.blocks_per_group:
        raise CorruptImage(
            f"superblock: {raw.clusters_per_group} clusters of {sb.cluster_ratio} blocks in a "
            f"group of {sb.blocks_per_group} blocks"
        )
    inodes_per_block = sb.block_size // sb.inode_size
    _range(sb.inodes_per_group, inodes_per_block, 8 * sb.block_size, "inodes_per_group")
    if sb.groups * sb.inodes_per_group != sb.inodes_count:
        raise CorruptImage(
            f"superblock: inodes_count is {sb.inodes_count}, expected {sb.groups} groups of "
            f"{sb.inodes_per_group}"
        )
    _range(sb.first_ino, fmt.GOOD_OLD_FIRST_INO, _ALL_ONES, "first_ino")
    if sb.incompat & Incompat.META_BG:
        _range(raw.first_meta_bg, 0, sb.desc_blocks, "first_meta_bg")
