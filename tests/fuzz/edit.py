# SPDX-License-Identifier: Apache-2.0
"""Change an image and put its checksums right again, so that what lies behind them is reached.

The checksums are computed here from the specification, not with the code under test.
"""

from __future__ import annotations

import functools
import struct
from typing import Any, Final, NamedTuple, get_args, get_type_hints

import crc32c

from penstock.formats.ext4.format import RawInode, RawSuperblock, RoCompat
from penstock.formats.ext4.groups import GroupTable
from penstock.formats.ext4.superblock import Superblock
from penstock.formats.ext4.volume import Volume
from penstock.formats.layout import At
from tests.fuzz.bases import Image, Patch, load

__all__ = ["Editor", "Geometry", "field_places", "geometry"]

_ONES: Final = 0xFFFF_FFFF
_SUPER: Final = 1024
_JOURNAL_INO: Final = 8


def raw_crc(seed: int, *pieces: bytes) -> int:
    """CRC-32C without inversions, as ext4 and jbd2 use it."""
    value = seed ^ _ONES
    for piece in pieces:
        value = crc32c.crc32c(piece, value)
    return int(value) ^ _ONES


def crc16(data: bytes) -> int:
    """CRC-16 as the old checksums of descriptors have it."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value


@functools.cache
def field_places(cls: type) -> dict[str, tuple[int, str]]:
    """Offset and ``struct`` code of each field of a structure."""
    hints = get_type_hints(cls, include_extras=True)
    places = {}
    for name, hint in hints.items():
        at: At = get_args(hint)[1]
        places[name] = (at.offset, at.code)
    return places


class Geometry(NamedTuple):
    """Where things are in a base."""

    superblock: Superblock
    tables: tuple[int, ...]
    """First block of each group's inode table."""
    descriptors: tuple[int, ...]
    """Byte offset of each descriptor."""
    journal: tuple[int, ...]
    """Blocks of the journal."""


