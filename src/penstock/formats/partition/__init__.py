# SPDX-License-Identifier: Apache-2.0
"""Partition tables: where the filesystems of a disk image begin and end.

:func:`read_partitions` reads a GUID partition table (``gpt.py``; the backup at the end of the disk
if the first one is damaged) or a master boot record (``mbr.py``), whichever the image has.
"""

from __future__ import annotations

from penstock.formats.partition.gpt import read_gpt
from penstock.formats.partition.mbr import read_mbr
from penstock.formats.partition.table import Partition, PartitionTable
from penstock.formats.source import BlockSource

__all__ = ["Partition", "PartitionTable", "read_partitions"]

_SECTOR_SIZES = (512, 4096)


def read_partitions(source: BlockSource, sector_size: int | None = None) -> PartitionTable | None:
    """The partition table of an image.

    Args:
        source: the disk.
        sector_size: bytes of a sector; None = find out (512, then 4096).

    Returns:
        None if there is no table.

    Raises:
        CorruptImage: there is one, but it is damaged.
        OSError: the source's.
    """
    sizes = (sector_size,) if sector_size is not None else _SECTOR_SIZES
    for size in sizes:
        table = read_gpt(source, size)
        if table is not None:
            return table
    return read_mbr(source, sizes[0])
