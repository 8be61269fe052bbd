# SPDX-License-Identifier: Apache-2.0
"""How the kernel opens files that may be passed through, as a model (fs/fuse/iomode.c).

It refuses with EIO what a server must never answer. Threads may use it at once.
"""

from __future__ import annotations

import collections
import errno
import threading
from collections.abc import Callable, Sequence

from penstock.abi.fuse import FOpen
from penstock.fs import Mapping, OpenReply

__all__ = ["IoModes", "KeptFiles"]

_COMPANIONS = FOpen.PASSTHROUGH | FOpen.DIRECT_IO | FOpen.PARALLEL_DIRECT_WRITES | FOpen.NOFLUSH


class KeptFiles:
    """The registry of backing files, and what it has been asked.

    Attributes:
        live: the numbers by inode.
        asked: how often it was asked to register, and how many files it gave up.
        settled: how often it was told that nothing is being asked for.
        error: has an errno for an inode, or 0.
        closing: called with an inode before its file is given up.
    """

    def __init__(self, limit: int = 4096) -> None:
        self.live: dict[int, int] = {}
        self.asked: collections.Counter[str] = collections.Counter()
        self.settled = 0
        self.error: Callable[[int], int] = lambda node: 0
        self.closing: Callable[[int], None] = lambda node: None
        self._limit = limit
        self._last = 0
        self._lock = threading.Lock()

    def register(self, node: int, fd: int) -> int:
        """As the session's."""
        with self._lock:
            self.asked["register"] += 1
            if node in self.live:
                return self.live[node]
            code = self.error(node) or (len(self.live) >= self._limit and errno.ENFILE)
            if code:
                raise OSError(code, "it is refused")
            self._last += 1
            self.live[node] = self._last
            return self._last

    def map(self, node: int, length: int, mappings: Sequence[Mapping]) -> int:
        """As the session's."""
        self.asked["map"] += 1
        return self.register(node, -1)

    def release(self, node: int) -> None:
        """As the session's."""
        self.closing(node)
        with self._lock:
            self.asked["release"] += 1
            del self.live[node]  # which must be there

    def settle(self) -> None:
        """As the session's."""
        self.settled += 1


class IoModes:
    """What is open in the kernel."""

    def __init__(self, registry: KeptFiles) -> None:
        self._registry = registry
        self._open: dict[int, collections.Counter[int]] = {}
        self._lock = threading.Lock()

    def open(self, node: int, reply: OpenReply) -> None:
        """The reply to OPEN has come.

        Raises:
            AssertionError: it is one that makes open(2) fail with EIO.
        """
        number = reply.backing_id if reply.flags & FOpen.PASSTHROUGH else 0
        with self._lock:
            others = self._open.setdefault(node, collections.Counter())
            if reply.flags & FOpen.PASSTHROUGH:
                assert not reply.flags & ~_COMPANIONS, f"EIO: flags {reply.flags:#x}"
                live = self._registry.live.get(node)
                assert number == live, f"EIO: inode {node} has {live}, not {number}"
            assert set(others) <= {number}, f"EIO: inode {node} is open as {others}, not {number}"
            others[number] += 1

    def close(self, node: int, number: int) -> None:
        """The last user of an opened file has gone; RELEASE is sent some time later."""
        with self._lock:
            others = self._open[node]
            others[number] -= 1
            if not others[number]:
                del others[number]

    def is_open(self, node: int) -> bool:
        """Whether it is, in whatever way."""
        with self._lock:
            return bool(self._open.get(node))
