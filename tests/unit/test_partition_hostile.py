# SPDX-License-Identifier: Apache-2.0
"""Partition tables with any field wrong, checksums mended; and disks of anything at all.

Whatever the bytes: a table whose partitions are inside the image, None, or one line that says what
is wrong; soon, and with little memory.
"""

from __future__ import annotations

import binascii
import os
import random
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.formats.detect import detect
from penstock.formats.errors import CorruptImage, FormatError
from penstock.formats.partition import PartitionTable, read_partitions
from penstock.servers import UnknownImage, open_server
from tests.fuzz.bases import BASES, Image, load
from tests.fuzz.edit import field_places
from tests.fuzz.evil import EVIL, LARGE
from tests.fuzz.places import values
from tests.fuzz.use import Meter, peak_growth
from tests.support.disks import gpt_disk, mbr_disk, mbr_entry, mbr_record

SIZE = 1 << 20
HEADER = {
    "signature": (0, 8), "revision": (8, 4), "header_size": (12, 4), "my_lba": (0x18, 8),
    "alternate_lba": (0x20, 8), "first_usable": (0x28, 8), "last_usable": (0x30, 8),
    "entries_lba": (0x48, 8), "entries": (0x50, 4), "entry_size": (0x54, 4),
}  # fmt: skip
ENTRY = {"type": (0, 8), "guid": (16, 8), "first": (32, 8), "last": (40, 8), "flags": (48, 8)}
MBR_ENTRY = {"status": (0, 1), "type": (4, 1), "first": (8, 4), "sectors": (12, 4)}


def seal(disk: bytearray, sector: int, lba: int) -> None:
    """Both checksums of a GPT, as far as the array is where its header says."""
    at = lba * sector
    start, count, size = struct.unpack_from("<QII", disk, at + 0x48)
    if count * size <= 1 << 20 and start * sector < len(disk):
        array = disk[start * sector : start * sector + count * size]
        struct.pack_into("<I", disk, at + 0x58, binascii.crc32(array))
    length = min(struct.unpack_from("<I", disk, at + 12)[0], sector)
    struct.pack_into("<I", disk, at + 0x10, 0)
    struct.pack_into("<I", disk, at + 0x10, binascii.crc32(disk[at : at + length]))


def judge(data: bytes | bytearray, sector: int | None = None) -> PartitionTable | None:
    """Read a table and hold the reader to its promises."""
    meter = Meter(1.0)
    source = Image(bytes(data))
    meter.call("detect", detect, source)
    table = meter.call("partitions", read_partitions, source, sector)
    for part in table.partitions if table else ():
        assert part.start >= 0
        assert part.size > 0
        assert part.start + part.size <= len(data)
        assert part.number > 0
    return table


@pytest.mark.parametrize("sector", [512, 4096])
def test_every_field_of_a_gpt(sector: int) -> None:
    chance = random.Random(sector)
    sound = gpt_disk(SIZE, sector, [(1, 40, 50, "one"), (2, 60, 70, "two"), (128, 90, 99, "x")])
    accepted = 0
    places = [(sector + at, size) for at, size in HEADER.values()]
    places += [
        (2 * sector + 128 * slot + at, size) for slot in (0, 1, 127) for at, size in ENTRY.values()
    ]
    with peak_growth():
        for at, size in places:
            now = int.from_bytes(sound[at : at + size], "little")
            for value in values(size, now, chance):
                disk = bytearray(sound)
                disk[at : at + size] = value.to_bytes(size, "little")
                seal(disk, sector, 1)
                accepted += judge(disk, sector) is not None
                disk[-sector:] = bytes(sector)  # without the copy the damaged one must do
                judge(disk, sector)
    assert accepted > 100


