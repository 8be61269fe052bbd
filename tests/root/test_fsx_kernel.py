# SPDX-License-Identifier: Apache-2.0
"""Random operations on the kernel's own filesystems: the model is right, and what they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.testing import fsx
from tests.support.loopfs import PARAMETERS, loop_filesystem

OPERATIONS = 20_000
LONG = 1_000_000
LACKING = {"ext4": {"clone"}, "xfs": set[str](), "btrfs": {"collapse", "insert"}}


def agrees(place: Path, settings: fsx.Settings) -> fsx.Outcome:
    """A run without a difference; else its report is the failure's text."""
    outcome = fsx.run(place, settings)
    assert outcome.failure is None, fsx.as_text(str(place), outcome, (), None)
    return outcome


@pytest.mark.parametrize("name", PARAMETERS)
def test_kernel_filesystem_does_as_the_model_says(name: str, tmp_path: Path) -> None:
    with loop_filesystem(name, tmp_path) as top:
        outcome = agrees(top, fsx.Settings(operations=OPERATIONS, seed=1, underneath=str(top)))
    assert {feature for feature, why in outcome.features.items() if why} == LACKING[name]
    wanted = {each.name for each in fsx.KINDS.values() if not each.needs & LACKING[name]}
    assert set(outcome.counts) == wanted


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", PARAMETERS)
def test_kernel_filesystem_for_long(name: str, tmp_path: Path) -> None:
    with loop_filesystem(name, tmp_path) as top:
        agrees(top, fsx.Settings(operations=LONG, seed=2, check_every=2000))
