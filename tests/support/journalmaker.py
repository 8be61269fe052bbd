# SPDX-License-Identifier: Apache-2.0
"""Journals made in Python, of every format and in any state: for logs that no kernel writes today,
and for logs of which one bit is wrong.

Written from the specification and apart from the reader: nothing here uses its code but for
checksums.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from penstock.formats.crc import raw_crc32c
from penstock.formats.ext4.superblock import Superblock, parse_superblock

__all__ = ["FAST_COMMIT", "MAGIC", "JournalMaker", "MemoryJournal", "superblock"]

MAGIC = b"\xc0\x3b\x39\x98"
CHECKSUM_V1 = 0x1
BIT64, ASYNC_COMMIT, CSUM_V2, CSUM_V3, FAST_COMMIT = 0x2, 0x4, 0x8, 0x10, 0x20
_ONES = 0xFFFFFFFF


def superblock(block_size: int, blocks: int, *, recover: bool = True) -> Superblock:
    """The superblock of a filesystem of ``blocks`` blocks."""
    data = bytearray(1024)
    groups = -(-blocks // 8192)
    inodes = 64
    fields = {
        0x000: groups * inodes,
        0x004: blocks,
        0x018: block_size.bit_length() - 11,
        0x01C: block_size.bit_length() - 11,
        0x020: 8192,
        0x024: 8192,
        0x028: inodes,
        0x04C: 1,
        0x054: 11,
        0x05C: 4,
        0x060: 4 if recover else 0,
        0x0E0: 8,
    }
    for offset, value in fields.items():
        struct.pack_into("<I", data, offset, value)
    struct.pack_into("<H", data, 0x038, 0xEF53)
    struct.pack_into("<H", data, 0x058, 256)
    return parse_superblock(bytes(data), blocks * block_size)


class MemoryJournal:
    """Blocks in memory, at consecutive addresses from ``base``."""

    def __init__(self, data: bytes | bytearray, block_size: int, base: int = 1 << 20) -> None:
        self.data = data
        self.block_size = block_size
        self.count = len(data) // block_size
        self.base = base
        self.reads = 0

    def read(self, index: int, count: int = 1) -> bytes:
        """As of a journal on disk."""
        assert index >= 0
        assert index + count <= self.count
        self.reads += count
        return bytes(self.data[index * self.block_size : (index + count) * self.block_size])

    def address(self, index: int) -> int:
        """Byte address of a block."""
        assert 0 <= index < self.count
        return self.base + index * self.block_size


class JournalMaker:
    """Writes transactions into a ring.

    Args:
        block_size: bytes.
        blocks: of the journal.
        incompat, compat: features.
        sequence: id of the first transaction.
        start: block of it.
        fast_blocks: blocks of the fast commit area at the end.
    """

    def __init__(
        self,
        block_size: int = 1024,
        blocks: int = 1024,
        *,
        incompat: int = 0,
        compat: int = 0,
        sequence: int = 1,
        start: int = 1,
        fast_blocks: int = 0,
    ) -> None:
        self.size = block_size
        self.incompat = incompat
        self.compat = compat
        self.sequence = sequence
        self.tid = sequence
        self.start = start
        self.first = 1
        self.blocks = blocks
        self.fast_blocks = fast_blocks
        self.last = blocks - fast_blocks
        self.uuid = bytes(range(16))
        self.data = bytearray(block_size * blocks)
        self.next = start
        self.used = 0
        self.seconds = 1_000_000
        self.seed = raw_crc32c(_ONES, self.uuid)
        self.checksums = bool(incompat & (CSUM_V2 | CSUM_V3))
        self.write_superblock()

    def write_superblock(self) -> None:
        """(Re)write block 0."""
        fast = FAST_COMMIT if self.fast_blocks else 0
        head = struct.pack(
            ">4sIIIIIIIiIII",
            MAGIC, 4, 0, self.size, self.blocks, self.first, self.sequence, self.start, 0,
            self.compat, self.incompat | fast, 0,
        )  # fmt: skip
        block = bytearray(head + self.uuid).ljust(1024, b"\0")
        struct.pack_into(">I", block, 0x40, 1)
        struct.pack_into(">I", block, 0x54, self.fast_blocks)
        if self.checksums:
            block[0x50] = 4
            struct.pack_into(">I", block, 0xFC, raw_crc32c(_ONES, bytes(block)))
        self.data[: len(block)] = block

    def journal(self) -> MemoryJournal:
        """What was made."""
        return MemoryJournal(self.data, self.size)

    def put(self, block: bytes) -> int:
        """Write the next block of the ring; returns its index."""
        index = self.next
        assert self.used < self.last - self.first, "the log is full"
        self.data[index * self.size : (index + 1) * self.size] = block.ljust(self.size, b"\0")
        self.next = index + 1 if index + 1 < self.last else self.first
        self.used += 1
        return index

    def _header(self, kind: int) -> bytes:
        return MAGIC + struct.pack(">II", kind, self.tid)

    def _with_tail(self, block: bytes) -> bytes:
        block = block.ljust(self.size, b"\0")
        if not self.checksums:
            return block
        bare = block[:-4] + bytes(4)
        return block[:-4] + struct.pack(">I", raw_crc32c(self.seed, bare))

    def _tag(self, number: int, flags: int, copy: bytes) -> bytes:
        high = number >> 32 if self.incompat & BIT64 else 0
        low = number & _ONES
        checksum = raw_crc32c(raw_crc32c(self.seed, struct.pack(">I", self.tid)), copy)
        if self.incompat & CSUM_V3:
            return struct.pack(">IIII", low, flags, high, checksum)
        stored = checksum & 0xFFFF if self.incompat & CSUM_V2 else 0
        tag = struct.pack(">IHH", low, stored, flags)
        if self.incompat & BIT64:
            tag += struct.pack(">I", high)
        return tag + bytes(2) if self.incompat & CSUM_V2 else tag

    def room(self) -> int:
        """Tags that fit into one descriptor."""
        tag = len(self._tag(0, 0, b""))
        return (self.size - 12 - 16 - (4 if self.checksums else 0)) // tag

    def _descriptor(self, copies: list[tuple[int, bytes]]) -> list[bytes]:
        """A descriptor and the copies that follow it."""
        block = self._header(1)
        stored = []
        for index, (number, content) in enumerate(copies):
            copy = content.ljust(self.size, b"\0")
            flags = 2 if index else 0
            if copy[:4] == MAGIC:
                copy = bytes(4) + copy[4:]
                flags |= 1
            if index == len(copies) - 1:
                flags |= 8
            block += self._tag(number, flags, copy)
            if index == 0:
                block += bytes(16)
            stored.append(copy)
        return [self._with_tail(block), *stored]

    def transaction(
        self,
        copies: Iterable[tuple[int, bytes]] = (),
        revokes: Iterable[int] = (),
        *,
        commit: bool = True,
    ) -> None:
        """Log a transaction.

        Args:
            copies: filesystem blocks and their content.
            revokes: filesystem blocks whose copies so far must not be replayed.
            commit: False leaves it incomplete, as a crash does.
        """
        written = []
        code = ">Q" if self.incompat & BIT64 else ">I"
        numbers = list(revokes)
        per_block = (self.size - 16 - 4) // struct.calcsize(code)
        for at in range(0, len(numbers), per_block):
            records = b"".join(struct.pack(code, number) for number in numbers[at : at + per_block])
            head = self._header(5) + struct.pack(">I", 16 + len(records))
            self.put(self._with_tail(head + records))
        pending = list(copies)
        for at in range(0, len(pending), self.room()):
            written += self._descriptor(pending[at : at + self.room()])
        for block in written:
            self.put(block)
        if commit:
            self._commit(b"".join(written))
        self.tid = (self.tid + 1) & _ONES

    def _commit(self, covered: bytes) -> None:
        self.seconds += 1
        block = bytearray(self._header(2).ljust(self.size, b"\0"))
        struct.pack_into(">QI", block, 0x30, self.seconds, 0)
        if self.checksums:
            struct.pack_into(">I", block, 0x10, raw_crc32c(self.seed, bytes(block)))
        elif self.compat & CHECKSUM_V1:
            block[0x0C:0x0E] = b"\1\4"
            struct.pack_into(">I", block, 0x10, _crc32_be(covered))
        self.put(bytes(block))


def _crc32_be(data: bytes) -> int:
    """CRC-32 from the most significant bit on, starting from all ones, not inverted."""
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
    return int(f"{zlib.crc32(mirrored) ^ _ONES:032b}"[::-1], 2)
