# SPDX-License-Identifier: Apache-2.0
"""Journals with wrong bits and fast commits of anything: refused or replayed, never more than that.

The contract: whatever the bytes, nothing but a FormatError leaves the reader, and it reads no more
than a few rounds of the log.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.formats.crc import raw_crc32c
from penstock.formats.errors import FormatError
from penstock.formats.ext4.changes import DirectoryChanges, RangeChanges
from penstock.formats.ext4.directory import DirRecord
from penstock.formats.ext4.extents import MAPPED, UNMAPPED, UNWRITTEN, Piece
from penstock.formats.ext4.fastcommit import (
    TAG_CREAT,
    TAG_LINK,
    TAG_UNLINK,
    FastCommit,
    Name,
    read_fast_commit,
)
from penstock.formats.ext4.journal import replay
from penstock.formats.ext4.journalfile import open_journal
from penstock.formats.ext4.reader import Ext4Reader
from tests.support import journalmaker
from tests.support.images import make_image, open_source
from tests.support.journalmaker import JournalMaker, superblock

FS_BLOCKS = 1 << 16
FORMATS = (
    (0, 0),
    (journalmaker.BIT64, journalmaker.CHECKSUM_V1),
    (journalmaker.CSUM_V2, 0),
    (journalmaker.CSUM_V3 | journalmaker.BIT64, 0),
    (journalmaker.CSUM_V3 | journalmaker.ASYNC_COMMIT, 0),
)


def a_log(incompat: int, compat: int, seed: int) -> JournalMaker:
    """A log of some transactions that goes round."""
    choice = random.Random(seed)
    maker = JournalMaker(incompat=incompat, compat=compat, start=1000)
    for _ in range(6):
        copies = [
            (choice.randrange(60), choice.choice([journalmaker.MAGIC, b"copy"]))
            for _ in range(choice.randrange(40))
        ]
        maker.transaction(copies, [choice.randrange(60) for _ in range(choice.randrange(6))])
    return maker


def replay_bounded(maker: JournalMaker) -> None:
    """Replay; nothing but a FormatError may come, and not too much be read."""
    journal = maker.journal()
    with contextlib.suppress(FormatError):
        result = replay(superblock(maker.size, FS_BLOCKS), journal, FS_BLOCKS)
        assert all(block < FS_BLOCKS for block in result.map)
        assert len(result.map) <= maker.blocks
    assert journal.reads <= 6 * maker.blocks


@pytest.mark.parametrize("kind", range(len(FORMATS)))
def test_wrong_bits(kind: int) -> None:
    whole = a_log(*FORMATS[kind], seed=kind)
    clean = bytes(whole.data)
    used = [0, *((999 + index) % 1023 + 1 for index in range(whole.used))]
    choice = random.Random(kind)
    for _ in range(500):
        whole.data[:] = clean
        for _ in range(choice.randrange(1, 4)):
            # Mostly the first bytes of a block, where headers, tags and records are.
            at = choice.choice(used) * 1024 + int(choice.random() ** 3 * 1024)
            whole.data[at] ^= 1 << choice.randrange(8)
        replay_bounded(whole)


@pytest.mark.parametrize("kind", range(len(FORMATS)))
def test_wrong_words_and_blocks(kind: int) -> None:
    whole = a_log(*FORMATS[kind], seed=kind)
    clean = bytes(whole.data)
    words = (0, 1, 2, 5, 8, 16, 1020, 1024, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    choice = random.Random(kind)
    for _ in range(300):
        whole.data[:] = clean
        block = choice.randrange(min(whole.used, 1023)) + 1000
        start = (block if block < 1024 else block - 1023) * 1024
        if choice.random() < 0.3:
            other = choice.randrange(1024) * 1024
            whole.data[start : start + 1024] = clean[other : other + 1024]
        else:
            struct.pack_into(
                ">I", whole.data, start + 4 * choice.randrange(8), choice.choice(words)
            )
        if choice.random() < 0.3:
            place = choice.choice([0x10, 0x14, 0x18, 0x1C, 0x24, 0x28, 0x54])
            struct.pack_into(">I", whole.data, place, choice.choice(words))
        replay_bounded(whole)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=4096), st.sampled_from(FORMATS))
def test_any_log(data: bytes, kind: tuple[int, int]) -> None:
    maker = JournalMaker(incompat=kind[0], compat=kind[1])
    maker.data[1024 : 1024 + len(data)] = data
    replay_bounded(maker)
    for at in range(0, len(data), 1024):
        header = journalmaker.MAGIC + struct.pack(">II", 1 + at // 1024 % 5, 1)
        maker.data[1024 + at : 1024 + at + len(header)] = header
    replay_bounded(maker)


def record(tag: int, body: bytes) -> bytes:
    """One record of a fast commit."""
    return struct.pack("<HH", tag, len(body)) + body


def commit_block(tid: int, records: bytes, size: int = 1024, *, head: bool = True) -> bytes:
    """A block with one fast commit, as many of the records as fit, its checksum right."""
    body = record(9, struct.pack("<II", 0, tid)) if head else b""
    body += records[: size - len(body) - 12]
    body += struct.pack("<HHI", 8, size - len(body) - 4, tid)
    return (body + struct.pack("<I", raw_crc32c(0, body))).ljust(size, b"\0")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(min_size=1024, max_size=1024), max_size=3), st.booleans())
def test_any_fast_commit_block(blocks: list[bytes], headed: bool) -> None:
    if headed and blocks:
        blocks[0] = record(9, struct.pack("<II", 0, 7)) + blocks[0][12:]
    with contextlib.suppress(FormatError):
        read_fast_commit(blocks, 7, 256)


small = st.integers(0, 40)
inos = st.sampled_from([0, 1, 2, 8, 11, 12, 13, 14, 30, 5000, 0xFFFFFFFF])
names = st.sampled_from([b"a", b"b", b"lost+found", b"x" * 255, b".", b"a/b", b"\0", b"base"])
any_record = st.one_of(
    st.builds(
        lambda ino, at, length, block: record(1, struct.pack("<IIHHI", ino, at, length, 0, block)),
        inos, small | st.just(0xFFFFFFFF), st.integers(0, 0xFFFF), small | st.integers(0, 1 << 15),
    ),
    st.builds(
        lambda ino, at, length: record(2, struct.pack("<III", ino, at, length)),
        inos, small, small | st.just(0xFFFFFFFF),
    ),
    st.builds(
        lambda tag, parent, ino, name: record(tag, struct.pack("<II", parent, ino) + name),
        st.sampled_from([3, 4, 5]), inos, inos, names,
    ),
    st.builds(
        lambda ino, mode, links, flags, rest: record(
            6,
            struct.pack("<IH", ino, mode) + bytes(24) + struct.pack("<HII", links, 8, flags)
            + rest.ljust(124, b"\0")[:124],
        ),
        inos, st.sampled_from([0o100644, 0o40755, 0o120777, 0o20600, 0]), st.integers(0, 3),
        st.sampled_from([0, 0x80000, 0x10000000, 0x80800, 0x81000]), st.binary(max_size=124),
    ),
    st.builds(lambda body: record(7, body), st.binary(max_size=20)),
)  # fmt: skip


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with a fast commit area, that needs recovery, and whose log holds a transaction."""
    place = tmp_path_factory.mktemp("dirty")
    tree = place / "tree"
    (tree / "folder").mkdir(parents=True)
    for name in ("base", "other"):
        (tree / "folder" / name).write_text(name * 1000)
    image = make_image(
        place / "image", size=16 << 20, tree=tree, options=["-b", "1024", "-O", "fast_commit"]
    )
    with open_source(image) as source:
        reader = Ext4Reader(source)
        log = open_journal(reader._volume, reader._inodes)
        maker = JournalMaker(
            1024, log.count, incompat=journalmaker.CSUM_V3 | journalmaker.BIT64, fast_blocks=8
        )
        same = [(block, reader.read_block(block)) for block in (5, 6, 7)]
        maker.transaction(same)
        addresses = [log.address(index) for index in range(log.count)]
    with image.open("r+b") as file:
        for index in (*range(8), *range(maker.last, maker.blocks)):
            file.seek(addresses[index])
            file.write(maker.data[index * 1024 : (index + 1) * 1024])
        file.seek(1024)
        head = bytearray(file.read(1020))
        head[0x60] |= 4
        file.seek(1024)
        file.write(head + struct.pack("<I", raw_crc32c(0xFFFFFFFF, bytes(head))))
    return image


