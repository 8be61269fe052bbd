# SPDX-License-Identifier: Apache-2.0
"""What is measured: sizes, sessions (what happens between mount and unmount), rows, targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "COLD",
    "FULL",
    "MEMORY",
    "MEMORY_ROW",
    "MOUNT_ROW",
    "QUICK",
    "ROWS",
    "TARGETS",
    "Row",
    "Session",
    "Sizes",
    "Step",
    "Target",
    "sessions",
]


@dataclass(frozen=True)
class Sizes:
    """How much is in the image, and how much of it is read.

    Attributes:
        small: files in ``small``, of ``small_bytes`` each, 100 to a folder.
        many: empty files in ``many``, 1,000 to a folder.
        big_bytes: size of the file ``big``.
        random_reads: blocks of ``big`` read at random.
    """

    small: int
    small_bytes: int
    many: int
    big_bytes: int
    random_reads: int


FULL = Sizes(20_000, 3_000, 100_000, 1 << 30, 10_000)
QUICK = Sizes(2_000, 3_000, 5_000, 64 << 20, 1_000)


@dataclass(frozen=True)
class Step:
    """One call of the client: its sample goes to ``row``."""

    row: str
    call: str
    arguments: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Session:
    """One mount, and what the client does on it."""

    name: str
    steps: tuple[Step, ...]


def sessions(sizes: Sizes, seed: int) -> tuple[Session, ...]:
    """The mounts of one round with the image cached; :data:`COLD` and :data:`MEMORY` are apart."""
    return (
        Session(
            "files",
            (
                Step("walk", "walk", ("small",)),
                Step("stat", "stat"),
                Step("small-first", "small", (sizes.small_bytes,)),
                Step("small-again", "small", (sizes.small_bytes,)),
            ),
        ),
        Session(
            "stream",
            (
                Step("stream-first", "sequential", ("big",)),
                Step("stream-hot", "sequential", ("big",)),
            ),
        ),
        Session("random", (Step("random", "random", ("big", sizes.random_reads, seed)),)),
    )


COLD = Session("cold", (Step("walk-dropped", "walk", ("small",)),))
MEMORY = Session("memory", (Step("memory", "walk", ("many",)),))


@dataclass(frozen=True)
class Row:
    """One line of the result. A sample is seconds for so many things; ``unit`` is what is shown."""

    name: str
    title: str
    unit: Literal["us", "MB/s", "ms", "MiB"]


ROWS = (
    Row("walk", "walk + lstat, fresh mount", "us"),
    Row("walk-dropped", "walk + lstat, fresh mount, image not cached", "us"),
    Row("stat", "lstat again", "us"),
    Row("small-first", "open + read + close, first time", "us"),
    Row("small-again", "open + read + close, again", "us"),
    Row("stream-first", "sequential read, fresh mount", "MB/s"),
    Row("stream-hot", "sequential read, again", "MB/s"),
    Row("random", "random 4 KiB reads, fresh mount", "us"),
)
MOUNT_ROW = Row("mount", "mount until usable", "ms")
MEMORY_ROW = Row("memory", "server memory after walking many files", "MiB")


@dataclass(frozen=True)
class Target:
    """A bound on a row.

    Attributes:
        against: the contender of the ratio, or None for an absolute bound in the row's unit.
        bound: with ``"at most"``, penstock's time (or value) may be at most this many times the
            other's; with ``"faster"``, the other's time is at least this many times penstock's;
            with ``"more"``, penstock's value is at most this much more, in the row's unit.
    """

    row: str
    kind: Literal["at most", "faster", "more"]
    bound: float
    against: str | None


TARGETS = (
    Target("walk", "at most", 1.5, "kernel"),
    Target("walk", "faster", 6.0, "fuse2fs"),
    Target("small-first", "faster", 3.0, "fuse2fs"),
    Target("small-again", "at most", 2.0, "kernel"),
    Target("stream-first", "faster", 2.0, "fuse2fs"),
    Target("mount", "at most", 250.0, None),
    Target("memory", "at most", 150.0, None),
    Target("mount", "more", 60.0, "penstock-sandbox=no"),
    Target("walk", "at most", 1.05, "penstock-sandbox=no"),
    Target("small-first", "at most", 1.05, "penstock-sandbox=no"),
    Target("random", "at most", 1.05, "penstock-sandbox=no"),
)
