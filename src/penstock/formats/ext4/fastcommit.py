# SPDX-License-Identifier: Apache-2.0
"""Fast commits: the changes to a filesystem logged after its last full journal commit.

Where a full commit logs whole blocks, a fast commit logs what was done: "inode 12 is now this",
"blocks 7 to 9 of inode 12 are at 2106", "directory 2 has a name for inode 12". The last blocks of
the journal are set apart for them. They are a stream of little-endian records (tag, length, value)
that fill whole blocks; a TAIL record with a checksum over all records since the last one ends each
fast commit, and the first one begins with a HEAD record that says which full commit they follow.

This module decodes the stream; :mod:`penstock.formats.ext4.overlay` makes a view of it.

Facts about damage, as Linux 6.18 treats it, and so this module: whatever follows a good fast commit
and is bad is a crash, and ignored. A bad first one, in an area that begins with the right HEAD, is
damage and refuses the mount, although a crash can leave it.

Linux 6.18 also refuses two kinds of images with which nothing is wrong, and which are read here: an
area that is full to its last block, and a file that was unlinked and then synced while open.

Specification: Documentation/filesystems/ext4/journal.rst of the Linux kernel (Fast commits), and
logs written by the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Annotated, Final, NamedTuple, TypeAlias

from penstock.formats.crc import crc32c
from penstock.formats.errors import BadChecksum, CorruptImage, UnsupportedFeature
from penstock.formats.layout import at, packed, unpack

__all__ = [
    "AddRange",
    "DelRange",
    "FastCommit",
    "Name",
    "Operation",
    "RawInode",
    "read_fast_commit",
]

_ALL_ONES: Final = 0xFFFF_FFFF
_NAME_MAX: Final = 255
_MIN_INODE: Final = 128
_MAX_UNWRITTEN: Final = 0x8000
_MAX_OPERATIONS: Final = 1 << 17
_MAX_RAW_BYTES: Final = 32 << 20
"""Bounds of what is kept in memory: several times what the kernel's default area can hold."""

TAG_ADD_RANGE: Final = 1
TAG_DEL_RANGE: Final = 2
TAG_CREAT: Final = 3
TAG_LINK: Final = 4
TAG_UNLINK: Final = 5
TAG_INODE: Final = 6
TAG_PAD: Final = 7
TAG_TAIL: Final = 8
TAG_HEAD: Final = 9
_LENGTHS: Final = {
    TAG_ADD_RANGE: (16, 16),
    TAG_DEL_RANGE: (12, 12),
    TAG_CREAT: (9, 8 + _NAME_MAX),
    TAG_LINK: (9, 8 + _NAME_MAX),
    TAG_UNLINK: (9, 8 + _NAME_MAX),
    TAG_PAD: (0, 0xFFFF),
    TAG_TAIL: (8, 0xFFFF),
    TAG_HEAD: (8, 8),
}
"""Least and greatest length of a value; that of INODE depends on the filesystem."""

_RECORD: Final = struct.Struct("<HH")
_TWO: Final = struct.Struct("<II")
_INO: Final = struct.Struct("<I")


@packed("<", 16)
class _RawAddRange(NamedTuple):
    """An inode number and an extent, as it is in an extent tree."""

    ino: Annotated[int, at(0x0, "I")]
    start: Annotated[int, at(0x4, "I")]
    length: Annotated[int, at(0x8, "H")]
    block_hi: Annotated[int, at(0xA, "H")]
    block_lo: Annotated[int, at(0xC, "I")]


class AddRange(NamedTuple):
    """``length`` blocks of a file from ``start`` on are at ``block``."""

    ino: int
    start: int
    length: int
    block: int
    unwritten: bool


class DelRange(NamedTuple):
    """``length`` blocks of a file from ``start`` on are a hole."""

    ino: int
    start: int
    length: int


class Name(NamedTuple):
    """A change to a directory: CREAT, LINK (``name`` now means ``ino``) or UNLINK."""

    tag: int
    parent: int
    ino: int
    name: bytes


class RawInode(NamedTuple):
    """The fields of an inode: 128 bytes and as many of the extra ones as it has."""

    ino: int
    raw: bytes


Operation: TypeAlias = AddRange | DelRange | Name | RawInode


class FastCommit(NamedTuple):
    """The changes of all complete fast commits, in the order in which they were logged."""

    tid: int
    """Transaction that they belong to, the first that is not complete in the log."""
    commits: int
    """How many fast commits they were."""
    operations: tuple[Operation, ...]


