# SPDX-License-Identifier: Apache-2.0
"""From a run that fails to a short one that fails too.

First those alone are tried that touch the inode where it fails, and of them the last. Then parts of
what is left are taken away, from large ones to single operations, as long as time allows. A run
that fails elsewhere counts as well: it is a fault either way, and shorter.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence

from penstock.testing.fsx.operations import Operation
from penstock.testing.fsx.running import Outcome, run

__all__ = ["shrink"]

_FEW = 512
"""In a run of no more, everything is compared after each operation."""


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
    slow = outcome.settings
    end = time.monotonic() + seconds

    def fails(operations: Sequence[Operation]) -> tuple[Operation, ...]:
        several = settings if len(operations) <= _FEW else slow
        again = run(directory, several, operations).failure
        return () if again is None else again.made

    kept = fails(failure.related) or failure.made
    length = 8
    while length < len(kept) and time.monotonic() < end:
        shorter = fails(kept[-length:])
        if shorter:
            kept = shorter
            break
        length *= 4
    size = len(kept) // 2
    while size and time.monotonic() < end:
        start = 0
        while start < len(kept) and time.monotonic() < end:
            shorter = fails(kept[:start] + kept[start + size :])
            if shorter:
                kept = shorter
            else:
                start += size
        size //= 2
    return kept
