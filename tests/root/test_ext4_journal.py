# SPDX-License-Identifier: Apache-2.0
"""Journals that the kernel wrote, replayed in memory: the view equals the kernel's own replay.

A dirty image is a copy of a mounted one, taken after a sync. The kernel mounts, and so replays, one
copy; the reader reads another. Damage is put into logs in the same way: the reader refuses what the
kernel refuses, and otherwise sees the same tree.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.formats.errors import FormatError
from penstock.formats.ext4 import jbd2
from penstock.formats.ext4 import journal as journal_module
from penstock.formats.ext4.fastcommit import FastCommit
from penstock.formats.ext4.journal import ReplayResult
from penstock.formats.ext4.journalfile import open_journal
from penstock.formats.ext4.reader import Ext4Reader
from tests.support.ext4tree import Facts, mounted_tree, reader_tree
from tests.support.images import copy_image, debugfs, kernel_mount, make_image, open_source, poke

pytestmark = pytest.mark.requires("kernel-ext4", "mke2fs")

Work = Callable[[Path], None]
MAGIC = jbd2.ESCAPED_BYTES


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def settle(top: Path) -> None:
    """Commit what was done, with the data of all files.

    Not by sync(2), which also writes the blocks in place: then there is nothing to replay.
    """
    settle_files(top)
    _fsync(top)


def settle_files(top: Path) -> None:
    """As :func:`settle`, where a fast commit will do (that of a directory is always a full one)."""
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                _fsync(path)


def dirty_image(
    image: Path,
    work: Work,
    *,
    options: tuple[str, ...] = (),
    mount: str = "",
    size: int = 64,
    before: tuple[str, ...] = (),
) -> Path:
    """A copy of an image, caught while it was mounted and its journal dirty.

    Args:
        image: the copy to make.
        work: what to do in the mounted filesystem; it ends with what makes it durable.
        options: for mke2fs.
        mount: options for mount.
        size: MiB.
        before: debugfs commands for the image before it is mounted.
    """
    live = make_image(image.with_suffix(".live"), size=size << 20, options=options)
    if before:
        debugfs(live, *before)
    words = "commit=300" + (f",{mount}" if mount else "")
    with kernel_mount(live, image.with_suffix(".mnt"), words) as top:
        work(top)
        copy_image(live, image)
    live.unlink()
    return image


def kernel_tree(image: Path) -> dict[bytes, Facts] | None:
    """The tree as the kernel sees it after it replayed a copy; None: it refuses the mount."""
    copy = copy_image(image, image.with_name(f"{image.name}.kernel"))
    try:
        with kernel_mount(copy, image.with_suffix(".kmnt"), "noatime") as top:
            return mounted_tree(top)
    except RuntimeError:
        return None
    finally:
        copy.unlink()


def penstock_tree(image: Path) -> tuple[dict[bytes, Facts], ReplayResult]:
    """The tree as the reader sees it, and what it found in the journal."""
    with open_source(image) as source:
        reader = Ext4Reader(source)
        assert reader.journal is not None
        return reader_tree(reader), reader.journal


def unreplayed_tree(image: Path) -> dict[bytes, Facts] | None:
    """The tree as it lies on disk; None: it cannot be read."""
    with open_source(image) as source:
        try:
            return reader_tree(Ext4Reader(source, replay=False))
        except FormatError:
            return None


def assert_same(image: Path) -> ReplayResult:
    """The reader's view of a dirty image is the kernel's, and not that of the disk."""
    expected = kernel_tree(image)
    assert expected is not None
    seen, journal = penstock_tree(image)
    assert seen == expected
    assert unreplayed_tree(image) != expected
    return journal


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
            _fsync(folder)

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


FAST = ("-O", "fast_commit")


def without_directory_times(tree: dict[bytes, Facts]) -> dict[bytes, Facts]:
    """A tree less what the kernel's replay of fast commits sets to the present, or gets wrong."""
    return {
        path: facts._replace(links=0, size=0, blocks512=0, atime=0, mtime=0, ctime=0)
        if stat.S_ISDIR(facts.mode)
        else facts
        for path, facts in tree.items()
    }


def directory_links(tree: dict[bytes, Facts]) -> dict[bytes, int]:
    """The link counts of the directories."""
    return {path: facts.links for path, facts in tree.items() if stat.S_ISDIR(facts.mode)}


def check_fast(tmp_path: Path, work: Work, *options: str, commits: int = 1) -> FastCommit:
    """Fast commits of ``work``, which ends with one: seen as the kernel sees them."""
    live: dict[bytes, Facts] = {}

    def observed(top: Path) -> None:
        work(top)
        live.update(mounted_tree(top))

    image = dirty_image(tmp_path / "dirty", observed, options=(*FAST, *options), mount="noatime")
    expected = kernel_tree(image)
    assert expected is not None
    seen, journal = penstock_tree(image)
    assert without_directory_times(seen) == without_directory_times(expected)
    assert directory_links(seen) == directory_links(live)
    assert journal.fast_commit is not None
    assert journal.fast_commit.commits >= commits
    return journal.fast_commit


