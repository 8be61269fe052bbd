# SPDX-License-Identifier: Apache-2.0
"""Descriptors that several threads use at once, and a bounded number of them kept.

A descriptor must not be closed while another thread is between finding it and using it: its number
could be another file's by then. So it is held by an object, and closed with the last reference.
"""

from __future__ import annotations

import contextlib
import os
import threading

__all__ = ["Descriptors", "Held"]


class Held:
    """An open descriptor, closed when nobody refers to it any more, or by :meth:`close`."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close it now. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    __del__ = close


class Descriptors:
    """Node id → descriptor, the oldest ones dropped.

    Args:
        limit: how many are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[int, Held] = {}
        self._lock = threading.Lock()
        self.get = self._held.get

    def __len__(self) -> int:
        return len(self._held)

    def put(self, nodeid: int, held: Held) -> None:
        """Keep one."""
        with self._lock:
            self._held.pop(nodeid, None)
            self._held[nodeid] = held
            while len(self._held) > self._limit:
                del self._held[next(iter(self._held))]

    def pop(self, nodeid: int) -> Held | None:
        """Keep one no longer."""
        with self._lock:
            return self._held.pop(nodeid, None)

    def drop_half(self) -> None:
        """Make room: descriptors have run out."""
        with self._lock:
            for nodeid in list(self._held)[: (len(self._held) + 1) // 2]:
                del self._held[nodeid]

    def clear(self) -> None:
        """Keep none."""
        with self._lock:
            self._held.clear()
