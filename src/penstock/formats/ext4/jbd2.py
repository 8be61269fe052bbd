# SPDX-License-Identifier: Apache-2.0
"""Facts of jbd2, the journal of ext3 and ext4: its superblock, its blocks, its checksums.

All integers of the journal are big-endian (fast commits alone are little-endian, see
:mod:`penstock.formats.ext4.fastcommit`). This module knows the structures; what they mean for the
filesystem is told in :mod:`penstock.formats.ext4.journal`.

Specification: Documentation/filesystems/ext4/journal.rst of the Linux kernel, and logs written by
the kernel where that is silent.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Annotated, Final, NamedTuple

from penstock.formats.crc import crc32c
from penstock.formats.errors import BadChecksum, CorruptImage, UnsupportedFeature
from penstock.formats.layout import at, packed, unpack

__all__ = [
    "ESCAPED_BYTES",
    "Checksums",
    "CommitBlock",
    "Geometry",
    "JournalSuperblock",
    "TagFlag",
    "TagFormat",
    "Tags",
    "parse_journal_superblock",
    "v1_checksum",
]

MAGIC: Final = 0xC03B3998
ESCAPED_BYTES: Final = MAGIC.to_bytes(4, "big")
"""What the first four bytes of an escaped block are (in the log they are zero)."""

HEADER: Final = struct.Struct(">III")
"""Magic, block type, transaction id: the start of every block of the log that is not a copy."""
TAIL: Final = struct.Struct(">I")
"""Checksum at the end of descriptor and revoke blocks (csum v2, v3)."""

DESCRIPTOR: Final = 1
COMMIT: Final = 2
SUPERBLOCK_V1: Final = 3
SUPERBLOCK_V2: Final = 4
REVOKE: Final = 5

SUPERBLOCK_SIZE: Final = 1024
SUPERBLOCK_CHECKSUM_AT: Final = 0xFC
CHECKSUM_CRC32: Final = 1
CHECKSUM_CRC32C: Final = 4
MIN_BLOCKS: Final = 1024
"""The shortest journal, fast commit area not counted."""
DEFAULT_FC_BLOCKS: Final = 256
UUID_SIZE: Final = 16
REVOKE_HEADER_SIZE: Final = 16
COMMIT_HEADER_SIZE: Final = 60
COMMIT_CHECKSUM_AT: Final = 0x10
TID_MASK: Final = 0xFFFF_FFFF
_ALL_ONES: Final = 0xFFFF_FFFF
_NO_CHECKSUM: Final = bytes(4)


class Compat(enum.IntFlag):
    """``s_feature_compat`` of a journal."""

    CHECKSUM = 0x1


class Incompat(enum.IntFlag):
    """``s_feature_incompat`` of a journal. REVOKE is set late, and so means nothing to a reader."""

    REVOKE = 0x1
    BIT64 = 0x2
    ASYNC_COMMIT = 0x4
    CSUM_V2 = 0x8
    CSUM_V3 = 0x10
    FAST_COMMIT = 0x20


KNOWN_INCOMPAT: Final = (
    Incompat.REVOKE
    | Incompat.BIT64
    | Incompat.ASYNC_COMMIT
    | Incompat.CSUM_V2
    | Incompat.CSUM_V3
    | Incompat.FAST_COMMIT
)


class TagFlag(enum.IntFlag):
    """Flags of a descriptor's tag."""

    ESCAPE = 0x1
    SAME_UUID = 0x2
    DELETED = 0x4
    LAST_TAG = 0x8