@functools.cache
def geometry(name: str) -> Geometry:
    """Of a base, found by the reader, which is right about sound images."""
    from penstock.formats.ext4.extents import MAPPED
    from penstock.formats.ext4.inode import InodeTable
    from penstock.formats.ext4.mapping import walk
    from penstock.formats.ext4.superblock import parse_superblock

    image = Image(load(name))
    sb = parse_superblock(image.pread(1024, _SUPER), image.size)
    volume = Volume(image, sb, verify=True, cache_size=1 << 20)
    groups = GroupTable(volume)
    per_block = sb.block_size // sb.desc_size
    places = tuple(
        groups._descriptor_block(group // per_block) * sb.block_size
        + group % per_block * sb.desc_size
        for group in range(sb.groups)
    )
    journal: list[int] = []
    if sb.journal_inum:
        inode = InodeTable(volume, groups, 1 << 20).inode(_JOURNAL_INO)
        for piece in walk(volume, inode, 0, inode.size // sb.block_size):
            assert piece.state == MAPPED
            journal += range(piece.physical, piece.physical + piece.length)
    tables = tuple(groups.inode_table(group) for group in range(sb.groups))
    return Geometry(sb, tables, places, tuple(journal))


class Editor(Image):
    """An image in the making.

    Args:
        name: of the base.
    """

    def __init__(self, name: str) -> None:
        super().__init__(load(name))
        self.name = name
        self.geometry = geometry(name)
        self.sb = self.geometry.superblock
        self.block_size = self.sb.block_size
        self._next_free = self.sb.blocks_count - 1

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes."""
        self.patches.append(Patch(offset, data))

    def put(self, offset: int, code: str, *values: int) -> None:
        """Put packed numbers (little-endian unless the code says otherwise)."""
        self.write(offset, struct.pack(code if code[0] in "<>" else "<" + code, *values))

    def get(self, offset: int, code: str) -> Any:
        """One packed number."""
        code = code if code[0] in "<>" else "<" + code
        return struct.unpack(code, self.pread(struct.calcsize(code), offset))[0]

    def block(self, number: int) -> bytes:
        """A block."""
        return self.pread(self.block_size, number * self.block_size)

    def put_block(self, number: int, data: bytes) -> None:
        """Replace a block; what is missing of it is zeros."""
        self.write(number * self.block_size, data.ljust(self.block_size, b"\0"))

    def free_block(self) -> int:
        """A block that nothing uses."""
        while any(self.block(self._next_free)):
            self._next_free -= 1
        self._next_free -= 1
        return self._next_free + 1

    # Places

    def inode_at(self, ino: int) -> int:
        """Byte offset of an inode."""
        group, index = divmod(ino - 1, self.sb.inodes_per_group)
        return self.geometry.tables[group] * self.block_size + index * self.sb.inode_size

    def set_super(self, **fields: int | bytes) -> None:
        """Set fields of the superblock, with its checksum."""
        self._set(RawSuperblock, _SUPER, fields)
        self.seal_super()

    def set_inode(self, ino: int, **fields: int | bytes) -> None:
        """Set fields of an inode, with its checksum."""
        self._set(RawInode, self.inode_at(ino), fields)
        self.seal_inode(ino)

    def get_inode(self, ino: int, field: str) -> Any:
        """A field of an inode."""
        offset, code = field_places(RawInode)[field]
        return self.get(self.inode_at(ino) + offset, code)

    def _set(self, cls: type, base: int, fields: dict[str, int | bytes]) -> None:
        for name, value in fields.items():
            offset, code = field_places(cls)[name]
            self.write(base + offset, struct.pack("<" + code, value))

    # Checksums

    @property
    def csum(self) -> bool:
        """Whether metadata has checksums."""
        return self.sb.metadata_csum

    def seal_super(self) -> None:
        if self.csum:
            data = self.pread(0x3FC, _SUPER)
            self.put(_SUPER + 0x3FC, "I", raw_crc(_ONES, data))

    def seal_group(self, group: int) -> None:
        if not self.sb.ro_compat & (RoCompat.METADATA_CSUM | RoCompat.GDT_CSUM):
            return
        at = self.geometry.descriptors[group]
        data = self.pread(self.sb.desc_size, at)
        number = struct.pack("<I", group)
        if self.csum:
            value = raw_crc(self.sb.seed, number, data[:0x1E], b"\0\0", data[0x20:]) & 0xFFFF
        else:
            value = crc16(self.sb.uuid + number + data[:0x1E] + data[0x20:])
        self.put(at + 0x1E, "H", value)

    def inode_seed(self, ino: int) -> int:
        generation = self.pread(4, self.inode_at(ino) + 0x64)
        return raw_crc(self.sb.seed, struct.pack("<I", ino), generation)

    def seal_inode(self, ino: int) -> None:
        if not self.csum:
            return
        at = self.inode_at(ino)
        raw = bytearray(self.pread(self.sb.inode_size, at))
        wide = len(raw) > 128 and struct.unpack_from("<H", raw, 0x80)[0] >= 4
        raw[0x7C:0x7E] = b"\0\0"
        if wide:
            raw[0x82:0x84] = b"\0\0"
        value = raw_crc(self.inode_seed(ino), bytes(raw))
        self.put(at + 0x7C, "H", value & 0xFFFF)
        if wide:
            self.put(at + 0x82, "H", value >> 16)

    def seal_extents(self, ino: int, block: int) -> None:
        if not self.csum:
            return
        data = self.block(block)
        tail = 12 + 12 * struct.unpack_from("<H", data, 4)[0]
        if tail + 4 <= len(data):
            value = raw_crc(self.inode_seed(ino), data[:tail])
            self.put(block * self.block_size + tail, "I", value)

    def seal_leaf(self, ino: int, block: int) -> None:
        """A block of directory entries; makes its tail too."""
        if not self.csum:
            return
        tail = self.block_size - 12
        at = block * self.block_size
        value = raw_crc(self.inode_seed(ino), self.block(block)[:tail])
        self.write(at + tail, b"\0\0\0\0\x0c\0\0\xde" + struct.pack("<I", value))

    def seal_node(self, ino: int, block: int, entries: int) -> None:
        """A block of a hash tree; ``entries``: where they begin in it."""
        if not self.csum:
            return
        data = self.block(block)
        limit, count = struct.unpack_from("<HH", data, entries)
        tail = entries + 8 * limit
        if tail + 8 > len(data) or count > limit:
            return
        covered = data[: entries + 8 * count], data[tail : tail + 4], bytes(4)
        self.put(block * self.block_size + tail + 4, "I", raw_crc(self.inode_seed(ino), *covered))

    def seal_xattrs(self, block: int) -> None:
        if not self.csum:
            return
        data = self.block(block)
        number = struct.pack("<Q", block)
        value = raw_crc(self.sb.seed, number, data[:0x10], bytes(4), data[0x14:])
        self.put(block * self.block_size + 0x10, "I", value)

    def seal_journal_super(self) -> None:
        at = self.geometry.journal[0] * self.block_size
        data = self.pread(1024, at)
        if self._log_csum:
            value = raw_crc(_ONES, data[:0xFC], bytes(4), data[0x100:])
            self.put(at + 0xFC, ">I", value)

    @property
    def _log_csum(self) -> bool:
        return bool(self.get(self.geometry.journal[0] * self.block_size + 0x28, ">I") & 0x18)

    def _journal_seed(self) -> int:
        uuid = self.pread(16, self.geometry.journal[0] * self.block_size + 0x30)
        return raw_crc(_ONES, uuid)

    def seal_log_block(self, block: int) -> None:
        """A descriptor or revoke block (checksum at its end) or a commit block of the log."""
        if not self._log_csum:
            return
        data = self.block(block)
        kind = struct.unpack_from(">I", data, 4)[0]
        place = 0x10 if kind == 2 else self.block_size - 4
        value = raw_crc(self._journal_seed(), data[:place], bytes(4), data[place + 4 :])
        self.put(block * self.block_size + place, ">I", value)
