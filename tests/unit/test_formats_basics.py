# SPDX-License-Identifier: Apache-2.0
"""Checksums and layouts, on which the readers of all formats rest."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Annotated, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.formats import crc
from penstock.formats.ext4 import format as fmt
from penstock.formats.layout import at, offset_of, packed, size_of, unpack

CHECK = b"123456789"


def test_check_values() -> None:
    assert crc.raw_crc32c(0xFFFFFFFF, CHECK) == 0x1CF96D7C
    assert crc.raw_crc32c(0, CHECK) == 0x58E3FA20
    assert crc.crc32c(CHECK) == 0xE3069283
    assert crc.crc16(0xFFFF, CHECK) == 0x4B37


@given(st.binary(max_size=300), st.binary(max_size=50), st.integers(0, 0xFFFFFFFF))
def test_table_agrees_with_package(first: bytes, second: bytes, seed: int) -> None:
    assert crc.crc32c_table(first, seed) == crc.crc32c(first, seed)
    assert crc.crc32c(first + second) == crc.crc32c(second, crc.crc32c(first))
    whole = crc.raw_crc32c(seed, first + second)
    assert crc.raw_crc32c(crc.raw_crc32c(seed, first), second) == whole


def test_without_the_package_the_table_takes_over_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "crc32c", None)
    with caplog.at_level(logging.WARNING):
        importlib.reload(crc)
    try:
        assert crc.crc32c is crc.crc32c_table
        assert crc.crc32c(CHECK) == 0xE3069283
        assert [record.levelname for record in caplog.records] == ["WARNING"]
    finally:
        monkeypatch.undo()
        importlib.reload(crc)
    assert crc.crc32c is not crc.crc32c_table


def test_packed_skips_gaps_and_keeps_the_end() -> None:
    @packed("<", 12)
    class Sample(NamedTuple):
        first: Annotated[int, at(0, "H")]
        second: Annotated[int, at(4, "I")]

    assert size_of(Sample) == 12
    assert offset_of(Sample, "second") == 4
    assert unpack(Sample, b"\xff\x01\x00??\x02\0\0\0????", 1) == (1, 2)


@pytest.mark.parametrize(("second", "size"), [(1, 8), (6, 8)])
def test_packed_refuses_overlaps_and_overflows(second: int, size: int) -> None:
    class Sample(NamedTuple):
        first: Annotated[int, at(0, "H")]
        later: Annotated[int, at(second, "I")]

    Sample.__annotations__ = {
        "first": Annotated[int, at(0, "H")],
        "later": Annotated[int, at(second, "I")],
    }
    with pytest.raises(TypeError):
        packed("<", size)(Sample)


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (fmt.RawSuperblock, 1024),
        (fmt.RawGroupDescriptor, 64),
        (fmt.RawInode, 160),
        (fmt.ExtentHeader, 12),
        (fmt.ExtentLeaf, 12),
        (fmt.ExtentIndex, 12),
        (fmt.DirEntryHead, 8),
        (fmt.XattrBlockHeader, 32),
        (fmt.XattrEntry, 16),
        (fmt.MmpBlock, 1024),
    ],
)
def test_ext4_structures_have_their_size(structure: type[tuple[object, ...]], size: int) -> None:
    assert size_of(structure) == size


def test_feature_names() -> None:
    assert fmt.feature_names(fmt.Incompat(0x2 | 0x80 | 1 << 30)) == [
        "filetype",
        "64bit",
        "incompat 0x40000000",
    ]
    assert fmt.feature_names(fmt.Compat(0)) == []
