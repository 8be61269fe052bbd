# SPDX-License-Identifier: Apache-2.0
"""Notifications: what the server tells the kernel unasked.

Facts about notifications (fs/fuse/dev.c, fuse_notify)
    - They take the inode's or the directory's lock, which the kernel may hold for the very
      request that is being answered. So one that is sent from inside an operation is handed to a
      thread of its own, and its result is logged only; from any other thread it is sent at once
      and the kernel's answer is raised.
    - ENOENT says that the kernel does not know the inode or the name: nothing to do.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from penstock.abi.fuse import InvalEntryFlag
from penstock.fs import NodeId, Pending
from penstock.wire import notify as messages

if TYPE_CHECKING:
    from penstock.session.ports import Sink

__all__ = ["Notifier"]

_log = logging.getLogger(__name__)

_MAX_RETRIEVE: Final = 1 << 20


class Notifier:
    """Sends notifications; every method may be called from any thread.

    Each raises OSError with the kernel's errno (ENOENT: not known there; EINVAL: this kernel has
    no such notification), except inside an operation, see above.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._uniques = itertools.count(1)
        self._retrieving: dict[int, Pending[bytes]] = {}
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def inval_inode(self, nodeid: NodeId, offset: int = 0, length: int = 0) -> None:
        """Drop cached attributes, and cached data in [offset, offset+length) (length 0: to the
        end; a negative offset: attributes only)."""
        self._send(messages.inval_inode(nodeid, offset, length))

    def inval_entry(self, parent: NodeId, name: bytes) -> None:
        """Drop a name, positive or negative."""
        self._send(messages.inval_entry(parent, name, 0))

    def expire_entry(self, parent: NodeId, name: bytes) -> None:
        """Have a name looked up again at its next use, without dropping what is below it."""
        self._send(messages.inval_entry(parent, name, InvalEntryFlag.EXPIRE_ONLY))

    def delete(self, parent: NodeId, child: NodeId, name: bytes) -> None:
        """A name was removed underneath: drop it and tell watchers (inotify)."""
        self._send(messages.delete(parent, child, name))

    def store(self, nodeid: NodeId, offset: int, data: bytes) -> None:
        """Put data into the kernel's cache of a regular file."""
        self._send(messages.store(nodeid, offset, data))

    def retrieve(self, nodeid: NodeId, offset: int, size: int) -> Pending[bytes]:
        """Ask for cached data; completed with what is cached contiguously from ``offset``.

        Args:
            size: bytes, at most 1 MiB.
        """
        unique = next(self._uniques)
        pending: Pending[bytes] = Pending(lambda: self._given_up(unique))
        self._retrieving[unique] = pending
        try:
            self._send(messages.retrieve(unique, nodeid, offset, min(size, _MAX_RETRIEVE)))
        except OSError:
            self._retrieving.pop(unique, None)
            raise
        return pending

    def prune(self, nodeids: Sequence[NodeId]) -> None:
        """Have unused inodes forgotten (Linux 6.18)."""
        self._send(messages.prune(nodeids))

    def inc_epoch(self) -> None:
        """Have every name looked up again at its next use (Linux 6.17)."""
        self._send(messages.inc_epoch())

    def resend(self) -> None:
        """Have all unanswered requests sent again, for a server that took over."""
        self._send(messages.resend())

    def poll_wakeup(self, kh: int) -> None:
        """The events of a poll handle have changed."""
        self._send(messages.poll_wakeup(kh))

    def retrieved(self, unique: int, data: memoryview) -> None:
        """The kernel's answer to :meth:`retrieve`; called by the session."""
        pending = self._retrieving.pop(unique, None)
        if pending is not None:
            pending.complete(bytes(data))

    def _given_up(self, unique: int) -> None:
        self._retrieving.pop(unique, None)

    def close(self) -> None:
        """End the thread, if there is one, and cancel what is waited for. Idempotent."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()
        for pending in list(self._retrieving.values()):
            pending.cancel()

    def _send(self, message: bytes) -> None:
        if not self._sink.in_worker():
            self._sink.notify(message)
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="penstock-notifier", daemon=True
                )
                self._thread.start()
        self._queue.put(message)

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                self._sink.notify(message)
            except OSError as error:
                _log.debug("notification of %d bytes: %s", len(message), error)
