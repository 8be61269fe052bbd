# SPDX-License-Identifier: Apache-2.0
"""Where the newest copy of each journaled block is: the result of replaying a journal.

A :class:`ReplayMap` is two sorted arrays, so a journal of a million blocks costs 16 MiB and "is any
block of this extent in the log" is one bisection. :class:`MapBuilder` makes one from the tags of a
log in bounded memory: tags are sorted in runs and the runs merged.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

__all__ = ["MapBuilder", "ReplayMap"]

_RUN: Final = 1 << 20
"""Copies sorted at once, some 45 MiB of Python integers."""
_POSITION_BITS: Final = 33
"""Of a sort key: 32 bits of log position and the escape flag below the block number."""
_POSITION_MASK: Final = (1 << _POSITION_BITS) - 1


class ReplayMap(Mapping[int, tuple[int, bool]]):
    """Filesystem block → (byte address in the image of its copy in the log, escaped).

    ``escaped``: the first four bytes of the copy are zero and stand for ``C0 3B 39 98``.
    """

    __slots__ = ("_addresses", "_blocks")

    def __init__(self, blocks: Iterable[int] = (), addresses: Iterable[int] = ()) -> None:
        """Make a map.

        Args:
            blocks: ascending, each once.
            addresses: of their copies, in the same order; bit 0 is the escape flag (copies are at
                multiples of the block size).
        """
        self._blocks = array("Q", blocks)
        self._addresses = array("Q", addresses)

    def lookup(self, block: int) -> tuple[int, bool] | None:
        """Where the newest copy of filesystem block ``block`` is; None: in its own place."""
        position = bisect_left(self._blocks, block)
        if position == len(self._blocks) or self._blocks[position] != block:
            return None
        address = self._addresses[position]
        return address & ~1, bool(address & 1)

    def next_block(self, block: int) -> int | None:
        """The first block at or after ``block`` that has a copy in the log."""
        position = bisect_left(self._blocks, block)
        return self._blocks[position] if position < len(self._blocks) else None

    @property
    def blocks(self) -> Mapping[int, tuple[int, bool]]:
        """The map itself, as a mapping in block order."""
        return self

    def __getitem__(self, block: int) -> tuple[int, bool]:
        found = self.lookup(block)
        if found is None:
            raise KeyError(block)
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)


class MapBuilder:
    """Collects copies in log order and keeps the last one of each block."""

    def __init__(self) -> None:
        self._pending: list[int] = []
        self._runs: list[tuple[array[int], array[int]]] = []
        self._blocks = array("Q")
        self._positions = array("Q")

    def add(self, blocks: Sequence[int], position: int, flags: Sequence[int]) -> None:
        """Copies that lie one after the other in the log.

        Args:
            blocks: whose copies they are.
            position: of the first copy in the log; later copies have higher ones.
            flags: for each, whether it is escaped (bit 0; others are ignored).
        """
        self._pending += [
            block << _POSITION_BITS | at << 1 | flag & 1
            for at, (block, flag) in enumerate(zip(blocks, flags, strict=True), position)
        ]
        if len(self._pending) >= _RUN:
            self._close_run()

    def _close_run(self) -> None:
        self._pending.sort()
        self._runs.append(_last_of_each(self._pending))
        self._pending.clear()

    def merge(self) -> None:
        """Bring together what was added; to be called once, after the last :meth:`add`."""
        self._close_run()
        if len(self._runs) == 1:
            self._blocks, self._positions = self._runs[0]
        else:
            self._blocks, self._positions = _last_of_each(
                heapq.merge(*(map(_pack, *run) for run in self._runs))
            )
        self._runs.clear()

    @property
    def blocks(self) -> array[int]:
        """After :meth:`merge`: the blocks that have copies, ascending."""
        return self._blocks

    def build(
        self, address: Callable[[int], int], keep: Callable[[int, int], bool] | None
    ) -> ReplayMap:
        """The map of what was merged.

        Args:
            address: byte address in the image of a log position.
            keep: told a block and the log position of its last copy, whether the copy counts;
                None if all do.
        """
        if keep is None:
            addresses = (address(at >> 1) | at & 1 for at in self._positions)
            return ReplayMap(self._blocks, addresses)
        blocks = array("Q")
        places = array("Q")
        for block, at in zip(self._blocks, self._positions, strict=True):
            if keep(block, at >> 1):
                blocks.append(block)
                places.append(address(at >> 1) | at & 1)
        return ReplayMap(blocks, places)


def _pack(block: int, position: int) -> int:
    return block << _POSITION_BITS | position


def _last_of_each(keys: Iterable[int]) -> tuple[array[int], array[int]]:
    """Split sorted keys into blocks and positions, keeping the last position of each block."""
    blocks = array("Q")
    positions = array("Q")
    previous = -1
    for key in keys:
        block = key >> _POSITION_BITS
        if block == previous:
            positions[-1] = key & _POSITION_MASK
        else:
            blocks.append(block)
            positions.append(key & _POSITION_MASK)
            previous = block
    return blocks, positions
