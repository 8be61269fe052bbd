# SPDX-License-Identifier: Apache-2.0
"""Journals that the kernel wrote, replayed in memory: the view equals the kernel's own replay.

A dirty image is a copy of a mounted one, taken after a sync. The kernel mounts, and so replays, one
copy; the reader reads another. Damage is put into logs in the same way: the reader refuses what the
kernel refuses, and otherwise sees the same tree.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from penstock.formats.crc import raw_crc32c
from penstock.formats.errors import BadChecksum, FormatError
from penstock.formats.ext4 import jbd2
from penstock.formats.ext4 import journal as journal_module
from penstock.formats.ext4.journalfile import open_journal
from penstock.formats.ext4.reader import Ext4Reader
from tests.support.dirty import (
    assert_same,
    dirty_image,
    fsync,
    kernel_tree,
    penstock_tree,
    settle,
)
from tests.support.images import (
    copy_image,
    open_source,
    peek,
    poke,
)

pytestmark = pytest.mark.requires("kernel-ext4", "mke2fs")
MAGIC = jbd2.ESCAPED_BYTES


def work_of_all_sorts(top: Path) -> None:
    """Three transactions with new, changed and removed files; removed directories are revoked."""
    (top / "a").mkdir()
    (top / "gone").mkdir()
    for index in range(120):
        (top / "a" / f"file{index}").write_text(f"{index}" * index)
        (top / "gone" / f"name{index}-{'n' * 60}").symlink_to(f"{'t' * 80}{index}")
    settle(top)
    for index in range(0, 120, 2):
        (top / "a" / f"file{index}").unlink()
    shutil.rmtree(top / "gone")
    (top / "b").mkdir()
    (top / "b" / "escaped").write_bytes(MAGIC + b"rest")
    (top / "b" / "random").write_bytes(os.urandom(300_000))
    os.setxattr(top / "b" / "random", "user.long", b"x" * 500)
    settle(top)
    with (top / "a" / "file11").open("r+b") as file:
        file.seek(100_000)
        file.write(MAGIC * 2000)
    (top / "a" / "file13").rename(top / "renamed")
    os.mknod(top / "device", 0o20600, os.makedev(300, 70000))
    for index in range(60):
        (top / "b" / f"late{index}").write_text("late")
    settle(top)


PLAIN = ("-O", "^metadata_csum,^64bit")
FORMATS = [
    pytest.param(("-b", "4096"), "", id="4k-v3"),
    pytest.param(("-b", "1024"), "", id="1k-v3"),
    pytest.param(("-b", "2048", "-O", "^64bit"), "", id="2k-v3-32bit"),
    pytest.param(("-b", "1024", *PLAIN), "", id="1k-no-checksum-32bit"),
    pytest.param(("-b", "4096", "-O", "^metadata_csum"), "", id="4k-no-checksum-64bit"),
    pytest.param(("-b", "1024", *PLAIN), "journal_checksum", id="1k-v1"),
    pytest.param(("-b", "4096"), "journal_async_commit,data=writeback", id="4k-v3-async"),
    pytest.param(("-b", "1024", *PLAIN), "journal_async_commit,data=writeback", id="1k-v1-async"),
    pytest.param(("-b", "4096"), "data=journal", id="4k-data-journal"),
    pytest.param(("-b", "1024"), "data=journal", id="1k-data-journal"),
    pytest.param(("-b", "1024", *PLAIN), "data=journal", id="1k-data-journal-no-checksum"),
    pytest.param(("-b", "4096", "-O", "bigalloc"), "", id="bigalloc"),
    pytest.param(("-b", "1024", "-O", "meta_bg,^resize_inode"), "", id="meta-bg"),
    pytest.param(("-b", "4096", "-O", "inline_data", "-I", "256"), "", id="inline-data"),
    pytest.param(("-b", "1024", "-O", "^extent,^64bit"), "", id="block-maps"),
    pytest.param(("-b", "4096", "-O", "orphan_file,metadata_csum_seed"), "", id="orphan-file"),
]


@pytest.mark.parametrize(("options", "mount"), FORMATS)
def test_view_is_that_of_the_kernel(tmp_path: Path, options: tuple[str, ...], mount: str) -> None:
    image = dirty_image(tmp_path / "dirty", work_of_all_sorts, options=options, mount=mount)
    journal = assert_same(image)
    assert journal.transactions >= 3
    assert len(journal.map) > 20
    assert not journal.warnings
    escaped = [block for block, (_, flag) in journal.map.items() if flag]
    assert len(escaped) >= 2 if "data=journal" in mount else not escaped


def test_files_with_journaled_data(tmp_path: Path) -> None:
    def work(top: Path) -> None:
        file = top / "journaled" / "file"
        file.write_bytes(b"A" * 50_000)
        (top / "ordinary").write_bytes(b"A" * 50_000)
        settle(top)
        for path in (file, top / "ordinary"):
            with path.open("r+b") as opened:
                opened.write(b"B" * 8192 + MAGIC + b"C" * 8188 + MAGIC * 1024)
        settle(top)

    # As by chattr +j, which the new file inherits; that command needs more rights than mounting.
    before = ("mkdir journaled", "sif journaled flags 0x84000")
    # With delayed allocation the kernel leaves the flag aside.
    image = dirty_image(
        tmp_path / "dirty", work, options=("-b", "4096"), mount="nodelalloc", before=before
    )
    journal = assert_same(image)
    assert sum(flag for _, flag in journal.map.blocks.values()) == 2


def wraps(image: Path) -> bool:
    """Whether the log of a dirty image goes on from its end at its beginning."""
    with open_source(image) as source:
        reader = Ext4Reader(source)
        assert reader.journal is not None
        log = open_journal(reader._volume, reader._inodes)
        raw, _ = jbd2.parse_journal_superblock(log.read(0), log.block_size, log.count)
        before = {log.address(index) for index in range(raw.first, raw.start)}
        return any(address in before for address, _ in reader.journal.map.values())


@pytest.mark.parametrize("features", ["", "fast_commit", "^metadata_csum,^64bit"])
def test_log_that_wraps_around(tmp_path: Path, features: str) -> None:
    def work(top: Path) -> None:
        for index in range(90):
            folder = top / f"folder{index}"
            folder.mkdir()
            for name in range(12):
                (folder / f"{name}").symlink_to("t" * 200)  # never a fast commit
            fsync(folder)

    options: tuple[str, ...] = ("-b", "1024", "-J", "size=1")
    if features == "fast_commit":
        options = ("-b", "1024", "-J", "size=2")
    if features:
        options += ("-O", features)
    image = dirty_image(tmp_path / "dirty", work, options=options)
    assert_same(image)
    assert wraps(image)


def work_with_reused_blocks(top: Path) -> None:
    """Directory blocks, logged, freed, and then used for file data that is not logged."""
    for index in range(60):
        (top / f"folder{index}").mkdir()
    settle(top)
    for index in range(60):
        (top / f"folder{index}").rmdir()
    settle(top)
    with (top / "big").open("wb") as file:
        while True:
            try:
                file.write(b"data" * 16384)
            except OSError:
                break
    settle(top)


def test_revoked_blocks_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = dirty_image(
        tmp_path / "dirty", work_with_reused_blocks, options=("-b", "1024"), size=16
    )
    assert_same(image)
    expected, _ = penstock_tree(image)
    monkeypatch.setattr(journal_module, "_revoked", lambda *_: {})
    without, _ = penstock_tree(image)
    assert without[b"/big"].content != expected[b"/big"].content


def test_aborted_journal_is_warned_of(tmp_path: Path) -> None:
    image = dirty_image(tmp_path / "dirty", work_of_all_sorts, options=("-b", "1024", *PLAIN))
    with open_source(image) as source:
        reader = Ext4Reader(source)
        place = open_journal(reader._volume, reader._inodes).address(0)
    poke(image, place + 0x20, struct.pack(">i", -5))
    _, journal = penstock_tree(image)
    assert journal.warnings == ("the journal was aborted with error -5: run e2fsck",)
    assert_same(image)


class LogBlock(NamedTuple):
    """A block of the log that is not a copy."""

    address: int
    kind: int
    tid: int


class DirtyLog(NamedTuple):
    """A dirty image, and where the parts of its journal are."""

    image: Path
    block_size: int
    superblock: int
    blocks: list[LogBlock]
    checksums: jbd2.Checksums

    def of(self, kind: int) -> list[int]:
        """Addresses of the blocks of one kind, in the order of the log."""
        return [block.address for block in self.blocks if block.kind == kind]

    def flip(self, address: int) -> None:
        """Invert the bits of a byte."""
        poke(self.image, address, bytes([peek(self.image, address, 1)[0] ^ 0xFF]))

    def set_superblock(self, offset: int, value: int) -> None:
        """Change a field of the journal superblock, which keeps a good checksum."""
        poke(self.image, self.superblock + offset, struct.pack(">I", value))
        data = bytearray(peek(self.image, self.superblock, 1024))
        data[0xFC:0x100] = bytes(4)
        if data[0x50]:
            poke(
                self.image,
                self.superblock + 0xFC,
                struct.pack(">I", raw_crc32c(0xFFFFFFFF, bytes(data))),
            )

    def set_commit_time(self, address: int, seconds: int) -> None:
        """Change the time of a commit block, which then has a bad checksum (where it has one)."""
        poke(self.image, address + 0x30, struct.pack(">Q", seconds))


def dirty_log(image: Path) -> DirtyLog:
    """Find the parts of the journal of a dirty image whose log has not gone round."""
    with open_source(image) as source:
        reader = Ext4Reader(source)
        log = open_journal(reader._volume, reader._inodes)
        raw, places = jbd2.parse_journal_superblock(log.read(0), log.block_size, log.count)
        blocks = []
        for index in range(raw.start, places.last):
            magic, kind, tid = jbd2.HEADER.unpack_from(log.read(index))
            if magic == jbd2.MAGIC and kind in {jbd2.DESCRIPTOR, jbd2.COMMIT, jbd2.REVOKE}:
                blocks.append(LogBlock(log.address(index), kind, tid))
        checksums = jbd2.Checksums(raw.feature_incompat, raw.uuid)
        return DirtyLog(image, log.block_size, log.address(0), blocks, checksums)


Damage = Callable[[DirtyLog], None]


DAMAGES: dict[str, Damage] = {
    "none": lambda _: None,
    "last commit block zeroed": lambda log: poke(
        log.image, log.of(jbd2.COMMIT)[-1], bytes(log.block_size)
    ),
    "first commit block zeroed": lambda log: poke(
        log.image, log.of(jbd2.COMMIT)[0], bytes(log.block_size)
    ),
    "last commit block: checksum": lambda log: log.flip(log.of(jbd2.COMMIT)[-1] + 0x11),
    "first commit block: checksum": lambda log: log.flip(log.of(jbd2.COMMIT)[0] + 0x11),
    "last commit block: checksum size": lambda log: log.flip(log.of(jbd2.COMMIT)[-1] + 0x0D),
    "last commit block: end not zero": lambda log: log.flip(log.of(jbd2.COMMIT)[-1] + 900),
    "last commit block: of the past": lambda log: log.set_commit_time(
        log.of(jbd2.COMMIT)[-1], 1000
    ),
    "last commit block: of the future": lambda log: log.set_commit_time(
        log.of(jbd2.COMMIT)[-1], 1 << 40
    ),
    "last commit block: type": lambda log: log.flip(log.of(jbd2.COMMIT)[-1] + 7),
    "last commit block: transaction": lambda log: log.flip(log.of(jbd2.COMMIT)[-1] + 11),
    "first descriptor: a tag": lambda log: log.flip(log.of(jbd2.DESCRIPTOR)[0] + 15),
    "first descriptor: end": lambda log: log.flip(log.of(jbd2.DESCRIPTOR)[0] + log.block_size - 1),
    "last descriptor: end": lambda log: log.flip(log.of(jbd2.DESCRIPTOR)[-1] + log.block_size - 1),
    "last descriptor: end, commit of the past": lambda log: (
        log.flip(log.of(jbd2.DESCRIPTOR)[-1] + log.block_size - 1),
        log.set_commit_time(log.of(jbd2.COMMIT)[-1], 1000),
    )[0],
    "last descriptor zeroed": lambda log: poke(
        log.image, log.of(jbd2.DESCRIPTOR)[-1], bytes(log.block_size)
    ),
    "first descriptor zeroed": lambda log: poke(
        log.image, log.of(jbd2.DESCRIPTOR)[0], bytes(log.block_size)
    ),
    "revoke block: end": lambda log: log.flip(log.of(jbd2.REVOKE)[0] + log.block_size - 1),
    "revoke block: a record": lambda log: log.flip(log.of(jbd2.REVOKE)[0] + 17),
    "revoke block: size": lambda log: log.flip(log.of(jbd2.REVOKE)[0] + 13),
    "superblock: checksum": lambda log: log.flip(log.superblock + 0xFC),
    "superblock: magic": lambda log: log.flip(log.superblock),
    "superblock: block size": lambda log: log.set_superblock(0x0C, 512),
    "superblock: length": lambda log: log.set_superblock(0x10, 1 << 30),
    "superblock: too short": lambda log: log.set_superblock(0x10, 600),
    "superblock: first block": lambda log: log.set_superblock(0x14, 0),
    "superblock: later transaction": lambda log: log.set_superblock(0x18, 1 << 20),
    "superblock: clean": lambda log: log.set_superblock(0x1C, 0),
    "superblock: start outside": lambda log: log.set_superblock(0x1C, 1 << 30),
    "superblock: incompat features": lambda log: log.set_superblock(0x28, 0x80),
    "superblock: two checksums": lambda log: log.set_superblock(0x28, 0x18),
    "superblock: ro_compat features": lambda log: log.set_superblock(0x2C, 1),
}
LOGS = {
    "v3": (("-b", "1024"), ""),
    "v3-async": (("-b", "1024"), "journal_async_commit,data=writeback"),
    "v1": (("-b", "1024", *PLAIN), "journal_checksum"),
    "v1-async": (("-b", "1024", *PLAIN), "journal_async_commit,data=writeback"),
    "none": (("-b", "1024", *PLAIN), ""),
}


def work_of_damaged_log(top: Path) -> None:
    """A small log with all kinds of blocks: some transactions, one of which revokes."""
    (top / "gone").mkdir()
    settle(top)
    for index in range(3):
        (top / f"file{index}").write_text(f"file{index}")
        settle(top)
    (top / "gone").rmdir()
    (top / "kept").mkdir()
    settle(top)
    (top / "last").write_text("last")
    settle(top)


@pytest.fixture(scope="module")
def damaged_logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Dirty images of each kind of checksums."""
    place = tmp_path_factory.mktemp("logs")
    return {
        name: dirty_image(place / name, work_of_damaged_log, options=options, mount=mount, size=8)
        for name, (options, mount) in LOGS.items()
    }


@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_judged_as_by_the_kernel(
    tmp_path: Path, damaged_logs: dict[str, Path], kind: str, damage: str
) -> None:
    log = dirty_log(copy_image(damaged_logs[kind], tmp_path / "damaged"))
    DAMAGES[damage](log)
    expected = kernel_tree(log.image)
    if expected is None:
        with pytest.raises(FormatError, match="journal"):
            penstock_tree(log.image)
    else:
        assert penstock_tree(log.image)[0] == expected


@pytest.mark.parametrize("kind", ["v3", "v3-async", "v1", "v1-async"])
@pytest.mark.parametrize("which", [0, -1])
def test_damaged_copy_is_judged_as_by_the_kernel(
    tmp_path: Path, damaged_logs: dict[str, Path], kind: str, which: int
) -> None:
    log = dirty_log(copy_image(damaged_logs[kind], tmp_path / "damaged"))
    log.flip(log.of(jbd2.DESCRIPTOR)[which] + log.block_size + 100)
    expected = kernel_tree(log.image)
    if expected is None:
        with pytest.raises(BadChecksum, match="journal"):
            penstock_tree(log.image)
    else:
        assert penstock_tree(log.image)[0] == expected
