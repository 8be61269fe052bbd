# SPDX-License-Identifier: Apache-2.0
"""The mount table, with names as hostile as the kernel allows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.sys.mountinfo import _parse, find_mount, mounts, resolve_parent


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
