# SPDX-License-Identifier: Apache-2.0
"""Replay against a model: a dictionary that is told the same transactions."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.formats.errors import BadChecksum, CorruptImage, UnsupportedFeature
from penstock.formats.ext4 import journal as journal_module
from penstock.formats.ext4 import replaymap
from penstock.formats.ext4.journal import ReplayResult, replay
from penstock.formats.ext4.replaymap import MapBuilder, ReplayMap
from tests.support import journalmaker
from tests.support.journalmaker import MAGIC, JournalMaker, MemoryJournal, superblock

FS_BLOCKS = 1 << 16
KINDS = {
    "none": (0, 0),
    "none-64bit": (journalmaker.BIT64, 0),
    "v1": (0, journalmaker.CHECKSUM_V1),
    "v1-64bit": (journalmaker.BIT64, journalmaker.CHECKSUM_V1),
    "v2": (journalmaker.CSUM_V2, 0),
    "v2-64bit": (journalmaker.CSUM_V2 | journalmaker.BIT64, 0),
    "v3": (journalmaker.CSUM_V3, 0),
    "v3-64bit": (journalmaker.CSUM_V3 | journalmaker.BIT64, 0),
}


def run(maker: JournalMaker, fs_blocks: int = FS_BLOCKS) -> ReplayResult:
    """Replay what was made."""
    return replay(superblock(maker.size, FS_BLOCKS), maker.journal(), fs_blocks)


def contents(maker: JournalMaker, result: ReplayResult) -> dict[int, bytes]:
    """The blocks as the map tells them."""
    log = maker.journal()
    found = {}
    for block, (address, escaped) in result.map.blocks.items():
        start = address - log.base
        data = bytes(maker.data[start : start + maker.size])
        found[block] = MAGIC + data[4:] if escaped else data
    return found


class Transaction(NamedTuple):
    """What is logged; contents are a byte that fills the block, or None: the journal's magic."""

    copies: Sequence[tuple[int, int | None]]
    revokes: Sequence[int]


def content(byte: int | None, size: int) -> bytes:
    """A block."""
    return (MAGIC if byte is None else b"") + bytes([byte or 0]) * (size - 4 * (byte is None))


def replayed(transactions: Sequence[Transaction], size: int) -> dict[int, bytes]:
    """What a replay of them has to give: a revocation is for the copies so far, its own too."""
    last: dict[int, tuple[int, bytes]] = {}
    revoked: dict[int, int] = {}
    for index, transaction in enumerate(transactions):
        for block, byte in transaction.copies:
            last[block] = (index, content(byte, size))
        revoked.update(dict.fromkeys(transaction.revokes, index))
    return {block: data for block, (index, data) in last.items() if revoked.get(block, -1) < index}


numbers = st.integers(1, 40)
transactions = st.lists(
    st.builds(
        Transaction,
        st.lists(st.tuples(numbers, st.none() | st.integers(0, 255)), max_size=70),
        st.lists(numbers, max_size=10),
    ),
    max_size=5,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    transactions=transactions,
    start=st.sampled_from([1, 500, 1000, 1023]),
    sequence=st.sampled_from([1, 77, 0xFFFFFFFE, 0x7FFFFFFF]),
    complete=st.integers(0, 5),
)
def test_replay_is_that_of_the_model(
    kind: str, transactions: list[Transaction], start: int, sequence: int, complete: int
) -> None:
    incompat, compat = KINDS[kind]
    maker = JournalMaker(incompat=incompat, compat=compat, start=start, sequence=sequence)
    for index, transaction in enumerate(transactions):
        copies = [(block, content(byte, maker.size)) for block, byte in transaction.copies]
        maker.transaction(copies, transaction.revokes, commit=index != complete)
    result = run(maker)
    expected = transactions[:complete]
    assert result.transactions == len(expected)
    assert contents(maker, result) == replayed(expected, maker.size)
    assert result.fast_commit is None
    assert list(result.map) == sorted(result.map)


