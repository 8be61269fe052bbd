# SPDX-License-Identifier: Apache-2.0
"""Fast commits: the changes to a filesystem logged after its last full journal commit."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FastCommit"]


class FastCommit(NamedTuple):
    """The changes of all complete fast commits, in the order in which they were logged."""

    tid: int
    """Transaction that they belong to."""
    operations: tuple[object, ...]
