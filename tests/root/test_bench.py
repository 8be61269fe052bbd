# SPDX-License-Identifier: Apache-2.0
"""``make bench`` in small: every contender is mounted, measured and gone afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.requirements import PROJECT


def quick(plan: str, folder: Path, *only: str) -> tuple[dict[str, Any], str]:
    """One round of a plan with little data: its document, and what was printed."""
    command = [sys.executable, "-m", "bench", plan, "--quick", "--runs", "1"]
    command += [word for name in only for word in ("--only", name)]
    done = subprocess.run(
        [*command, "--results", str(folder)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = folder.glob("*.json")
    assert "penstock-bench" not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert not list(Path("/dev/shm").glob("penstock-bench-*"))
    content: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    failures = {name: c["failures"] for name, c in content["contenders"].items() if c["failures"]}
    assert not failures
    return content, done.stdout


@pytest.mark.requires("fuse", "kernel-ext4", "mke2fs", "fuse2fs")
@pytest.mark.timeout(300)
def test_quick_benchmark_of_an_image_measures_every_contender(tmp_path: Path) -> None:
    content, shown = quick("image", tmp_path)
    names = {"kernel", "fuse2fs", "penstock", "penstock-splice", "penstock-copy"}
    assert set(content["seconds"]) == names
    assert all(
        len(samples) == 1 for rows in content["seconds"].values() for samples in rows.values()
    )
    assert set(content["bytes"]) == names - {"kernel"}
    assert "targets" in shown


@pytest.mark.requires("fuse", "kernel-ext4", "mke2fs")
@pytest.mark.timeout(300)
def test_quick_benchmark_of_a_directory_measures_penstock(tmp_path: Path) -> None:
    # Peers that somebody has built are left out: they are slow, and nothing of ours.
    names = {"native", "penstock", "penstock-copy"}
    content, shown = quick("mirror", tmp_path, *names)
    assert set(content["seconds"]) == names
    assert set(content["bytes"]) == names - {"native"}
    assert content["seconds"]["penstock"].keys() >= content["seconds"]["native"].keys()
    assert "targets" in shown
