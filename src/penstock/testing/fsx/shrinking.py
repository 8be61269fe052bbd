# SPDX-License-Identifier: Apache-2.0
"""From a run that fails to a short one that fails too.

First the last operations alone are tried, then parts of what is left are taken away, from large
ones to single operations, as long as time allows. A run that fails elsewhere counts as well: it is
a fault either way, and shorter.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence

from penstock.testing.fsx.operations import Operation
from penstock.testing.fsx.running import Outcome, run
from penstock.testing.fsx.world import Settings

__all__ = ["shrink"]


def shrink(
    directory: str | os.PathLike[str], outcome: Outcome, seconds: float
) -> tuple[Operation, ...]:
    """A short list of operations that fails; the whole list where none was found in time.

    Args:
        directory: as for the run.
        outcome: of a run with a failure.
        seconds: for all tries together.
    """
    failure = outcome.failure
    if failure is None or not failure.made:
        return ()
    # After each operation everything is compared: a fault shows where it is made, not later.
    settings = dataclasses.replace(outcome.settings, check_every=1)
    slow = dataclasses.replace(outcome.settings, check_every=outcome.settings.check_every)
    end = time.monotonic() + seconds
    kept = failure.made
    length = 8
    while length < len(kept) and time.monotonic() < end:
        shorter = _fails(directory, settings if length <= 512 else slow, kept[-length:])
        if shorter:
            kept = shorter
            break
        length *= 4
    size = len(kept) // 2
    while size and time.monotonic() < end:
        start = 0
        while start < len(kept) and time.monotonic() < end:
            several = settings if len(kept) <= 512 else slow
            shorter = _fails(directory, several, kept[:start] + kept[start + size :])
            if shorter:
                kept = shorter
            else:
                start += size
        size //= 2
    return kept


def _fails(
    directory: str | os.PathLike[str], settings: Settings, operations: Sequence[Operation]
) -> tuple[Operation, ...]:
    """The operations up to the failure, nothing if there is none."""
    failure = run(directory, settings, operations).failure
    return () if failure is None else failure.made
