# SPDX-License-Identifier: Apache-2.0
"""What the mirror keeps of an inode: records, ids, generations, and how much memory they take."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.fs import ROOT, FsError
from penstock.servers.mirror.nodes import (
    NO_HANDLE,
    NodeTable,
    birth_of,
    generation_of,
    handle_names,
    pack,
    parts,
)


def handle(kind: int, data: bytes) -> bytes:
    """A ``struct file_handle``."""
    return struct.pack("=Ii", len(data), kind) + data


EXT4 = handle(0x1_0002, struct.pack("=4I", 77, 5, 12, 9))
XFS = handle(0x1_0082, struct.pack("=QIQI", 1 << 33, 5, 12, 9))
BTRFS = handle(0x1_004F, struct.pack("=QQIQIQ", 300, 256, 5, 257, 9, 256))
TMPFS = handle(0x01, struct.pack("=3I", 5, 77, 1))


@given(
    parent=st.integers(1, 2**64 - 1),
    birth=st.integers(0, 2**32 - 1),
    data=st.binary(max_size=128),
    name=st.binary(max_size=255),
)
def test_a_record_holds_its_parts(parent: int, birth: int, data: bytes, name: bytes) -> None:
    whole = handle(2, data)
    assert parts(pack(parent, birth, whole, name)) == (parent, birth, whole, name)


def test_numbers_are_node_ids_where_they_can_be() -> None:
    table = NodeTable(device=8, ino=2)
    assert table.id_of(8, 2) == ROOT
    assert table.id_of(8, 12) == 12
    odd = [table.id_of(8, 1), table.id_of(8, 1 << 63), table.id_of(9, 2), table.id_of(9, 12)]
    assert len({ROOT, 12, *odd}) == 6
    assert odd == [
        table.id_of(8, 1),
        table.id_of(8, 1 << 63),
        table.id_of(9, 2),
        table.id_of(9, 12),
    ]


def test_a_forgotten_node_is_remembered_for_a_while_and_not_for_ever() -> None:
    table = NodeTable(8, 2)
    record = pack(ROOT, 1, NO_HANDLE, b"name")
    for nodeid in range(10, 20_010):
        table.put(nodeid, record)
        table.forget(nodeid)
    assert len(table) == 0
    assert table.record(20_009) == record
    with pytest.raises(FsError, match="not known"):
        table.record(10)


def test_ids_of_subvolumes_go_with_their_nodes() -> None:
    table = NodeTable(8, 2)
    first = table.id_of(9, 5)
    for number in range(20_000):
        nodeid = table.id_of(9, 100 + number)
        table.put(nodeid, pack(ROOT, 1, NO_HANDLE, b"name"))
        table.forget(nodeid)
    assert table.id_of(9, 5) == first
    assert table.odd < 8_000


@pytest.mark.parametrize("whole", [EXT4, XFS, BTRFS])
def test_the_generation_is_the_files_own(whole: bytes) -> None:
    elsewhere = whole[:-4] + b"\xff\xff\xff\xff"  # another parent
    assert generation_of(elsewhere, 1) == generation_of(whole, 2)


@pytest.mark.parametrize(("whole", "at"), [(EXT4, 12), (XFS, 16), (BTRFS, 24), (TMPFS, 8)])
def test_another_generation_is_another_number(whole: bytes, at: int) -> None:
    others = {
        generation_of(whole[:at] + struct.pack("=I", value) + whole[at + 4 :], 0)
        for value in range(5000)
    }
    assert len(others) == 5000


def test_without_a_known_handle_the_birth_takes_its_place() -> None:
    assert generation_of(NO_HANDLE, 1234) == 1234
    assert generation_of(handle(0x51, bytes(20)), 1234) == 1234
    assert birth_of(0x800, 1, 5) == 1_000_000_005
    assert birth_of(0x7FF, 1, 5) == 0


@pytest.mark.parametrize(
    ("whole", "ino"), [(EXT4, 77), (XFS, 1 << 33), (BTRFS, 300), (TMPFS, 77 | 1 << 32)]
)
def test_a_handle_tells_whose_it_is(whole: bytes, ino: int) -> None:
    assert handle_names(whole, ino) is True
    assert handle_names(whole, ino + 1) is (None if whole is XFS else False)


def test_an_unknown_handle_does_not_tell() -> None:
    assert handle_names(handle(0x51, bytes(20)), 5) is None
    assert handle_names(NO_HANDLE, 5) is None


def test_a_node_takes_less_than_300_bytes() -> None:
    """With the session's count of lookups, whose key is the same object."""
    count = 100_000
    table = NodeTable(8, 2)
    lookups: dict[int, int] = {}
    names = [b"a file name of %9d" % number for number in range(count)]
    tracemalloc.start()
    for number, name in enumerate(names):
        nodeid = table.id_of(8, 1_000_000 + number)
        table.put(nodeid, pack(4711, number, EXT4, name))
        lookups[nodeid] = 1
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken / count < 300
