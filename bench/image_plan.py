# SPDX-License-Identifier: Apache-2.0
"""An ext4 image: penstock beside the kernel's own driver and fuse2fs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

from bench.contenders import image_contenders
from bench.plan import FEW, MOUNT, Plan, Row, Session, Step, Target, memory_rows

__all__ = ["FULL", "QUICK", "Sizes", "plan"]


@dataclass(frozen=True)
class Sizes:
    """How much is in the image, and how much of it is read.

    Attributes:
        small: files in ``small``, of ``small_bytes`` each, 100 to a folder.
        medium: files in ``medium``, of ``medium_bytes`` each.
        many: empty files in ``many``, 1,000 to a folder.
        big_bytes: size of the file ``big``.
        mapped_bytes: how much of ``big`` is read through a mapping.
        random_reads: blocks of ``big`` read at random.
    """

    small: int
    small_bytes: int
    medium: int
    medium_bytes: int
    many: int
    big_bytes: int
    mapped_bytes: int
    random_reads: int


FULL = Sizes(20_000, 3_000, 200, 1 << 20, 100_000, 1 << 30, 512 << 20, 10_000)
QUICK = Sizes(2_000, 3_000, 50, 1 << 20, 5_000, 64 << 20, 64 << 20, 1_000)

ROWS = (
    Row("walk", "walk + lstat, fresh mount", "us"),
    Row("walk-dropped", "walk + lstat, fresh mount, image not cached", "us"),
    Row("stat", "lstat again", "us"),
    Row("small-first", "open + read + close, first time", "us"),
    Row("small-again", "open + read + close, again", "us"),
    Row("small-parallel", "open + read + close by 2 readers, first time", "us"),
    Row("open-first", "open of a file of 1 MiB, first time", "us"),
    Row("open-again", "open of a file of 1 MiB, again", "us"),
    Row("stream-first", "sequential read, fresh mount", "MB/s"),
    Row("stream-hot", "sequential read, again", "MB/s"),
    Row("parallel", "sequential read by 2 readers, fresh mount", "MB/s"),
    Row("random", "random 4 KiB reads, fresh mount", "us"),
    Row("random-hot", "random 4 KiB reads after all was read", "us"),
    Row("mapped", "mmap, read in order, fresh mount", "MB/s"),
    Row("mapped-hot", "mmap, read in order, again", "MB/s"),
    Row("touch", "mmap, random pages, fresh mount", "us"),
    Row("many", "walk + lstat of many files, fresh mount", "us"),
    MOUNT,
)

LENS = 0.95
TARGETS = (
    Target("walk", "at most", 1.5, "kernel"),
    Target("walk", "faster", 6.0, "fuse2fs"),
    Target("small-first", "faster", 3.0, "fuse2fs", subject="penstock-splice"),
    Target("small-again", "at most", 2.0, "kernel", subject="penstock-splice"),
    Target("small-again", "at most", 25.0, None),
    Target("stream-first", "faster", 2.0, "fuse2fs"),
    Target("stream-first", "faster", LENS, "kernel"),
    Target("stream-hot", "faster", LENS, "kernel"),
    Target("random", "faster", LENS, "kernel"),
    Target("random-hot", "faster", LENS, "kernel"),
    Target("mapped", "faster", LENS, "kernel"),
    Target("mapped-hot", "faster", LENS, "kernel"),
    Target("touch", "faster", LENS, "kernel"),
    Target("open-first", "at most", 200.0, None),
    Target("mount", "at most", 250.0, None),
    Target("memory-peak", "at most", 150.0, None),
    Target("mount", "more", 60.0, "penstock-sandbox=no"),
    Target("walk", "at most", 1.05, "penstock-sandbox=no"),
    Target("small-first", "at most", 1.05, "penstock-sandbox=no"),
    Target("random", "at most", 1.05, "penstock-sandbox=no"),
)


def sessions(sizes: Sizes, number: int) -> tuple[Session, ...]:
    """The mounts of round ``number``."""
    seed = number
    small = (sizes.small_bytes,)
    return (
        Session(
            "files",
            (
                Step("walk", "walk", ("small",)),
                Step("stat", "stat"),
                Step("small-first", "small", small),
                Step("small-again", "small", small),
            ),
        ),
        Session(
            "small by two",
            (Step("", "walk", ("small",)), Step("small-parallel", "small_parallel", (*small, 2))),
            rounds=FEW,
        ),
        Session(
            "open",
            (
                Step("", "walk", ("medium",)),
                Step("open-first", "open"),
                Step("open-again", "open"),
            ),
        ),
        Session(
            "stream",
            (
                Step("stream-first", "sequential", ("big",)),
                Step("stream-hot", "sequential", ("big",)),
                Step("random-hot", "random", ("big", sizes.random_reads, seed)),
            ),
        ),
        Session("parallel", (Step("parallel", "parallel", ("big", 2)),), rounds=FEW),
        Session("random", (Step("random", "random", ("big", sizes.random_reads, seed)),)),
        Session(
            "mapped",
            (
                Step("mapped", "mapped", ("big", sizes.mapped_bytes)),
                Step("mapped-hot", "mapped", ("big", sizes.mapped_bytes)),
            ),
        ),
        Session("touch", (Step("touch", "touch", ("big", sizes.random_reads, seed)),)),
        Session("not cached", (Step("walk-dropped", "walk", ("small",)),), "dropped", FEW),
        Session("memory", (Step("many", "walk", ("many",)),), "memory", 1),
    )


def plan(sizes: Sizes) -> Plan:
    """The whole plan."""
    return Plan(
        name="image",
        title="an ext4 image",
        contenders=image_contenders(),
        rows=(*ROWS, *memory_rows("memory", f"{sizes.many:,}")),
        targets=TARGETS,
        bases=("kernel", "fuse2fs"),
        sessions=partial(sessions, sizes),
        sizes=asdict(sizes),
    )
