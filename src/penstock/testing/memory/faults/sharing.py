# SPDX-License-Identifier: Apache-2.0
"""Faults about listing directories and about locks."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from typing import Any

from penstock.abi.fuse import LkFlag
from penstock.fs import Context, DirEntry, FileHandle, FsError, Lock, NodeId
from penstock.testing.memory import MemoryFilesystem
from penstock.testing.memory.nodes import Node

__all__ = [
    "ClosingKeepsLocks",
    "DotsAreNotListed",
    "EverythingIsGranted",
    "FlocksAreShared",
    "KindsAreWrong",
    "LinkedTmpfilesAreRefused",
    "ListingForgetsNames",
    "ListingRepeatsNames",
    "LocksAreNotTold",
    "LocksLastForEver",
    "NumbersAreWrong",
    "PositionsShift",
    "RangesAreIgnored",
    "UnlockingIsWhole",
    "WaitingIsRefused",
]

_Entries = Iterator[tuple[DirEntry, Node | None]]
_END = (1 << 63) - 1


class ListingForgetsNames(MemoryFilesystem):
    """Listing a directory forgets a name in a hundred."""

    def _list(self, fh: FileHandle, offset: int) -> _Entries:
        return (each for each in super()._list(fh, offset) if each[0].offset % 100 != 99)


class ListingRepeatsNames(MemoryFilesystem):
    """Listing a directory gives a name in a hundred twice."""

    def _list(self, fh: FileHandle, offset: int) -> _Entries:
        for each in super()._list(fh, offset):
            yield each
            if each[0].offset % 100 == 99:
                yield each


class PositionsShift(MemoryFilesystem):
    """A position in a directory is the number of the entry, and shifts when others go."""

    def _list(self, fh: FileHandle, offset: int) -> _Entries:
        for number, (entry, node) in enumerate(super()._list(fh, 0)):
            if number >= offset:
                yield entry._replace(offset=number + 1), node


class DotsAreNotListed(MemoryFilesystem):
    """``.`` and ``..`` are not listed."""

    def _list(self, fh: FileHandle, offset: int) -> _Entries:
        return (each for each in super()._list(fh, offset) if each[1] is not None)


class KindsAreWrong(MemoryFilesystem):
    """Listing a directory says of everything that it is a regular file."""

    def _list(self, fh: FileHandle, offset: int) -> _Entries:
        return ((entry._replace(type=8), None) for entry, _ in super()._list(fh, offset))


class NumbersAreWrong(MemoryFilesystem):
    """Listing a directory gives other inode numbers than stat."""

    def _list(self, fh: FileHandle, offset: int) -> _Entries:
        for entry, _ in super()._list(fh, offset):
            yield entry._replace(ino=entry.ino + 1000), None


class EverythingIsGranted(MemoryFilesystem):
    """Every lock is granted."""

    def setlk(self, *args: Any, **named: Any) -> Any:
        return None


class FlocksAreShared(MemoryFilesystem):
    """An exclusive flock is as good as a shared one."""

    def setlk(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        owner: int,
        lock: Lock,
        flags: int,
        wait: bool,
    ) -> Any:
        if flags & LkFlag.FLOCK and lock.type == fcntl.F_WRLCK:
            lock = lock._replace(type=fcntl.F_RDLCK)
        return super().setlk(ctx, nodeid, fh, owner, lock, flags, wait)


class RangesAreIgnored(MemoryFilesystem):
    """A lock of a range locks all of the file."""

    def setlk(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        owner: int,
        lock: Lock,
        flags: int,
        wait: bool,
    ) -> Any:
        if lock.type != fcntl.F_UNLCK:
            lock = lock._replace(start=0, end=_END)
        return super().setlk(ctx, nodeid, fh, owner, lock, flags, wait)


class UnlockingIsWhole(MemoryFilesystem):
    """Unlocking a part of a range unlocks all of it."""

    def setlk(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        owner: int,
        lock: Lock,
        flags: int,
        wait: bool,
    ) -> Any:
        if lock.type == fcntl.F_UNLCK:
            lock = lock._replace(start=0, end=_END)
        return super().setlk(ctx, nodeid, fh, owner, lock, flags, wait)


class WaitingIsRefused(MemoryFilesystem):
    """Nobody can wait for a lock."""

    def setlk(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        owner: int,
        lock: Lock,
        flags: int,
        wait: bool,
    ) -> Any:
        return super().setlk(ctx, nodeid, fh, owner, lock, flags, False)


class LocksAreNotTold(MemoryFilesystem):
    """F_GETLK finds no lock in the way."""

    def getlk(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, owner: int, lock: Lock, flags: int
    ) -> Lock:
        return lock._replace(type=fcntl.F_UNLCK)


class ClosingKeepsLocks(MemoryFilesystem):
    """Closing a file leaves the locks of the process."""

    def flush(self, ctx: Context, nodeid: NodeId, fh: FileHandle, lock_owner: int) -> None:
        """Drops no locks."""


class LocksLastForEver(MemoryFilesystem):
    """The last close of a description leaves its flock and its OFD locks."""

    def release(self, ctx: Context, nodeid: NodeId, fh: FileHandle, *rest: Any) -> None:
        with self._lock:
            self._close(fh)


class LinkedTmpfilesAreRefused(MemoryFilesystem):
    """A file made by O_TMPFILE gets no name."""

    def link(self, ctx: Context, nodeid: NodeId, newparent: NodeId, newname: bytes) -> Any:
        with self._lock:
            if not self._table[nodeid].nlink:
                raise FsError(errno.ENOENT)
        return super().link(ctx, nodeid, newparent, newname)
