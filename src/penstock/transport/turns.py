# SPDX-License-Identifier: Apache-2.0
"""Which worker reads requests: one at a time, and never one that is stuck.

Workers lead and follow. The leader reads requests and carries them out itself: as long as that
needs only memory and the page cache there is nothing to gain from a second thread, and much to
lose (a wake-up per request, and two threads at one interpreter lock). A leader that is about to
wait hands over (:meth:`Turns.hand_over`), and queues up again when it is done.

A leader that waits without having said so would hold everyone up. So a watch looks at the leader
every :data:`TICK` while requests come, and hands over for it when it has been at one request from
one look to the next. The watch sleeps when nothing happens, so that an idle mount uses no CPU.
"""

from __future__ import annotations

import threading
from typing import Final, Protocol

__all__ = ["TICK", "Leader", "Turns"]

TICK: Final = 0.005
"""Seconds between two looks of the watch."""
_QUIET_TICKS: Final = 20
"""Looks without anything new after which the watch sleeps."""


class Leader(Protocol):
    """A worker, as far as turns go."""

    leading: bool
    serial: int
    """Rises when a request is begun and when it is done: odd while one is carried out."""
    asleep: bool
    """Whether it waits for a request."""


class Turns:
    """The turn to read, and the watch over whoever has it.

    Args:
        workers: how many there are; one alone leads for ever and is not watched.
    """

    def __init__(self, workers: int) -> None:
        self._several = workers > 1
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._leader: Leader | None = None
        self._watching = False
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="penstock-watch", daemon=True)

    def start(self) -> None:
        """Start the watch."""
        if self._several:
            self._thread.start()

    def stop(self) -> None:
        """End the watch. Idempotent."""
        self._stopped.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def take(self, worker: Leader) -> None:
        """Wait for the turn."""
        self._turn.acquire()
        worker.leading = True
        self._leader = worker
        self.awake()

    def hand_over(self, worker: Leader, *, last: bool = False) -> None:
        """Let another worker lead. Nothing happens if ``worker`` does not, or is the only one.

        Args:
            last: the worker leaves for good; even the only one then gives its turn up.
        """
        if not self._several and not last:
            return
        with self._lock:
            if not worker.leading:
                return
            worker.leading = False
        self._turn.release()

    def awake(self) -> None:
        """The leader has work: have it watched. After ``asleep`` was set to False."""
        if self._several and not self._watching:
            self._watching = True
            self._wanted.set()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._wanted.wait()
            self._wanted.clear()
            self._watch_until_quiet()

    def _watch_until_quiet(self) -> None:
        quiet = 0
        seen: tuple[Leader | None, int] = (None, 0)
        while not self._stopped.wait(TICK):
            leader = self._leader
            now = (leader, leader.serial if leader is not None else 0)
            if now != seen:
                seen = now
                quiet = 0
                continue
            if leader is not None and leader.leading and leader.serial & 1:
                self.hand_over(leader)
                continue
            quiet += 1
            if quiet >= _QUIET_TICKS:
                self._watching = False
                # Whoever woke up before this was seen has not asked for the watch.
                if leader is None or leader.asleep or not leader.leading:
                    return
                self._watching = True
                quiet = 0
