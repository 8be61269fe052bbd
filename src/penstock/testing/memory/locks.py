# SPDX-License-Identifier: Apache-2.0
"""Advisory locks: POSIX record locks and flock(2), with waiting.

Facts about locks over FUSE
    - An owner is an opaque number: a process for POSIX locks, an open file description for OFD
      locks and flock. The two kinds never meet.
    - close(2) by a process drops its POSIX locks on the file: FLUSH with its owner. OFD locks are
      named by no FLUSH and no RELEASE, so what was locked through a handle ends with the handle.
    - Changing the type of a flock first gives up the old one (flock(2)); of a POSIX lock, not.

Waiting
    Who waits is served first come, first served: a newcomer that would wait queues behind those
    whom it conflicts with, so that readers do not starve a writer. It is let past them if its owner
    holds any lock, since somebody may be waiting for that: fairness alone therefore never makes a
    deadlock. (An owner that waits for fairness holds nothing, so only those later in the queue can
    wait for it.) A circle of owners waiting for what each other hold is EDEADLK for the one that
    would close it; for flock it is not looked for, as in the kernel.

Invariants: safe from any thread; answers are given without a lock held; a waiter that has been
granted its lock can no longer be cancelled, so that no lock is left without its owner's knowledge.

Specification: fcntl(2), flock(2), POSIX.1-2017 fcntl.
"""

from __future__ import annotations

import errno
import fcntl
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from penstock.fs import FsError, Lock, Pending

__all__ = ["Key", "LockTable", "Owner", "Waiter"]

_MAX_STEPS: Final = 1000
"""Owners looked at in search of a deadlock."""


class Key(NamedTuple):
    """What is locked."""

    ino: int
    flock: bool


class Owner(NamedTuple):
    """Who locks."""

    id: int
    flock: bool


class _Held(NamedTuple):
    owner: Owner
    fh: int
    lock: Lock


class Waiter(Pending[None]):
    """A SETLKW that has to wait."""

    __slots__ = ("fh", "key", "lock", "owner", "table")

    def __init__(self, table: LockTable, key: Key, owner: Owner, fh: int, lock: Lock) -> None:
        super().__init__()
        self.table = table
        self.key = key
        self.owner = owner
        self.fh = fh
        self.lock = lock

    def cancel(self, error: int = errno.EINTR) -> bool:
        """Leave the queue. Returns False if the lock has been granted: the answer is on its way."""
        return self.table.withdraw(self) and super().cancel(error)


