# SPDX-License-Identifier: Apache-2.0
"""Cases: how one is written, found and run.

A case is a function that gets an empty directory on the filesystem under test and raises
AssertionError where the filesystem does not do as POSIX or Linux says. Its docstring is the rule.
A case of the read-only half gets the tree that was prepared instead, and changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from penstock.testing.posix.needs import NEEDS

__all__ = [
    "CASES",
    "READ_CASES",
    "Case",
    "Outcome",
    "case",
    "equal",
    "fails",
    "holds",
    "outcomes",
    "read_case",
    "run",
]


class Case(NamedTuple):
    """One rule and how it is tried."""

    subject: str
    name: str
    rule: str
    function: Callable[[Path], None]
    needs: frozenset[str]
    writes: bool = True
    """Whether it gets an empty directory to write to, or else the prepared tree."""


class Outcome(NamedTuple):
    """What became of a case; ``error`` is None if the filesystem keeps the rule."""

    case: Case
    error: BaseException | None


CASES: Final[list[Case]] = []
"""All cases that write, in the order of their modules."""

READ_CASES: Final[list[Case]] = []
"""All cases of the read-only half, in the order of their modules."""

PATIENCE: Final = 30.0
"""Seconds that a case may take. It takes less than two, but for machines that have more to do."""

_Function = Callable[[Path], None]


def case(*needs: str) -> Callable[[_Function], _Function]:
    """Decorator: make a function a case; ``needs`` are keys of ``NEEDS``."""
    return _register(CASES, needs, writes=True)


def read_case(*needs: str) -> Callable[[_Function], _Function]:
    """Decorator: make a function a case of the read-only half."""
    return _register(READ_CASES, needs, writes=False)


def _register(
    cases: list[Case], needs: tuple[str, ...], *, writes: bool
) -> Callable[[_Function], _Function]:
    unknown = set(needs) - NEEDS.keys()
    if unknown:
        raise ValueError(f"unknown needs: {', '.join(sorted(unknown))}")

    def register(function: _Function) -> _Function:
        subject = function.__module__.rpartition(".")[2]
        rule = " ".join((function.__doc__ or "").split())
        name = function.__name__
        cases.append(Case(subject, name, rule, function, frozenset(needs), writes))
        return function

    return register


def run(
    root: Path, cases: Iterable[Case], *, without: Iterable[str] = (), seconds: float = PATIENCE
) -> list[Outcome]:
    """Run cases on a filesystem.

    Args:
        root: a directory on the filesystem, writable: each case has a new directory below it while
            it runs. For cases of the read-only half: the tree that was prepared.
        cases: usually ``CASES``.
        without: keys of ``NEEDS`` that the filesystem does not have (as ``probe`` finds them): such
            cases are left out.
        seconds: after which a case that waits for the filesystem is given up, where this is the
            process's main thread (a signal ends it).
    """
    return list(outcomes(root, cases, without=without, seconds=seconds))


def outcomes(
    root: Path, cases: Iterable[Case], *, without: Iterable[str] = (), seconds: float = PATIENCE
) -> Iterator[Outcome]:
    """As :func:`run`, one by one."""
    absent = frozenset(without)
    for each in cases:
        if not each.needs & absent:
            yield Outcome(each, _try(each, root, seconds))


def _try(each: Case, root: Path, seconds: float) -> Exception | None:
    place = root / f"{each.subject}-{each.name}" if each.writes else root
    try:
        if each.writes:
            place.mkdir()
        with _limited(seconds):
            each.function(place)
    except Exception as error:  # noqa: BLE001 - whatever a broken filesystem makes of a case
        return error
    finally:
        if each.writes:
            # What cannot be removed is in nobody's way: no other case has its name.
            with contextlib.suppress(OSError):
                shutil.rmtree(place)
    return None


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise AssertionError in what takes longer. A timer that runs already goes on afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(_number: int, _frame: object) -> None:
        raise AssertionError(f"no end within {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, give_up)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    started = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            left = max(0.001, left - time.monotonic() + started)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def equal(actual: object, expected: object, what: str = "") -> None:
    """Raises AssertionError unless the two are equal."""
    if actual != expected:
        raise AssertionError(f"{what + ': ' if what else ''}{actual!r}, expected {expected!r}")


def holds(condition: object, what: str) -> None:
    """Raises AssertionError, saying what was expected, unless ``condition`` is true."""
    if not condition:
        raise AssertionError(f"expected: {what}")


def fails(
    code: int | tuple[int, ...], function: Callable[..., object], *args: object, **named: object
) -> None:
    """Raises AssertionError unless the call raises an OSError with the errno ``code``, or one of
    several where standards leave the choice."""
    codes = code if isinstance(code, tuple) else (code,)
    wanted = " or ".join(errno.errorcode[each] for each in codes)
    try:
        result = function(*args, **named)
    except OSError as error:
        if error.errno not in codes:
            got = errno.errorcode.get(error.errno or 0, str(error.errno))
            raise AssertionError(
                f"{got} ({os.strerror(error.errno or 0)}), not {wanted}"
            ) from error
    else:
        raise AssertionError(f"succeeded with {result!r}, expected {wanted}")
