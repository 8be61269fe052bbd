# SPDX-License-Identifier: Apache-2.0
"""A filesystem as it is after its fast commits, without writing them.

Fast commits (:mod:`penstock.formats.ext4.fastcommit`) say what was done to inodes, to the blocks of
files, and to names in directories. The kernel does it again at mount; an :class:`Overlay` keeps the
changes beside the image instead, and the reader asks it: the inode table for inodes, the mapping of
a file for its blocks, a directory for its names.

Rules, which are those of Linux 6.18 (a change that names an inode that is not in use, there and
then, is passed over, since a replay may have been cut short and begun again):

* An INODE record replaces the fields of an inode. Its block map stays the one on disk, which the
  range records then change, but for an extent tree that is not there yet, and for inline data,
  symbolic links and devices, whose content it is.
* Of range records the later one wins. A created inode begins without blocks, but for those logged
  between its INODE record and CREAT; so does one that, after a name of it was removed, has another
  generation: its number has been given to a new file.
* CREAT and LINK add a name unless the directory has it already; UNLINK removes it if it is of that
  inode. A created directory is empty.

Where the kernel's replay is not faithful to what was, this view is: directories have the links that
their subdirectories give them (the kernel does not count these); a created inode does not inherit
the extended attributes of the one that had its number. Directories keep the times they have on
disk, where the kernel's replay sets the time of the mount.

Invariants: memory is bounded by the bounds on fast commits; names are resolved when they are asked
for, so opening an image costs one step for each change.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from penstock.formats.crc import crc32c
from penstock.formats.errors import CorruptImage
from penstock.formats.ext4 import fastcommit
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.changes import DirectoryChanges, RangeChanges
from penstock.formats.ext4.extents import MAPPED, UNMAPPED, UNWRITTEN, Piece
from penstock.formats.ext4.fastcommit import (
    AddRange,
    DelRange,
    FastCommit,
    Name,
    RawInode,
)
from penstock.formats.ext4.format import InodeFlag
from penstock.formats.ext4.superblock import Superblock

__all__ = ["Overlay"]

_ALL_ONES: Final = 0xFFFF_FFFF
_LAST_BLOCK: Final = 1 << 32
_MAX_LINKS: Final = 65000

_BLOCK_AT: Final = 0x28
_GENERATION_AT: Final = 0x64
_LINKS_AT: Final = 0x1A
_FLAGS_AT: Final = 0x20
_CHECKSUM_LO_AT: Final = 0x7C
_EXTRA_SIZE_AT: Final = 0x80
_CHECKSUM_HI_AT: Final = 0x82
_EMPTY_ROOT: Final = struct.pack("<HHHHI", fmt.EXTENT_MAGIC, 0, 4, 0, 0).ljust(60, b"\0")
_u16: Final = struct.Struct("<H")
_u32: Final = struct.Struct("<I")


def _kind(raw: bytes | bytearray) -> int:
    """The file type of an inode."""
    return stat.S_IFMT(_u16.unpack_from(raw)[0])


def _links(raw: bytes) -> int:
    """The link count of an inode; 0: it is not in use."""
    links: int = _u16.unpack_from(raw, _LINKS_AT)[0]
    return links


class Overlay:
    """All changes of the fast commits of an image.

    Args:
        fast_commit: them.
        superblock: of the image, after replay of its journal.
        raw_inode: the bytes of an inode on disk, after replay of the journal.

    Raises:
        CorruptImage: a change is impossible, and the kernel would refuse to mount the image.
        OSError: of the source.
    """

    def __init__(
        self, fast_commit: FastCommit, superblock: Superblock, raw_inode: Callable[[int], bytes]
    ) -> None:
        self._superblock = superblock
        self._raw_inode = raw_inode
        self._inodes: dict[int, bytes] = {}
        self._unlinked: set[int] = set()
        self._linked: dict[int, list[Name]] = {}
        """By inode, the changes so far that gave it names."""
        self._fresh: set[int] = set()
        """Inodes that have nothing of what is on disk under their numbers."""
        self._created: set[int] = set()
        self._subdirectories: dict[int, int] = {}
        """By how many subdirectories a directory has grown."""
        self._changes: dict[int, list[Piece]] = {}
        self._since_inode: dict[int, int] = {}
        """How many changes to the blocks of an inode came before its last INODE record."""
        self.directories: dict[int, DirectoryChanges] = {}
        for operation in fast_commit.operations:
            if isinstance(operation, Name):
                self._name(operation)
            elif isinstance(operation, AddRange | DelRange):
                piece = self._piece(operation)
                if piece is not None:
                    self._changes.setdefault(operation.ino, []).append(piece)
            else:
                self._inode(operation)
        self.ranges = {ino: RangeChanges(pieces) for ino, pieces in self._changes.items()}
        self._changed = sorted({*self._inodes, *self._subdirectories, *self._created})

    def _inode(self, record: RawInode) -> None:
        ino = record.ino
        if not 1 <= ino <= self._superblock.inodes_count:
            raise CorruptImage(
                f"journal: fast commit names inode {ino} of a filesystem of "
                f"{self._superblock.inodes_count} inodes"
            )
        before = self._raw(ino)
        generation = slice(_GENERATION_AT, _GENERATION_AT + 4)
        if record.raw[generation] != before[generation] and (
            ino in self._unlinked or not _links(before)
        ):
            self._fresh.add(ino)
            for change in self._linked.pop(ino, ()):
                if change.parent in self.directories:
                    self.directories[change.parent].forget(change)
        self._inodes[ino] = record.raw
        self._since_inode[ino] = len(self._changes.get(ino, ()))

    def _raw(self, ino: int) -> bytes:
        """An inode after the changes so far; of what is in no record, as it is on disk."""
        return self._inodes.get(ino) or self._raw_inode(ino)

    def _piece(self, change: AddRange | DelRange) -> Piece | None:
        length = min(change.length, _LAST_BLOCK - change.start)
        if not length:
            return None
        if isinstance(change, DelRange):
            return Piece(change.start, length, 0, UNMAPPED)
        if not 0 < change.block <= self._superblock.blocks_count - length:
            raise CorruptImage(
                f"journal: fast commit maps inode {change.ino} to blocks {change.block} to "
                f"{change.block + length - 1}, the filesystem has {self._superblock.blocks_count}"
            )
        return Piece(change.start, length, change.block, UNWRITTEN if change.unwritten else MAPPED)

    def _name(self, change: Name) -> None:
        name, ino = change.name, change.ino
        if b"/" in name or b"\0" in name or name in {b".", b".."}:
            raise CorruptImage(f"journal: fast commit of a file named {name!r}")
        if not 1 <= ino <= self._superblock.inodes_count or not _links(self._raw(ino)):
            if change.tag == fastcommit.TAG_CREAT:
                raise CorruptImage(
                    f"journal: fast commit creates {name!r} as inode {ino}, which is not in use"
                )
            return
        directory = _kind(self._raw(ino)) == stat.S_IFDIR
        if change.parent not in self.directories:
            self.directories[change.parent] = DirectoryChanges(change.parent)
        self.directories[change.parent].note(change)
        if change.tag == fastcommit.TAG_UNLINK:
            self._unlinked.add(ino)
            if directory:
                self._grow(change.parent, -1)
            return
        self._linked.setdefault(ino, []).append(change)
        if change.tag == fastcommit.TAG_CREAT:
            self._create(change, directory)

    def _create(self, change: Name, directory: bool) -> None:
        ino = change.ino
        self._created.add(ino)
        self._fresh.add(ino)
        self._changes[ino] = self._changes.get(ino, [])[self._since_inode.get(ino, 0) :]
        self._since_inode[ino] = 0
        self._subdirectories.pop(ino, None)
        self.directories.pop(ino, None)
        if directory:
            self.directories[ino] = DirectoryChanges(ino, change.parent)
            self._grow(change.parent, 1)

    def _grow(self, ino: int, step: int) -> None:
        self._subdirectories[ino] = self._subdirectories.get(ino, 0) + step

    def patch(self, first: int, inodes: bytes) -> bytes:
        """Part of an inode table with the changed inodes in their places.

        Args:
            first: number of the first inode in it.
            inodes: as they are on disk.
        """
        size = self._superblock.inode_size
        low = bisect_left(self._changed, first)
        high = bisect_left(self._changed, first + len(inodes) // size)
        if low == high:
            return inodes
        patched = bytearray(inodes)
        for ino in self._changed[low:high]:
            start = (ino - first) * size
            patched[start : start + size] = self._patched(ino, inodes[start : start + size])
        return bytes(patched)

    def _patched(self, ino: int, base: bytes) -> bytes:
        """An inode after all changes to it, with its checksum; ``base``: as it is on disk."""
        raw = bytearray(base)
        record = self._inodes.get(ino)
        if record is not None:
            raw[:_BLOCK_AT] = record[:_BLOCK_AT]
            raw[_GENERATION_AT : len(record)] = record[_GENERATION_AT:]
            if ino in self._fresh:
                raw[len(record) :] = bytes(len(raw) - len(record))
            (flags,) = _u32.unpack_from(record, _FLAGS_AT)
            block = record[_BLOCK_AT:_GENERATION_AT]
            if flags & InodeFlag.EXTENTS:
                magic = _u16.unpack_from(base, _BLOCK_AT)[0]
                if ino in self._fresh or magic != fmt.EXTENT_MAGIC:
                    raw[_BLOCK_AT:_GENERATION_AT] = _EMPTY_ROOT
            elif flags & InodeFlag.INLINE_DATA or _kind(record) not in {stat.S_IFREG, stat.S_IFDIR}:
                raw[_BLOCK_AT:_GENERATION_AT] = block
        elif self._checksum(ino, raw) != self._stored(raw):
            return base  # is bad, and must be seen to be
        self._set_links(ino, raw)
        self._set_checksum(ino, raw)
        return bytes(raw)

    def _set_links(self, ino: int, raw: bytearray) -> None:
        grown = self._subdirectories.get(ino, 0)
        (links,) = _u16.unpack_from(raw, _LINKS_AT)
        if ino in self._created and _kind(raw) == stat.S_IFDIR:
            links = 2
        elif not grown or links <= 1:
            return  # 1: the subdirectories of this one are not counted
        links = max(2, links + grown)
        _u16.pack_into(raw, _LINKS_AT, links if links <= _MAX_LINKS else 1)

    def _has_wide_checksum(self, raw: bytearray) -> bool:
        return len(raw) > _EXTRA_SIZE_AT and _u16.unpack_from(raw, _EXTRA_SIZE_AT)[0] >= 4

    def _checksum(self, ino: int, raw: bytearray) -> int:
        """The checksum of an inode; 0 where the filesystem has none."""
        if not self._superblock.metadata_csum:
            return 0
        bare = bytearray(raw)
        wide = self._has_wide_checksum(raw)
        _u16.pack_into(bare, _CHECKSUM_LO_AT, 0)
        if wide:
            _u16.pack_into(bare, _CHECKSUM_HI_AT, 0)
        identity = _u32.pack(ino) + raw[_GENERATION_AT : _GENERATION_AT + 4]
        value = crc32c(bare, crc32c(identity, self._superblock.seed ^ _ALL_ONES)) ^ _ALL_ONES
        return value if wide else value & 0xFFFF

    def _stored(self, raw: bytearray) -> int:
        if not self._superblock.metadata_csum:
            return 0
        value: int = _u16.unpack_from(raw, _CHECKSUM_LO_AT)[0]
        if self._has_wide_checksum(raw):
            value |= _u16.unpack_from(raw, _CHECKSUM_HI_AT)[0] << 16
        return value

    def _set_checksum(self, ino: int, raw: bytearray) -> None:
        if not self._superblock.metadata_csum:
            return
        value = self._checksum(ino, raw)
        _u16.pack_into(raw, _CHECKSUM_LO_AT, value & 0xFFFF)
        if self._has_wide_checksum(raw):
            _u16.pack_into(raw, _CHECKSUM_HI_AT, value >> 16)
