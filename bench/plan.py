# SPDX-License-Identifier: Apache-2.0
"""What a plan consists of: contenders, sessions (what happens on one mount), rows, targets.

There are two: ``image_plan`` and ``mirror_plan``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

from bench.contenders import Contender

__all__ = ["FEW", "MOUNT", "Plan", "Row", "Session", "Step", "Target", "memory_rows"]

FEW = 3  # rounds of a session in which no target is judged

Unit = Literal["us", "MB/s", "ms", "MiB", "B"]


@dataclass(frozen=True)
class Step:
    """One call of the client: its sample goes to ``row``."""

    row: str
    call: str
    arguments: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Session:
    """One mount, and what the client does on it.

    Attributes:
        state: of what is mounted: in the page cache, dropped from it, or in the cache and the
            server's memory is looked at before and after, once a run.
        rounds: how many rounds have it at most; None: all.
    """

    name: str
    steps: tuple[Step, ...]
    state: Literal["cached", "dropped", "memory"] = "cached"
    rounds: int | None = None


@dataclass(frozen=True)
class Row:
    """One line of the result. A sample is seconds for so many things; ``unit`` is what is shown.

    Rows in MiB and B are amounts of memory, with no time in them.
    """

    name: str
    title: str
    unit: Unit


MOUNT = Row("mount", "mount until usable", "ms")


def memory_rows(name: str, files: str) -> tuple[Row, ...]:
    """The rows that a session of state "memory" fills, beside those of its steps.

    Args:
        files: how many files it touches, in words.
    """
    return (
        Row(f"{name}-peak", f"server memory after walking {files} files, peak RSS", "MiB"),
        Row(f"{name}-pss", "… PSS", "MiB"),
        Row(f"{name}-growth", "… PSS more than before the walk, per file", "B"),
        Row(f"{name}-over", "… PSS over a base of 60 MiB, per file", "B"),
    )


@dataclass(frozen=True)
class Target:
    """A bound on a row.

    Attributes:
        against: the contender of the ratio, or None for an absolute bound in the row's unit.
        bound: with ``"at most"``, the subject's time (or value) may be at most this many times the
            other's; with ``"faster"``, the other's time is at least this many times the subject's;
            with ``"more"``, its value is at most this much more, in the row's unit.
        absolute: what it may be at most, in the row's unit, where the other is absent.
        subject: the contender that has to meet it.
    """

    row: str
    kind: Literal["at most", "faster", "more"]
    bound: float
    against: str | None
    absolute: float | None = None
    subject: str = "penstock"


@dataclass(frozen=True)
class Plan:
    """A whole measurement.

    Attributes:
        bases: contenders that the others' times are compared with, the first one in the plot.
        sessions: those of a round, by its number, in their order.
        sizes: how much there is of everything, for the record.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    rows: tuple[Row, ...]
    targets: tuple[Target, ...]
    bases: tuple[str, ...]
    sessions: Callable[[int], tuple[Session, ...]]
    sizes: dict[str, int]

    def only(self, names: Collection[str]) -> Plan:
        """The same plan with the sessions of these names, and the targets on what they measure."""

        def sessions(number: int) -> tuple[Session, ...]:
            return tuple(s for s in self.sessions(number) if s.name in names)

        rows = {step.row for session in sessions(0) for step in session.steps}
        targets = tuple(target for target in self.targets if target.row in rows)
        return replace(self, sessions=sessions, targets=targets)