def test_every_field_of_an_mbr() -> None:
    chance = random.Random(1)
    sound = mbr_disk(4 << 20)
    for record in (0, 2000, 3000):
        for slot in range(4):
            for at, size in MBR_ENTRY.values():
                place = record * 512 + 446 + 16 * slot + at
                now = int.from_bytes(sound[place : place + size], "little")
                for value in values(size, now, chance):
                    changed = value.to_bytes(size, "little")
                    judge(sound[:place] + changed + sound[place + size :])


@pytest.mark.parametrize("make", ["gpt-512", "gpt-4096", "mbr"])
def test_cut_off_disks(make: str) -> None:
    disk = mbr_disk(4 << 20)
    if make != "mbr":
        disk = bytes(gpt_disk(SIZE, int(make[4:]), [(1, 40, 50, "one")]))
    for size in (*range(0, 520, 40), *range(511, 4098, 255), *range(0, len(disk), 50_001)):
        judge(disk[:size])


def test_chains_of_logical_partitions() -> None:
    """Round in a circle, back to the record itself, without end, and very many."""
    for steps in ([0], [1, 0], [1, 2, 1], list(range(1, 300)), [0xFFFFFFFF]):
        disk = bytearray(4 << 20)
        disk[:512] = mbr_record(mbr_entry(0x05, 100, 8000), mbr_entry(0x05, 100, 8000))
        here = 0
        for step in steps:
            record = mbr_record(mbr_entry(0x83, 1, 1), mbr_entry(0x05, step, 8000))
            disk[(100 + here) * 512 : (101 + here) * 512] = record
            here = step if step < 8000 else here
        with pytest.raises(CorruptImage, match="chain"):
            read_partitions(Image(bytes(disk)))


def test_a_partition_that_is_the_whole_disk() -> None:
    """Its filesystem is then the table itself: no filesystem, said in one line."""
    disk = bytearray(gpt_disk(SIZE, 512, [(1, 1, SIZE // 512 - 1, "all")]))
    fd = os.memfd_create("disk")
    try:
        os.write(fd, disk)
        with pytest.raises((UnknownImage, FormatError)) as caught:
            open_server(fd, None, {"partition": "1"})
        assert "\n" not in str(caught.value)
    finally:
        os.close(fd)


@pytest.mark.parametrize("base", BASES)
def test_a_filesystem_that_is_larger_than_its_partition(base: str) -> None:
    data = load(base)
    disk = mbr_record(mbr_entry(0x83, 1, len(data) // 1024)) + data
    fd = os.memfd_create("disk")
    try:
        os.write(fd, disk)
        with pytest.raises(CorruptImage, match="truncated"):
            open_server(fd, None, {"partition": "1"})
    finally:
        os.close(fd)


def test_what_every_evil_image_is() -> None:
    """Told by its magic alone, at once, however wrong the rest."""
    begun = time.thread_time()
    for name in EVIL:
        if name not in LARGE:
            found = detect(EVIL[name]())
            assert found.type in {"ext4", "jbd", None}, name
            assert "\0" not in found.label
    assert time.thread_time() - begun < 30


def test_the_tables_here_are_those_of_the_reader() -> None:
    """The fields above lie where the reader looks for them."""
    from penstock.formats.partition import gpt, mbr

    header, entry = field_places(gpt.Header), field_places(gpt.Entry)
    assert {place for place, _ in HEADER.values()} < {place for place, _ in header.values()}
    assert {place for place, _ in ENTRY.values()} <= {place for place, _ in entry.values()}
    record = field_places(mbr.Entry)
    assert {place for place, _ in MBR_ENTRY.values()} == {place for place, _ in record.values()}


@settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    head=st.binary(max_size=2048),
    at=st.integers(0, 1 << 13),
    sector=st.sampled_from((512, 4096, None)),
    sealed=st.booleans(),
)
def test_any_bytes_over_a_gpt(head: bytes, at: int, sector: int | None, sealed: bool) -> None:
    disk = gpt_disk(SIZE, sector or 512, [(1, 40, 50, "one")])
    disk[at : at + len(head)] = head
    if sealed:
        seal(disk, sector or 512, 1)
    judge(disk, sector)
