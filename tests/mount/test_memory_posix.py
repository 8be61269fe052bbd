# SPDX-License-Identifier: Apache-2.0
"""The POSIX cases on a real mount of the memory filesystem.

tests/root/test_posix_oracles.py has them on filesystems of the kernel, where all must hold.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.fs import (
    Answer,
    Attributes,
    Context,
    DirEntry,
    FileHandle,
    Lock,
    NodeId,
    Operations,
    SetAttr,
)
from penstock.serve import MountOptions
from penstock.testing import MemoryFilesystem, posix
from tests.support.mounts import Served, serve_in_process

LACKING = {"collapse", "reflink"}
"""What no request of the protocol carries, or no answer of this filesystem."""
CASES = [
    pytest.param(each, id=f"{each.subject}-{each.name}")
    for each in posix.CASES
    if not each.needs & LACKING
]


@pytest.fixture(scope="module")
def place(session_place: Path) -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(dir=session_place) as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture(scope="module")
def memory(place: Path) -> Iterator[Served]:
    """The filesystem under test."""
    mountpoint = place / "memory"
    mountpoint.mkdir()
    options = MountOptions(allow_other=True, suid=True)
    with serve_in_process(MemoryFilesystem, mountpoint, options) as served:
        yield served


def _try(case: posix.Case, root: Path) -> None:
    (outcome,) = posix.run(root, [case])
    if outcome.error is not None:
        raise outcome.error


@pytest.mark.requires("root")
@pytest.mark.parametrize("case", CASES)
def test_memory_filesystem_keeps_the_rule(memory: Served, case: posix.Case) -> None:
    _try(case, memory.path)


@pytest.mark.requires("root")
def test_what_it_lacks_is_known(memory: Served) -> None:
    assert set(posix.probe(memory.path)) == LACKING


class Careless(MemoryFilesystem):
    """A filesystem with a fault in each of several places."""

    def readlink(self, ctx: Context, nodeid: NodeId) -> bytes:
        """Has short targets only."""
        return super().readlink(ctx, nodeid)[:100]

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> tuple[Attributes, float]:
        """Has no nanoseconds."""
        mtime = changes.mtime_ns
        if isinstance(mtime, int):
            changes = changes._replace(mtime_ns=mtime // 10**9 * 10**9)
        return super().setattr(ctx, nodeid, changes)

    def setlk(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        owner: int,
        lock: Lock,
        flags: int,
        wait: bool,
    ) -> Answer[None]:
        """Grants everything."""

    def lseek(self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, whence: int) -> int:
        """Knows no holes."""
        return offset

    def readdir(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterator[DirEntry]:
        """Forgets a name in a hundred."""
        return (entry for entry in super().readdir(ctx, nodeid, fh, offset) if entry.offset % 99)

    readdirplus = Operations.readdirplus  # type: ignore[assignment]


def test_a_careless_filesystem_is_found_out(tmp_path: Path) -> None:
    with serve_in_process(Careless, tmp_path) as served:
        outcomes = posix.run(served.path, posix.CASES, without={"others", *LACKING})
    failed = {outcome.case.name for outcome in outcomes if outcome.error is not None}
    assert failed >= {
        "symlinks_keep_their_target",
        "times_are_kept_to_the_nanosecond",
        "writers_exclude",
        "flock_excludes",
        "seeking_data_and_holes",
        "end_of_file_is_a_hole",
        "many_names_are_listed_once",
    }
    assert len(failed) < len(outcomes) / 3
