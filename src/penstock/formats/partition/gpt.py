# SPDX-License-Identifier: Apache-2.0
"""GUID partition tables.

A header and an array of entries lie at the start of the disk, a second copy at its end; both are
covered by CRC-32. The first copy that verifies is used.

Specification: UEFI 2.10, section 5.3.
"""

from __future__ import annotations

import binascii
import uuid
from typing import Annotated, Final, NamedTuple

from penstock.formats.errors import BadChecksum, CorruptImage
from penstock.formats.layout import at, offset_of, packed, size_of, unpack
from penstock.formats.partition.table import Partition, PartitionTable
from penstock.formats.source import BlockSource

__all__ = ["read_gpt"]

_SIGNATURE: Final = b"EFI PART"
_MAX_ENTRIES: Final = 4096
_MAX_ENTRY_SIZE: Final = 4096
_MAX_ARRAY: Final = 1 << 20
_NO_TYPE: Final = bytes(16)


@packed("<", 92)
class Header(NamedTuple):
    """In the second sector, and in the last."""

    signature: Annotated[bytes, at(0x00, "8s")]
    revision: Annotated[int, at(0x08, "I")]
    header_size: Annotated[int, at(0x0C, "I")]
    header_crc32: Annotated[int, at(0x10, "I")]
    my_lba: Annotated[int, at(0x18, "Q")]
    alternate_lba: Annotated[int, at(0x20, "Q")]
    first_usable_lba: Annotated[int, at(0x28, "Q")]
    last_usable_lba: Annotated[int, at(0x30, "Q")]
    disk_guid: Annotated[bytes, at(0x38, "16s")]
    entries_lba: Annotated[int, at(0x48, "Q")]
    entries_count: Annotated[int, at(0x50, "I")]
    entry_size: Annotated[int, at(0x54, "I")]
    entries_crc32: Annotated[int, at(0x58, "I")]


@packed("<", 128)
class Entry(NamedTuple):
    """A partition."""

    type_guid: Annotated[bytes, at(0x00, "16s")]
    guid: Annotated[bytes, at(0x10, "16s")]
    first_lba: Annotated[int, at(0x20, "Q")]
    last_lba: Annotated[int, at(0x28, "Q")]
    attributes: Annotated[int, at(0x30, "Q")]
    name: Annotated[bytes, at(0x38, "72s")]


_TYPE_NAMES: Final = {
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux filesystem",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "44479540-f297-41b2-9af7-d131d5f0458a": "Linux root (x86)",
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (AArch64)",
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3": "Linux root (ARM)",
    "72ec70a6-cf74-40e6-bd49-4bda08e8f224": "Linux root (RISC-V 64)",
    "8484680c-9521-48c6-9c11-b0720656f69e": "Linux /usr (x86-64)",
    "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5": "Linux root verity (x86-64)",
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "Linux /home",
    "3b8f8425-20e0-4f3b-907f-1a25a76f98e8": "Linux /srv",
    "4d21b016-b534-45c2-a9fb-5c16e091fd2d": "Linux /var",
    "7ec6f557-3bc5-4aca-b293-16ef5df639d1": "Linux /var/tmp",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux extended boot",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "ca7d7ccb-63ed-4c53-861c-1742536059cc": "Linux LUKS",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery",
}


def read_gpt(source: BlockSource, sector_size: int) -> PartitionTable | None:
    """The table, None if neither end of the disk has one.

    Raises:
        CorruptImage, BadChecksum: both copies are damaged.
        OSError: the source's.
    """
    last = source.size // sector_size - 1
    if last < 2:
        return None
    failure: CorruptImage | None = None
    for lba in (1, last):
        try:
            header = _read_header(source, sector_size, lba)
            if header is None:
                continue
            partitions = _read_entries(source, sector_size, header)
        except CorruptImage as error:
            failure = failure or error
            continue
        warnings = (f"the first copy of the table is damaged: {failure}",) if failure else ()
        disk = str(uuid.UUID(bytes_le=header.disk_guid))
        return PartitionTable("gpt", sector_size, disk, partitions, warnings)
    if failure is not None:
        raise failure
    return None


def _read_header(source: BlockSource, sector_size: int, lba: int) -> Header | None:
    """The header in a sector; None if there is none at all."""
    data = source.pread(sector_size, lba * sector_size)
    if data[: len(_SIGNATURE)] != _SIGNATURE:
        return None
    header = unpack(Header, data)
    what = f"GPT header in sector {lba}"
    if not size_of(Header) <= header.header_size <= sector_size:
        raise CorruptImage(f"{what}: its size is {header.header_size}")
    field = offset_of(Header, "header_crc32")
    covered = data[:field] + bytes(4) + data[field + 4 : header.header_size]
    if binascii.crc32(covered) != header.header_crc32:
        raise BadChecksum(f"{what}: its checksum is wrong")
    if header.my_lba != lba:
        raise CorruptImage(f"{what}: says that it is in sector {header.my_lba}")
    return header


def _read_entries(source: BlockSource, sector_size: int, header: Header) -> tuple[Partition, ...]:
    size, count = header.entry_size, header.entries_count
    if not (
        size_of(Entry) <= size <= _MAX_ENTRY_SIZE
        and size % 8 == 0
        and count <= _MAX_ENTRIES
        and size * count <= _MAX_ARRAY
    ):
        raise CorruptImage(f"GPT: {count} entries of {size} bytes")
    start = header.entries_lba * sector_size
    if start + size * count > source.size:
        raise CorruptImage(f"GPT: entries at sector {header.entries_lba} are outside the image")
    data = source.pread(size * count, start)
    if binascii.crc32(data) != header.entries_crc32:
        raise BadChecksum("GPT: the checksum of the entries is wrong")
    found = []
    for index in range(count):
        entry = unpack(Entry, data, index * size)
        if entry.type_guid != _NO_TYPE:
            found.append(_partition(source, sector_size, index + 1, entry))
    return tuple(found)


def _partition(source: BlockSource, sector_size: int, number: int, entry: Entry) -> Partition:
    first, last = entry.first_lba, entry.last_lba
    if not 0 < first <= last or (last + 1) * sector_size > source.size:
        raise CorruptImage(
            f"GPT: partition {number} has sectors {first} to {last}, the image has "
            f"{source.size // sector_size}"
        )
    kind = str(uuid.UUID(bytes_le=entry.type_guid))
    return Partition(
        number=number,
        start=first * sector_size,
        size=(last - first + 1) * sector_size,
        type=kind,
        type_name=_TYPE_NAMES.get(kind, ""),
        name=entry.name.decode("utf-16-le", "replace").split("\0", 1)[0],
        uuid=str(uuid.UUID(bytes_le=entry.guid)),
    )
