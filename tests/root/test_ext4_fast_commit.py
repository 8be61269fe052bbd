# SPDX-License-Identifier: Apache-2.0
"""Fast commits that the kernel wrote, seen as the kernel sees them after it replayed them.

Left out is in what the kernel's replay is not faithful: it sets the times of directories to the
present, does not count their subdirectories, and builds extent trees of another size. Links of
directories, and all of the images that it refuses although nothing is wrong with them, are compared
with the live filesystem instead.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from penstock.formats.crc import raw_crc32c
from penstock.formats.errors import FormatError
from penstock.formats.ext4 import jbd2
from penstock.formats.ext4.journalfile import open_journal
from penstock.formats.ext4.reader import Ext4Reader
from tests.support.dirty import (
    Work,
    dirty_image,
    fsync,
    kernel_tree,
    penstock_tree,
    settle_files,
)
from tests.support.ext4tree import Facts, mounted_tree
from tests.support.images import (
    copy_image,
    open_source,
    peek,
    poke,
)

pytestmark = pytest.mark.requires("kernel-ext4", "mke2fs")
FAST = ("-O", "fast_commit")


def comparable(tree: dict[bytes, Facts]) -> dict[bytes, Facts]:
    """A tree less what the kernel's replay of fast commits sets to the present, or gets wrong."""
    return {
        path: facts._replace(links=0, size=0, blocks512=0, atime=0, mtime=0, ctime=0)
        if stat.S_ISDIR(facts.mode)
        else facts._replace(blocks512=0)
        for path, facts in tree.items()
    }


def directory_links(tree: dict[bytes, Facts]) -> dict[bytes, int]:
    """The link counts of the directories."""
    return {path: facts.links for path, facts in tree.items() if stat.S_ISDIR(facts.mode)}


def check_fast(tmp_path: Path, work: Work, *options: str, commits: int) -> Path:
    """Fast commits of ``work``, which ends with one: seen as the kernel sees them."""
    live: dict[bytes, Facts] = {}

    def observed(top: Path) -> None:
        work(top)
        live.update(mounted_tree(top))

    image = dirty_image(tmp_path / "dirty", observed, options=(*FAST, *options), mount="noatime")
    expected = kernel_tree(image)
    assert expected is not None
    seen, journal = penstock_tree(image)
    assert comparable(seen) == comparable(expected)
    assert directory_links(seen) == directory_links(live)
    found = journal.fast_commit
    assert (found.commits if found is not None else 0) >= commits
    return image


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
    fsync(folder / "new")
    (folder / "moved").rename(folder / "moved2")
    fsync(folder / "moved2")
    (folder / "gone").unlink()
    (folder / "base2").unlink()
    os.link(folder / "new", folder / "new2")
    fsync(folder / "new")
    (folder / "sub").mkdir(mode=0o751)
    (folder / "sub" / "inner").write_text("inner")
    (folder / "sub" / "subsub").mkdir()
    fsync(folder / "sub" / "inner")
    (folder / "under").rename(folder / "over")
    fsync(folder / "over")
    (folder / "old").rmdir()
    (folder / "gone").write_text("here again")
    (folder / "file").chmod(0o4711)
    os.chown(folder / "file", 70000, 80000)
    os.utime(folder / "file", ns=(5, 2**33 * 10**9 + 6))
    fsync(folder / "gone")
    fsync(folder / "file")


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
    fsync(folder / "big")
    with (folder / "sparse").open("wb") as file:
        for index in range(12):
            file.seek(index * 70_000)
            file.write(b"island")
    fsync(folder / "sparse")
    with (folder / "base").open("ab") as file:
        file.write(os.urandom(100_000))
    fsync(folder / "base")


def work_in_large_directory(top: Path) -> None:
    folder = top / "folder"
    folder.mkdir()
    for index in range(600):
        (folder / f"name{index}-{'x' * 30}").write_text(str(index))
    os.sync()
    for index in range(0, 600, 97):
        (folder / f"name{index}-{'x' * 30}").unlink()
        (folder / f"new{index}").write_text("new")
        fsync(folder / f"new{index}")
    (folder / "new97").rename(folder / f"name96-{'x' * 30}")
    (folder / "new0").unlink()
    fsync(folder / "new194")