def visit_all(image: Path) -> int:
    """Look at everything that can be reached in an image, within bounds; how many files."""
    seen = 0
    with open_source(image) as source:
        reader = Ext4Reader(source)
        pending = [2]
        while pending and seen < 200:
            seen += 1
            with contextlib.suppress(FormatError):
                inode = reader.inode(pending.pop())
                reader.xattrs(inode)
                if inode.is_dir:
                    for entry in reader.readdir(inode):
                        if entry.name not in {b".", b".."}:
                            assert reader.lookup(inode, entry.name) is not None
                            pending.append(entry.ino)
                        rest = list(reader.readdir(inode, entry.next_cookie))
                        assert entry not in rest
                elif inode.is_symlink:
                    reader.readlink(inode)
                else:
                    reader.read(inode, 0, min(inode.size, 1 << 20))
    return seen


@pytest.fixture
def work_copy(dirty: Path, tmp_path: Path) -> Path:
    """A copy of the dirty image to change."""
    return Path(shutil.copy(dirty, tmp_path / "image"))


def fast_area(image: Path) -> int:
    """Address of the first fast commit block."""
    with open_source(image) as source:
        reader = Ext4Reader(source, replay=False)
        log = open_journal(reader._volume, reader._inodes)
        return log.address(log.count - 7)


