# SPDX-License-Identifier: Apache-2.0
"""Random operations on a few files, compared with a model in memory.

A run reads, writes, maps, truncates, allocates, copies, renames and unlinks, by several descriptors
and mappings at once, and knows for each byte what it must be. What an operation answers is compared
at once, whole contents at intervals, by every way there is. Try it on a filesystem of your own,
mounted by another process::

    python -m penstock.testing.fsx /mnt/test --operations 20000

or from a test::

    from penstock.testing import fsx

    outcome = fsx.run("/mnt/test", fsx.Settings(operations=20_000, seed=1))
    assert outcome.failure is None, fsx.as_text("/mnt/test", outcome, (), None)

``operations.py`` says what an operation is, ``world.py`` what it works on; the kinds are in
``reading.py``, ``writing.py``, ``allocating.py``, ``mapping.py``, ``syncing.py``, ``names.py`` and
``beneath.py``; ``running.py`` puts them together.
"""

from penstock.testing.fsx import (  # each module registers its kinds
    allocating,
    beneath,
    mapping,
    names,
    reading,
    syncing,
    writing,
)
from penstock.testing.fsx.model import Difference
from penstock.testing.fsx.operations import KINDS, Operation
from penstock.testing.fsx.reporting import as_json, as_text
from penstock.testing.fsx.running import Failure, Outcome, run
from penstock.testing.fsx.shrinking import shrink
from penstock.testing.fsx.world import Settings

__all__ = [
    "KINDS",
    "Difference",
    "Failure",
    "Operation",
    "Outcome",
    "Settings",
    "allocating",
    "as_json",
    "as_text",
    "beneath",
    "mapping",
    "names",
    "reading",
    "run",
    "shrink",
    "syncing",
    "writing",
]
