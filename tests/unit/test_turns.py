# SPDX-License-Identifier: Apache-2.0
"""Who reads requests: one at a time, and never one that is stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from penstock.transport.turns import Turns

SECONDS = 20.0


class Worker:
    def __init__(self) -> None:
        self.leading = False
        self.serial = 0
        self.asleep = False


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true; looked at again and again, since nothing tells of it."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.001)
    return True


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns(2)
    made.start()
    yield made
    made.stop()


def take_in_thread(turns: Turns, worker: Worker) -> threading.Thread:
    thread = threading.Thread(target=turns.take, args=(worker,), daemon=True)
    thread.start()
    return thread


def test_one_leads_and_hands_over(turns: Turns) -> None:
    first, second = Worker(), Worker()
    turns.take(first)
    thread = take_in_thread(turns, second)
    assert not second.leading
    turns.hand_over(first)
    thread.join(SECONDS)
    assert (first.leading, second.leading) == (False, True)
    turns.hand_over(first)
    assert second.leading, "who does not lead has nothing to hand over"


def test_a_stuck_leader_is_relieved(turns: Turns) -> None:
    first, second = Worker(), Worker()
    turns.take(first)
    first.serial += 1
    take_in_thread(turns, second).join(SECONDS)
    assert (first.leading, second.leading) == (False, True)


def test_a_sleeping_leader_is_left_alone_and_the_watch_sleeps(turns: Turns) -> None:
    worker = Worker()
    turns.take(worker)
    worker.asleep = True
    assert eventually(lambda: not turns._watching)
    assert worker.leading
    worker.asleep = False
    worker.serial += 1
    turns.awake()
    assert eventually(lambda: not worker.leading)


def test_a_leader_that_moves_on_is_left_alone(turns: Turns) -> None:
    worker = Worker()
    turns.take(worker)
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        worker.serial += 2
    assert worker.leading


def test_one_alone_leads_for_ever() -> None:
    turns = Turns(1)
    turns.start()
    worker = Worker()
    turns.take(worker)
    states = []
    for last in (False, True):
        turns.hand_over(worker, last=last)
        states.append(worker.leading)
    assert states == [True, False]
    turns.stop()
    turns.stop()
