# SPDX-License-Identifier: Apache-2.0
"""Locks of the memory filesystem: ranges against a model, waiting, deadlocks, cancelling."""

from __future__ import annotations

import errno
import fcntl
import threading
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.fs import FsError, Lock
from penstock.testing.memory.locks import Key, LockTable, Owner, Waiter

R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
FILE = Key(1, flock=False)
OTHER = Key(2, flock=False)
FLOCK = Key(1, flock=True)
END = (1 << 63) - 1
SPAN = 12


def take(
    table: LockTable,
    who: int,
    kind: int,
    start: int = 0,
    end: int = END,
    *,
    key: Key = FILE,
    wait: bool = False,
) -> Waiter | None:
    """Lock or unlock, as owner ``who`` through a handle of the same number."""
    lock = Lock(start, end, kind, who)
    return table.setlk(key, Owner(who, key.flock), who, lock, wait=wait)


def wait(table: LockTable, who: int, kind: int, key: Key = FILE, at: int = 0) -> Waiter:
    """A lock on one byte (of flock: the file) that has to wait."""
    waiter = take(table, who, kind, at, END if key.flock else at, key=key, wait=True)
    assert waiter is not None, "it did not have to wait"
    return waiter


def refused(
    code: int, table: LockTable, who: int, kind: int, *range_: int, key: Key = FILE
) -> None:
    """Without waiting it is refused."""
    with pytest.raises(FsError) as caught:
        take(table, who, kind, *range_, key=key)
    assert caught.value.errno == code


steps = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from([R, W, U]),
        st.integers(0, SPAN - 1),
        st.integers(0, SPAN - 1),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_ranges_are_as_the_model_says(actions: list[tuple[int, int, int, int]]) -> None:
    """The model: for each byte and owner, what is held."""
    table = LockTable()
    model: list[dict[int, int]] = [{} for _ in range(SPAN)]
    for who, kind, one, two in actions:
        start, end = sorted((one, two))
        inside = model[start : end + 1]
        clash = kind != U and any(
            other != who and W in (held, kind) for byte in inside for other, held in byte.items()
        )
        if clash:
            refused(errno.EAGAIN, table, who, kind, start, end)
        else:
            take(table, who, kind, start, end)
            for byte in inside:
                byte.pop(who, None)
                if kind != U:
                    byte[who] = kind
        check_bytes(table, model)


def check_bytes(table: LockTable, model: list[dict[int, int]]) -> None:
    """Each byte is in the way of a stranger as the model says."""
    runs = 0
    for position, byte in enumerate(model):
        found = table.getlk(FILE, Owner(99, flock=False), Lock(position, position, W, 99))
        kinds = set(byte.values())
        assert found.type == (kinds.pop() if kinds else U)
        before = model[position - 1] if position else {}
        runs += sum(1 for who, kind in byte.items() if before.get(who) != kind)
    assert table.held == runs, "neighbours are joined"


def _note(order: list[int], who: int, _value: object, _error: object) -> None:
    order.append(who)


def test_who_came_first_is_served_first() -> None:
    table = LockTable()
    take(table, 1, W, 0, 0)
    waiters = [wait(table, who, W) for who in range(2, 10)]
    order: list[int] = []
    for waiter in waiters:
        waiter.then(partial(_note, order, waiter.owner.id))
    take(table, 1, U)
    for who in range(2, 10):
        assert order == list(range(2, who + 1))
        take(table, who, U)
    assert (table.held, table.waiting) == (0, 0)


def test_readers_do_not_starve_a_writer() -> None:
    table = LockTable()
    take(table, 1, R, 0, 0)
    writer = wait(table, 2, W)
    reader = wait(table, 3, R)
    take(table, 4, R, 0, 0)
    take(table, 4, U, 0, 0)
    take(table, 1, U)
    assert writer.done
    assert not reader.done
    take(table, 2, U)
    assert reader.done


def test_readers_that_waited_come_in_together() -> None:
    table = LockTable()
    take(table, 1, W, 0, 0)
    readers = [wait(table, who, R) for who in (2, 3, 4)]
    take(table, 1, U)
    assert all(reader.done for reader in readers)


def test_who_holds_a_lock_passes_the_queue() -> None:
    """Somebody in the queue may be waiting for it: fairness must not make a deadlock."""
    table = LockTable()
    take(table, 1, R, 0, 0)
    take(table, 2, W, key=OTHER)
    writer = wait(table, 3, W)
    assert take(table, 2, R, 0, 0, wait=True) is None
    queued = wait(table, 4, R)
    take(table, 4, W, key=Key(3, flock=False))
    assert queued.done, "having got another lock, it passes as well"
    for who in (1, 2, 4):
        assert not writer.done
        take(table, who, U)
    assert writer.done


