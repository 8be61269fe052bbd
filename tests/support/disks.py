# SPDX-License-Identifier: Apache-2.0
"""Disks with partition tables, made byte by byte."""

from __future__ import annotations

import binascii
import struct
import uuid
from collections.abc import Iterable

__all__ = ["LINUX", "gpt_disk", "mbr_disk", "mbr_entry", "mbr_record"]

LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
_DISK = "11111111-2222-3333-4444-555555555555"
_ENTRIES = 128
_ENTRY_SIZE = 128


def mbr_entry(kind: int, first: int, sectors: int) -> bytes:
    """One entry of a boot record; numbers of sectors."""
    return struct.pack("<B3xB3xII", 0, kind, first, sectors)


def mbr_record(*entries: bytes, disk: int = 0) -> bytes:
    """A boot record of 512 bytes."""
    return struct.pack("<440xI2x", disk) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def mbr_disk(size: int) -> bytes:
    """Three primary partitions, the second extended with two logical ones."""
    data = bytearray(size)
    data[:512] = mbr_record(
        mbr_entry(0x83, 64, 1000),
        mbr_entry(0x05, 2000, 4000),
        mbr_entry(0, 0, 0),
        mbr_entry(0x0C, 7000, 100),
        disk=0xC0FFEE,
    )
    data[2000 * 512 : 2001 * 512] = mbr_record(
        mbr_entry(0x83, 10, 500), mbr_entry(0x05, 1000, 2000)
    )
    data[3000 * 512 : 3001 * 512] = mbr_record(mbr_entry(0x82, 5, 700))
    return bytes(data)


def gpt_disk(
    size: int,
    sector: int,
    parts: Iterable[tuple[int, int, int, str]],
    *,
    entries: int = _ENTRIES,
    entry_size: int = _ENTRY_SIZE,
) -> bytearray:
    """A disk with a GPT and its copy.

    Args:
        size: bytes.
        sector: bytes of a sector.
        parts: (number, first sector, last sector, name).
        entries, entry_size: what the headers say of the array (which has 128 of 128 bytes).
    """
    data = bytearray(size)
    last = size // sector - 1
    array = bytearray(_ENTRIES * _ENTRY_SIZE)
    for number, first, end, name in parts:
        struct.pack_into(
            "<16s16sQQQ72s",
            array,
            (number - 1) * _ENTRY_SIZE,
            uuid.UUID(LINUX).bytes_le,
            uuid.uuid5(uuid.NAMESPACE_DNS, str(number)).bytes_le,
            first,
            end,
            0,
            name.encode("utf-16-le"),
        )
    blocks = -(-len(array) // sector)
    data[:512] = mbr_record(mbr_entry(0xEE, 1, last))
    for here, other, table in ((1, last, 2), (last, 1, last - blocks)):
        data[table * sector : table * sector + len(array)] = array
        header = bytearray(
            struct.pack(
                "<8sIIIIQQQQ16sQIII",
                b"EFI PART", 0x10000, 92, 0, 0, here, other, 2 + blocks, last - blocks - 1,
                uuid.UUID(_DISK).bytes_le, table, entries, entry_size, binascii.crc32(array),
            )
        )  # fmt: skip
        struct.pack_into("<I", header, 0x10, binascii.crc32(header))
        data[here * sector : here * sector + 92] = header
    return data