@packed(">", SUPERBLOCK_SIZE)
class JournalSuperblock(NamedTuple):
    """Block 0 of the journal. Version 1 ends at ``errno``; later fields are then zero."""

    magic: Annotated[int, at(0x00, "I")]
    blocktype: Annotated[int, at(0x04, "I")]
    blocksize: Annotated[int, at(0x0C, "I")]
    maxlen: Annotated[int, at(0x10, "I")]
    first: Annotated[int, at(0x14, "I")]
    sequence: Annotated[int, at(0x18, "I")]
    start: Annotated[int, at(0x1C, "I")]
    errno: Annotated[int, at(0x20, "i")]
    feature_compat: Annotated[int, at(0x24, "I")]
    feature_incompat: Annotated[int, at(0x28, "I")]
    feature_ro_compat: Annotated[int, at(0x2C, "I")]
    uuid: Annotated[bytes, at(0x30, "16s")]
    nr_users: Annotated[int, at(0x40, "I")]
    checksum_type: Annotated[int, at(0x50, "B")]
    num_fc_blocks: Annotated[int, at(0x54, "I")]
    head: Annotated[int, at(0x58, "I")]
    checksum: Annotated[int, at(0xFC, "I")]


@packed(">", COMMIT_HEADER_SIZE)
class CommitBlock(NamedTuple):
    """A commit block."""

    magic: Annotated[int, at(0x00, "I")]
    blocktype: Annotated[int, at(0x04, "I")]
    sequence: Annotated[int, at(0x08, "I")]
    checksum_type: Annotated[int, at(0x0C, "B")]
    checksum_size: Annotated[int, at(0x0D, "B")]
    checksum: Annotated[int, at(0x10, "I")]
    commit_sec: Annotated[int, at(0x30, "Q")]
    commit_nsec: Annotated[int, at(0x38, "I")]


_SAME_UUID: Final = int(TagFlag.SAME_UUID)
_LAST_TAG: Final = int(TagFlag.LAST_TAG)
_USUAL: Final = _SAME_UUID | _LAST_TAG


class Tags(NamedTuple):
    """What a descriptor tells of the copies that follow it: parallel lists."""

    blocks: list[int]
    """Filesystem blocks that the copies belong to."""
    flags: list[int]
    checksums: list[int]
    """csum v3: 32 bits; v2: the low 16; 0 otherwise."""


class TagFormat:
    """How descriptors of one journal name blocks: three layouts, with and without 64 bits.

    In what the kernel writes the first tag is followed by a UUID and the others are not, so that
    they can be taken apart in one go. Anything else is walked tag by tag.
    """

    __slots__ = ("_flags_at", "_long", "_struct", "_v3", "size")

    def __init__(self, incompat: int) -> None:
        self._v3 = bool(incompat & Incompat.CSUM_V3)
        self._long = bool(incompat & Incompat.BIT64)
        if self._v3:
            code = ">IIII"
        else:
            code = ">IHHI" if self._long else ">IHH"
            if incompat & Incompat.CSUM_V2:
                code += "2x"
        self._struct = struct.Struct(code)
        self._flags_at = 1 if self._v3 else 2
        self.size = self._struct.size
        """Bytes of a tag, its UUID not counted."""

    def _raw(self, block: bytes, end: int) -> list[tuple[int, ...]]:
        """The fields of all tags of a descriptor."""
        size, flags_at = self.size, self._flags_at
        raw: list[tuple[int, ...]] = []
        position = HEADER.size
        while position + size <= end:
            tag = self._struct.unpack_from(block, position)
            raw.append(tag)
            if tag[flags_at] & _LAST_TAG:
                break
            position += size
            if tag[flags_at] & _SAME_UUID:
                continue
            position += UUID_SIZE
            if len(raw) == 1:
                room = max(0, end - position) // size * size
                rest = list(self._struct.iter_unpack(block[position : position + room]))
                stop = next(
                    (at for at, tag in enumerate(rest) if tag[flags_at] & _USUAL != _SAME_UUID),
                    None,
                )
                if stop is None or rest[stop][flags_at] & _LAST_TAG:
                    return raw + (rest if stop is None else rest[: stop + 1])
        return raw

    def count(self, block: bytes, end: int) -> int:
        """How many tags the descriptor ``block`` has; ``end``: where its checksum begins."""
        return len(self._raw(block, end))

    def tags(self, block: bytes, end: int) -> Tags:
        """The tags of the descriptor ``block``; ``end``: where its checksum begins."""
        columns = [list(column) for column in zip(*self._raw(block, end), strict=True)]
        high: list[int] = []
        if self._v3:
            low, flags, high, checksums = columns
        elif self._long:
            low, checksums, flags, high = columns
        else:
            low, checksums, flags = columns
        if self._long and any(high):
            low = [number | upper << 32 for number, upper in zip(low, high, strict=True)]
        return Tags(low, flags, checksums)