@pytest.mark.parametrize("kind", KINDS)
def test_log_may_stop_anywhere(kind: str) -> None:
    incompat, compat = KINDS[kind]
    done = [
        Transaction([(block, block) for block in range(10 * index, 10 * index + 8)], [index])
        for index in range(1, 6)
    ]
    maker = JournalMaker(incompat=incompat, compat=compat, start=1000)
    ends = []
    for transaction in done:
        copies = [(block, content(byte, maker.size)) for block, byte in transaction.copies]
        maker.transaction(copies, transaction.revokes)
        ends.append(maker.used)
    whole = bytes(maker.data)
    for stop in range(ends[-1]):
        maker.data[:] = whole
        for position in range(stop, ends[-1]):
            index = 1000 + position if 1000 + position < 1024 else position - 23
            maker.data[index * 1024 : (index + 1) * 1024] = bytes(1024)
        complete = sum(end <= stop for end in ends)
        result = run(maker)
        assert result.transactions == complete
        assert contents(maker, result) == replayed(done[:complete], maker.size)


def test_numbers_above_32_bits() -> None:
    maker = JournalMaker(incompat=journalmaker.CSUM_V3 | journalmaker.BIT64)
    block = (5 << 32) + 17
    maker.transaction([(17, b"low"), (block, b"high"), (block + 1, b"revoked")])
    maker.transaction([], [block + 1])
    result = run(maker, 1 << 40)
    assert set(result.map) == {17, block}
    assert contents(maker, result)[block].startswith(b"high")


def test_every_tag_may_carry_a_uuid() -> None:
    maker = JournalMaker()
    block = MAGIC + struct.pack(">II", 1, 1)
    for index in range(20):
        block += struct.pack(">IHH", 100 + index, 0, 8 if index == 19 else 0) + bytes(16)
    maker.put(block)
    for index in range(20):
        maker.put(bytes([index]) * 1024)
    maker._commit(b"")
    found = contents(maker, run(maker))
    assert found == {100 + index: bytes([index]) * 1024 for index in range(20)}


def test_descriptor_without_a_last_tag_ends_with_its_block() -> None:
    maker = JournalMaker()
    block = MAGIC + struct.pack(">II", 1, 1) + struct.pack(">IHH", 1, 0, 0) + bytes(16)
    count = (1024 - len(block)) // 8
    block += b"".join(struct.pack(">IHH", 2 + index, 0, 2) for index in range(count))
    maker.put(block)
    for _ in range(count + 1):
        maker.put(b"")
    maker._commit(b"")
    assert len(run(maker).map) == count + 1


def test_clean_filesystem_has_nothing_to_replay() -> None:
    maker = JournalMaker()
    maker.transaction([(5, b"copy")])
    clean = superblock(1024, FS_BLOCKS, recover=False)
    assert replay(clean, maker.journal(), FS_BLOCKS) == ReplayResult(ReplayMap(), 0, None, ())


def test_empty_log() -> None:
    maker = JournalMaker(start=0)
    maker.start = 0
    maker.write_superblock()
    assert len(run(maker).map) == 0


def test_abort_is_a_warning() -> None:
    maker = JournalMaker()
    struct.pack_into(">i", maker.data, 0x20, -5)
    assert run(maker).warnings == ("the journal was aborted with error -5: run e2fsck",)


def test_version_1_of_the_superblock() -> None:
    maker = JournalMaker()
    maker.transaction([(5, b"copy")])
    struct.pack_into(">I", maker.data, 4, 3)
    struct.pack_into(">I", maker.data, 0x28, 0xFFFF)  # has no features: it ends before them
    assert list(run(maker).map) == [5]


