# SPDX-License-Identifier: Apache-2.0
"""The POSIX cases on the kernel's own filesystems, where all must hold, and their read-only half on
ext4 images as penstock shows them, beside the kernel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from penstock.testing import posix
from penstock.testing.posix.report import Result, Verdict, judge
from tests.support.contained import contained
from tests.support.images import MIB, cached_image, kernel_mount, run, session_dir
from tests.support.loopfs import PARAMETERS, loop_filesystem

LACKING = {
    "tmpfs": {"zero", "collapse", "reflink"},
    "ext4": {"large-xattr", "reflink"},
    "xfs": {"long-symlinks"},
    "btrfs": {"large-xattr", "collapse", "dirlinks", "space"},
}
"""What the kernel's filesystems may lack: a longer list would mean that a probe is wrong."""


def failures(results: Iterable[Result]) -> list[str]:
    """What to show of a run that has to be without a failure."""
    return [each.line() for each in results if each.verdict is Verdict.FAIL]


@pytest.fixture
def place(session_place: Path) -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(dir=session_place) as path:
        Path(path).chmod(0o755)
        yield Path(path)


def test_all_cases_hold_on_tmpfs(place: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "tmpfs", place)
    try:
        check("tmpfs", place)
    finally:
        run("umount", place)


@pytest.mark.parametrize("name", PARAMETERS)
def test_all_cases_hold_on_the_kernels_filesystems(place: Path, name: str) -> None:
    with loop_filesystem(name, place) as top:
        check(name, top)


def check(name: str, top: Path) -> None:
    """All cases pass but those that the filesystem is known to have no room for."""
    absent = posix.probe(top)
    assert set(absent) <= LACKING[name], absent
    results = list(judge(top, posix.CASES, absent))
    assert failures(results) == []
    assert Counter(result.verdict for result in results)[Verdict.OK] >= 350
    assert {path.name for path in top.iterdir()} <= {"lost+found"}


def _prepare(image: Path) -> None:
    place = image.with_suffix(".tree")
    with kernel_mount(image, place) as top:
        posix.prepare(top)
    place.rmdir()


LAYOUTS = {
    "4k": ["-b", "4096"],
    "1k": ["-b", "1024"],
    "inline": ["-O", "inline_data", "-b", "4096", "-I", "512"],
}


@pytest.mark.requires("mke2fs", "kernel-ext4", "fuse")
@pytest.mark.parametrize(
    ("layout", "datapath"),
    [("4k", "auto"), ("4k", "copy"), ("4k", "splice"), ("1k", "auto"), ("inline", "auto")],
)  # fmt: skip
def test_read_only_half_on_ext4_beside_the_kernel(place: Path, layout: str, datapath: str) -> None:
    image = cached_image(_prepare, size=96 * MIB, options=LAYOUTS[layout])
    options = f"allow_other,datapath={datapath}"
    with (
        kernel_mount(image, place / "kernel", "ro,noload") as kernel,
        contained(image, place / "ours", options) as ours,
    ):
        absent = posix.absent_of(ours.mountpoint)
        assert set(absent) <= {"large-xattr", "reflink", "long-symlinks", "suid"}, absent
        results = list(judge(ours.mountpoint, posix.READ_CASES, absent, kernel))
        theirs = list(judge(kernel, posix.READ_CASES, absent))
    assert failures(theirs) == []
    assert failures(results) == []
    assert Counter(result.verdict for result in results) == {Verdict.OK: len(posix.READ_CASES)}


@pytest.mark.requires("mke2fs", "fuse")
def test_read_only_half_on_an_image_made_of_a_tree(place: Path) -> None:
    """mke2fs -d copies the tree, with seconds only."""
    tree = session_dir() / "posix-tree"
    if not tree.exists():
        posix.prepare(tree)
    image = cached_image(size=96 * MIB, options=["-b", "4096"], tree=tree)
    with contained(image, place / "ours", "allow_other") as ours:
        words = ["--read-only", "--without", "nanoseconds", str(ours.mountpoint)]
        command = [sys.executable, "-m", "penstock.testing.posix", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, "\n".join(line for line in lines if line.startswith("FAIL"))
    assert sum(line.startswith("ok ") for line in lines) >= 40
    assert "left out seeing/times_are_kept: nanoseconds" in lines


def test_a_writable_mount_is_found_out(place: Path) -> None:
    """The read-only half on a tree that can be written to: what should be refused is not."""
    tree = place / "tree"
    posix.prepare(tree)
    absent = posix.absent_of(tree)
    failed = {
        result.case.name
        for result in judge(tree, posix.READ_CASES, absent)
        if result.verdict is Verdict.FAIL
    }
    shutil.rmtree(tree)
    assert failed >= {"opening_for_writing", "removing_names", "filesystem_says_read_only"}
