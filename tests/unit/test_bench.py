# SPDX-License-Identifier: Apache-2.0
"""The benchmark's plans, judgement and client; the mounts are in tests/root."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bench import image_plan, mirror_plan, peers, report, results
from bench.client import Client
from bench.contenders import Contender
from bench.judge import Spread, judge, ratio
from bench.mounting import Memory
from bench.plan import Plan, Row, Session, Step, Target
from bench.run import CLIENT, Samples

AT_MOST = Target("walk", "at most", 1.5, "kernel")
FASTER = Target("walk", "faster", 6.0, "fuse2fs")


PLANS = (
    image_plan.plan(image_plan.QUICK),
    mirror_plan.plan(mirror_plan.QUICK),
    mirror_plan.plan(replace(mirror_plan.QUICK, million=1_000)),
)


def test_ratio_is_taken_round_by_round() -> None:
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == Spread(2.0, 1.0, 3.0)


def test_who_skips_rounds_is_compared_in_those_that_it_had() -> None:
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0]) == Spread(2.5, 2.0, 3.0)
    assert ratio([2.0], [1.0, 100.0]) == Spread(2.0, 2.0, 2.0)


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


@pytest.mark.parametrize("plan", PLANS, ids=("image", "mirror", "mirror of a million"))
def test_every_row_is_measured_and_every_target_has_a_row(plan: Plan) -> None:
    sessions = plan.sessions(0)
    measured = {step.row for session in sessions for step in session.steps if step.row}
    for session in sessions:
        if session.state == "memory":
            measured |= {f"{session.name}-{what}" for what in ("peak", "pss", "growth", "over")}
    rows = {row.name for row in plan.rows}
    assert measured | {"mount"} == rows - ({"million"} - measured)
    assert {target.row for target in plan.targets} <= rows
    names = {contender.name for contender in plan.contenders}
    against = {target.against for target in plan.targets if target.against is not None}
    assert {target.subject for target in plan.targets} | against | set(plan.bases) <= names
    assert len({session.name for session in sessions}) == len(sessions)


@pytest.mark.parametrize("plan", PLANS, ids=("image", "mirror", "mirror of a million"))
def test_client_has_a_method_for_every_step(plan: Plan) -> None:
    calls = {step.call for session in plan.sessions(0) for step in session.steps}
    assert all(callable(getattr(Client, call)) for call in calls)


def small_plan(*targets: Target) -> Plan:
    """One row of time and one of memory, penstock and a peer."""
    session = Session("files", (Step("walk", "walk"),))
    return Plan(
        name="small",
        title="a small plan",
        contenders=(Contender("native", "native", ()), Contender("penstock", "penstock", ("x",))),
        rows=(Row("walk", "walk", "us"), Row("memory-over", "memory", "B")),
        targets=targets,
        bases=("native",),
        sessions=lambda _number: (session,),
        sizes={},
    )


def test_absolute_bound_counts_where_the_peer_is_absent() -> None:
    plan = small_plan(Target("walk", "faster", 4.0, "native", absolute=20.0))
    samples = Samples()
    samples.add("penstock", "walk", 0.0015, 100)
    (verdict,) = results.verdicts(plan, samples, plan.contenders)
    assert verdict.target.against is None
    assert verdict.outcome == "met"
    assert verdict.spread is not None
    assert verdict.spread.median == pytest.approx(15.0)
    samples.add("native", "walk", 0.003, 100)
    (verdict,) = results.verdicts(plan, samples, plan.contenders)
    assert (verdict.outcome, verdict.target.against) == ("missed", "native")


def test_memory_counts_over_the_base_per_file() -> None:
    plan = small_plan(Target("memory-over", "at most", 300.0, None))
    samples = Samples()
    used = Memory(0, 50 << 20), Memory(90 << 20, (60 << 20) + 250_000)
    samples.add_memory("penstock", "memory", used, 1_000)
    (verdict,) = results.verdicts(plan, samples, plan.contenders)
    assert (verdict.outcome, verdict.spread) == ("met", Spread(250.0, 250.0, 250.0))


def test_failed_session_takes_its_rows_out_and_is_told_once() -> None:
    plan = small_plan(Target("walk", "faster", 4.0, "native"))
    samples = Samples()
    samples.add("penstock", "walk", 1.0, 1)
    samples.add("native", "walk", 1.0, 1)
    for session in (*plan.sessions(0), Session("other", ())):
        samples.fail("penstock", session, "[no] mount")
    console = Console(record=True, width=200, file=io.StringIO())
    report.show(plan, samples, list(plan.contenders), console)
    text = console.export_text()
    assert "penstock: no samples of files, other: [no] mount" in text
    assert "absent" in text
    content = results.document(plan, samples, list(plan.contenders), 1)
    assert content["seconds"]["penstock"] == {}
    assert json.loads(json.dumps(content))["targets"][0]["outcome"] == "absent"


def test_peer_that_was_not_built_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "peers.json"
    monkeypatch.setattr(peers, "NOTE", note)
    assert peers.absence("libfuse") == "peer absent: not built (make bench-peers)"
    note.write_text(json.dumps({"libfuse": {"version": "3", "absent": "no network"}}))
    assert peers.absence("libfuse") == "peer absent: no network"
    note.write_text(json.dumps({"libfuse": {"version": "3", "absent": None}}))
    assert peers.absence("libfuse") is None
    assert peers.absence("libfuse", tmp_path / "no") == "peer absent: built without this program"


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
        ("small_parallel", [3000, 2]),
        ("open", []),
        ("sequential", ["big"]),
        ("parallel", ["big", 2]),
        ("random", ["big", 5, 1]),
        ("mapped", ["big", 2 << 20]),
        ("touch", ["big", 6, 1]),
    ]
    done = client(tmp_path, *steps)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["counts"] == [9, 7, 7, 7, 7, 3 << 20, 3 << 20, 5, 2 << 20, 6]
    assert all(sample > 0 for sample in result["samples"])


def test_client_writes_what_it_says(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "tree.tar", "w") as archive:
        archive.add(__file__, "folder/file")
    steps: list[tuple[str, list[object]]] = [
        ("create", ["", 4]),
        ("rename", []),
        ("unlink", []),
        ("sync", ["journal", 3]),
        ("write", ["new", 2 << 20]),
        ("scatter", ["new", 5, 1]),
        ("map_write", ["new", 1 << 20]),
        ("untar", [str(tmp_path / "tree.tar"), "tree"]),
    ]
    done = client(tmp_path, *steps)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"] == [4, 4, 4, 3, 2 << 20, 5, 1 << 20, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "journal",
        "new",
        "tree",
        "tree.tar",
    ]
    assert (tmp_path / "journal").stat().st_size == 3 * 4096
    assert (tmp_path / "new").stat().st_size == 2 << 20
    assert (tmp_path / "tree/folder/file").read_bytes() == Path(__file__).read_bytes()


def test_client_refuses_a_reader_that_failed(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "file").write_bytes(b"short")
    done = client(tmp_path, ("walk", ["small"]), ("small_parallel", [3000, 2]))
    assert done.returncode != 0
    assert "a reader failed" in done.stderr


def test_client_refuses_short_files(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "file").write_bytes(b"short")
    done = client(tmp_path, ("walk", ["small"]), ("small", [3000]))
    assert done.returncode != 0
    assert "5 bytes read, 3000 expected" in done.stderr