@pytest.mark.requires("mke2fs")
@settings(max_examples=250, deadline=None)
@given(records=st.lists(any_record, max_size=12))
def test_any_records_in_an_image(dirty: Path, records: list[bytes]) -> None:
    with dirty.open("r+b") as file:
        file.seek(fast_area(dirty))
        file.write(commit_block(2, b"".join(records)))
    with contextlib.suppress(FormatError):
        assert visit_all(dirty) >= 1


def some_changes() -> bytes:
    """Records of a new file in /folder (inode 12), and of a directory that is removed."""
    raw = struct.pack("<H", 0o100600) + bytes(24) + struct.pack("<HII", 1, 2, 0x80000)
    raw = raw[:4] + struct.pack("<I", 2048) + raw[8:]
    return b"".join(
        (
            record(6, struct.pack("<I", 15) + raw.ljust(160, b"\0")),
            record(1, struct.pack("<IIHHI", 15, 0, 2, 0, 4000)),
            record(3, struct.pack("<II", 12, 15) + b"new"),
            record(5, struct.pack("<II", 2, 11) + b"lost+found"),
        )
    )


@pytest.mark.requires("mke2fs")
def test_right_fast_commit_in_an_image(work_copy: Path) -> None:
    area = fast_area(work_copy)
    with work_copy.open("r+b") as file:
        file.seek(area)
        file.write(commit_block(2, some_changes()))
    with open_source(work_copy) as source:
        reader = Ext4Reader(source)
        root = reader.inode(2)
        assert reader.lookup(root, b"lost+found") is None
        assert [entry.name for entry in reader.readdir(root)] == [b".", b"..", b"folder"]
        assert reader.lookup(reader.inode(12), b"new") == 15
        new = reader.inode(15)
        assert new.mode == 0o100600
        assert [tuple(extent) for extent in reader.extents(new)] == [(0, 2048, MAPPED, 4000 << 10)]
        assert root.links == 3
    assert visit_all(work_copy) == 5


@pytest.mark.requires("mke2fs")
def test_wrong_bits_in_fast_commits_of_an_image(work_copy: Path) -> None:
    records = some_changes()
    choice = random.Random(5)
    area = fast_area(work_copy)
    with work_copy.open("r+b", buffering=0) as file:
        for _ in range(200):
            damaged = bytearray(records)
            damaged[choice.randrange(len(damaged))] ^= 1 << choice.randrange(8)
            block = bytearray(commit_block(2, bytes(damaged)))  # its checksum is right
            if choice.random() < 0.2:
                block[choice.randrange(len(block))] ^= 1 << choice.randrange(8)
            file.seek(area)
            file.write(block)
            with contextlib.suppress(FormatError):
                assert visit_all(work_copy) >= 1


