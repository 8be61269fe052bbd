# SPDX-License-Identifier: Apache-2.0
"""What fast commits changed of one file's blocks, and of one directory's names.

Both are asked with what lies on disk and answer with what is there after the changes; see
:mod:`penstock.formats.ext4.overlay`, which makes them.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

from penstock.formats.ext4.directory import DirRecord
from penstock.formats.ext4.extents import UNMAPPED, Piece
from penstock.formats.ext4.fastcommit import TAG_UNLINK, Name

__all__ = ["DirectoryChanges", "RangeChanges"]

_FIRST_ADDED: Final = 1 << 48
"""Positions of added names in a directory, above any byte of it (2^32 blocks of 64 KiB)."""


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

    def __init__(self, ino: int, parent: int | None = None) -> None:
        """A directory; ``parent``: the one that it was created in, None if it is on disk."""
        self._ino = ino
        self._names: dict[bytes, list[Name]] = {}
        self._forgotten: set[int] = set()
        self._added: list[bytes] | None = None
        self.parent = parent

    def note(self, change: Name) -> None:
        """Another change to it."""
        self._names.setdefault(change.name, []).append(change)

    def forget(self, change: Name) -> None:
        """That change (the object, which lives on) was of a file which is no more."""
        self._forgotten.add(id(change))

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
            if change.tag == TAG_UNLINK:
                if ino == change.ino:
                    ino = None
            elif ino is None and id(change) not in self._forgotten:
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
