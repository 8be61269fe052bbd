# SPDX-License-Identifier: Apache-2.0
"""Journals that the kernel wrote, replayed in memory: the view equals the kernel's own replay.

A dirty image is a copy of a mounted one, taken after a sync. The kernel mounts, and so replays, one
copy; the reader reads another. Damage is put into logs in the same way: the reader refuses what the
kernel refuses, and otherwise sees the same tree.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.formats.errors import FormatError
from penstock.formats.ext4 import jbd2
from penstock.formats.ext4.journal import ReplayResult
from penstock.formats.ext4.reader import Ext4Reader
from tests.support.ext4tree import Facts, mounted_tree, reader_tree
from tests.support.images import copy_image, kernel_mount, make_image, open_source

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
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                _fsync(path)
    _fsync(top)


def dirty_image(
    image: Path, work: Work, *, options: tuple[str, ...] = (), mount: str = "", size: int = 64
) -> Path:
    """A copy of an image, caught while it was mounted and its journal dirty.

    Args:
        image: the copy to make.
        work: what to do in the mounted filesystem; it ends with what makes it durable.
        options: for mke2fs.
        mount: options for mount.
        size: MiB.
    """
    live = make_image(image.with_suffix(".live"), size=size << 20, options=options)
    words = "commit=300" + (f",{mount}" if mount else "")
    with kernel_mount(live, image.with_suffix(".mnt"), words) as top:
        work(top)
        copy_image(live, image)
    live.unlink()
    return image


def kernel_tree(image: Path) -> dict[bytes, Facts] | None:
    """The tree as the kernel sees it after it replayed a copy; None: it refuses the mount."""
    copy = copy_image(image, image.with_suffix(".kernel"))
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
