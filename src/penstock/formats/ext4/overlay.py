# SPDX-License-Identifier: Apache-2.0
"""A filesystem as it is after its fast commits, without writing them.

Fast commits (:mod:`penstock.formats.ext4.fastcommit`) say what was done to inodes, to the blocks of
files, and to names in directories. The kernel does it again at mount; an :class:`Overlay` keeps the
changes beside the image instead, and the reader asks it: the inode table for inodes, the mapping of
a file for its blocks, a directory for its names.

Rules, which are those of Linux 6.18 (a change that names something that does not exist is passed
over by the kernel, since a replay may have been cut short and begun again):

* An INODE record replaces the fields of an inode. Its block map stays the one on disk, which the
  range records then change, but for an extent tree that is not there yet, and for inline data,
  symbolic links and devices, whose content it is.
* Of range records the later one wins. A created inode begins without blocks, but for those logged
  between its INODE record and CREAT; whatever its number was before is gone.
* CREAT and LINK add a name unless the directory has it already; UNLINK removes it if it is of that
  inode. A created directory is empty.

Where the kernel leaves a count wrong, this view does not: directories have the links that their
subdirectories give them. Directories keep the times they have on disk, where the kernel's replay
sets the time of the mount.

Invariants: memory is bounded by the bounds on fast commits; names are resolved when they are asked
for, so opening an image costs one step for each change.
"""

from __future__ import annotations

import heapq
import stat
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

from penstock.formats.crc import crc32c
from penstock.formats.errors import CorruptImage
from penstock.formats.ext4 import fastcommit
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.directory import DirRecord
from penstock.formats.ext4.extents import MAPPED, UNMAPPED, UNWRITTEN, Piece
from penstock.formats.ext4.fastcommit import AddRange, DelRange, FastCommit, Name
from penstock.formats.ext4.format import InodeFlag
from penstock.formats.ext4.superblock import Superblock

__all__ = ["DirectoryChanges", "Overlay", "RangeChanges"]

_ALL_ONES: Final = 0xFFFF_FFFF
_LAST_BLOCK: Final = 1 << 32
_FIRST_ADDED: Final = 1 << 48
"""Positions of added names in a directory, above any byte of it (2^32 blocks of 64 KiB)."""
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