def work_with_many_ranges(top: Path) -> None:
    folder = base_of_fast_commits(top)
    with (folder / "deep").open("wb") as file:
        for index in range(300):
            file.seek(index * 16384)
            file.write(b"x")
        os.fsync(file.fileno())
        for index in range(0, 300, 7):
            file.seek(index * 16384 + 4096)
            file.write(b"yy")
        os.fsync(file.fileno())
    path = os.fspath(folder / "big")
    subprocess.run(["fallocate", "-z", "-o", "4096", "-l", "16384", path], check=True)
    fsync(folder / "big")


@pytest.mark.parametrize("block", ["1024", "4096"])
@pytest.mark.parametrize(
    "work",
    [work_with_names, work_with_ranges, work_with_many_ranges, work_in_large_directory],
    ids=lambda work: work.__name__,
)
def test_fast_commits(tmp_path: Path, work: Work, block: str) -> None:
    check_fast(tmp_path, work, "-b", block, commits=2)


def test_fast_commits_without_checksums(tmp_path: Path) -> None:
    options = ("-O", "fast_commit,^metadata_csum,^64bit", "-I", "128")
    check_fast(tmp_path, work_with_names, *options, commits=3)


def test_fast_commits_of_inline_data(tmp_path: Path) -> None:
    def work(top: Path) -> None:
        folder = base_of_fast_commits(top)
        for length in (5, 50, 30):
            (folder / "file").write_text("a" * length)
            fsync(folder / "file")
        (folder / "sub").mkdir()
        (folder / "sub" / "small").write_text("small")
        fsync(folder / "sub" / "small")

    check_fast(tmp_path, work, "-b", "4096", "-O", "inline_data", commits=1)


def live_view(tmp_path: Path, work: Work) -> tuple[dict[bytes, Facts], dict[bytes, Facts], Path]:
    """After ``work``, which ends with a fast commit: the live tree, the reader's, and the image."""
    live: dict[bytes, Facts] = {}

    def observed(top: Path) -> None:
        work(top)
        live.update(mounted_tree(top))

    options = (*FAST, "-b", "4096")
    image = dirty_image(tmp_path / "dirty", observed, options=options, mount="noatime")
    seen, journal = penstock_tree(image)
    assert journal.fast_commit is not None
    return live, seen, image


def test_full_area_is_read(tmp_path: Path) -> None:
    def work(top: Path) -> None:
        folder = base_of_fast_commits(top)
        for index in range(15):
            (folder / "file").write_text("x" * index)
            fsync(folder / "file")

    live, seen, image = live_view(tmp_path, work)
    assert seen[b"/folder/file"] == live[b"/folder/file"]
    assert kernel_tree(image) is None, "6.18 looks for a block after the last one"


def test_unlinked_file_that_was_synced(tmp_path: Path) -> None:
    def work(top: Path) -> None:
        folder = base_of_fast_commits(top)
        with (folder / "file").open("r+b") as file:
            (folder / "file").unlink()
            file.write(b"changed")
            file.flush()
            os.fsync(file.fileno())
        (folder / "last").write_text("last")
        fsync(folder / "last")

    live, seen, image = live_view(tmp_path, work)
    assert comparable(seen) == comparable(live)
    assert kernel_tree(image) is None, "6.18 does not replay an inode without links"


def test_new_file_has_no_attributes_of_the_old(tmp_path: Path) -> None:
    def work(top: Path) -> None:
        folder = base_of_fast_commits(top)
        for name in ("gone", "under"):
            os.setxattr(folder / name, "user.secret", b"of the old file")
        os.sync()
        numbers = {(folder / name).stat().st_ino for name in ("gone", "under")}
        for name in ("gone", "under"):
            (folder / name).unlink()
        for name in ("new", "new2"):
            (folder / name).write_text(name)
            fsync(folder / name)
        assert {(folder / name).stat().st_ino for name in ("new", "new2")} == numbers

    live, seen, _ = live_view(tmp_path, work)
    assert comparable(seen) == comparable(live)
    assert not seen[b"/folder/new"].xattrs


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
                fsync(path)
        (folder / "last").write_text("last")
        settle_files(top)

    check_fast(tmp_path, work, "-b", choice.choice(["1024", "4096"]), commits=0)


def fast_blocks(image: Path) -> list[int]:
    """Addresses of the fast commit blocks of an image."""
    with open_source(image) as source:
        reader = Ext4Reader(source, replay=False)
        log = open_journal(reader._volume, reader._inodes)
        _, places = jbd2.parse_journal_superblock(log.read(0), log.block_size, log.count)
        return [log.address(index) for index in range(places.fast_first, places.fast_last)]