class Checksums:
    """The checksums of a journal with csum v2 or v3; ``tail`` is 0 where there are none.

    All of them start from the journal's UUID. Seeds are kept inverted, as
    :func:`penstock.formats.crc.crc32c` takes them.
    """

    __slots__ = ("_seed", "_v2", "enabled", "tail")

    def __init__(self, incompat: int, uuid: bytes) -> None:
        self._v2 = bool(incompat & Incompat.CSUM_V2)
        self.enabled = bool(incompat & (Incompat.CSUM_V2 | Incompat.CSUM_V3))
        self.tail = TAIL.size if self.enabled else 0
        """Bytes at the end of descriptor and revoke blocks that hold a checksum."""
        self._seed = crc32c(uuid)

    def block_matches(self, block: bytes) -> bool:
        """Whether a descriptor or revoke block carries its right checksum (or none is due)."""
        if not self.enabled:
            return True
        value = crc32c(_NO_CHECKSUM, crc32c(block[: -TAIL.size], self._seed)) ^ _ALL_ONES
        return bool(value == TAIL.unpack_from(block, len(block) - TAIL.size)[0])

    def commit_matches(self, block: bytes) -> bool:
        """Whether a commit block carries its right checksum (or none is due).

        As the kernel, also accept one computed over the header alone, the rest taken as zeros.
        """
        if not self.enabled:
            return True
        (stored,) = TAIL.unpack_from(block, COMMIT_CHECKSUM_AT)
        bare = bytearray(block)
        bare[COMMIT_CHECKSUM_AT : COMMIT_CHECKSUM_AT + 4] = _NO_CHECKSUM
        if crc32c(bare, self._seed) ^ _ALL_ONES == stored:
            return True
        bare[COMMIT_HEADER_SIZE:] = bytes(len(bare) - COMMIT_HEADER_SIZE)
        return bool(crc32c(bare, self._seed) ^ _ALL_ONES == stored)

    def transaction_seed(self, tid: int) -> int:
        """The seed of :meth:`copy_checksum` for the blocks of transaction ``tid``."""
        return crc32c(tid.to_bytes(4, "big"), self._seed)

    def copy_checksum(self, seed: int, data: memoryview) -> int:
        """What a tag holds as checksum of its block's copy ``data``."""
        value = crc32c(data, seed) ^ _ALL_ONES
        return value & 0xFFFF if self._v2 else value


_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def v1_checksum(data: bytes, state: int = 0) -> int:
    """The checksum of the compat feature ``checksum``: CRC-32, most significant bit first.

    A transaction's checksum runs over its descriptors and copies. ``state`` continues an earlier
    call; :func:`v1_value` makes the stored number of it. (The bits of all bytes are swapped so that
    zlib's CRC-32, which is the same polynomial from the other end, does the work.)
    """
    return zlib.crc32(data.translate(_REVERSED), state)


def v1_value(state: int) -> int:
    """The number that a commit block holds for the ``state`` of :func:`v1_checksum`."""
    return int(f"{state ^ _ALL_ONES:032b}"[::-1], 2)


class Geometry(NamedTuple):
    """Where the parts of a checked journal are, in journal blocks."""

    first: int
    last: int
    """One past the last block of the log; from there it goes on at ``first``."""
    fast_first: int
    fast_last: int
    """The blocks of the fast commit area, ``fast_last`` excluded; equal where there is none."""


