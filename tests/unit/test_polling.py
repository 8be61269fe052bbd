# SPDX-License-Identifier: Apache-2.0
"""How long a transport looks for the next request before it sleeps."""

from __future__ import annotations

import os

import pytest

from penstock.transport.polling import Polling, parse_poll


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})


@pytest.mark.usefixtures("two_cpus")
def test_window_grows_with_quick_requests_and_ends_with_slow_ones() -> None:
    polling = Polling("auto")
    assert polling.window == 0
    polling.slept(30_000)
    first = polling.window
    assert first > 0
    polling.slept(30_000)
    assert polling.window > first
    for _ in range(50):
        polling.slept(100_000)
    assert polling.window <= 1_000_000
    for _ in range(10):
        polling.slept(5_000_000)
    assert polling.window == 0


@pytest.mark.usefixtures("two_cpus")
def test_whoever_is_held_up_stops_looking_for_a_while() -> None:
    polling = Polling("auto")
    polling.slept(30_000, 1)
    assert polling.window > 0
    polling.held_up(10)
    assert polling.window == 0
    polling.slept(30_000, 20_000_000)
    assert polling.window == 0
    polling.slept(30_000, 60_000_000)
    assert polling.window > 0
    polling.held_up(61_000_000)  # again, so for longer
    polling.slept(30_000, 120_000_000)
    assert polling.window == 0
    polling.slept(30_000, 200_000_000)
    assert polling.window > 0
    fixed = Polling(50)
    fixed.held_up(10)
    assert fixed.window == 50_000


def test_one_cpu_never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    polling = Polling("auto")
    polling.slept(1000)
    assert polling.window == 0


def test_a_fixed_window_stays() -> None:
    polling = Polling(50)
    assert polling.window == 50_000
    polling.slept(10_000_000)
    assert polling.window == 50_000
    off = Polling("off")
    off.slept(1000)
    assert off.window == 0


def test_words() -> None:
    assert parse_poll("auto") == "auto"
    assert parse_poll("off") == "off"
    assert parse_poll("50") == 50
    for wrong in ("", "-1", "5001", "1e3", "on"):
        with pytest.raises(ValueError, match="poll="):
            parse_poll(wrong)
