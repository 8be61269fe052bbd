# SPDX-License-Identifier: Apache-2.0
"""A control group with little memory, in whichever hierarchy this machine has for that."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from penstock.sys.mountinfo import mounts

__all__ = ["MemoryCgroup", "memory_cgroup"]

_numbers = itertools.count()


class MemoryCgroup:
    """A control group that has been made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take_in(self, pid: int) -> None:
        """What the process uses from here on counts."""
        (self.path / "cgroup.procs").write_text(str(pid))


def _hierarchy() -> tuple[Path, str]:
    """Where groups are made, and what their limit is called.

    Raises:
        OSError: ENOENT, there is no hierarchy with memory.
    """
    for entry in mounts():
        if entry.fstype == "cgroup" and "memory" in entry.super_options.split(","):
            return Path(entry.mountpoint), "memory.limit_in_bytes"
    for entry in mounts():
        top = Path(entry.mountpoint)
        there = top / "cgroup.subtree_control"
        if entry.fstype == "cgroup2" and "memory" in there.read_text().split():
            return top, "memory.max"
    raise FileNotFoundError(2, "no hierarchy of control groups limits memory")


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[MemoryCgroup]:
    """A control group, removed afterwards; the processes in it must have ended by then.

    Args:
        limit: bytes.

    Raises:
        OSError: there is none to be had.
    """
    top, setting = _hierarchy()
    path = top / f"penstock-test-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    try:
        (path / setting).write_text(str(limit))
        for name in ("memory.swap.max", "memory.swappiness"):
            if (path / name).exists():
                (path / name).write_text("0")
        yield MemoryCgroup(path)
    finally:
        path.rmdir()