class _Stream:
    """State of the decoder: what was read, and how much of it a TAIL has confirmed."""

    def __init__(self, tid: int, inode_size: int) -> None:
        self.tid = tid
        self.inode_lengths = (4 + _MIN_INODE, 4 + inode_size)
        self.operations: list[Operation] = []
        self.raw_bytes = 0
        self.confirmed = 0
        self.commits = 0
        self.checksum = _ALL_ONES
        """Inverted CRC-32C, which starts from zero, of the records since the last TAIL."""

    def block(self, data: bytes) -> bool:
        """Decode one block; False: the stream ends in it."""
        position = 0
        summed = 0
        while position + _RECORD.size <= len(data):
            tag, length = _RECORD.unpack_from(data, position)
            value = position + _RECORD.size
            low, high = self.inode_lengths if tag == TAG_INODE else _LENGTHS.get(tag, (1, 0))
            if not low <= length <= high or value + length > len(data):
                return self._bad(CorruptImage(f"record of type {tag} and length {length}"))
            if tag == TAG_TAIL:
                # The checksum covers the record up to and including its transaction id.
                self.checksum = crc32c(data[summed : value + 4], self.checksum)
                if not self._tail(*_TWO.unpack_from(data, value)):
                    return False
                summed = value + length
            elif tag == TAG_HEAD:
                if not self._head(*_TWO.unpack_from(data, value)):
                    return False
            elif tag != TAG_PAD:
                self._operation(tag, data[value : value + length])
            position = value + length
        self.checksum = crc32c(data[summed:position], self.checksum)
        return True

    def _bad(self, error: CorruptImage) -> bool:
        """The end of the stream, or damage if nothing good came before it."""
        if not self.commits:
            raise type(error)(f"journal: the first fast commit is bad: {error}")
        return False

    def _head(self, features: int, tid: int) -> bool:
        if features:
            raise UnsupportedFeature(f"journal: fast commit features {features:#x}")
        return tid == self.tid

    def _tail(self, tid: int, stored: int) -> bool:
        computed = self.checksum ^ _ALL_ONES
        if tid != self.tid:
            return self._bad(CorruptImage(f"it is of transaction {tid}, expected {self.tid}"))
        if stored != computed:
            return self._bad(
                BadChecksum(f"its checksum is {stored:#010x}, computed {computed:#010x}")
            )
        self.commits += 1
        self.confirmed = len(self.operations)
        self.checksum = _ALL_ONES
        return True

    def _operation(self, tag: int, value: bytes) -> None:
        self.operations.append(_decode(tag, value))
        if tag == TAG_INODE:
            self.raw_bytes += len(value)
        if len(self.operations) > _MAX_OPERATIONS or self.raw_bytes > _MAX_RAW_BYTES:
            raise UnsupportedFeature(
                f"journal: fast commits of more than {_MAX_OPERATIONS} changes or "
                f"{_MAX_RAW_BYTES >> 20} MiB of inodes"
            )


def _decode(tag: int, value: bytes) -> Operation:
    if tag == TAG_ADD_RANGE:
        raw = unpack(_RawAddRange, value)
        unwritten = raw.length > _MAX_UNWRITTEN
        length = raw.length - _MAX_UNWRITTEN if unwritten else raw.length
        return AddRange(raw.ino, raw.start, length, raw.block_lo | raw.block_hi << 32, unwritten)
    if tag == TAG_DEL_RANGE:
        return DelRange(*struct.unpack("<III", value))
    if tag == TAG_INODE:
        return RawInode(_INO.unpack_from(value)[0], value[_INO.size :])
    parent, ino = _TWO.unpack_from(value)
    return Name(tag, parent, ino, value[_TWO.size :])


def read_fast_commit(blocks: Iterable[bytes], tid: int, inode_size: int) -> FastCommit | None:
    """Decode the fast commits of a journal.

    Args:
        blocks: of its fast commit area, in order; read no further than the stream goes.
        tid: of the first transaction that is not complete in the log.
        inode_size: of the filesystem, bytes.

    Returns:
        None if there are none of that transaction.

    Raises:
        CorruptImage, BadChecksum: the first one is bad.
        UnsupportedFeature: they have features that are not known, or are too many.
    """
    stream = _Stream(tid, inode_size)
    for index, data in enumerate(blocks):
        if index == 0 and _RECORD.unpack_from(data)[0] != TAG_HEAD:
            return None
        if not stream.block(data):
            break
    if not stream.commits:
        return None
    return FastCommit(tid, stream.commits, tuple(stream.operations[: stream.confirmed]))
