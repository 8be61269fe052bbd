# SPDX-License-Identifier: Apache-2.0
"""Which bytes of a file one owner has locked: what the source knows as well, kept so that it is
known when nothing is left, and who would wait for whom."""

from __future__ import annotations

import fcntl
from typing import NamedTuple

__all__ = ["Range", "Ranges"]


class Range(NamedTuple):
    """Bytes ``start`` to ``end`` inclusive; F_RDLCK or F_WRLCK (F_UNLCK: none are)."""

    start: int
    end: int
    type: int

    def conflicts(self, other: Range) -> bool:
        """Whether two owners cannot have both."""
        if fcntl.F_UNLCK in {self.type, other.type}:
            return False
        return (
            fcntl.F_WRLCK in {self.type, other.type}
            and self.start <= other.end
            and other.start <= self.end
        )


class Ranges:
    """Disjoint ranges of one owner."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[Range] = []

    def __bool__(self) -> bool:
        return bool(self._held)

    def set(self, new: Range) -> None:
        """Lock a range anew, or with F_UNLCK give it up: what was held there is replaced."""
        kept: list[Range] = []
        for held in self._held:
            if held.start < new.start:
                kept.append(held._replace(end=min(held.end, new.start - 1)))
            if held.end > new.end:
                kept.append(held._replace(start=max(held.start, new.end + 1)))
        if new.type != fcntl.F_UNLCK:
            kept.append(new)
        self._held = kept

    def conflict(self, wanted: Range) -> Range | None:
        """The first range in the way of another owner."""
        return min((held for held in self._held if held.conflicts(wanted)), default=None)
