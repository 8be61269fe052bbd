# SPDX-License-Identifier: Apache-2.0
"""What became of many cases: each with a word, a line, and counts."""

from __future__ import annotations

import enum
import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from penstock.testing.posix.registry import Case, outcomes

__all__ = ["Result", "Verdict", "as_json", "judge", "summary"]

_LONGEST: Final = 400
"""Of a reason: some values that are compared are files."""


class Verdict(enum.StrEnum):
    """What is said of a case."""

    OK = "ok"
    FAIL = "FAIL"
    LEFT_OUT = "left out"
    SAME = "as the other"
    """It fails, and so it does on the filesystem that is compared with."""


class Result(NamedTuple):
    """One case, as it is reported."""

    case: Case
    verdict: Verdict
    reason: str = ""

    def line(self) -> str:
        """For people."""
        said = f": {self.reason}" if self.reason else ""
        return f"{self.verdict} {self.case.subject}/{self.case.name}{said}"


def judge(
    root: Path, cases: Iterable[Case], absent: Iterable[str], against: Path | None = None
) -> Iterator[Result]:
    """Run cases one by one and say what is to be thought of each.

    Args:
        root: where to run them.
        cases: which.
        absent: needs that are not there; cases which have one are left out.
        against: another filesystem, where each case is run as well: what fails there too is no
            failure.
    """
    missing = frozenset(absent)
    for case in cases:
        if case.needs & missing:
            yield Result(case, Verdict.LEFT_OUT, ", ".join(sorted(case.needs & missing)))
            continue
        theirs = None if against is None else _reason(case, against)
        reason = _reason(case, root)
        if reason is None:
            yield Result(case, Verdict.OK)
        elif theirs is None:
            yield Result(case, Verdict.FAIL, f"{reason} — {case.rule}")
        else:
            yield Result(case, Verdict.SAME, f"{reason}; the other: {theirs}")


def _reason(case: Case, root: Path) -> str | None:
    """Why a case fails."""
    (outcome,) = outcomes(root, [case])
    error = outcome.error
    if error is None:
        return None
    if isinstance(error, AssertionError):
        text = str(error)
    elif isinstance(error, OSError) and error.errno is not None:
        text = f"unexpected {errno.errorcode.get(error.errno, '')} ({os.strerror(error.errno)})"
    else:
        text = f"{type(error).__name__}: {error}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def summary(results: Iterable[Result]) -> str:
    """One line of counts."""
    counts = Counter(result.verdict for result in results)
    words = [f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]]
    return f"{counts.total()} cases: {', '.join(words) or 'none was run'}"


def as_json(root: Path, absent: Mapping[str, str], results: Iterable[Result]) -> dict[str, Any]:
    """Everything, for programs."""
    rows = list(results)
    counts = Counter(result.verdict for result in rows)
    return {
        "root": str(root),
        "absent": dict(absent),
        "counts": {str(verdict): counts[verdict] for verdict in Verdict},
        "cases": [
            {
                "subject": each.case.subject,
                "name": each.case.name,
                "rule": each.case.rule,
                "needs": sorted(each.case.needs),
                "result": str(each.verdict),
                "reason": each.reason,
            }
            for each in rows
        ],
    }