class RangeChanges:
    """What became of the blocks of one file: ranges in order, none overlapping another."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self, changes: list[Piece]) -> None:
        """Args: ``changes`` in the order in which they were made."""
        self._pieces = list(_flatten(changes))
        self._starts = [piece.logical for piece in self._pieces]

    def merge(self, base: Iterator[Piece], first: int, end: int) -> Iterator[Piece]:
        """The pieces ``base`` of a file with these changes between ``first`` and ``end``."""
        at = bisect_right(self._starts, first) - 1
        position = 0
        pending = next(base, None)
        stop = Piece(end, 0, 0, UNMAPPED)
        for change in (*self._between(max(at, 0), first, end), stop):
            while pending is not None and pending.logical < change.logical:
                low = max(pending.logical, position)
                after = pending.logical + pending.length
                high = min(after, change.logical)
                if low < high:
                    physical = pending.physical and pending.physical + low - pending.logical
                    yield Piece(low, high - low, physical, pending.state)
                if after > change.logical:
                    break
                pending = next(base, None)
            if change.state != UNMAPPED:
                yield change
            position = change.logical + change.length

    def _between(self, index: int, first: int, end: int) -> Iterator[Piece]:
        stop = bisect_left(self._starts, end)
        for piece in self._pieces[index:stop]:
            if piece.logical + piece.length > first:
                yield piece


def _flatten(changes: list[Piece]) -> Iterator[Piece]:
    """Ranges in order without overlaps, of ``changes`` that may overlap: the latest one wins."""
    by_start = sorted(range(len(changes)), key=lambda index: changes[index].logical)
    edges = sorted({edge for piece in changes for edge in (piece.logical, _end(piece))})
    active: list[int] = []
    begun = 0
    last: Piece | None = None
    for low, high in pairwise(edges):
        while begun < len(by_start) and changes[by_start[begun]].logical <= low:
            heapq.heappush(active, -by_start[begun])
            begun += 1
        while active and _end(changes[-active[0]]) <= low:
            heapq.heappop(active)
        if not active:
            continue
        top = changes[-active[0]]
        physical = top.physical + low - top.logical if top.state != UNMAPPED else 0
        if last is not None and _end(last) == low and _continues(last, physical, top.state):
            last = last._replace(length=last.length + high - low)
            continue
        if last is not None:
            yield last
        last = Piece(low, high - low, physical, top.state)
    if last is not None:
        yield last


def _end(piece: Piece) -> int:
    return piece.logical + piece.length


def _continues(piece: Piece, physical: int, state: int) -> bool:
    return piece.state == state and (state == UNMAPPED or physical == piece.physical + piece.length)


class DirectoryChanges:
    """What became of the names in one directory."""

    def __init__(self, ino: int, exists: Callable[[int], bool], parent: int | None = None) -> None:
        """A directory; ``parent``: the one that it was created in, None if it is on disk."""
        self._ino = ino
        self._exists = exists
        self._names: dict[bytes, list[Name]] = {}
        self._added: list[bytes] | None = None
        self.parent = parent

    def note(self, change: Name) -> None:
        """Another change to it."""
        self._names.setdefault(change.name, []).append(change)

    def find(self, name: bytes, base: Callable[[], int | None]) -> int | None:
        """The inode that ``name`` leads to; ``base`` tells the one in the directory on disk."""
        if self.parent is not None:
            if name in {b".", b".."}:
                return self._ino if name == b"." else self.parent
            return self._result(name, None)
        return self._result(name, base())

    def _result(self, name: bytes, ino: int | None) -> int | None:
        """What ``name`` is after all changes if it is ``ino`` before them."""
        for change in self._names.get(name, ()):
            if change.tag == fastcommit.TAG_UNLINK:
                if ino == change.ino:
                    ino = None
            elif ino is None and self._exists(change.ino):
                ino = change.ino
        return ino

    def records(
        self,
        base: Callable[[int], Iterator[DirRecord]],
        cookie: int,
        type_of: Callable[[int], int],
    ) -> Iterator[DirRecord]:
        """Its entries.

        Args:
            base: the entries of the directory on disk from a position.
            cookie: position to begin at.
            type_of: ``DT_*`` of an inode.
        """
        if self.parent is None and cookie < _FIRST_ADDED:
            for record in base(cookie):
                if record.name not in self._names:
                    yield record
                    continue
                ino = self._result(record.name, record.ino)
                if ino == record.ino:
                    yield record
                elif ino is not None:
                    yield record._replace(ino=ino, type=type_of(ino))
        added = self._find_added(base)
        for index in range(max(0, cookie - _FIRST_ADDED), len(added)):
            name = added[index]
            ino = self.find(name, lambda: None)
            if ino is not None:
                yield DirRecord(name, ino, type_of(ino), _FIRST_ADDED + index + 1)

    def _find_added(self, base: Callable[[int], Iterator[DirRecord]]) -> list[bytes]:
        """The names that the directory on disk does not have, in the order of their creation."""
        if self._added is None:
            new = {name: None for name in self._names if self._result(name, None) is not None}
            if self.parent is not None:
                new = {b".": None, b"..": None, **new}
            elif new:
                for record in base(0):
                    new.pop(record.name, None)
            self._added = list(new)
        return self._added


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
                self._check_ino(operation.ino)
                self._inodes[operation.ino] = operation.raw
                self._since_inode[operation.ino] = len(self._changes.get(operation.ino, ()))
        self.ranges = {ino: RangeChanges(pieces) for ino, pieces in self._changes.items()}
        self._changed = sorted({*self._inodes, *self._subdirectories, *self._created})

    def _check_ino(self, ino: int) -> None:
        if not 1 <= ino <= self._superblock.inodes_count:
            raise CorruptImage(
                f"journal: fast commit names inode {ino} of a filesystem of "
                f"{self._superblock.inodes_count} inodes"
            )

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

    def _exists(self, ino: int) -> bool:
        """Whether an inode is in use, here or on disk."""
        raw = self._inodes.get(ino)
        if raw is None:
            if not 1 <= ino <= self._superblock.inodes_count:
                return False
            raw = self._raw_inode(ino)
        return raw[_LINKS_AT : _LINKS_AT + 2] != b"\0\0"

    def _is_directory(self, ino: int) -> bool:
        return self._exists(ino) and (
            _kind(self._inodes.get(ino) or self._raw_inode(ino)) == stat.S_IFDIR
        )

    def _name(self, change: Name) -> None:
        name = change.name
        if b"/" in name or b"\0" in name or name in {b".", b".."}:
            raise CorruptImage(f"journal: fast commit of a file named {name!r}")
        self._changes_of(change.parent).note(change)
        if change.tag == fastcommit.TAG_CREAT:
            self._create(change)
        if change.tag != fastcommit.TAG_LINK and self._is_directory(change.ino):
            step = -1 if change.tag == fastcommit.TAG_UNLINK else 1
            self._subdirectories[change.parent] = self._subdirectories.get(change.parent, 0) + step

    def _create(self, change: Name) -> None:
        ino = change.ino
        if not self._exists(ino):
            raise CorruptImage(
                f"journal: fast commit creates {change.name!r} as inode {ino}, which is not in use"
            )
        self._created.add(ino)
        self._changes[ino] = self._changes.get(ino, [])[self._since_inode.get(ino, 0) :]
        self._since_inode[ino] = 0
        if self._is_directory(ino):
            self.directories[ino] = DirectoryChanges(ino, self._exists, change.parent)
            self._subdirectories.pop(ino, None)
        else:
            self.directories.pop(ino, None)

    def _changes_of(self, ino: int) -> DirectoryChanges:
        changes = self.directories.get(ino)
        if changes is None:
            changes = self.directories[ino] = DirectoryChanges(ino, self._exists)
        return changes

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
            if ino in self._created:
                raw[len(record) :] = bytes(len(raw) - len(record))
            (flags,) = _u32.unpack_from(record, _FLAGS_AT)
            block = record[_BLOCK_AT:_GENERATION_AT]
            if flags & InodeFlag.EXTENTS:
                magic = _u16.unpack_from(base, _BLOCK_AT)[0]
                if ino in self._created or magic != fmt.EXTENT_MAGIC:
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
