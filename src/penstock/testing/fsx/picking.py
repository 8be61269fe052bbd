# SPDX-License-Identifier: Apache-2.0
"""Choosing arguments: where faults like to hide, and everywhere else now and then.

Offsets lie near the end of the file, at page borders, near the last change, or anywhere; lengths
are small, middling, large, or whole pages.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from penstock.testing.fsx.model import PAGE, Mapping, Node, Slot
from penstock.testing.fsx.operations import Arguments, Choose
from penstock.testing.fsx.world import World

__all__ = [
    "Pick",
    "any_slot",
    "plain_slot",
    "readable",
    "slot_alone",
    "slot_and_range",
    "slot_and_whole_pages",
    "writable",
]

_SMALL, _MIDDLING, _LARGE = 64, 3 * PAGE, 1 << 16


class Pick:
    """Choices for one state of the world; with the same generator, the same choices."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.near = 0

    def below(self, limit: int) -> int:
        """0 to ``limit`` - 1; 0 where there is no choice."""
        return int(self.rng.random() * limit)

    def slot(self, test: Callable[[Slot], bool]) -> int | None:
        """One of the open descriptors that pass."""
        return self.one(
            [i for i, slot in enumerate(self.world.slots) if slot is not None and test(slot)]
        )

    def mapping(self, test: Callable[[Mapping], bool]) -> int | None:
        """One of the mappings that pass."""
        return self.one(
            [i for i, each in enumerate(self.world.maps) if each is not None and test(each)]
        )

    def name(self, taken: bool | None = True) -> int | None:
        """One of the names that are taken, that are free, or of all."""
        names = self.world.names
        return self.one(
            [i for i, node in enumerate(names) if taken is None or taken == (node is not None)]
        )

    def one(self, among: list[int]) -> int | None:
        """One of them, None if there are none."""
        return among[self.below(len(among))] if among else None

    def length(self, limit: int) -> int:
        """1 to ``limit`` bytes."""
        way = self.rng.random()
        if way < 0.3:
            length = 1 + self.below(_SMALL)
        elif way < 0.65:
            length = 1 + self.below(_MIDDLING)
        elif way < 0.85:
            length = PAGE * (1 + self.below(8))
        else:
            length = 1 + self.below(_LARGE)
        return max(1, min(length, limit))

    def offset(self, size: int, limit: int) -> int:
        """0 to ``limit``, in a file of so many bytes."""
        way = self.rng.random()
        if way < 0.35:
            offset = self.below(size + 1)
        elif way < 0.55:
            offset = PAGE * self.below(limit // PAGE + 1) + self.below(3) - 1
        elif way < 0.7:
            offset = size - PAGE + self.below(2 * PAGE)
        elif way < 0.85:
            offset = self.near + self.below(2 * PAGE) - PAGE
        else:
            offset = self.below(limit)
        offset = max(0, min(offset, limit))
        self.near = offset
        return offset

    def range(self, node: Node) -> tuple[int, int]:
        """Offset and length, inside the largest size of files."""
        limit = self.world.settings.size
        offset = self.offset(len(node.data), limit - 1)
        return offset, self.length(limit - offset)

    def pages(self, node: Node) -> tuple[int, int]:
        """Offset and length in whole units of the filesystem."""
        unit = self.world.unit
        limit = self.world.settings.size // unit
        offset = min(self.offset(len(node.data), limit * unit) // unit, limit - 1)
        count = min(1 + self.below(8), limit - offset)
        return offset * unit, count * unit


def any_slot(_slot: Slot) -> bool:
    """Every descriptor."""
    return True


def readable(slot: Slot) -> bool:
    """A descriptor to read from."""
    return slot.readable


def writable(slot: Slot) -> bool:
    """A descriptor to write to."""
    return slot.writable


def plain_slot(slot: Slot) -> bool:
    """One to read and write at any offset."""
    return slot.readable and slot.writable and not slot.append and not slot.direct


def slot_alone(test: Callable[[Slot], bool]) -> Choose:
    """Arguments: a descriptor."""

    def choose(pick: Pick) -> Arguments | None:
        index = pick.slot(test)
        return None if index is None else (index,)

    return choose


def slot_and_range(test: Callable[[Slot], bool]) -> Choose:
    """Arguments: a descriptor, offset, length."""

    def choose(pick: Pick) -> Arguments | None:
        index = pick.slot(test)
        slot = None if index is None else pick.world.slots[index]
        return None if index is None or slot is None else (index, *pick.range(slot.node))

    return choose


def slot_and_whole_pages(test: Callable[[Slot], bool]) -> Choose:
    """Arguments: a descriptor, offset and length in whole units of the filesystem."""

    def choose(pick: Pick) -> Arguments | None:
        index = pick.slot(test)
        slot = None if index is None else pick.world.slots[index]
        return None if index is None or slot is None else (index, *pick.pages(slot.node))

    return choose
