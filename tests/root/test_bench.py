# SPDX-License-Identifier: Apache-2.0
"""``make bench`` in small: every contender is mounted, measured and gone afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.requirements import PROJECT


@pytest.mark.requires("fuse", "kernel-ext4", "mke2fs", "fuse2fs")
@pytest.mark.timeout(300)
def test_quick_benchmark_measures_every_contender(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--runs", "1", "--results", str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.glob("*.json")
    content = json.loads(written.read_text(encoding="utf-8"))
    names = {
        "kernel", "fuse2fs", "penstock", "penstock-sandbox=no", "penstock-splice", "penstock-copy"
    }  # fmt: skip
    assert set(content["seconds"]) == names, content["contenders"]
    assert all(
        len(samples) == 1 for rows in content["seconds"].values() for samples in rows.values()
    )
    assert set(content["memory_mib"]) == names - {"kernel"}
    assert "Targets" in done.stdout
    assert "penstock-bench" not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
