# SPDX-License-Identifier: Apache-2.0
"""Dirty images through ``penstock mount``: the tree is that of the kernel after its replay.

An image is caught while the kernel has it mounted. One copy the kernel mounts for writing, and so
replays; another penstock mounts, and leaves as it is, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.dirty import Work, dirty_image, fsync, settle, settle_files
from tests.support.images import copy_image, kernel_mount
from tests.support.kernelwork import work
from tests.support.oracle import Counts, Node, acls, assert_same, capture, counts
from tests.support.servings import penstock, serving

pytestmark = pytest.mark.requires("mke2fs", "kernel-ext4", "acl")

QUICK = "barrier=0"
"""The same log, without waiting for the disk below the image."""
JOURNAL_MAGIC = b"\xc0\x3b\x39\x98"


class View(NamedTuple):
    """All that one side says of an image."""

    tree: dict[bytes, Node]
    acls: str
    counts: Counts


def kernel_view(image: Path) -> View:
    """The view after the kernel has replayed a copy."""
    copy = copy_image(image, image.with_name(f"{image.name}.copy"))
    with kernel_mount(copy, image.with_name("kernel"), "noatime,barrier=0") as top:
        view = View(capture(top), acls(top), counts(top))
    copy.unlink()
    return view


def penstock_view(image: Path, options: str = "") -> View:
    """The view of a mount; the image is not changed by it."""
    before = _digest(image)
    with serving(image, image.with_name("penstock"), options) as served:
        top = served.path
        view = View(capture(top), acls(top), counts(top))
    assert _digest(image) == before
    return view


def _digest(image: Path) -> str:
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changes(top: Path) -> None:
    """Two transactions: all sorts of files, then changes to them that are only in the log."""
    work(top)
    settle(top)
    folder = top / "kernel"
    with (folder / "woven1").open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"changed" * 3000 + JOURNAL_MAGIC * 2048)
    for block in range(3):  # a block that begins as a block of the log does is escaped there
        with (folder / f"magic{block}").open("wb") as file:
            file.write(b"A" * 4096 * block + (JOURNAL_MAGIC + b"B" * 4092) * (block + 1) + b"end")
    (folder / "shrunk").write_text("anew")
    os.truncate(folder / "tree" / "size300001", 70_000)
    shutil.rmtree(folder / "tree" / "many")
    (folder / "names40").rename(folder / "names41")
    (folder / "acl" / "inherited").chmod(0o4711)
    os.chown(folder / "small900", 4_000_000, 5_000_000)
    os.utime(folder / "small1", ns=(-7, 2**33 * 10**9 + 1))
    os.setxattr(folder / "small59", "user.late", b"late" * 50)
    os.removexattr(folder / "attributes-1-900", "user.name0")
    for index in range(300):
        (folder / "indexed" / f"late{index}").write_text("late")
    settle(top)


def check(
    image: Path,
    what: Work,
    options: str,
    mount: str = "",
    *,
    size: int = 160,
    before: tuple[str, ...] = (),
) -> View:
    """Both views of a dirty image are the same; returns the kernel's."""
    words = ("-b", "4096", "-N", "8192", *options.split())
    mount = f"{QUICK},{mount}" if mount else QUICK
    dirty_image(image, what, options=words, mount=mount, size=size, before=before)
    expected, seen = kernel_view(image), penstock_view(image)
    assert_same(expected.tree, seen.tree)
    assert seen[1:] == expected[1:]
    return expected


def _as_it_lies(image: Path) -> dict[bytes, Node]:
    """The tree without the journal; empty where it cannot even be read."""
    with serving(image, image.with_name("penstock"), "norecovery") as served:
        try:
            return capture(served.path)
        except OSError:
            return {}


DIRTY = {
    "ordered": ("", ""),
    "ordered-1k": ("-b 1024", ""),
    "writeback-2k": ("-b 2048", "data=writeback"),
    "no-csum-32-bit": ("-O ^metadata_csum,^64bit -b 1024", ""),
    "checksummed-v1": ("-O ^metadata_csum -b 1024", "journal_checksum"),
    "small-log": ("-b 1024 -J size=4", ""),
    "ext3": ("-O ^extents,^64bit,^metadata_csum -b 1024", ""),
    "inline-ea-inode": ("-O inline_data,ea_inode -I 512", ""),
    "bigalloc": ("-O bigalloc -C 16384", ""),
    "meta-bg": ("-O meta_bg,^resize_inode -b 1024", ""),
    "orphan-file": ("-O orphan_file,metadata_csum_seed", ""),
}


@pytest.mark.parametrize("layout", DIRTY)
def test_tree_is_that_of_the_kernel(layout: str, tmp_path: Path) -> None:
    options, mount = DIRTY[layout]
    image = tmp_path / "dirty"
    expected = check(image, changes, options, mount)
    assert _as_it_lies(image) != expected.tree  # there was something to replay


@pytest.mark.parametrize(
    "options", ["-b 4096", "-b 1024 -O ^metadata_csum", "-b 2048 -O bigalloc,^metadata_csum"]
)
def test_data_in_the_log_by_every_data_path(options: str, tmp_path: Path) -> None:
    image = tmp_path / "dirty"
    expected = check(image, changes, options, "data=journal")
    for path in ("copy", "splice"):
        assert_same(expected.tree, penstock_view(image, f"datapath={path}").tree)