class LockTable:
    """All locks of one filesystem.

    Args:
        limit: locks held and waited for altogether; more are ENOLCK.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._held: dict[Key, list[_Held]] = {}
        self._queues: dict[Key, list[Waiter]] = {}
        self._holding: Counter[Owner] = Counter()
        self._limit = limit

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        with self._changed:
            return self._waiting()

    @property
    def held(self) -> int:
        """How many locks are held."""
        with self._changed:
            return self._holding.total()

    def wait_waiting(self, count: int, timeout: float) -> bool:
        """Wait until exactly ``count`` requests wait; False after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting() == count, timeout)

    def getlk(self, key: Key, owner: Owner, lock: Lock) -> Lock:
        """The first lock in the way of ``lock``, or ``lock`` as F_UNLCK."""
        with self._changed:
            found = self._conflicts(key, owner, lock)
            if not found:
                return lock._replace(type=fcntl.F_UNLCK)
            return min((held.lock for held in found), key=lambda other: other.start)

    def setlk(self, key: Key, owner: Owner, fh: int, lock: Lock, *, wait: bool) -> Waiter | None:
        """Take or release a lock.

        Returns:
            None if it is done, the promise of it if it has to wait.

        Raises:
            FsError: EAGAIN if it is held and ``wait`` is false, EDEADLK, ENOLCK, EINVAL.
        """
        if lock.type not in {fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK} or lock.start > lock.end:
            raise FsError(errno.EINVAL, f"no such lock: {lock}")
        granted: list[Waiter] = []
        try:
            with self._changed:
                return self._set(_Held(owner, fh, lock), key, wait, granted)
        finally:
            _answer(granted)

    def drop(self, ino: int, *, owner: Owner | None = None, fh: int | None = None) -> None:
        """Release every lock on an inode of one owner, or taken through one handle."""
        granted: list[Waiter] = []
        with self._changed:
            for key in (Key(ino, flock=False), Key(ino, flock=True)):
                before = self._held.get(key, [])
                after = [h for h in before if h.owner != owner and h.fh != fh]
                if len(after) != len(before):
                    self._replace(key, after)
                    self._settle({key}, granted)
        _answer(granted)

    def withdraw(self, waiter: Waiter) -> bool:
        """Take a waiter out of its queue; False if it is not there any more."""
        granted: list[Waiter] = []
        with self._changed:
            if waiter not in self._queues.get(waiter.key, ()):
                return False
            self._leave(waiter)
            self._settle({waiter.key}, granted)
        _answer(granted)
        return True

    # With the lock held

    def _waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def _set(self, new: _Held, key: Key, wait: bool, granted: list[Waiter]) -> Waiter | None:
        if new.lock.type == fcntl.F_UNLCK:
            self._apply(key, new)
            self._settle({key}, granted)
            return None
        if self._holding.total() + self._waiting() >= self._limit:
            raise FsError(errno.ENOLCK, f"{self._limit} locks are held or waited for")
        if key.flock and any(
            h.owner == new.owner and h.lock.type != new.lock.type for h in self._held.get(key, ())
        ):
            self._apply(key, new._replace(lock=new.lock._replace(type=fcntl.F_UNLCK)))
            self._settle({key}, granted)
        blocked = bool(self._conflicts(key, new.owner, new.lock))
        if not wait and blocked:
            raise FsError(errno.EAGAIN)
        waiter = Waiter(self, key, new.owner, new.fh, new.lock)
        if wait and (blocked or self._behind(waiter)):
            if not key.flock and self._deadlock(waiter):
                raise FsError(errno.EDEADLK)
            self._queues.setdefault(key, []).append(waiter)
            self._changed.notify_all()
            return waiter
        self._apply(key, new)
        self._settle({key} | self._awaited_by(new.owner), granted)
        return None

    def _conflicts(self, key: Key, owner: Owner, lock: Lock) -> list[_Held]:
        return [
            held
            for held in self._held.get(key, ())
            if held.owner != owner and _conflict(held.lock, lock)
        ]

    def _behind(self, waiter: Waiter) -> bool:
        """Whether fairness makes ``waiter`` wait for somebody before it in the queue."""
        if self._holding[waiter.owner]:
            return False
        for other in self._queues.get(waiter.key, ()):
            if other is waiter:
                break
            if other.owner != waiter.owner and _conflict(other.lock, waiter.lock):
                return True
        return False

    def _deadlock(self, waiter: Waiter) -> bool:
        """Whether someone whom ``waiter`` would wait for already waits for its owner."""
        seen: set[Owner] = set()
        todo = [held.owner for held in self._conflicts(waiter.key, waiter.owner, waiter.lock)]
        while todo and len(seen) < _MAX_STEPS:
            owner = todo.pop()
            if owner == waiter.owner:
                return True
            if owner not in seen:
                seen.add(owner)
                todo.extend(
                    held.owner
                    for other in self._waiters_of(owner)
                    for held in self._conflicts(other.key, other.owner, other.lock)
                )
        return False

    def _waiters_of(self, owner: Owner) -> list[Waiter]:
        return [w for queue in self._queues.values() for w in queue if w.owner == owner]

    def _awaited_by(self, owner: Owner) -> set[Key]:
        """Where ``owner`` waits: having got a lock, it may pass others there."""
        return {waiter.key for waiter in self._waiters_of(owner)}

    def _settle(self, keys: Iterable[Key], granted: list[Waiter]) -> None:
        """Grant what can be granted on ``keys``. Ends: each round but the last empties a place."""
        todo = set(keys)
        while todo:
            key = todo.pop()
            for waiter in list(self._queues.get(key, ())):
                if self._conflicts(key, waiter.owner, waiter.lock) or self._behind(waiter):
                    continue
                self._leave(waiter)
                self._apply(key, _Held(waiter.owner, waiter.fh, waiter.lock))
                granted.append(waiter)
                todo |= {key} | self._awaited_by(waiter.owner)
        self._changed.notify_all()

    def _leave(self, waiter: Waiter) -> None:
        queue = self._queues[waiter.key]
        queue.remove(waiter)
        if not queue:
            del self._queues[waiter.key]
        self._changed.notify_all()

    def _apply(self, key: Key, new: _Held) -> None:
        """Replace what the owner has in the range; F_UNLCK leaves nothing there."""
        kept: list[_Held] = []
        start, end = new.lock.start, new.lock.end
        for held in self._held.get(key, ()):
            if held.owner != new.owner:
                kept.append(held)
                continue
            if held.lock.start < start:
                kept.append(_cut(held, held.lock.start, min(held.lock.end, start - 1)))
            if held.lock.end > end:
                kept.append(_cut(held, max(held.lock.start, end + 1), held.lock.end))
        if new.lock.type != fcntl.F_UNLCK:
            kept = _merge(kept, new)
        self._replace(key, kept)

    def _replace(self, key: Key, held: list[_Held]) -> None:
        self._holding.subtract(h.owner for h in self._held.get(key, ()))
        self._holding.update(h.owner for h in held)
        self._holding = +self._holding
        self._held[key] = held
        if not held:
            del self._held[key]


def _answer(granted: list[Waiter]) -> None:
    for waiter in granted:
        waiter.complete(None)


def _conflict(one: Lock, other: Lock) -> bool:
    return (
        fcntl.F_WRLCK in {one.type, other.type}
        and one.start <= other.end
        and other.start <= one.end
    )


def _cut(held: _Held, start: int, end: int) -> _Held:
    return held._replace(lock=held.lock._replace(start=start, end=end))


def _merge(held: list[_Held], new: _Held) -> list[_Held]:
    """Add ``new``, joined with its neighbours of the same kind."""
    rest: list[_Held] = []
    start, end = new.lock.start, new.lock.end
    for other in held:
        same = (other.owner, other.fh, other.lock.type) == (new.owner, new.fh, new.lock.type)
        if same and other.lock.start <= end + 1 and start <= other.lock.end + 1:
            start, end = min(start, other.lock.start), max(end, other.lock.end)
        else:
            rest.append(other)
    return [*rest, _cut(new, start, end)]