def _record(tag: int, *values: int, name: bytes = b"") -> bytes:
    body = struct.pack(f"<{len(values)}I", *values) + name
    return struct.pack("<HH", tag, len(body)) + body


def fast_commit_block(tid: int, *records: bytes, features: int = 0, size: int = 4096) -> bytes:
    """A fast commit that fills one block."""
    body = _record(9, features, tid) + b"".join(records)
    body += struct.pack("<HHI", 8, size - len(body) - 4, tid)
    return (body + struct.pack("<I", raw_crc32c(0, body))).ljust(size, b"\0")


@pytest.fixture(scope="module")
def fast_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with some fast commits."""
    place = tmp_path_factory.mktemp("fast")
    return check_fast(place, work_with_names, "-b", "4096", commits=3)


@pytest.mark.parametrize(
    ("block", "offset", "data"),
    [
        pytest.param(0, 0, bytes(12), id="no head"),
        pytest.param(0, 4, b"\1", id="head: features"),
        pytest.param(0, 8, b"\xff", id="head: transaction"),
        pytest.param(0, 12, b"\x20", id="first commit: unknown record"),
        pytest.param(0, 14, b"\xff\xff", id="first commit: length"),
        pytest.param(0, 100, b"\xff", id="first commit: content"),
        pytest.param(0, 296, bytes(3800), id="first commit: torn"),
        pytest.param(1, 10, b"\xff", id="second commit: content"),
        pytest.param(1, 0, bytes(4096), id="second commit: gone"),
        pytest.param(2, 2, b"\xff\xff", id="third commit: length"),
        pytest.param(3, 0, bytes(4096), id="fourth commit: gone"),
    ],
)
def test_damaged_fast_commits(
    tmp_path: Path, fast_image: Path, block: int, offset: int, data: bytes
) -> None:
    image = copy_image(fast_image, tmp_path / "damaged")
    poke(image, fast_blocks(image)[block] + offset, data)
    expected = kernel_tree(image)
    if expected is None:
        with pytest.raises(FormatError, match="journal"):
            penstock_tree(image)
    else:
        seen, _ = penstock_tree(image)
        assert comparable(seen) == comparable(expected)


GOOD = _record(4, 12, 13, name=b"good")


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([GOOD], id="good"),
        pytest.param([_record(4, 12, 5000, name=b"x"), GOOD], id="link to a free inode"),
        pytest.param([_record(4, 6000, 13, name=b"x"), GOOD], id="link in a free inode"),
        pytest.param([_record(4, 12, 1 << 31, name=b"x"), GOOD], id="link to no inode"),
        pytest.param([_record(4, 12, 14, name=b"base"), GOOD], id="link to a name that exists"),
        pytest.param([_record(5, 12, 5000, name=b"base"), GOOD], id="unlink of a free inode"),
        pytest.param([_record(5, 6000, 13, name=b"base"), GOOD], id="unlink in a free inode"),
        pytest.param([_record(5, 12, 13, name=b"none"), GOOD], id="unlink of no name"),
        pytest.param([_record(3, 12, 5000, name=b"x"), GOOD], id="create a free inode"),
        pytest.param([_record(1, 5000, 0, 1, 3000), GOOD], id="range of a free inode"),
        pytest.param([_record(2, 5000, 0, 1), GOOD], id="no range of a free inode"),
        pytest.param([_record(6, 1 << 31, *[0] * 40), GOOD], id="inode out of range"),
    ],
)
def test_made_up_fast_commits(tmp_path: Path, fast_image: Path, records: list[bytes]) -> None:
    image = copy_image(fast_image, tmp_path / "made-up")
    (tid,) = struct.unpack("<8xI", peek(image, fast_blocks(image)[0], 12))
    for address in fast_blocks(image):
        poke(image, address, bytes(4096))
    poke(image, fast_blocks(image)[0], fast_commit_block(tid, *records))
    expected = kernel_tree(image)
    if expected is None:
        with pytest.raises(FormatError, match="journal"):
            penstock_tree(image)
    else:
        # Link counts come with INODE records, which the kernel logs with each change of a name.
        seen, _ = penstock_tree(image)
        assert {path: facts.ino for path, facts in seen.items()} == {
            path: facts.ino for path, facts in expected.items()
        }
        assert b"/folder/good" in seen
