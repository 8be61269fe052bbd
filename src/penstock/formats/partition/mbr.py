# SPDX-License-Identifier: Apache-2.0
"""Master boot records: four primary partitions, and logical ones in a chain inside an extended one.

A boot sector of a filesystem ends with the same two bytes, so a record counts as one only if its
four entries make sense.

Specification: the practice of DOS, as every operating system reads it.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from penstock.formats.errors import CorruptImage
from penstock.formats.layout import at, packed, size_of, unpack
from penstock.formats.partition.table import Partition, PartitionTable
from penstock.formats.source import BlockSource

__all__ = ["read_mbr"]

_SIGNATURE: Final = b"\x55\xaa"
_SIGNATURE_AT: Final = 510
_ENTRIES_AT: Final = 446
_DISK_ID_AT: Final = 440
_RECORD_SIZE: Final = 512
_PRIMARY: Final = 4
_FIRST_LOGICAL: Final = 5
_MAX_LOGICAL: Final = 256
_EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE: Final = 0xEE


@packed("<", 16)
class Entry(NamedTuple):
    """A partition; sectors of an entry in a chain count from where the chain is."""

    status: Annotated[int, at(0x0, "B")]
    type: Annotated[int, at(0x4, "B")]
    first_lba: Annotated[int, at(0x8, "I")]
    sectors: Annotated[int, at(0xC, "I")]


_TYPE_NAMES: Final = {
    0x01: "FAT12",
    0x04: "FAT16",
    0x05: "Extended",
    0x06: "FAT16",
    0x07: "NTFS or exFAT",
    0x0B: "FAT32",
    0x0C: "FAT32",
    0x0E: "FAT16",
    0x0F: "Extended",
    0x27: "Windows recovery",
    0x82: "Linux swap",
    0x83: "Linux",
    0x85: "Linux extended",
    0x8E: "Linux LVM",
    0xA5: "FreeBSD",
    0xA6: "OpenBSD",
    0xA9: "NetBSD",
    0xAF: "HFS",
    0xEE: "GPT",
    0xEF: "EFI system",
    0xFD: "Linux RAID",
}


def read_mbr(source: BlockSource, sector_size: int) -> PartitionTable | None:
    """The table, None if the first sector holds none.

    Raises:
        CorruptImage: a partition is outside the image, or the chain of logical ones is bad.
        OSError: the source's.
    """
    if source.size < _RECORD_SIZE:
        return None
    record = source.pread(_RECORD_SIZE, 0)
    entries = _entries(record)
    if entries is None or not any(entry.sectors for entry in entries):
        return None
    disk = int.from_bytes(record[_DISK_ID_AT : _DISK_ID_AT + 4], "little")
    found: list[Partition] = []
    for number, entry in enumerate(entries, 1):
        if not entry.type or not entry.sectors:
            continue
        found.append(_partition(source, sector_size, disk, number, entry, 0))
        if entry.type in _EXTENDED and not any(part.number >= _FIRST_LOGICAL for part in found):
            found += _logical(source, sector_size, disk, entry)
    found.sort(key=lambda part: part.number)
    return PartitionTable("mbr", sector_size, f"{disk:08x}" if disk else "", tuple(found))


def _entries(record: bytes) -> list[Entry] | None:
    """The four entries of a record, None if it is none."""
    if record[_SIGNATURE_AT:] != _SIGNATURE:
        return None
    size = size_of(Entry)
    entries = [unpack(Entry, record, _ENTRIES_AT + size * index) for index in range(_PRIMARY)]
    if any(entry.status not in {0, 0x80} for entry in entries):
        return None
    if any(entry.type and entry.sectors and not entry.first_lba for entry in entries):
        return None
    return entries


def _partition(
    source: BlockSource, sector_size: int, disk: int, number: int, entry: Entry, base: int
) -> Partition:
    start = (base + entry.first_lba) * sector_size
    size = entry.sectors * sector_size
    if entry.type == _PROTECTIVE:
        size = min(size, source.size - start)  # it stands for the whole disk, however large
    if start + size > source.size or size <= 0:
        raise CorruptImage(
            f"MBR: partition {number} has {entry.sectors} sectors from {base + entry.first_lba}, "
            f"the image has {source.size // sector_size}"
        )
    return Partition(
        number=number,
        start=start,
        size=size,
        type=f"{entry.type:#x}",
        type_name=_TYPE_NAMES.get(entry.type, ""),
        name="",
        uuid=f"{disk:08x}-{number:02x}" if disk else "",
    )


def _logical(source: BlockSource, sector_size: int, disk: int, extended: Entry) -> list[Partition]:
    """The partitions in an extended one: a chain of records, each with one and the next record."""
    found: list[Partition] = []
    seen: set[int] = set()
    offset = 0
    while offset not in seen and len(seen) < _MAX_LOGICAL:
        seen.add(offset)
        lba = extended.first_lba + offset
        if offset >= extended.sectors or lba * sector_size + _RECORD_SIZE > source.size:
            raise CorruptImage(f"MBR: the chain of logical partitions leaves its own at {lba}")
        entries = _entries(source.pread(_RECORD_SIZE, lba * sector_size))
        if entries is None:
            raise CorruptImage(f"MBR: sector {lba} does not continue the chain of partitions")
        here, following = entries[:2]
        if here.type and here.sectors and here.type not in _EXTENDED:
            number = _FIRST_LOGICAL + len(found)
            found.append(_partition(source, sector_size, disk, number, here, lba))
        if following.type not in _EXTENDED or not following.sectors:
            return found
        offset = following.first_lba
    raise CorruptImage("MBR: the chain of logical partitions has a loop or no end")
