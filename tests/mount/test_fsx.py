# SPDX-License-Identifier: Apache-2.0
"""Random operations on the mounted memory filesystem: no difference, and planted faults found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.testing import MemoryFilesystem, fsx
from tests.support.fsxfaults import FAULTS, Faulty, plant
from tests.support.mounts import Served, serve_in_process
from tests.support.requirements import PROJECT

OPERATIONS = 20_000
FAULT_OPERATIONS = 6_000
LONG = 1_000_000


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A filesystem to plant faults in."""
    with serve_in_process(Faulty, tmp_path_factory.mktemp("faulty")) as served:
        yield served


def agrees(place: Path, settings: fsx.Settings) -> fsx.Outcome:
    """A run without a difference; else its report is the failure's text."""
    outcome = fsx.run(place, settings)
    assert outcome.failure is None, fsx.as_text(str(place), outcome, (), None)
    assert not list(place.iterdir())
    return outcome


@pytest.mark.parametrize("seed", [1, 2])
def test_memory_filesystem_does_as_the_model_says(tmp_path: Path, seed: int) -> None:
    with serve_in_process(MemoryFilesystem, tmp_path) as served:
        outcome = agrees(served.path, fsx.Settings(operations=OPERATIONS, seed=seed))
        requests = served.requests()
    assert outcome.done == OPERATIONS
    lacking = {name for name, why in outcome.features.items() if why is not None}
    # The first three the kernel does not send to a filesystem; the fourth it does not wait for.
    assert lacking == {"collapse", "insert", "clone", "seek-sees-stores", "underneath"}
    wanted = {name for name, kind in fsx.KINDS.items() if not kind.needs & lacking}
    assert set(outcome.counts) == wanted
    assert min(outcome.counts.values()) > OPERATIONS / 500
    assert {"READ", "WRITE", "FALLOCATE", "LSEEK", "RENAME2"} <= set(requests)
    assert {"COPY_FILE_RANGE", "COPY_FILE_RANGE_64"} & set(requests)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_million_operations(tmp_path: Path) -> None:
    with serve_in_process(MemoryFilesystem, tmp_path, seconds=1100) as served:
        agrees(served.path, fsx.Settings(operations=LONG, seed=3, check_every=2000))


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(faulty: Served, fault: str) -> None:
    faulty.call(plant, fault)
    try:
        found = fsx.run(faulty.path, fsx.Settings(operations=FAULT_OPERATIONS, seed=1))
    finally:
        faulty.call(plant, "")
    assert found.failure is not None, f"not found: {FAULTS[fault]}"
    assert 0 < found.failure.number <= FAULT_OPERATIONS


def test_the_filesystem_of_the_faults_is_right_without_one(faulty: Served) -> None:
    agrees(faulty.path, fsx.Settings(operations=FAULT_OPERATIONS, seed=1))


def _program(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock.testing.fsx", str(place), "--seed", "1", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        timeout=100,
    )


def test_a_fault_is_reported_with_a_short_run_that_shows_it(faulty: Served) -> None:
    faulty.call(plant, "copy-source")
    try:
        done = _program(faulty.path, "--shrink", "10")
        lines = done.stdout.splitlines()
        again = lines[-1].strip()
        assert done.returncode == 1, done.stderr
        assert any(line.startswith("difference at operation ") for line in lines)
        assert any("first difference at offset" in line for line in lines)
        assert any(line.strip().startswith("expected ") for line in lines)
        saved = Path(again.split()[-1])
        try:
            assert len(saved.read_text(encoding="ascii").splitlines()) <= 20
            second = _program(faulty.path, "--replay", str(saved), "--check-every", "1", "--json")
        finally:
            saved.unlink()
    finally:
        faulty.call(plant, "")
    assert second.returncode == 1
    assert json.loads(second.stdout)["difference"]["offset"] is not None
