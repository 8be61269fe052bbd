# SPDX-License-Identifier: Apache-2.0
"""Locks, taken on the source so that they meet those which others take there.

Each owner of locks on an inode gets an open file description of its own, on which they are taken:
as OFD locks (fcntl(2)), which conflict with POSIX locks and OFD locks of everybody else, or as
flock(2). Closing it drops them all.

Facts
    - An owner is an opaque number: a process for POSIX locks, an open file for OFD locks and flock.
      FLUSH names the process that has closed a descriptor; OFD locks are named by no FLUSH and
      no RELEASE, so what was locked through a handle ends with the handle.
    - The source does not tell when a lock becomes free, and a thread that waited in F_OFD_SETLKW
      could not be called back but by a signal. So who waits is tried again: at once when
      something is unlocked through this mount, else after 1 to 25 ms.
    - OFD locks know no deadlock. Among owners that come through this mount it is looked for
      here, as fcntl(2) promises; for flock it is not, as in the kernel.
    - What has no name any more cannot be opened again. Then the handle's own description has to do,
      which tells handles apart but not processes that share one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import threading
from typing import Final, NamedTuple

from penstock.fs import Answer, Connection, Context, FileHandle, FsError, Lock, NodeId, Pending
from penstock.servers.mirror.descriptors import Held
from penstock.servers.mirror.options import MirrorOptions
from penstock.servers.mirror.ranges import Range, Ranges
from penstock.servers.mirror.rights import Powers
from penstock.servers.mirror.source import Source
from penstock.servers.mirror.state import State

__all__ = ["LockOperations"]

_FLOCK: Final = struct.Struct("=hh4xqqi4x")
_F_OFD_GETLK: Final = 36
_F_OFD_SETLK: Final = 37
_LK_FLOCK: Final = 1
_FLOCK_UNLOCK: Final = 2
_END: Final = 0x7FFF_FFFF_FFFF_FFFF
_HELD: Final = frozenset({errno.EAGAIN, errno.EACCES})
_FLOCKS: Final = {
    fcntl.F_RDLCK: fcntl.LOCK_SH,
    fcntl.F_WRLCK: fcntl.LOCK_EX,
    fcntl.F_UNLCK: fcntl.LOCK_UN,
}
_FIRST_DELAY: Final = 0.001
_LONGEST_DELAY: Final = 0.025
_MOST_STEPS: Final = 1000
_MOST_WAITING: Final = 4096


class _Key(NamedTuple):
    nodeid: int
    owner: int
    flock: bool


class _Holder:
    """One owner's locks on one inode."""

    __slots__ = ("fh", "held", "pid", "ranges")

    def __init__(self, held: Held, fh: int, pid: int) -> None:
        self.held = held
        self.fh = fh
        self.pid = pid
        self.ranges = Ranges()


class _Waiter(Pending[None]):
    """A lock that is waited for."""

    __slots__ = ("fh", "key", "lock", "operations")

    def __init__(self, operations: LockOperations, key: _Key, fh: int, lock: Lock) -> None:
        super().__init__()
        self.operations = operations
        self.key = key
        self.fh = fh
        self.lock = lock

    def cancel(self, error: int = errno.EINTR) -> bool:
        """Give up waiting. False if the lock has been got: the answer is on its way."""
        return self.operations.withdraw(self) and super().cancel(error)


