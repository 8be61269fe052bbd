# SPDX-License-Identifier: Apache-2.0
"""A directory: penstock's mirror beside the directory itself and what others serve it with."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bench.contenders import mirror_contenders
from bench.files import CACHE
from bench.plan import FEW, MOUNT, Plan, Row, Session, Step, Target, memory_rows

__all__ = ["FULL", "OVER", "QUICK", "WORK", "Sizes", "archive", "plan"]

WORK = "work"
OVER = "over"


@dataclass(frozen=True)
class Sizes:
    """How much is in the directory, and how much is done with it.

    Attributes:
        small: files in ``small``, of ``small_bytes`` each, 100 to a folder.
        many: empty files in ``many``, 1,000 to a folder.
        million: the same in ``million``; 0 unless asked for.
        big_bytes: size of the files ``big``, which is read, and ``over``, which is overwritten.
        mapped_bytes: how much is read and written through a mapping, and written to a new file.
        random_blocks: blocks read and written at random.
        changes: files created, renamed, removed.
        syncs: writes with fsync.
        tree: files in the archive and in the git repository at most.
    """

    small: int
    small_bytes: int
    many: int
    million: int
    big_bytes: int
    mapped_bytes: int
    random_blocks: int
    changes: int
    syncs: int
    tree: int


FULL = Sizes(
    6_000, 3_000, 100_000, 0, 1 << 30, 256 << 20, 10_000, changes=2_000, syncs=200, tree=2_500
)
QUICK = Sizes(1_000, 3_000, 5_000, 0, 64 << 20, 64 << 20, 1_000, changes=300, syncs=30, tree=300)

ROWS = (
    Row("walk", "walk + lstat, fresh mount", "us"),
    Row("stat", "lstat again", "us"),
    Row("small-first", "open + read + close, first time", "us"),
    Row("small-again", "open + read + close, again", "us"),
    Row("small-parallel", "open + read + close by 2 readers, first time", "us"),
    Row("create", "create", "us"),
    Row("rename", "rename", "us"),
    Row("unlink", "unlink", "us"),
    Row("sync", "append 4 KiB + fsync", "us"),
    Row("stream-first", "sequential read, fresh mount", "MB/s"),
    Row("stream-hot", "sequential read, again", "MB/s"),
    Row("parallel", "sequential read by 2 readers, fresh mount", "MB/s"),
    Row("random", "random 4 KiB reads, fresh mount", "us"),
    Row("random-hot", "random 4 KiB reads after all was read", "us"),
    Row("mapped", "mmap, read in order, fresh mount", "MB/s"),
    Row("mapped-hot", "mmap, read in order, again", "MB/s"),
    Row("touch", "mmap, random pages, fresh mount", "us"),
    Row("write", "sequential write over a file", "MB/s"),
    Row("scatter", "random 4 KiB writes", "us"),
    Row("map-write", "mmap, written in order", "MB/s"),
    Row("write-new", "sequential write of a new file", "MB/s"),
    Row("untar", "tar -x, per entry", "us"),
    Row("git-first", "git status, fresh mount, per file", "us"),
    Row("git-again", "git status, again, per file", "us"),
    Row("many", "walk + lstat of many files, fresh mount", "us"),
    Row("million", "walk + lstat of a million files, fresh mount", "us"),
    MOUNT,
)

DATA = 0.95
# Where libfuse's example is absent, these count (µs, measured once on a quiet machine with two
# CPUs), and a quarter of pyfuse3's.
HIGH = {"walk": 20.0, "create": 214.0, "rename": 103.0, "unlink": 83.0, "small-again": 71.0}
PYFUSE3 = {"walk": 261.0, "create": 559.0, "rename": 484.0, "unlink": 291.0, "small-again": 384.0}
BY_NATIVE = (
    "stream-first",
    "stream-hot",
    "random",
    "random-hot",
    "mapped",
    "mapped-hot",
    "touch",
    "write",
    "scatter",
    "map-write",
)
TARGETS = (
    *(Target(row, "faster", DATA, "native") for row in BY_NATIVE),
    *(Target(row, "faster", 1.0, "passthrough_hp", absolute=HIGH[row]) for row in HIGH),
    *(Target(row, "faster", 4.0, "pyfuse3", absolute=PYFUSE3[row] / 4) for row in PYFUSE3),
    Target("memory-over", "at most", 300.0, None),
)


def archive(sizes: Sizes) -> Path:
    """Where the tar file of a real tree is kept."""
    return CACHE / f"tree-{sizes.tree}.tar"


def sessions(sizes: Sizes, number: int) -> tuple[Session, ...]:
    """The mounts of round ``number``."""
    seed = number
    small = (sizes.small_bytes,)
    blocks = (sizes.random_blocks, seed)
    tree = [Step("untar", "untar", (str(archive(sizes)), f"{WORK}/tree"))]
    if shutil.which("git"):
        tree += [Step("git-first", "status", ("repo",)), Step("git-again", "status", ("repo",))]
    found = [
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
            "changes",
            (
                Step("create", "create", (WORK, sizes.changes)),
                Step("rename", "rename"),
                Step("unlink", "unlink"),
                Step("sync", "sync", (f"{WORK}/journal", sizes.syncs)),
            ),
        ),
        Session(
            "stream",
            (
                Step("stream-first", "sequential", ("big",)),
                Step("stream-hot", "sequential", ("big",)),
                Step("random-hot", "random", ("big", *blocks)),
            ),
        ),
        Session("parallel", (Step("parallel", "parallel", ("big", 2)),), rounds=FEW),
        Session("random", (Step("random", "random", ("big", *blocks)),)),
        Session(
            "mapped",
            (
                Step("mapped", "mapped", ("big", sizes.mapped_bytes)),
                Step("mapped-hot", "mapped", ("big", sizes.mapped_bytes)),
            ),
        ),
        Session("touch", (Step("touch", "touch", ("big", *blocks)),)),
        Session(
            "write",
            (
                Step("write", "write", (OVER, sizes.big_bytes)),
                Step("scatter", "scatter", (OVER, *blocks)),
                Step("map-write", "map_write", (OVER, sizes.mapped_bytes)),
                Step("write-new", "write", (f"{WORK}/new", sizes.mapped_bytes)),
            ),
        ),
        Session("tree", tuple(tree), rounds=FEW),
        Session("memory", (Step("many", "walk", ("many",)),), "memory", 1),
    ]
    if sizes.million:
        found.append(Session("million", (Step("million", "walk", ("million",)),), "memory", 1))
    return tuple(found)


def plan(sizes: Sizes) -> Plan:
    """The whole plan."""
    rows = [*ROWS, *memory_rows("memory", f"{sizes.many:,}")]
    if sizes.million:
        rows += memory_rows("million", f"{sizes.million:,}")
    return Plan(
        name="mirror",
        title="a directory",
        contenders=mirror_contenders(),
        rows=tuple(rows),
        targets=TARGETS,
        bases=("native", "passthrough_hp", "pyfuse3"),
        sessions=partial(sessions, sizes),
        sizes=asdict(sizes),
    )
