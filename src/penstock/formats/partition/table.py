# SPDX-License-Identifier: Apache-2.0
"""What a partition table tells, whatever its format."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Partition", "PartitionTable"]


class Partition(NamedTuple):
    """A partition. ``start`` and ``size`` in bytes."""

    number: int
    """As Linux counts: from 1; logical partitions of an MBR from 5."""
    start: int
    size: int
    type: str
    """GUID (lower case) or, in an MBR, the type byte as ``0x83``."""
    type_name: str
    """In words; empty if the type is not known."""
    name: str
    """Label of the partition (GPT only)."""
    uuid: str
    """Of the partition itself; in an MBR derived from the disk's, as Linux does."""


class PartitionTable(NamedTuple):
    """A table."""

    kind: str
    """``gpt`` or ``mbr``."""
    sector_size: int
    """Bytes."""
    uuid: str
    """Of the disk; empty if it has none."""
    partitions: tuple[Partition, ...]
    warnings: tuple[str, ...] = ()
    """What is wrong with the table, a line each."""

    def find(self, number: int) -> Partition | None:
        """The partition of that number, None if there is none."""
        return next((part for part in self.partitions if part.number == number), None)
