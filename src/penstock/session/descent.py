# SPDX-License-Identifier: Apache-2.0
"""Which directory a walk over a tree reads next.

Programs that walk a tree (find, du, rsync, os.walk, tar) mostly read a directory to its end and
then go down into its subdirectories, in the order in which they were listed or, with a stack of
their own, in the opposite one. :class:`Descent` follows such a walk and names the directory it
expects next; which way the walk goes it learns from what is entered.

A wrong guess costs a listing prepared in vain; after :data:`PATIENCE` of them in a row no more are
made until one would have been right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["MOST", "PATIENCE", "Descent"]

PATIENCE: Final = 8
MOST: Final = 1 << 14
"""Directories kept in mind."""


class Descent:
    """The directories that a walk has seen and not entered, the next one last."""

    def __init__(self) -> None:
        self._ahead: list[int] = []
        self._group = 0
        self._forward = True
        self._misses = 0

    def listed(self, directories: Sequence[int]) -> None:
        """A listing has ended in which these subdirectories (the first :data:`MOST`) were named,
        in this order."""
        if len(self._ahead) + len(directories) > MOST:
            self._ahead.clear()
        if directories:
            self._ahead.extend(reversed(directories) if self._forward else directories)
            self._group = len(directories)

    def entered(self, nodeid: int) -> None:
        """A listing of this directory begins."""
        ahead = self._ahead
        if not ahead:
            return
        if ahead[-1] == nodeid:
            ahead.pop()
            self._misses = 0
        elif len(ahead) >= self._group and ahead[-self._group] == nodeid:
            self._forward = not self._forward
            ahead[-self._group :] = ahead[: -self._group - 1 : -1]
            ahead.pop()
        else:
            self._misses += 1
            if nodeid in ahead:
                ahead.remove(nodeid)
        self._group = max(1, self._group - 1)

    def expected(self) -> int | None:
        """The directory that comes next, None if there is no telling."""
        if self._ahead and self._misses < PATIENCE:
            return self._ahead[-1]
        return None
