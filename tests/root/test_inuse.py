# SPDX-License-Identifier: Apache-2.0
"""Images that somebody else may be writing to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.sys.inuse import in_use
from tests.support.images import MIB, kernel_mount, make_image

pytestmark = pytest.mark.requires("loop", "kernel-ext4")


def asked(path: Path | str) -> str | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return in_use(fd)
    finally:
        os.close(fd)


def loop_device(*options: str) -> str:
    command = ["losetup", "--find", "--show", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_loop_device_for_writing_is_told(tmp_path: Path) -> None:
    image = make_image(tmp_path / "img", size=8 * MIB)
    assert asked(image) is None
    device = loop_device(str(image))
    try:
        assert asked(image) == f"attached to {device} for writing"
        assert asked(device) is None
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_loop_device_for_reading_does_no_harm(tmp_path: Path) -> None:
    image = make_image(tmp_path / "img", size=8 * MIB)
    device = loop_device("--read-only", str(image))
    try:
        assert asked(image) is None
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_mounted_device_is_told(tmp_path: Path) -> None:
    image = make_image(tmp_path / "img", size=8 * MIB)
    (tmp_path / "mnt").mkdir()
    with kernel_mount(image, tmp_path / "mnt"):
        told = asked(image)
        assert told is not None
        device = told.split()[2]
        assert asked(device) == "mounted, or part of a volume"


def test_mounting_such_an_image_warns_in_one_line(tmp_path: Path) -> None:
    image = make_image(tmp_path / "img", size=8 * MIB)
    point = tmp_path / "point"
    point.mkdir()
    with kernel_mount(image, tmp_path / "mnt"):
        done = subprocess.run(
            [sys.executable, "-m", "penstock", "mount", image, point],
            capture_output=True,
            text=True,
            check=False,
        )
        subprocess.run(["umount", point], check=True)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "for writing" in line