@pytest.mark.parametrize(
    ("offset", "value", "error", "message"),
    [
        (0x00, 1, CorruptImage, "magic"),
        (0x04, 1, CorruptImage, "type 1"),
        (0x0C, 4096, CorruptImage, "block size 4096"),
        (0x10, 5000, CorruptImage, "5000 blocks"),
        (0x10, 1023, CorruptImage, "expected 1024 or more"),
        (0x14, 0, CorruptImage, "first block"),
        (0x14, 1024, CorruptImage, "first block"),
        (0x1C, 1024, CorruptImage, "begins at block 1024"),
        (0x28, 0x40, UnsupportedFeature, "incompat 0x40"),
        (0x28, 0x18, CorruptImage, "more than one version"),
        (0x2C, 0x1, UnsupportedFeature, "ro_compat 0x1"),
    ],
)
def test_bad_superblock(offset: int, value: int, error: type[Exception], message: str) -> None:
    maker = JournalMaker()
    struct.pack_into(">I", maker.data, offset, value)
    with pytest.raises(error, match=message):
        run(maker)


def test_bad_checksum_of_superblock() -> None:
    maker = JournalMaker(incompat=journalmaker.CSUM_V3)
    maker.data[0x40] ^= 1
    with pytest.raises(BadChecksum, match="journal superblock"):
        run(maker)
    maker.data[0x50] = 1
    with pytest.raises(UnsupportedFeature, match="checksum type 1"):
        run(maker)


def test_copy_of_a_block_outside() -> None:
    maker = JournalMaker()
    maker.transaction([(FS_BLOCKS - 1, b"in")])
    assert len(run(maker).map) == 1
    maker.transaction([(FS_BLOCKS, b"out")])
    with pytest.raises(CorruptImage, match=f"filesystem block {FS_BLOCKS}"):
        run(maker)


def test_log_without_an_end() -> None:
    maker = JournalMaker()
    empty = MAGIC + struct.pack(">III", 5, 1, 16)
    for _ in range(1023):
        maker.put(empty)
    journal = maker.journal()
    assert replay(superblock(1024, FS_BLOCKS), journal, FS_BLOCKS).transactions == 0
    assert journal.reads <= 1024


def test_number_of_revocations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = JournalMaker()
    maker.transaction([(5, b"copy")])
    maker.transaction([], range(100))
    assert not len(run(maker).map)
    monkeypatch.setattr(journal_module, "_MAX_REVOKES", 99)
    with pytest.raises(CorruptImage, match="revoked"):
        run(maker)


def test_map_of_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaymap, "_RUN", 64)
    choice = random.Random(1)
    builder = MapBuilder()
    expected = {}
    position = 0
    for _ in range(50):
        blocks = [choice.randrange(500) for _ in range(20)]
        flags = [choice.randrange(2) for _ in range(20)]
        builder.add(blocks, position, flags)
        for block, flag in zip(blocks, flags, strict=True):
            expected[block] = (position * 1024, bool(flag))
            position += 1
    builder.merge()
    assert dict(builder.build(lambda at: at * 1024, None)) == expected
    kept = builder.build(lambda at: at * 1024, lambda block, at: block % 2 == 0 and at > 100)
    assert dict(kept) == {
        block: place
        for block, place in expected.items()
        if block % 2 == 0 and place[0] > 100 * 1024
    }


def test_map_is_a_mapping() -> None:
    table = ReplayMap([3, 5, 9], [4096, 8192 | 1, 1024])
    assert len(table) == 3
    assert table[5] == (8192, True)
    assert table.lookup(4) is None
    assert 4 not in table
    assert [table.next_block(block) for block in (0, 3, 4, 9, 10)] == [3, 3, 5, 9, None]
    with pytest.raises(KeyError):
        table[4]


class Hole(MemoryJournal):
    """A journal with a block that is not mapped."""

    def read(self, index: int, count: int = 1) -> bytes:
        if index <= 3 < index + count:
            raise CorruptImage("journal: block 3 of 1024 is not mapped")
        return super().read(index, count)


def test_hole_in_the_journal_is_told() -> None:
    maker = JournalMaker(incompat=journalmaker.CSUM_V3)
    maker.transaction([(5, b"one"), (6, b"two")])
    with pytest.raises(CorruptImage, match="block 3"):
        replay(superblock(1024, FS_BLOCKS), Hole(maker.data, 1024), FS_BLOCKS)
