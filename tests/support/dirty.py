# SPDX-License-Identifier: Apache-2.0
"""Dirty images: copies of mounted ones, with a journal to replay, and the views of them.

Needs root, loop devices and the kernel's ext4.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from penstock.formats.errors import FormatError
from penstock.formats.ext4.journal import ReplayResult
from penstock.formats.ext4.reader import Ext4Reader
from tests.support.ext4tree import Facts, mounted_tree, reader_tree
from tests.support.images import copy_image, debugfs, kernel_mount, make_image, open_source

__all__ = [
    "Work",
    "assert_same",
    "dirty_image",
    "fsync",
    "kernel_tree",
    "penstock_tree",
    "settle",
    "settle_files",
]

Work = Callable[[Path], None]


def fsync(path: Path) -> None:
    """fsync(2) of a file or a directory."""
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
    fsync(top)


def settle_files(top: Path) -> None:
    """As :func:`settle`, where a fast commit will do (that of a directory is always a full one)."""
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink() and path.is_file():
                fsync(path)


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