pieces = st.builds(
    lambda start, length, block, state: Piece(
        start, length, 0 if state == UNMAPPED else 100 * block + 1, state
    ),
    st.integers(0, 30), st.integers(1, 12), st.integers(0, 5),
    st.sampled_from([MAPPED, UNWRITTEN, UNMAPPED]),
)  # fmt: skip


def apply(blocks: dict[int, tuple[int, int]], piece: Piece) -> None:
    """A change of ranges, block by block."""
    for step in range(piece.length):
        if piece.state == UNMAPPED:
            blocks.pop(piece.logical + step, None)
        else:
            blocks[piece.logical + step] = (piece.physical + step, piece.state)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(pieces, max_size=6), st.lists(pieces, max_size=12), st.integers(0, 30),
    st.integers(0, 30),
)  # fmt: skip
def test_ranges_are_those_of_the_model(
    on_disk: list[Piece], changes: list[Piece], first: int, length: int
) -> None:
    base = [piece for piece in RangeChanges(on_disk)._pieces if piece.state != UNMAPPED]
    blocks: dict[int, tuple[int, int]] = {}
    for piece in (*on_disk, *changes):
        apply(blocks, piece)
    end = first + length
    overlapping = [
        piece for piece in base if piece.logical < end and piece.logical + piece.length > first
    ]
    merged = list(RangeChanges(changes).merge(iter(overlapping), first, end))
    found: dict[int, tuple[int, int]] = {}
    position = 0
    for piece in merged:
        assert piece.logical >= position
        position = piece.logical + piece.length
        apply(found, piece)
    for block in range(first, end):
        assert found.get(block) == blocks.get(block)


some_names = st.sampled_from([b"a", b"b", b"c", b"d"])
changes_of_names = st.builds(
    Name, st.sampled_from([TAG_CREAT, TAG_LINK, TAG_UNLINK]), st.just(2), st.integers(11, 14),
    some_names,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(some_names, st.integers(11, 14)), st.lists(changes_of_names, max_size=12),
    st.booleans(),
)  # fmt: skip
def test_names_are_those_of_the_model(
    on_disk: dict[bytes, int], changes: list[Name], created: bool
) -> None:
    base = [DirRecord(name, ino, 8, 12 * at + 12) for at, (name, ino) in enumerate(on_disk.items())]
    directory = DirectoryChanges(2, 77 if created else None)
    model = {} if created else dict(on_disk)
    for change in changes:
        directory.note(change)
        if change.tag == TAG_UNLINK:
            if model.get(change.name) == change.ino:
                del model[change.name]
        else:
            model.setdefault(change.name, change.ino)
    if created:
        model |= {b".": 2, b"..": 77}
    for name in (b"a", b"b", b"c", b"d", b".", b".."):
        found = directory.find(name, lambda name=name: on_disk.get(name))  # type: ignore[misc]
        assert found == model.get(name)

    def entries(cookie: int) -> list[DirRecord]:
        return list(
            directory.records(
                lambda at: iter([entry for entry in base if entry.next_cookie > at]),
                cookie,
                lambda _: 8,
            )
        )

    listed = entries(0)
    assert {entry.name: entry.ino for entry in listed} == model
    assert len(listed) == len(model)
    for at, entry in enumerate(listed):
        assert entries(entry.next_cookie) == listed[at + 1 :]


def test_fast_commits_are_bounded() -> None:
    link = record(4, struct.pack("<II", 2, 11) + b"name")
    block = commit_block(1, link * 200, 4096)
    rest = commit_block(1, link * 200, 4096, head=False)
    found = read_fast_commit([block, rest], 1, 256)
    assert found is not None
    assert found == FastCommit(1, 2, found.operations)
    many = (rest if index else block for index in range(10_000))
    with pytest.raises(FormatError, match="fast commits of more than"):
        read_fast_commit(many, 1, 256)
