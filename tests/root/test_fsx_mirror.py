# SPDX-License-Identifier: Apache-2.0
"""Random operations on mirrored directories of ext4, XFS and btrfs, by every data path.

20,000 operations in all, here and there also on the source itself. At the end source and mirror
hold the same, byte for byte.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from penstock.testing import fsx
from tests.support.loopfs import PARAMETERS, loop_filesystem
from tests.support.servings import serving

PATHS = {"passthrough": 4200, "splice": 1250, "copy": 1250}
"""Data path → operations, on each of three filesystems."""
LONG = {"passthrough": 200_000, "splice": 70_000, "copy": 64_000}
# The kernel asks no FUSE filesystem for the first three, and lets none hear of the fourth in time.
NEVER = {"clone", "collapse", "insert", "seek-sees-stores"}


def agrees(
    name: str, place: Path, datapath: str, settings: fsx.Settings, words: str
) -> dict[str, Any]:
    """Mirror a directory of a fresh filesystem, run there, compare; the mount's statistics."""
    with loop_filesystem(name, place) as top:
        source = top / "source"
        source.mkdir()
        options = ",".join(filter(None, (f"datapath={datapath}", words)))
        with serving(source, place / "mirror", options) as served:
            settings = dataclasses.replace(settings, underneath=str(source))
            outcome = fsx.run(served.path, settings)
            report = fsx.as_text(str(served.path), outcome, (), None)
            assert outcome.failure is None, report
            statistics = served.statistics()
            check_statistics(statistics, datapath)
        assert not list(source.iterdir())
    lacking = {feature for feature, why in outcome.features.items() if why}
    assert lacking <= (NEVER | {"direct"} if words == "cache=none" else NEVER)
    assert {"read_beneath", "write_beneath", "store", "copy_file_range"} <= set(outcome.counts)
    return statistics


def check_statistics(statistics: dict[str, Any], datapath: str) -> None:
    """The data path that was asked for has carried the data."""
    assert statistics["datapath"] == datapath
    if datapath == "passthrough":
        assert statistics["opens"]["passthrough"] > 100
    else:
        assert statistics["requests"]["WRITE"]["count"] > 100


def check_silence(statistics: dict[str, Any]) -> None:
    """No data has come by the server."""
    assert not {"READ", "WRITE"} & set(statistics["requests"])


@pytest.mark.parametrize("datapath", PATHS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_mirror_does_as_the_model_says(name: str, datapath: str, tmp_path: Path) -> None:
    settings = fsx.Settings(operations=PATHS[datapath], seed=1, settle=0.06)
    statistics = agrees(name, tmp_path, datapath, settings, "timeout=0.05")
    if datapath == "passthrough":
        check_silence(statistics)


@pytest.mark.requires("mke2fs", "kernel-ext4")
@pytest.mark.parametrize("datapath", PATHS)
def test_what_keeps_nothing_shows_changes_underneath_at_once(datapath: str, tmp_path: Path) -> None:
    settings = fsx.Settings(operations=1500, seed=2)
    agrees("ext4", tmp_path, datapath, settings, "cache=none")


@pytest.mark.requires("mke2fs", "kernel-ext4")
def test_what_takes_nothing_anew_is_found_out(tmp_path: Path) -> None:
    """That changes underneath are looked for: a mirror which is told that there are none fails."""
    with loop_filesystem("ext4", tmp_path) as top:
        source = top / "source"
        source.mkdir()
        with serving(source, tmp_path / "mirror", "cache=immutable") as served:
            settings = fsx.Settings(operations=1500, seed=2, underneath=str(source))
            failure = fsx.run(served.path, settings).failure
    assert failure is not None
    kinds = {step.operation.kind for step in failure.steps}
    assert {"write_beneath", "truncate_beneath", "replace_beneath"} & kinds


@pytest.mark.requires("mke2fs", "kernel-ext4")
def test_what_keeps_nothing_is_passed_through_as_well(tmp_path: Path) -> None:
    settings = fsx.Settings(operations=1500, seed=2)
    check_silence(agrees("ext4", tmp_path, "passthrough", settings, "cache=none"))


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("datapath", LONG)
@pytest.mark.parametrize("name", PARAMETERS)
def test_mirror_for_long(name: str, datapath: str, tmp_path: Path) -> None:
    settings = fsx.Settings(operations=LONG[datapath], seed=3, check_every=2000)
    agrees(name, tmp_path, datapath, settings, "timeout=0")