def test_downgrading_lets_readers_in() -> None:
    table = LockTable()
    take(table, 1, W, 0, 0)
    reader = wait(table, 2, R)
    take(table, 1, R, 0, 0)
    assert reader.done


def test_a_circle_is_a_deadlock() -> None:
    table = LockTable()
    for who in (1, 2, 3):
        take(table, who, W, who, who)
    wait(table, 1, W, at=2)
    wait(table, 2, W, at=3)
    with pytest.raises(FsError) as caught:
        take(table, 3, W, 1, 1, wait=True)
    assert caught.value.errno == errno.EDEADLK
    assert table.waiting == 2


def test_a_deadlock_over_two_files_is_found() -> None:
    table = LockTable()
    take(table, 1, W)
    take(table, 2, W, key=OTHER)
    wait(table, 1, W, OTHER)
    with pytest.raises(FsError) as caught:
        take(table, 2, W, 0, 0, wait=True)
    assert caught.value.errno == errno.EDEADLK


def test_two_readers_who_both_want_to_write() -> None:
    table = LockTable()
    take(table, 1, R)
    take(table, 2, R)
    wait(table, 1, W)
    with pytest.raises(FsError) as caught:
        take(table, 2, W, 0, 0, wait=True)
    assert caught.value.errno == errno.EDEADLK


def test_flocks_give_up_the_old_kind_first() -> None:
    table = LockTable()
    take(table, 1, R, key=FLOCK)
    take(table, 2, R, key=FLOCK)
    first = wait(table, 1, W, FLOCK)
    second = take(table, 2, W, key=FLOCK, wait=True)
    assert first.done
    assert second is not None
    assert table.waiting == 1
    refused(errno.EAGAIN, table, 3, R, key=FLOCK)
    take(table, 1, U, key=FLOCK)
    assert second.done
    take(table, 3, W)


def test_cancelling_lets_the_next_one_in() -> None:
    table = LockTable()
    take(table, 1, R, 0, 0)
    writer = wait(table, 2, W)
    reader = wait(table, 3, R)
    assert writer.cancel()
    assert reader.done
    assert not writer.cancel()
    assert table.held == 2


def test_a_granted_lock_cannot_be_cancelled() -> None:
    """The waiter is cancelled at the very moment in which its lock is granted, on every side of
    it: whoever is told EINTR does not hold the lock, whoever holds it is told so."""
    for _ in range(200):
        table = LockTable()
        take(table, 1, W, 0, 0)
        waiter = wait(table, 2, W)
        told: list[bool] = []
        waiter.then(partial(_granted, told))
        start = threading.Barrier(2)
        thread = threading.Thread(target=_interrupt, args=(waiter, start))
        thread.start()
        start.wait()
        take(table, 1, U)
        thread.join()
        assert told == [table.held == 1]
        assert table.waiting == 0


def _granted(told: list[bool], _value: object, error: BaseException | None) -> None:
    told.append(error is None)


def _interrupt(waiter: Waiter, start: threading.Barrier) -> None:
    start.wait()
    waiter.cancel()


def test_answers_are_given_without_the_tables_lock() -> None:
    table = LockTable()
    take(table, 1, W, 0, 0)
    seen: list[int] = []
    wait(table, 2, W).then(lambda _value, _error: seen.append(table.held))
    take(table, 1, U)
    assert seen == [1]


def test_closing_drops_what_was_locked() -> None:
    table = LockTable()
    take(table, 1, W, 0, 5)
    take(table, 1, R, 8, 9)
    take(table, 1, W, key=FLOCK)
    take(table, 1, W, key=OTHER)
    waiting = wait(table, 2, W)
    table.drop(1, owner=Owner(1, flock=False))
    assert waiting.done
    assert table.held == 3
    refused(errno.EAGAIN, table, 2, W, key=FLOCK)
    table.drop(1, fh=1)
    take(table, 2, W, key=FLOCK)
    refused(errno.EAGAIN, table, 2, W, key=OTHER)


def test_locks_are_bounded() -> None:
    table = LockTable(limit=3)
    take(table, 1, W, 0, 0)
    take(table, 1, W, 2, 2)
    wait(table, 2, W)
    refused(errno.ENOLCK, table, 1, W, 4, 4)
    take(table, 1, U)
    take(table, 3, W, 4, 4)


def test_nonsense_is_refused() -> None:
    table = LockTable()
    refused(errno.EINVAL, table, 1, 7)
    refused(errno.EINVAL, table, 1, W, 5, 4)


def test_waiting_for_waiters() -> None:
    table = LockTable()
    take(table, 1, W, 0, 0)
    assert not table.wait_waiting(1, timeout=0)
    thread = threading.Thread(target=lambda: wait(table, 2, W))
    thread.start()
    assert table.wait_waiting(1, timeout=10)
    thread.join()