class LockOperations(State):
    """Operations on locks."""

    def __init__(self, source: Source, options: MirrorOptions, powers: Powers) -> None:
        super().__init__(source, options, powers)
        self._locks = threading.Condition(threading.Lock())
        self._holders: dict[_Key, _Holder] = {}
        self._waiters: list[_Waiter] = []
        self._unlocked = False
        self._ended = False
        self._retrier: threading.Thread | None = None

    def init(self, connection: Connection) -> None:
        super().init(connection)
        if self._options.locks:
            with self._locks, contextlib.suppress(RuntimeError):  # started when it is needed, then
                self._start()

    # Operations

    def getlk(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, owner: int, lock: Lock, flags: int
    ) -> Lock:
        wanted = Range(lock.start, lock.end, lock.type)
        with self._locks:
            for key, holder in self._holders.items():
                if key.nodeid == nodeid and key.owner != owner and not key.flock:
                    found = holder.ranges.conflict(wanted)
                    if found is not None:
                        return Lock(*found, holder.pid)
            own = self._holders.get(_Key(nodeid, owner, flock=False))
        held = own.held if own is not None else self._fd(fh)
        answer = fcntl.fcntl(held.fd, _F_OFD_GETLK, _packed(lock))
        kind, _, start, length, pid = _FLOCK.unpack(answer)
        if kind == fcntl.F_UNLCK:
            return lock._replace(type=fcntl.F_UNLCK)
        return Lock(start, start + length - 1 if length else _END, kind, max(pid, 0))

    def setlk(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        owner: int,
        lock: Lock,
        flags: int,
        wait: bool,
    ) -> Answer[None]:
        if lock.type not in _FLOCKS or not 0 <= lock.start <= lock.end <= _END:
            raise FsError(errno.EINVAL, f"no such lock: {lock}")
        key = _Key(nodeid, owner, bool(flags & _LK_FLOCK))
        with self._locks:
            if self._take(key, fh, lock, keep=wait):
                return None
            if not wait:
                raise FsError(errno.EAGAIN)
            try:
                if not key.flock and self._deadlock(key, lock):
                    raise FsError(errno.EDEADLK)
                return self._wait(_Waiter(self, key, fh, lock))
            except OSError:
                self._close_if_empty(key)
                raise

    def withdraw(self, waiter: _Waiter) -> bool:
        """Take a waiter out of the queue; False if it is not in it any more."""
        with self._locks:
            if waiter not in self._waiters:
                return False
            self._waiters.remove(waiter)
            self._close_if_empty(waiter.key)
            return True

    # Ends of handles and owners

    def _drop_owner(self, nodeid: int, owner: int) -> None:
        """FLUSH: the process has closed a descriptor."""
        if self._holders:
            with self._locks:
                self._drop(_Key(nodeid, owner, flock=False))

    def _drop_handle(self, nodeid: int, fh: int, release_flags: int, owner: int) -> None:
        """RELEASE: the open file is gone."""
        if not self._holders:
            return
        with self._locks:
            if release_flags & _FLOCK_UNLOCK:
                self._drop(_Key(nodeid, owner, flock=True))
            for key in [key for key, holder in self._holders.items() if holder.fh == fh]:
                self._drop(key)

    def _drop_all(self) -> None:
        with self._locks:
            waiters, self._waiters = self._waiters, []
            self._holders.clear()
            self._ended = True
            thread, self._retrier = self._retrier, None
            self._locks.notify_all()
        for waiter in waiters:
            waiter.fail(errno.ENODEV)
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)

    # With the lock held

    def _drop(self, key: _Key) -> None:
        if self._holders.pop(key, None) is not None:
            self._freed()

    def _close_if_empty(self, key: _Key) -> None:
        holder = self._holders.get(key)
        if holder is not None and not holder.ranges:
            del self._holders[key]

    def _freed(self) -> None:
        """Somebody may have waited for what has just been given up."""
        self._unlocked = True
        self._locks.notify_all()

    def _take(self, key: _Key, fh: int, lock: Lock, *, keep: bool = False) -> bool:
        """Take or release a lock on the source; False if it is held by somebody.

        ``keep``: for who will wait then, and try again through the same description.
        """
        holder = self._holders.get(key)
        if holder is None:
            if lock.type == fcntl.F_UNLCK:
                return True
            held = self._described(key.nodeid, fh)
            holder = self._holders[key] = _Holder(held, fh, lock.pid)
        try:
            if key.flock:
                fcntl.flock(holder.held.fd, _FLOCKS[lock.type] | fcntl.LOCK_NB)
            else:
                fcntl.fcntl(holder.held.fd, _F_OFD_SETLK, _packed(lock))
        except OSError as error:
            if key.flock and holder.ranges:  # changing a flock gives up the old one first
                holder.ranges = Ranges()
                self._freed()
            held_by_others = error.errno in _HELD
            if not (keep and held_by_others):
                self._close_if_empty(key)
            if held_by_others:
                return False
            raise
        start, end = (0, _END) if key.flock else (lock.start, lock.end)
        holder.ranges.set(Range(start, end, lock.type))
        if lock.type != fcntl.F_WRLCK:
            self._freed()
        self._close_if_empty(key)
        return True

    def _described(self, nodeid: int, fh: int) -> Held:
        """An open file description for one owner's locks."""
        node = self._file(fh)
        access = node.flags & os.O_ACCMODE
        for flags in (os.O_RDWR, access):
            with contextlib.suppress(OSError):
                return Held(self._source.open(nodeid, flags | os.O_NONBLOCK))
        return self._fd(fh)

    def _wait(self, waiter: _Waiter) -> _Waiter:
        if len(self._waiters) >= _MOST_WAITING:
            raise FsError(errno.ENOLCK, f"{_MOST_WAITING} requests wait for locks")
        try:
            self._start()
        except RuntimeError:
            raise FsError(errno.ENOLCK, "no thread can be started to wait") from None
        self._waiters.append(waiter)
        self._locks.notify_all()
        return waiter

    def _start(self) -> None:
        """Have the thread. It is started early: a sandbox allows none later."""
        if self._retrier is not None:
            return
        thread = threading.Thread(target=self._retry, name="penstock-locks", daemon=True)
        thread.start()
        self._retrier = thread

    def _deadlock(self, key: _Key, lock: Lock) -> bool:
        """Whether somebody whom this owner would wait for waits for it already."""
        seen: set[int] = set()
        todo = self._in_the_way(key, lock)
        while todo and len(seen) < _MOST_STEPS:
            owner = todo.pop()
            if owner == key.owner:
                return True
            if owner in seen:
                continue
            seen.add(owner)
            for waiter in self._waiters:
                if waiter.key.owner == owner and not waiter.key.flock:
                    todo |= self._in_the_way(waiter.key, waiter.lock)
        return False

    def _in_the_way(self, key: _Key, lock: Lock) -> set[int]:
        wanted = Range(lock.start, lock.end, lock.type)
        return {
            other.owner
            for other, holder in self._holders.items()
            if other.nodeid == key.nodeid
            and other.owner != key.owner
            and not other.flock
            and holder.ranges.conflict(wanted) is not None
        }

    # The thread that tries again

    def _retry(self) -> None:
        delay = _FIRST_DELAY
        while True:
            answers: list[tuple[_Waiter, OSError | None]] = []
            with self._locks:
                while not self._waiters:
                    if self._ended:
                        return
                    delay = _FIRST_DELAY
                    self._locks.wait()
                self._unlocked = False
                for waiter in list(self._waiters):
                    try:
                        done, problem = (
                            self._take(waiter.key, waiter.fh, waiter.lock, keep=True),
                            None,
                        )
                    except OSError as error:
                        done, problem = True, error
                    if done:
                        self._waiters.remove(waiter)
                        answers.append((waiter, problem))
                if not answers and not self._unlocked:
                    self._locks.wait(delay)
                    delay = _FIRST_DELAY if self._unlocked else min(delay * 2, _LONGEST_DELAY)
            for waiter, problem in answers:
                if problem is None:
                    waiter.complete(None)
                else:
                    waiter.fail(problem)


def _packed(lock: Lock) -> bytes:
    """``struct flock``, with the length 0 that means to the end of the file however it grows."""
    length = 0 if lock.end == _END else lock.end - lock.start + 1
    return _FLOCK.pack(lock.type, os.SEEK_SET, lock.start, length, 0)
