# SPDX-License-Identifier: Apache-2.0
"""The benchmark's judgement and its client; the mounts are in tests/root."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.judge import Spread, judge, ratio
from bench.plan import QUICK, ROWS, TARGETS, Target, sessions
from bench.run import CLIENT

AT_MOST = Target("walk", "at most", 1.5, "kernel")
FASTER = Target("walk", "faster", 6.0, "fuse2fs")


def test_ratio_is_taken_round_by_round() -> None:
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == Spread(2.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="longer"):
        ratio([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("mine", "outcome"),
    [
        ([1.4, 1.5, 1.9], "met"),
        ([1.4, 1.6, 1.9], "unclear"),
        ([1.6, 1.7, 1.9], "missed"),
    ],
)
def test_at_most(mine: list[float], outcome: str) -> None:
    assert judge(AT_MOST, mine, [1.0, 1.0, 1.0]).outcome == outcome


@pytest.mark.parametrize(
    ("mine", "outcome"),
    [
        ([1.0, 1.0, 2.0], "met"),
        ([1.0, 2.0, 2.0], "unclear"),
        ([2.0, 2.0, 2.0], "missed"),
    ],
)
def test_faster(mine: list[float], outcome: str) -> None:
    assert judge(FASTER, mine, [6.0, 6.0, 6.0]).outcome == outcome


def test_more() -> None:
    more = Target("mount", "more", 60.0, "other")
    assert judge(more, [150.0, 170.0, 160.0], [100.0, 100.0, 120.0]).outcome == "met"
    assert judge(more, [150.0, 170.0, 180.0], [100.0, 100.0, 100.0]).outcome == "unclear"
    assert judge(more, [161.0, 170.0, 180.0], [100.0, 100.0, 100.0]).outcome == "missed"


def test_absolute_bound_and_absent_peer() -> None:
    bound = Target("mount", "at most", 250.0, None)
    assert judge(bound, [100.0, 300.0, 200.0], None).outcome == "met"
    assert judge(bound, [251.0], None).outcome == "missed"
    assert judge(FASTER, [1.0], []).outcome == "absent"
    assert judge(FASTER, [], [1.0]).outcome == "absent"


def test_targets_name_rows_that_are_measured() -> None:
    measured = {step.row for session in sessions(QUICK, 0) for step in session.steps}
    assert {row.name for row in ROWS} == measured | {"walk-dropped"}
    assert {target.row for target in TARGETS} <= measured | {"mount", "memory"}


def client(root: Path, *steps: tuple[str, list[object]]) -> subprocess.CompletedProcess[str]:
    """Run the benchmark's client on a folder."""
    return subprocess.run(
        [sys.executable, "-I", str(CLIENT)],
        input=json.dumps({"root": str(root), "steps": steps}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_client_counts_what_it_touches(tmp_path: Path) -> None:
    for number in range(7):
        folder = tmp_path / "small" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").write_bytes(bytes(3000))
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    steps: list[tuple[str, list[object]]] = [
        ("walk", ["small"]),
        ("stat", []),
        ("small", [3000]),
        ("sequential", ["big"]),
        ("random", ["big", 5, 1]),
    ]
    done = client(tmp_path, *steps)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["counts"] == [9, 7, 7, 3 << 20, 5]
    assert all(sample > 0 for sample in result["samples"])


def test_client_refuses_short_files(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "file").write_bytes(b"short")
    done = client(tmp_path, ("walk", ["small"]), ("small", [3000]))
    assert done.returncode != 0
    assert "5 bytes read, 3000 expected" in done.stderr
