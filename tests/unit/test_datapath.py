# SPDX-License-Identifier: Apache-2.0
"""Which way reads go, and that mappings become the right file ranges."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.datapath import Paths, file_ranges
from penstock.datapath.choose import SPLICE_FROM
from penstock.fs import Backing, FsError, Mapped, Mapping, MappingType
from penstock.session import ZEROS, FileRange

MAPPED = MappingType.MAPPED
HOLE = MappingType.HOLE
UNWRITTEN = MappingType.UNWRITTEN


def test_neighbours_on_the_device_become_one_range() -> None:
    data = Mapped((Mapping(0, 4096, MAPPED, 8192, 1), Mapping(4096, 4096, MAPPED, 12288, 1)), 8192)
    assert file_ranges(data, 0, [7]) == (FileRange(7, 8192, 8192),)


def test_a_hole_and_an_unwritten_extent_are_one_run_of_zeros() -> None:
    data = Mapped((Mapping(0, 4096, HOLE), Mapping(4096, 4096, UNWRITTEN, 0, 1)), 8192)
    assert file_ranges(data, 0, [7]) == (FileRange(ZEROS, 0, 8192),)


def test_first_and_last_mapping_are_cut() -> None:
    data = Mapped((Mapping(0, 10_000, MAPPED, 50_000, 2),), 100)
    assert file_ranges(data, 1000, [3, 4]) == (FileRange(4, 51_000, 100),)


@pytest.mark.parametrize(
    ("mappings", "offset", "length"),
    [
        ((Mapping(0, 100, HOLE),), 0, 200),
        ((Mapping(100, 100, HOLE),), 0, 50),
        ((Mapping(0, 100, HOLE),), 100, 50),
        ((Mapping(0, 10, HOLE), Mapping(20, 10, HOLE)), 0, 30),
        ((Mapping(0, 100, MAPPED, 0, 3),), 0, 100),
        ((Mapping(0, 100, MAPPED, 0, 0),), 0, 100),
        ((Mapping(0, 100, MappingType.INLINE, 0, 1),), 0, 100),
        ((), 0, 1),
    ],
)
def test_mappings_that_do_not_answer_the_read_are_eio(
    mappings: tuple[Mapping, ...], offset: int, length: int
) -> None:
    with pytest.raises(FsError) as caught:
        file_ranges(Mapped(mappings, length), offset, [5, 6])
    assert caught.value.errno == errno.EIO


@given(
    st.lists(
        st.tuples(st.integers(1, 5000), st.sampled_from([HOLE, UNWRITTEN, MAPPED])),
        min_size=1,
        max_size=20,
    ),
    st.data(),
)
def test_ranges_hold_the_bytes_that_the_mappings_name(
    pieces: list[tuple[int, MappingType]], data: st.DataObject
) -> None:
    mappings = []
    position = 0
    for length, kind in pieces:
        mappings.append(Mapping(position, length, kind, position * 3, 1))
        position += length
    offset = data.draw(st.integers(0, position - 1))
    length = data.draw(st.integers(1, position - offset))
    ranges = file_ranges(Mapped(tuple(mappings), length), offset, [9])
    assert sum(part.length for part in ranges) == length
    wanted = [
        mapping.addr + byte - mapping.offset if mapping.type == MAPPED else None
        for mapping in mappings
        for byte in range(mapping.offset, mapping.offset + mapping.length)
        if offset <= byte < offset + length
    ]
    got = [
        None if part.fd == ZEROS else part.offset + index
        for part in ranges
        for index in range(part.length)
    ]
    assert got == wanted


def test_auto_splices_large_reads_and_copies_small_ones() -> None:
    paths = Paths("auto")
    big = Mapped((Mapping(0, SPLICE_FROM, HOLE),), SPLICE_FROM)
    small = Mapped((Mapping(0, SPLICE_FROM, HOLE),), SPLICE_FROM - 1)
    assert paths.mapped(big, 0, []).splice
    assert not paths.mapped(small, 0, []).splice
    statistics = paths.statistics()
    assert statistics.datapath == "splice"
    assert (statistics.reads["splice"].reads, statistics.reads["splice"].bytes) == (1, SPLICE_FROM)
    assert (statistics.reads["copy"].reads, statistics.reads["copy"].bytes) == (1, SPLICE_FROM - 1)
    assert set(statistics.reasons) == {"copy", "passthrough", "lens", "reflink", "iomap"}


def test_a_word_forces_its_path() -> None:
    data = Mapped((Mapping(0, 1 << 20, HOLE),), 1 << 20)
    assert not Paths("copy").mapped(data, 0, []).splice
    assert Paths("splice").backing(Backing(3), 0, 1).splice
    assert not Paths("splice").backing(Backing(3), 0, 1).exact


def test_refused_splice_is_remembered_with_its_reason() -> None:
    paths = Paths("auto")
    paths.refuse_splice("the image is on a strange filesystem")
    assert not paths.backing(Backing(3), 0, 1 << 20).splice
    statistics = paths.statistics()
    assert statistics.datapath == "copy"
    assert statistics.reasons["splice"] == "the image is on a strange filesystem"


@pytest.mark.parametrize("word", ["passthrough", "lens", "reflink", "iomap", "fast", ""])
def test_a_path_that_is_not_to_be_had_says_why(word: str) -> None:
    with pytest.raises(ValueError, match=f"datapath={word}: .{{8,}}"):
        Paths(word)
