# SPDX-License-Identifier: Apache-2.0
"""The POSIX cases on a real mount of the memory filesystem.

tests/root/test_posix_oracles.py has them on filesystems of the kernel, where all must hold;
test_posix_faults.py breaks this one and sees that they find it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
