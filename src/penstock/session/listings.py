# SPDX-License-Identifier: Apache-2.0
"""Directory listings that go on where they stopped, prepared while the caller is busy.

A large directory is read in many requests, each of which goes on where the last one ended; and
while the caller digests one reply the server has nothing to do. So the iterator of a listing is
kept between requests, and :meth:`Listings.prepare` packs the next records in a transport's idle
moments. When the request comes, its answer is there.

Only for filesystems that keep nothing for a listed inode (``Operations.forgettable`` false):
for others a record that is made but never sent would be a lookup that is never forgotten.

Invariants: at most :data:`KEPT` listings are kept, each with at most one reply's records; a listing
that raises is dropped, and starts again at the next request, which then gets the error.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from penstock.fs import DirEntry, Entry
from penstock.wire import pack_direntplus

__all__ = ["KEPT", "Listings"]

KEPT: Final = 8
_AT_ONCE: Final = 16
"""Records prepared in one idle moment: some 100 µs."""

_Start = Callable[[], Iterable[tuple[DirEntry, Entry | None]]]


class _Listing:
    """One listing in progress."""

    def __init__(self, source: Iterator[tuple[DirEntry, Entry | None]]) -> None:
        self._source = source
        self._ready: collections.deque[tuple[bytes, int]] = collections.deque()
        self._ready_size = 0
        self._wanted = 0
        self.offset = 0
        self.ended = False
        self.failed = False

    def _make(self) -> bool:
        """Pack one more record; False at the end."""
        for (name, ino, offset, kind), entry in self._source:
            record = pack_direntplus(name, ino, offset, kind, entry)
            self._ready.append((record, offset))
            self._ready_size += len(record)
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
    """The listings in progress of one session. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[tuple[int, int], _Listing] = collections.OrderedDict()
        self._next: _Listing | None = None

    def read(self, nodeid: int, offset: int, size: int, start: _Start) -> bytes:
        """The records after ``offset``.

        Args:
            nodeid: the directory.
            offset: cookie of the last record that the caller has.
            size: most bytes to answer.
            start: begins the listing at ``offset``, where it is not in progress there.

        Raises:
            Exception: what the filesystem raises.
        """
        with self._lock:
            listing = self._kept.pop((nodeid, offset), None)
            if listing is None or listing.failed:
                listing = _Listing(iter(start()))
            data = listing.take(size)
            if not listing.failed and data:
                self._kept[nodeid, listing.offset] = listing
                self._next = listing
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return data

    def prepare(self) -> bool:
        """Use an idle moment; whether there is more to do."""
        listing = self._next
        if listing is None:
            return False
        with self._lock:
            if listing.prepare():
                return True
            self._next = None
            return False

    def call(self, operations: Any, context: Any, nodeid: Any, request: Any) -> bytes:
        """As ``call`` of a :class:`~penstock.session.handlers.Row`."""
        asked = request.arg
        return self.read(
            nodeid,
            asked.offset,
            asked.size,
            lambda: operations.readdirplus(context, nodeid, asked.fh, asked.offset),
        )
