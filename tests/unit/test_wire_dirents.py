# SPDX-License-Identifier: Apache-2.0
"""Directory listings: records byte by byte, round trips, and hostile bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.abi.fuse import Attr, EntryOut
from penstock.abi.layout import pack
from penstock.wire import (
    DirentPlusRecord,
    DirentRecord,
    WireError,
    decode_direntplus,
    decode_dirents,
    dirent_size,
    direntplus_size,
    pack_dirent,
    pack_direntplus,
)
from tests.support import messages

ATTR = Attr(12, 3, 8, -1, 2, 3, 4, 5, 6, 0o100644, 1, 1000, 100, 0, 4096, 0)
ENTRY = EntryOut(5, 6, 1, 2, 3, 4, ATTR)
u64 = st.integers(0, (1 << 64) - 1)
records = st.builds(DirentRecord, messages.names, u64, u64, st.integers(0, (1 << 32) - 1))


def test_dirent_byte_by_byte() -> None:
    raw = pack_dirent(b"usr", 12, 3, 4)
    assert raw == struct.pack("<QQII", 12, 3, 3, 4) + b"usr" + bytes(5)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 255, 4095])
def test_records_are_padded_to_eight_bytes(length: int) -> None:
    name = b"n" * length
    raw = pack_dirent(name, 1, 2, 8)
    assert len(raw) == dirent_size(length) == 24 + -(-length // 8) * 8
    assert raw[24:] == name + bytes(len(raw) - 24 - length)
    plus = pack_direntplus(name, 1, 2, 8, ENTRY)
    assert plus == pack(ENTRY) + raw
    assert len(plus) == direntplus_size(length)
    assert pack_direntplus(name, 1, 2, 8, None) == bytes(128) + raw


@pytest.mark.parametrize("length", [0, 4096])
def test_length_of_a_name_is_bounded(length: int) -> None:
    with pytest.raises(WireError, match=f"name of {length} bytes, 1 to 4095 expected"):
        pack_dirent(b"n" * length, 1, 2, 8)
    with pytest.raises(WireError, match=f"name of {length} bytes"):
        pack_direntplus(b"n" * length, 1, 2, 8, ENTRY)


class Entry(EntryOut):
    """An application's own kind of entry."""

    __slots__ = ()


def test_subclass_of_entry_is_packed() -> None:
    assert pack_direntplus(b"a", 1, 2, 8, Entry(*ENTRY)) == pack_direntplus(b"a", 1, 2, 8, ENTRY)


@given(st.lists(records, max_size=8))
def test_dirents_round_trip(listing: list[DirentRecord]) -> None:
    raw = b"".join(pack_dirent(*record) for record in listing)
    assert list(decode_dirents(raw)) == listing
    assert list(decode_dirents(memoryview(raw))) == listing


@settings(max_examples=25)
@given(st.lists(st.builds(DirentPlusRecord, records, messages.structures(EntryOut)), max_size=6))
def test_direntplus_round_trip(listing: list[DirentPlusRecord]) -> None:
    raw = b"".join(pack_direntplus(*record, entry) for record, entry in listing)
    assert list(decode_direntplus(raw)) == listing


@settings(max_examples=300)
@given(messages.garbage())
def test_any_bytes_decode_or_are_refused(raw: bytes) -> None:
    for decode in (decode_dirents, decode_direntplus):
        result = messages.outcome(lambda decode=decode: list(decode(raw)))
        assert isinstance(result, WireError) or len(result) <= len(raw) // 32


@settings(max_examples=200)
@given(choice=st.data())
def test_mutated_listings_decode_or_are_refused(choice: st.DataObject) -> None:
    listing = choice.draw(st.lists(records, min_size=1, max_size=4))
    raw = choice.draw(messages.mutations(b"".join(pack_dirent(*record) for record in listing)))
    result = messages.outcome(lambda: list(decode_dirents(raw)))
    if not isinstance(result, WireError):
        assert sum(dirent_size(len(record.name)) for record in result) == len(raw)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (bytes(23), "at 0: no whole record in the 23 bytes left"),
        (struct.pack("<QQII", 1, 1, 0, 8), "is not of 1 to 4095 bytes"),
        (struct.pack("<QQII", 1, 1, 9, 8) + b"n" * 9, "no whole record in the 33 bytes left"),
        (struct.pack("<QQII", 1, 1, 0xFFFF_FFFF, 8) + bytes(8), "no whole record"),
        (struct.pack("<QQII", 1, 1, 4096, 8) + b"n" * 4096, "is not of 1 to 4095 bytes"),
        (struct.pack("<QQII", 1, 1, 3, 8) + b"a/b" + bytes(5), "is no name"),
        (struct.pack("<QQII", 1, 1, 3, 8) + b"a\0b" + bytes(5), "is no name"),
    ],
)
def test_bad_records_are_refused_with_a_reason(raw: bytes, match: str) -> None:
    with pytest.raises(WireError, match=match):
        list(decode_dirents(raw))
    with pytest.raises(WireError, match=match.replace("at 0", "at 128")):
        list(decode_direntplus(bytes(128) + raw))


def test_direntplus_needs_its_entry() -> None:
    with pytest.raises(WireError, match="at 0: no whole record in the 127 bytes left"):
        list(decode_direntplus(bytes(127)))


def test_records_before_a_bad_one_are_read() -> None:
    records = decode_dirents(pack_dirent(b"usr", 12, 3, 4) + b"x")
    assert next(records).name == b"usr"
    with pytest.raises(WireError, match="at 32"):
        next(records)
