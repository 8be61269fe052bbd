# SPDX-License-Identifier: Apache-2.0
"""Lookup counts: how often the kernel was given each inode, and when it has let go.

Every entry that reaches the kernel adds one, FORGET subtracts. At zero the filesystem may drop
the inode; but at that very moment another thread may be answering a LOOKUP with the same node.
So a node whose count reaches zero is dropped only when no operation that can produce entries is
under way, and only if its count is still zero then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from penstock.fs import ROOT, NodeId

__all__ = ["LookupCounts"]


class LookupCounts:
    """Counts per node. Safe from any thread.

    Args:
        forget: called, outside the lock, with each node that the kernel no longer knows.
    """

    def __init__(self, forget: Callable[[NodeId], None]) -> None:
        self._lock = threading.Lock()
        self._forget = forget
        self._counts: dict[int, int] = {}
        self._under_way = 0
        self._dropped: set[int] = set()

    def __len__(self) -> int:
        return len(self._counts)

    def enter(self) -> None:
        """An operation that may produce entries begins."""
        with self._lock:
            self._under_way += 1

    def leave(self, nodes: Iterable[int] = ()) -> None:
        """It has ended, and gave the kernel these nodes (one count each)."""
        with self._lock:
            self._under_way -= 1
            for nodeid in nodes:
                self._counts[nodeid] = self._counts.get(nodeid, 0) + 1
            gone = self._collect()
        self._tell(gone)

    def subtract(self, pairs: Iterable[tuple[int, int]]) -> None:
        """FORGET: (node, count) pairs. Counts never go below zero, unknown nodes are ignored."""
        with self._lock:
            for nodeid, count in pairs:
                known = self._counts.get(nodeid)
                if known is None or nodeid == ROOT:
                    continue
                if known > count:
                    self._counts[nodeid] = known - count
                else:
                    del self._counts[nodeid]
                    self._dropped.add(nodeid)
            gone = self._collect()
        self._tell(gone)

    def _collect(self) -> list[int]:
        if self._under_way or not self._dropped:
            return []
        gone = [nodeid for nodeid in self._dropped if nodeid not in self._counts]
        self._dropped.clear()
        return gone

    def _tell(self, nodes: list[int]) -> None:
        for nodeid in nodes:
            self._forget(NodeId(nodeid))
