# SPDX-License-Identifier: Apache-2.0
"""Partition tables, sound and damaged; partx as a second opinion."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from penstock.formats.errors import BadChecksum, CorruptImage, FormatError
from penstock.formats.partition import PartitionTable, read_partitions
from tests.support.disks import LINUX, gpt_disk, mbr_disk, mbr_entry, mbr_record
from tests.support.hostile import MemorySource
from tests.support.images import run

SIZE = 4 << 20


def _read(data: bytes) -> PartitionTable:
    table = read_partitions(MemorySource(data))
    assert table is not None
    return table


@pytest.mark.parametrize("sector", [512, 4096])
def test_gpt(sector: int) -> None:
    parts = [(1, 64, 127, "first"), (3, 200, 900, "größer"), (128, 40, 50, "")]
    if sector == 512:
        parts[1] = (3, 200, 7000, "größer")
    table = _read(bytes(gpt_disk(SIZE, sector, parts)))
    assert (table.kind, table.sector_size, table.warnings) == ("gpt", sector, ())
    assert table.uuid == "11111111-2222-3333-4444-555555555555"
    assert [part.number for part in table.partitions] == [1, 3, 128]
    first, second, third = table.partitions
    assert (first.start, first.size) == (64 * sector, 64 * sector)
    assert (first.type, first.type_name) == (LINUX, "Linux filesystem")
    assert second.name == "größer"
    assert third.name == ""
    assert len({part.uuid for part in table.partitions}) == 3
    assert table.find(3) == second
    assert table.find(2) is None


@pytest.mark.requires("partx")
@pytest.mark.parametrize(
    ("data", "sector"),
    [
        (bytes(gpt_disk(SIZE, 512, [(1, 64, 127, "a"), (3, 200, 7000, "größer")])), 512),
        (bytes(gpt_disk(SIZE, 4096, [(1, 40, 50, "a"), (100, 100, 900, "b")])), 4096),
        (mbr_disk(SIZE), 512),
    ],
    ids=["gpt-512", "gpt-4096", "mbr"],
)
def test_partx_agrees(data: bytes, sector: int, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(data)
    columns = "NR,START,SECTORS,TYPE,UUID"
    size = ("--sector-size", str(sector))
    told = run("partx", "--bytes", "--noheadings", "--raw", *size, "--output", columns, image)
    ours = [
        f"{part.number} {part.start // 512} {part.size // 512} {part.type} {part.uuid}"
        for part in _read(data).partitions
    ]
    assert [line.strip() for line in told.splitlines()] == ours


@pytest.mark.parametrize("at", [512, 512 + 0x10, 512 + 0x18, 512 + 0x38, 1024, 1024 + 33])
def test_the_copy_of_a_gpt_at_the_end(at: int) -> None:
    data = gpt_disk(SIZE, 512, [(1, 64, 127, "part")])
    good = _read(bytes(data))
    data[at] ^= 0xFF
    table = _read(bytes(data))
    assert table.partitions == good.partitions
    if at == 512:
        assert table.warnings == ()  # no longer a damaged header, but none
    else:
        assert "first copy" in table.warnings[0]
    for offset in range(0x5C):
        data[SIZE - 512 + offset] ^= 0xFF
    if at != 512:
        with pytest.raises(CorruptImage):
            _read(bytes(data))


def test_a_gpt_that_lies() -> None:
    for count, size in ((1 << 31, 128), (128, 0), (128, 129), (5000, 128), (4096, 4096)):
        data = gpt_disk(SIZE, 512, [(1, 64, 127, "part")], entries=count, entry_size=size)
        with pytest.raises(CorruptImage, match="GPT"):
            _read(bytes(data))
    for first, last in ((64, 63), (0, 10), (64, 1 << 40), (64, SIZE // 512)):
        with pytest.raises(CorruptImage, match="partition 1"):
            _read(bytes(gpt_disk(SIZE, 512, [(1, first, last, "part")])))
    data = gpt_disk(SIZE, 512, [(1, 64, 127, "part")])
    data[1024 + 8] ^= 1
    data[SIZE - 33 * 512 + 8] ^= 1
    with pytest.raises(BadChecksum, match="entries"):
        _read(bytes(data))


def test_mbr() -> None:
    table = _read(mbr_disk(SIZE))
    assert (table.kind, table.uuid) == ("mbr", "00c0ffee")
    assert [(part.number, part.start // 512, part.size // 512) for part in table.partitions] == [
        (1, 64, 1000),
        (2, 2000, 4000),
        (4, 7000, 100),
        (5, 2010, 500),
        (6, 3005, 700),
    ]
    assert [part.type for part in table.partitions] == ["0x83", "0x5", "0xc", "0x83", "0x82"]
    assert table.partitions[0].type_name == "Linux"
    assert table.partitions[3].uuid == "00c0ffee-05"


def test_chains_that_do_not_end() -> None:
    for following in (0, 10, 100_000):
        data = bytearray(mbr_disk(SIZE))
        link = mbr_record(mbr_entry(0x83, 1, 1), mbr_entry(0x05, following, 10))
        data[2010 * 512 - 10 * 512 : 2010 * 512 - 10 * 512 + 512] = link
        data[(2000 + 10) * 512 : (2000 + 10) * 512 + 512] = link
        with pytest.raises(CorruptImage, match="chain"):
            _read(bytes(data))
    data = bytearray(mbr_disk(SIZE))
    data[2000 * 512 + 510] = 0
    with pytest.raises(CorruptImage, match="chain"):
        _read(bytes(data))


def test_a_partition_beyond_the_disk() -> None:
    data = bytes(512 * 4)
    record = mbr_record(mbr_entry(0x83, 1, 1 << 20))
    with pytest.raises(CorruptImage, match="partition 1"):
        _read(record + data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(100),
        bytes(4096),
        b"\xeb\x3c\x90mkfs.fat" + b"boot code" * 55 + bytes(6) + b"\x55\xaa" + bytes(8192),
        mbr_record() + bytes(4096),
    ],
    ids=["empty", "short", "zeros", "boot-sector", "no-entries"],
)
def test_no_table(data: bytes) -> None:
    assert read_partitions(MemorySource(data)) is None


def test_damage_is_told_or_harmless() -> None:
    rng = random.Random(1)
    disks = [bytes(gpt_disk(SIZE, 512, [(1, 64, 127, "x"), (2, 200, 300, "y")])), mbr_disk(SIZE)]
    for _ in range(600):
        data = bytearray(rng.choice(disks))
        for _ in range(rng.choice([1, 4, 30])):
            at = rng.choice([rng.randrange(2048), 446 + rng.randrange(66), SIZE - 512])
            struct.pack_into("<I", data, at, rng.choice([0, 0xFFFFFFFF, rng.randrange(1 << 32)]))
        try:
            table = read_partitions(MemorySource(data))
        except FormatError:
            continue
        for part in table.partitions if table else ():
            assert part.start >= 0
            assert part.start + part.size <= SIZE
