# SPDX-License-Identifier: Apache-2.0
"""Random operations on a directory that an ordinary user mirrors with his own rights."""

from __future__ import annotations

import json
import subprocess

import pytest

from penstock.sys.mountinfo import find_mount
from tests.support.ordinary import OrdinaryUser

OPERATIONS = 3000
# Not sent to a FUSE filesystem by the kernel, or not in time.
NEVER = {"clone", "collapse", "insert", "seek-sees-stores"}


@pytest.mark.requires("root", "ordinary-user", "fusermount3")
@pytest.mark.parametrize("words", ["datapath=auto,timeout=0.05", "datapath=copy,cache=none"])
def test_ordinary_user_s_mirror_does_as_the_model_says(
    ordinary_user: OrdinaryUser, dev_fuse_for_all: None, words: str
) -> None:
    name = f"fsx-{words.partition('=')[2][:4]}"
    source, place = ordinary_user.folder(f"{name}-source"), ordinary_user.folder(name)
    command = [*ordinary_user.penstock, "mount", "-o", words, str(source), str(place)]
    done = ordinary_user.run(command)
    try:
        assert (done.returncode, done.stderr) == (0, "")
        run = [ordinary_user.python, "-m", "penstock.testing.fsx", str(place), "--seed", "1"]
        run += ["--operations", str(OPERATIONS), "--underneath", str(source), "--json"]
        run += ["--settle", "0.06" if "timeout" in words else "0"]
        tried = ordinary_user.run(run)
        assert tried.returncode == 0, tried.stdout + tried.stderr
        report = json.loads(tried.stdout)
        assert report["difference"] is None
        assert report["operations"] == OPERATIONS
        assert set(report["missing"]) <= NEVER
        assert report["counts"]["read_beneath"] > 10
        ended = ordinary_user.run([*ordinary_user.penstock, "umount", str(place)])
        assert (ended.returncode, ended.stderr) == (0, "")
    finally:
        if find_mount(str(place)) is not None:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
    assert not list(source.iterdir())