def base_of_fast_commits(top: Path) -> Path:
    """Something to change, committed in full."""
    folder = top / "folder"
    folder.mkdir()
    for name in ("base", "gone", "moved", "over", "under", "file"):
        (folder / name).write_text(name)
    os.link(folder / "base", folder / "base2")
    (folder / "big").write_bytes(os.urandom(1 << 20))
    (folder / "old").mkdir()
    os.sync()
    return folder


def work_with_names(top: Path) -> None:
    folder = base_of_fast_commits(top)
    (folder / "new").write_text("new file")
    _fsync(folder / "new")
    (folder / "moved").rename(folder / "moved2")
    _fsync(folder / "moved2")
    (folder / "gone").unlink()
    (folder / "base2").unlink()
    os.link(folder / "new", folder / "new2")
    _fsync(folder / "new")
    (folder / "sub").mkdir(mode=0o751)
    (folder / "sub" / "inner").write_text("inner")
    (folder / "sub" / "subsub").mkdir()
    _fsync(folder / "sub" / "inner")
    (folder / "under").rename(folder / "over")
    _fsync(folder / "over")
    (folder / "old").rmdir()
    (folder / "gone").write_text("here again")
    (folder / "file").chmod(0o4711)
    os.chown(folder / "file", 70000, 80000)
    os.utime(folder / "file", ns=(5, 2**33 * 10**9 + 6))
    _fsync(folder / "gone")
    _fsync(folder / "file")


def work_with_ranges(top: Path) -> None:
    folder = base_of_fast_commits(top)
    with (folder / "big").open("r+b") as file:
        fd = file.fileno()
        os.truncate(fd, 300_000)
        os.fsync(fd)
        os.posix_fallocate(fd, 2_000_000, 100_000)
        os.pwrite(fd, b"HELLO", 2_050_000)
        os.fsync(fd)
        os.pwrite(fd, b"ABC", 5_000_000)
        os.fsync(fd)
    path = os.fspath(folder / "big")
    subprocess.run(["fallocate", "-p", "-o", "8192", "-l", "16384", path], check=True)
    _fsync(folder / "big")
    with (folder / "sparse").open("wb") as file:
        for index in range(12):
            file.seek(index * 70_000)
            file.write(b"island")
    _fsync(folder / "sparse")
    with (folder / "base").open("ab") as file:
        file.write(os.urandom(100_000))
    _fsync(folder / "base")


def work_in_large_directory(top: Path) -> None:
    folder = top / "folder"
    folder.mkdir()
    for index in range(600):
        (folder / f"name{index}-{'x' * 30}").write_text(str(index))
    os.sync()
    for index in range(0, 600, 97):
        (folder / f"name{index}-{'x' * 30}").unlink()
        (folder / f"new{index}").write_text("new")
        _fsync(folder / f"new{index}")
    (folder / "new97").rename(folder / f"name96-{'x' * 30}")
    (folder / "new0").unlink()
    _fsync(folder / "new194")


@pytest.mark.parametrize("block", ["1024", "4096"])
@pytest.mark.parametrize(
    "work", [work_with_names, work_with_ranges, work_in_large_directory], ids=lambda w: w.__name__
)
def test_fast_commits(tmp_path: Path, work: Work, block: str) -> None:
    check_fast(tmp_path, work, "-b", block, commits=3)


def test_fast_commits_without_checksums(tmp_path: Path) -> None:
    options = ("-O", "fast_commit,^metadata_csum,^64bit", "-I", "128")
    check_fast(tmp_path, work_with_names, *options, commits=3)


@pytest.mark.parametrize("seed", range(6))
def test_fast_commits_at_random(tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)

    def work(top: Path) -> None:
        folder = base_of_fast_commits(top)
        names = [f"n{index}" for index in range(8)]
        for _ in range(60):
            path = folder / choice.choice(names)
            other = folder / choice.choice(names)
            what = choice.randrange(8)
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                if what <= 2:
                    with path.open("r+b" if path.exists() else "wb") as file:
                        file.seek(choice.randrange(40) * 4096)
                        file.write(os.urandom(choice.randrange(1, 20_000)))
                elif what == 3:
                    path.unlink()
                elif what == 4:
                    path.rename(other)
                elif what == 5:
                    os.link(path, other)
                elif what == 6:
                    os.truncate(path, choice.randrange(100_000))
                else:
                    (folder / f"d{choice.randrange(4)}").mkdir()
            if choice.random() < 0.4 and path.exists():
                _fsync(path)
        (folder / "last").write_text("last")
        settle_files(top)

    check_fast(tmp_path, work, "-b", choice.choice(["1024", "4096"]), commits=1)