def test_files_with_journaled_data_by_every_data_path(tmp_path: Path) -> None:
    def what(top: Path) -> None:
        files = [top / ("logged" if index < 3 else "") / f"file{index}" for index in range(6)]
        for index, file in enumerate(files):
            file.write_bytes(bytes([index + 65]) * (400_000 + index))
        settle(top)
        for index, file in enumerate(files):
            with file.open("r+b") as opened:
                for place in range(0, 350_000, 65536):
                    opened.seek(place + index * 4096)
                    opened.write(b"new" * 1000 if place else JOURNAL_MAGIC * 1024)
        settle(top)

    image = tmp_path / "dirty"
    inherited = ("mkdir /logged", "set_inode_field /logged flags 0x84000")  # chattr +j
    expected = check(image, what, "", size=64, before=inherited)
    flags = [expected.tree[b"/logged/file1"].flags, expected.tree[b"/file4"].flags]
    assert flags == [0x84000, 0x80000]
    for path in ("copy", "splice"):
        assert_same(expected.tree, penstock_view(image, f"datapath={path}").tree)


def test_deleted_files_that_are_open(tmp_path: Path) -> None:
    """What waits on the orphan list is no part of the tree; the kernel gives its space back."""

    def what(top: Path) -> None:
        work(top)
        settle(top)
        opened = []
        for name in ("woven0", "fragments", "small1"):
            opened.append(os.open(top / "kernel" / name, os.O_RDONLY))
            (top / "kernel" / name).unlink()
        os.truncate(top / "kernel" / "far", 0)
        settle(top)
        image = top.with_name("live")
        copy_image(top.with_suffix(".live"), image)
        for fd in opened:
            os.close(fd)

    image = tmp_path / "img"
    dirty_image(image, what, options=("-b", "1024", "-N", "8192"), mount=QUICK, size=160)
    caught = tmp_path / "live"
    expected, seen = kernel_view(caught), penstock_view(caught)
    assert_same(expected.tree, seen.tree)
    assert seen.acls == expected.acls
    assert seen.counts.blocks == expected.counts.blocks
    assert seen.counts.bfree < expected.counts.bfree
    assert seen.counts.ffree == expected.counts.ffree - 3


def test_copies_in_the_middle_of_work(tmp_path: Path) -> None:
    """Nothing was synced: whatever the log holds, both see the same."""
    copies = []

    def what(top: Path) -> None:
        for index in range(3):
            folder = top / f"round{index}"
            folder.mkdir()
            work(folder)
            subprocess.run(["sync", "-f", folder / "kernel" / "generation"], check=True)
            for number in range(200):
                (folder / f"unsynced{number}").write_bytes(os.urandom(5000))
            copies.append(copy_image(top.with_suffix(".live"), tmp_path / f"copy{index}"))

    words = ("-b", "1024", "-N", "16384", "-J", "size=8")
    dirty_image(tmp_path / "last", what, options=words, mount=QUICK, size=256)
    for image in copies:
        expected, seen = kernel_view(image), penstock_view(image)
        assert len(expected.tree) > 600
        assert_same(expected.tree, seen.tree)
        assert seen[1:] == expected[1:]


def _less_directories(tree: dict[bytes, Node]) -> dict[bytes, Node]:
    """A tree without what the kernel's replay of fast commits leaves to chance: times, links and
    blocks of directories."""
    return {
        path: node._replace(links=0, blocks512=0, atime=0, mtime=0, ctime=0)
        if stat.S_ISDIR(node.mode)
        else node
        for path, node in tree.items()
    }


@pytest.mark.parametrize("block", ["1024", "4096"])
def test_fast_commits(block: str, tmp_path: Path) -> None:
    live: dict[bytes, int] = {}

    def what(top: Path) -> None:
        work(top)
        os.sync()
        folder = top / "kernel"
        for index in range(8):
            (folder / f"new{index}").write_bytes(os.urandom(10_000 * index))
            fsync(folder / f"new{index}")
        (folder / "new1").rename(folder / "moved")
        (folder / "new2").unlink()
        os.link(folder / "new3", folder / "indexed" / "linked")
        os.truncate(folder / "new4", 4096)
        with (folder / "far").open("r+b") as file:
            file.seek(1 << 31)
            file.write(b"changed" * 999)
        with (folder / "fragments").open("r+b") as file:
            file.seek(99_999)
            file.write(b"changed" * 999)
        settle_files(top)
        live.update({path: node.blocks512 for path, node in capture(top).items()})

    image = tmp_path / "dirty"
    options = ("-b", block, "-N", "8192", "-O", "fast_commit")
    dirty_image(image, what, options=options, mount=QUICK, size=160)
    described = penstock("info", "--json", image).stdout
    assert '"fast_commit": true' in described
    expected, seen = kernel_view(image), penstock_view(image)
    ignore = frozenset({"blocks512"})  # the kernel's replay counts the blocks of extent trees wrong
    assert_same(_less_directories(expected.tree), _less_directories(seen.tree), ignore)
    assert {path: node.blocks512 for path, node in seen.tree.items()} == live
    assert seen.acls == expected.acls
