# SPDX-License-Identifier: Apache-2.0
"""penstock mount in the surroundings that a user may have: streams, signals, other mounts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from penstock.sys.mountinfo import find_mount
from tests.support.commands import COMMAND, good, shell, wait_for

pytestmark = pytest.mark.requires("mke2fs")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(image: Path, mountpoint: Path, closed: str) -> None:
    for words in (("mount", image, mountpoint), ("umount", mountpoint)):
        done = shell(f'exec "$@" {closed}', *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (find_mount(str(mountpoint)) is not None) == (words[0] == "mount")


def test_foreground_with_closed_streams(image: Path, mountpoint: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, "mount", "-f"]
    process = subprocess.Popen([*command, str(image), str(mountpoint)])
    wait_for(lambda: find_mount(str(mountpoint)), "mount")
    assert (mountpoint / "size59").stat().st_size == 59
    good("umount", mountpoint)
    assert process.wait(20) == 0


def test_debug_shows_each_request(image: Path, mountpoint: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "mount", "-d", str(image), str(mountpoint)], stderr=stderr
        )
    wait_for(lambda: find_mount(str(mountpoint)), "mount")
    assert (mountpoint / "size59").read_bytes()
    assert not (mountpoint / "none").exists()
    good("umount", mountpoint)
    assert process.wait(20) == 0
    lines = log.read_text().splitlines()
    assert all(line.startswith("penstock: ") for line in lines)
    for pattern in (
        r"INIT #\d+ .* = major=7 .* <[\d.]+ us>",
        r'LOOKUP #\d+ node=1 "size59" uid=.* = node=\d+ .* size=59 .* <[\d.]+ us>',
        r"READ #\d+ .* = 59 .*<[\d.]+ us>",
    ):
        assert any(re.fullmatch("penstock: " + pattern, line) for line in lines), pattern
