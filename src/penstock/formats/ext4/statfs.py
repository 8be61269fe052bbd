# SPDX-License-Identifier: Apache-2.0
"""What statfs(2) says of a filesystem, counted as the kernel counts it."""

from __future__ import annotations

from typing import Final, NamedTuple

from penstock.formats.errors import CorruptImage
from penstock.formats.ext4.format import Compat, Incompat
from penstock.formats.ext4.groups import GroupTable
from penstock.formats.ext4.superblock import Superblock

__all__ = ["FsCounts", "count_space"]

_MAX_GROUPS: Final = 1 << 15
"""Groups to add up. A larger filesystem (4 TiB of 4 KiB blocks) is taken at its word."""
_RESERVED_CLUSTERS: Final = 4096


class FsCounts(NamedTuple):
    """Space and inodes. Blocks are of ``block_size`` bytes."""

    block_size: int
    blocks: int
    """All blocks that can hold files: without the filesystem's own structures."""
    free: int
    available: int
    """Free to users that are not privileged."""
    files: int
    free_files: int
    name_max: int


def count_space(sb: Superblock, groups: GroupTable, journal_blocks: int) -> FsCounts:
    """Count.

    Args:
        sb: the superblock.
        groups: its descriptors, the sums of which count; the superblock's own counts are only
            brought up to date when the filesystem is unmounted.
        journal_blocks: blocks of the journal.
    """
    raw = sb.raw
    free_clusters = (raw.free_blocks_count_lo | raw.free_blocks_count_hi << 32) // sb.cluster_ratio
    free_files = raw.free_inodes_count
    if sb.groups <= _MAX_GROUPS:
        try:
            free_clusters = free_files = 0
            for group in groups:
                free_clusters += group.free_clusters
                free_files += group.free_inodes
        except CorruptImage:
            free_clusters = free_files = 0  # nothing can be written, and files can be read
    overhead = raw.overhead_clusters * sb.cluster_ratio or _overhead(sb, journal_blocks)
    blocks = max(sb.blocks_count - overhead, 0)
    free = min(free_clusters * sb.cluster_ratio, blocks)
    reserved = raw.r_blocks_count_lo | raw.r_blocks_count_hi << 32
    if sb.incompat & Incompat.EXTENTS:
        clusters = sb.blocks_count // sb.cluster_ratio
        reserved += min(clusters // 50, _RESERVED_CLUSTERS) * sb.cluster_ratio
    return FsCounts(
        block_size=sb.block_size,
        blocks=blocks,
        free=free,
        available=max(free - reserved, 0),
        files=sb.inodes_count,
        free_files=min(free_files, sb.inodes_count),
        name_max=255,
    )


def _overhead(sb: Superblock, journal_blocks: int) -> int:
    """Blocks of the filesystem's own structures, for superblocks that do not tell."""
    tables = -(-sb.inodes_per_group * sb.inode_size // sb.block_size)
    total = sb.first_data_block + journal_blocks + sb.groups * (2 + tables)
    per_block = sb.block_size // sb.desc_size
    meta_bg = bool(sb.incompat & Incompat.META_BG)
    classic = min(sb.desc_blocks, sb.raw.first_meta_bg) if meta_bg else sb.desc_blocks
    reserved = sb.raw.reserved_gdt_blocks if sb.compat & Compat.RESIZE_INODE else 0
    for group in range(min(sb.groups, _MAX_GROUPS)):
        if sb.has_super(group):
            total += 1
        if group // per_block < classic or not meta_bg:
            total += (classic + reserved) if sb.has_super(group) else 0
        elif group % per_block in {0, 1, per_block - 1}:
            total += 1
    return total
