# SPDX-License-Identifier: Apache-2.0
"""The mount table, with names as hostile as the kernel allows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.sys.mountinfo import (
    MountInfo,
    _parse,
    find_mount,
    mounts,
    resolve_parent,
    topmost,
)


def test_every_line_of_this_machine_is_understood() -> None:
    with open("/proc/self/mountinfo", "rb") as table:
        assert len(mounts()) == table.read().count(b"\n")
    root = find_mount("/")
    assert root is not None
    assert root.mountpoint == "/"


@pytest.mark.parametrize(
    ("escaped", "name"),
    [
        ("/mnt/a\\040b", "/mnt/a b"),
        ("/mnt/a\\011b\\012c", "/mnt/a\tb\nc"),
        ("/mnt/a\\134b", "/mnt/a\\b"),
        ("/mnt/a\\134040", "/mnt/a\\040"),
        ("/mnt/\rcarriage", "/mnt/\rcarriage"),
        ("/mnt/" + os.fsdecode(b"\xff"), "/mnt/" + os.fsdecode(b"\xff")),
    ],
)
def test_names_are_unescaped(escaped: str, name: str) -> None:
    line = f"36 35 0:42 / {escaped} ro,nosuid shared:1 - fuse.x /a\\040image ro,user_id=0\n"
    entry = _parse(line)
    assert entry.mountpoint == name
    assert entry.source == "/a image"
    assert (entry.mount_id, entry.parent_id, entry.major, entry.minor) == (36, 35, 0, 42)
    assert (entry.options, entry.fstype, entry.super_options) == (
        "ro,nosuid", "fuse.x", "ro,user_id=0",
    )  # fmt: skip


def test_the_last_component_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert resolve_parent(str(tmp_path / "link" / "x")) == str(tmp_path / "real" / "x")
    assert resolve_parent(str(tmp_path / "dangling")) == str(tmp_path / "dangling")
    assert resolve_parent(str(tmp_path / "real") + "/") == str(tmp_path / "real")
    assert resolve_parent("/") == "/"


def test_this_directory_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lie in a mount that hangs, and the kernel knows its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "realpath", None)
    assert resolve_parent(".") == resolve_parent("./") == str(tmp_path)


def table(*rows: tuple[int, int, str]) -> list[MountInfo]:
    """Mounts by their id, their parent's, and mount point."""
    return [
        MountInfo(number, parent, 0, number, "/", place, "rw", "tmpfs", "none", "rw")
        for number, parent, place in rows
    ]


@pytest.mark.parametrize(
    ("rows", "path", "found"),
    [
        ([(2, 1, "/"), (3, 2, "/a")], "/a", 3),
        ([(2, 1, "/"), (3, 2, "/a")], "/b", None),
        ([(2, 1, "/"), (3, 2, "/a")], "/", 2),
        ([(2, 1, "/"), (3, 2, "/a")], "/a/b", None),
        # The first root covered by another, each its own parent or another's child.
        ([(1, 1, "/"), (2, 1, "/"), (3, 2, "/a")], "/a", 3),
        ([(1, 1, "/"), (2, 1, "/"), (3, 2, "/a")], "/", 2),
        # Attached in another order than made: 3 covers 4.
        ([(2, 1, "/"), (3, 4, "/a"), (4, 2, "/a")], "/a", 3),
        # Below a mount that was covered; the path leads nowhere, or to what is mounted now.
        ([(2, 1, "/"), (3, 2, "/a"), (4, 3, "/a/b"), (5, 3, "/a")], "/a/b", None),
        ([(2, 1, "/"), (3, 2, "/a"), (4, 3, "/a/b"), (5, 3, "/a"), (6, 5, "/a/b")], "/a/b", 6),
        ([(2, 1, "/"), (6, 5, "/a/b"), (5, 3, "/a"), (3, 2, "/a"), (4, 3, "/a/b")], "/a/b", 6),
        # In a directory that chroot(2) made the root there is no line for the root.
        ([(3, 1, "/a"), (4, 3, "/a/b")], "/a/b", 4),
    ],
)
def test_topmost(rows: list[tuple[int, int, str]], path: str, found: int | None) -> None:
    entry = topmost(table(*rows), path)
    assert (entry.mount_id if entry else None) == found


def test_owner_of_a_mount() -> None:
    entry = _parse("36 35 0:42 / /a ro - fuse.x x ro,user_id=12,group_id=13\n")
    assert entry.user_id == 12
    assert table((1, 1, "/"))[0].user_id is None
