# SPDX-License-Identifier: Apache-2.0
"""Cases: how one is written, found and run.

A case is a function that gets an empty directory on the filesystem under test and raises
AssertionError where the filesystem does not do as POSIX or Linux says. Its docstring is the rule.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["CASES", "NEEDS", "Case", "Outcome", "case", "equal", "fails", "holds", "run"]

NEEDS: Final = {
    "root": "the rights of root",
    "others": "root, and a filesystem that other users may enter (allow_other)",
    "devices": "device nodes can be made",
    "xattr": "extended attributes",
    "acl": "POSIX access control lists",
    "tmpfile": "O_TMPFILE",
    "whiteout": "RENAME_WHITEOUT",
    "holes": "sparse files with SEEK_DATA, SEEK_HOLE, fallocate and hole punching",
    "btime": "statx gives the time of birth",
    "locks": "locks that are seen between processes",
    "suid": "a mount without nosuid",
}
"""What a case may need beyond plain files, and what that means."""


class Case(NamedTuple):
    """One rule and how it is tried."""

    subject: str
    name: str
    rule: str
    function: Callable[[Path], None]
    needs: frozenset[str]


class Outcome(NamedTuple):
    """What became of a case; ``error`` is None if the filesystem keeps the rule."""

    case: Case
    error: BaseException | None


CASES: Final[list[Case]] = []
"""All cases, in the order of their modules."""


def case(*needs: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Decorator: make a function a case; ``needs`` are keys of :data:`NEEDS`."""
    unknown = set(needs) - NEEDS.keys()
    if unknown:
        raise ValueError(f"unknown needs: {', '.join(sorted(unknown))}")

    def register(function: Callable[[Path], None]) -> Callable[[Path], None]:
        subject = function.__module__.rpartition(".")[2]
        rule = " ".join((function.__doc__ or "").split())
        CASES.append(Case(subject, function.__name__, rule, function, frozenset(needs)))
        return function

    return register


def run(root: Path, cases: Iterable[Case], *, without: Iterable[str] = ()) -> list[Outcome]:
    """Run cases on a filesystem, each in a new directory below ``root``.

    Args:
        root: a directory on the filesystem, writable.
        cases: usually :data:`CASES`.
        without: keys of :data:`NEEDS` that the filesystem does not have: such cases are left out.
    """
    absent = frozenset(without)
    outcomes: list[Outcome] = []
    for each in cases:
        if each.needs & absent:
            continue
        place = root / f"{each.subject}-{each.name}"
        error: BaseException | None = None
        try:
            place.mkdir()
            each.function(place)
        except (AssertionError, OSError) as caught:
            error = caught
        outcomes.append(Outcome(each, error))
    return outcomes


def equal(actual: object, expected: object, what: str = "") -> None:
    """Raises AssertionError unless the two are equal."""
    if actual != expected:
        raise AssertionError(f"{what + ': ' if what else ''}{actual!r}, expected {expected!r}")


def holds(condition: object, what: str) -> None:
    """Raises AssertionError, saying what was expected, unless ``condition`` is true."""
    if not condition:
        raise AssertionError(f"expected: {what}")


def fails(code: int, function: Callable[..., object], *args: object, **named: object) -> None:
    """Raises AssertionError unless the call raises an OSError with the errno ``code``."""
    wanted = errno.errorcode[code]
    try:
        result = function(*args, **named)
    except OSError as error:
        if error.errno != code:
            got = errno.errorcode.get(error.errno or 0, str(error.errno))
            raise AssertionError(
                f"{got} ({os.strerror(error.errno or 0)}), not {wanted}"
            ) from error
    else:
        raise AssertionError(f"succeeded with {result!r}, expected {wanted}")
