# SPDX-License-Identifier: Apache-2.0
"""Group descriptors: where each group's inode table lies, and what is free.

Descriptors are read when they are needed and verified then, so that mounting costs the same however
many groups there are.

Specification: Documentation/filesystems/ext4/group_descr.rst, blockgroup.rst (meta_bg).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from penstock.formats.crc import crc16, crc32c
from penstock.formats.errors import BadChecksum, CorruptImage
from penstock.formats.ext4.format import Incompat, RawGroupDescriptor, RoCompat
from penstock.formats.ext4.volume import Volume
from penstock.formats.layout import offset_of, unpack

__all__ = ["Group", "GroupTable"]

_CHECKSUM_AT: Final = offset_of(RawGroupDescriptor, "checksum")
_LARGE: Final = 64
_MAX_KEPT: Final = 65536


class Group(NamedTuple):
    """A verified descriptor."""

    inode_table: int
    """First block of the inode table."""
    free_clusters: int
    free_inodes: int
    flags: int


class GroupTable:
    """The descriptors of a volume."""

    def __init__(self, volume: Volume) -> None:
        sb = volume.superblock
        self._volume = volume
        self._per_block = sb.block_size // sb.desc_size
        self._first_meta_bg = sb.desc_blocks
        if sb.incompat & Incompat.META_BG:
            self._first_meta_bg = sb.raw.first_meta_bg
        self._table_blocks = -(-sb.inodes_per_group * sb.inode_size // sb.block_size)
        gdt_csum = bool(sb.ro_compat & RoCompat.GDT_CSUM)
        self._crc16 = gdt_csum and not sb.metadata_csum and volume.verify_checksums
        self._tables: dict[int, int] = {}

    def inode_table(self, group: int) -> int:
        """First block of the inode table of ``group``.

        Raises:
            CorruptImage, BadChecksum: the descriptor is bad.
        """
        table = self._tables.get(group)
        if table is None:
            table = self.group(group).inode_table
            self._volume.check_range(table, self._table_blocks, f"group {group}: inode table")
            if len(self._tables) >= _MAX_KEPT:
                self._tables.clear()
            self._tables[group] = table
        return table

    def group(self, group: int) -> Group:
        """The descriptor of ``group``.

        Raises:
            CorruptImage, BadChecksum: it is bad.
        """
        sb = self._volume.superblock
        if not 0 <= group < sb.groups:
            raise CorruptImage(f"group {group} of a filesystem of {sb.groups} groups")
        block, index = divmod(group, self._per_block)
        data = self._volume.read_block(self._descriptor_block(block))
        return self._decode(group, data[index * sb.desc_size : (index + 1) * sb.desc_size])

    def __iter__(self) -> Iterator[Group]:
        """All descriptors in order."""
        for group in range(self._volume.superblock.groups):
            yield self.group(group)

    def _descriptor_block(self, index: int) -> int:
        """The filesystem block that holds block ``index`` of the table of descriptors."""
        sb = self._volume.superblock
        if index < self._first_meta_bg:
            # With 1 KiB blocks the superblock is block 1, also where numbering starts at 0.
            return (1 if sb.block_size == 1024 else sb.first_data_block) + 1 + index
        group = index * self._per_block
        block = sb.group_first_block(group) + (1 if sb.has_super(group) else 0)
        if group == 0 and sb.block_size == 1024 and sb.first_data_block == 0:
            block += 1
        return block

    def _decode(self, group: int, data: bytes) -> Group:
        self._verify(group, data)
        desc = unpack(RawGroupDescriptor, data[:_LARGE].ljust(_LARGE, b"\0"))
        return Group(
            inode_table=desc.inode_table_lo | desc.inode_table_hi << 32,
            free_clusters=desc.free_blocks_lo | desc.free_blocks_hi << 16,
            free_inodes=desc.free_inodes_lo | desc.free_inodes_hi << 16,
            flags=desc.flags,
        )

    def _verify(self, group: int, data: bytes) -> None:
        volume = self._volume
        head, tail = data[:_CHECKSUM_AT], data[_CHECKSUM_AT + 2 :]
        number = struct.pack("<I", group)
        if volume.metadata_csum:
            value = ~crc32c(b"".join((number, head, b"\0\0", tail)), volume.inverted_seed) & 0xFFFF
        elif self._crc16:
            value = crc16(0xFFFF, b"".join((volume.superblock.uuid, number, head, tail)))
        else:
            return
        stored = int.from_bytes(data[_CHECKSUM_AT : _CHECKSUM_AT + 2], "little")
        if stored != value:
            raise BadChecksum(
                f"descriptor of group {group}: checksum {stored:#06x}, computed {value:#06x}"
            )
