# SPDX-License-Identifier: Apache-2.0
"""Directory listings that go on where they stopped, prepared while the caller is busy.

A large directory is read in many requests, each of which goes on where the last one ended; and
while the caller digests one reply the server has nothing to do. So the iterator of a listing is
kept between requests, and :meth:`Listings.prepare` packs the next records in a transport's idle
moments: first those of the same directory, then those of the directory that the walk will enter
next (:mod:`penstock.session.descent`). When the request comes, its answer is there.

Only for filesystems that keep nothing for a listed inode (``Operations.forgettable`` false):
for others a record that is made but never sent would be a lookup that is never forgotten.

Invariants: at most :data:`KEPT` listings are kept, each with at most one reply's records; a listing
that raises is dropped, and starts again at the next request, which then gets the error.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterator
from typing import Any, Final

from penstock.fs import Context, DirEntry, Entry, FileHandle, NodeId, Operations
from penstock.session.descent import MOST, Descent
from penstock.wire import pack_direntplus

__all__ = ["KEPT", "Listings"]

KEPT: Final = 8
_DT_DIR: Final = 4
_AT_ONCE: Final = 16
"""Records prepared in one idle moment: some 100 µs."""


class _Listing:
    """One listing in progress."""

    def __init__(self, source: Iterator[tuple[DirEntry, Entry | None]], wanted: int = 0) -> None:
        self._source = source
        self._ready: collections.deque[tuple[bytes, int]] = collections.deque()
        self._ready_size = 0
        self._wanted = wanted
        self.directories: list[int] = []
        self.offset = 0
        self.ended = False
        self.failed = False

    def _make(self) -> bool:
        """Pack one more record; False at the end."""
        for (name, ino, offset, kind), entry in self._source:
            record = pack_direntplus(name, ino, offset, kind, entry)
            self._ready.append((record, offset))
            self._ready_size += len(record)
            if kind == _DT_DIR and entry is not None and len(self.directories) < MOST:
                self.directories.append(entry[0])
            return True
        self.ended = True
        return False

    def take(self, size: int) -> bytes:
        """Records of at most ``size`` bytes together."""
        self._wanted = size
        parts: list[bytes] = []
        left = size
        try:
            while self._ready or (not self.ended and self._make()):
                record, offset = self._ready[0]
                if len(record) > left:
                    break
                self._ready.popleft()
                self._ready_size -= len(record)
                left -= len(record)
                parts.append(record)
                self.offset = offset
        except Exception:
            self.failed = True
            if not parts:
                raise
        return b"".join(parts)

    @property
    def finished(self) -> bool:
        """Whether the caller has been given the last record."""
        return self.ended and not self._ready

    def prepare(self) -> bool:
        """Pack a few records ahead; whether there are more to pack."""
        try:
            for _ in range(_AT_ONCE):
                if self.ended or self.failed or self._ready_size >= self._wanted:
                    return False
                self._make()
        except Exception:  # noqa: BLE001 - raised again when it is asked for
            self.failed = True
        return not self.failed


class Listings:
    """The listings in progress of one session. Safe from any thread.

    Args:
        operations: whose ``readdirplus`` lists.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[tuple[int, int], _Listing] = collections.OrderedDict()
        self._descent = Descent()
        self._next: _Listing | None = None
        self._idle = False
        """Whether there may be something to prepare."""
        self._last: tuple[Context, int] | None = None
        """Who asked last, and for how many bytes."""

    def read(
        self, context: Context, nodeid: NodeId, fh: FileHandle, offset: int, size: int
    ) -> bytes:
        """The records after ``offset``.

        Args:
            context: who asks.
            nodeid: the directory.
            fh: its handle.
            offset: cookie of the last record that the caller has.
            size: most bytes to answer.

        Raises:
            Exception: what the filesystem raises.
        """
        with self._lock:
            if offset == 0:
                self._descent.entered(nodeid)
            listing = self._kept.pop((nodeid, offset), None)
            if listing is None or listing.failed:
                source = self._operations.readdirplus(context, nodeid, fh, offset)
                listing = _Listing(iter(source))
            data = listing.take(size)
            if not listing.failed and data:
                self._keep(nodeid, listing)
                if listing.finished:
                    self._descent.listed(listing.directories)
                    listing.directories = []
            self._last = (context, size)
            self._idle = True
        return data

    def _keep(self, nodeid: int, listing: _Listing) -> None:
        self._kept[nodeid, listing.offset] = listing
        self._next = listing
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def prepare(self) -> bool:
        """Use an idle moment; whether there is more to do."""
        if not self._idle:
            return False
        with self._lock:
            if self._next is None:
                self._begin_expected()
            elif not self._next.prepare():
                self._next = None
            return self._idle

    def _begin_expected(self) -> None:
        """Begin a listing of the directory that will be entered next."""
        nodeid = self._descent.expected()
        if nodeid is None or (nodeid, 0) in self._kept or self._last is None:
            self._idle = False
            return
        context, size = self._last
        try:
            source = self._operations.readdirplus(context, NodeId(nodeid), FileHandle(0), 0)
        except Exception:  # noqa: BLE001 - raised again when it is asked for
            self._idle = False
        else:
            self._keep(nodeid, _Listing(iter(source), size))

    def call(self, _operations: Any, context: Context, nodeid: NodeId, request: Any) -> bytes:
        """As ``call`` of a :class:`~penstock.session.handlers.Row`."""
        asked = request.arg
        return self.read(context, nodeid, asked.fh, asked.offset, asked.size)