def parse_journal_superblock(
    data: bytes, block_size: int, count: int
) -> tuple[JournalSuperblock, Geometry]:
    """Decode and check the superblock of a journal.

    Args:
        data: block 0 of the journal.
        block_size: bytes of a block of the filesystem.
        count: blocks of the journal file.

    Raises:
        CorruptImage, BadChecksum: it is none, or contradicts itself or the filesystem.
        UnsupportedFeature: the journal has features that are not known.
    """
    raw = unpack(JournalSuperblock, data)
    if raw.magic != MAGIC or raw.blocktype not in (SUPERBLOCK_V1, SUPERBLOCK_V2):
        raise CorruptImage(
            f"journal superblock: magic {raw.magic:#010x} and type {raw.blocktype}, "
            f"expected {MAGIC:#010x} and 3 or 4"
        )
    if raw.blocktype == SUPERBLOCK_V1:
        raw = raw._replace(
            feature_compat=0, feature_incompat=0, feature_ro_compat=0, uuid=bytes(16)
        )
    _check_features(raw, data)
    if raw.blocksize != block_size:
        raise CorruptImage(
            f"journal superblock: block size {raw.blocksize}, the filesystem's is {block_size}"
        )
    return raw, _geometry(raw, count)


def _check_features(raw: JournalSuperblock, data: bytes) -> None:
    unknown = [
        f"{kind} {bits:#x}"
        for kind, bits in (
            ("incompat", raw.feature_incompat & ~int(KNOWN_INCOMPAT)),
            ("ro_compat", raw.feature_ro_compat),
        )
        if bits
    ]
    if unknown:
        raise UnsupportedFeature(f"journal features not supported: {', '.join(unknown)}")
    csum_v2 = raw.feature_incompat & Incompat.CSUM_V2
    csum_v3 = raw.feature_incompat & Incompat.CSUM_V3
    if (csum_v2 and csum_v3) or ((csum_v2 or csum_v3) and raw.feature_compat & Compat.CHECKSUM):
        raise CorruptImage("journal superblock: more than one version of checksums is enabled")
    if not csum_v2 and not csum_v3:
        return
    if raw.checksum_type != CHECKSUM_CRC32C:
        raise UnsupportedFeature(f"journal checksum type {raw.checksum_type} (4, crc32c, is known)")
    bare = bytearray(data[:SUPERBLOCK_SIZE])
    bare[SUPERBLOCK_CHECKSUM_AT : SUPERBLOCK_CHECKSUM_AT + 4] = _NO_CHECKSUM
    computed = crc32c(bare) ^ _ALL_ONES
    if computed != raw.checksum:
        raise BadChecksum(
            f"journal superblock: checksum {raw.checksum:#010x}, computed {computed:#010x}"
        )


def _geometry(raw: JournalSuperblock, count: int) -> Geometry:
    if raw.maxlen > count:
        raise CorruptImage(f"journal superblock: {raw.maxlen} blocks, the journal file has {count}")
    fast = 0
    if raw.feature_incompat & Incompat.FAST_COMMIT:
        fast = raw.num_fc_blocks or DEFAULT_FC_BLOCKS
    if raw.maxlen < MIN_BLOCKS + fast:
        raise CorruptImage(
            f"journal superblock: {raw.maxlen} blocks, expected {MIN_BLOCKS + fast} or more"
        )
    last = raw.maxlen - fast
    if not 1 <= raw.first < last:
        raise CorruptImage(
            f"journal superblock: first block of the log is {raw.first}, expected 1 to {last - 1}"
        )
    if raw.start and not raw.first <= raw.start < last:
        raise CorruptImage(
            f"journal superblock: the log begins at block {raw.start}, expected "
            f"{raw.first} to {last - 1}"
        )
    return Geometry(raw.first, last, min(last + 1, raw.maxlen), raw.maxlen)
