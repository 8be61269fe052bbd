# SPDX-License-Identifier: Apache-2.0
"""rename(2) and renameat2(2)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from penstock.testing.posix.calls import EXCHANGE, NOREPLACE, WHITEOUT, opened, rename2
from penstock.testing.posix.registry import case, equal, fails, holds

NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)
"""POSIX leaves the choice, and XFS makes the other one."""


@case()
def file_moves(root: Path) -> None:
    """A renamed file is the same file under the new name alone."""
    (root / "old").write_bytes(b"x")
    ino = os.stat(root / "old").st_ino
    os.rename(root / "old", root / "new")
    fails(errno.ENOENT, os.stat, root / "old")
    equal(os.stat(root / "new").st_ino, ino)
    equal(os.listdir(root), ["new"])


@case()
def target_is_replaced(root: Path) -> None:
    """rename replaces a file; who has it open keeps it, with 0 links."""
    (root / "old").write_bytes(b"old")
    (root / "new").write_bytes(b"new")
    with opened(root / "new") as fd:
        os.rename(root / "old", root / "new")
        equal(os.fstat(fd).st_nlink, 0)
        equal(os.read(fd, 10), b"new")
    equal((root / "new").read_bytes(), b"old")
    equal(os.listdir(root), ["new"])


@case()
def onto_itself_changes_nothing(root: Path) -> None:
    """rename of a file onto itself, or onto another of its names, leaves both names."""
    (root / "one").write_bytes(b"x")
    os.link(root / "one", root / "two")
    os.rename(root / "one", root / "one")
    os.rename(root / "one", root / "two")
    equal(sorted(os.listdir(root)), ["one", "two"])
    equal(os.stat(root / "one").st_nlink, 2)


@case()
def missing_source_is_enoent(root: Path) -> None:
    """rename of nothing is ENOENT, and the target stays."""
    (root / "target").write_bytes(b"x")
    fails(errno.ENOENT, os.rename, root / "missing", root / "target")
    equal((root / "target").read_bytes(), b"x")


@case()
def kinds_do_not_mix(root: Path) -> None:
    """A file over a directory is EISDIR, a directory over a file ENOTDIR."""
    (root / "file").touch()
    (root / "directory").mkdir()
    fails(errno.EISDIR, os.rename, root / "file", root / "directory")
    fails(errno.ENOTDIR, os.rename, root / "directory", root / "file")


@case()
def directory_over_directory(root: Path) -> None:
    """A directory replaces an empty one; one that is not empty is ENOTEMPTY (or EEXIST)."""
    for name in ("moved", "empty", "full"):
        (root / name).mkdir()
    (root / "moved" / "file").touch()
    (root / "full" / "file").touch()
    fails(NOT_EMPTY, os.rename, root / "moved", root / "full")
    os.rename(root / "moved", root / "empty")
    equal(os.listdir(root / "empty"), ["file"])
    equal(sorted(os.listdir(root)), ["empty", "full"])


@case("dirlinks")
def counts_follow_directories(root: Path) -> None:
    """The link counts of parents follow directories that move, replace and change places."""
    for name in ("left/tree/below", "right/empty", "right/other"):
        (root / name).mkdir(parents=True)
    (root / "right" / "file").touch()

    def counts() -> tuple[int, int]:
        return os.stat(root / "left").st_nlink, os.stat(root / "right").st_nlink

    equal(counts(), (3, 4))
    rename2(root / "left" / "tree", root / "right" / "file", EXCHANGE)
    equal(counts(), (2, 5))
    os.rename(root / "right" / "file", root / "right" / "empty")
    equal(counts(), (2, 4))
    os.rename(root / "right" / "other", root / "left" / "moved")
    equal(counts(), (3, 3))


@case()
def directory_not_below_itself(root: Path) -> None:
    """A directory below itself is EINVAL; onto its own ancestor ENOTEMPTY (or EEXIST)."""
    (root / "a" / "b" / "c").mkdir(parents=True)
    fails(errno.EINVAL, os.rename, root / "a", root / "a" / "b" / "d")
    fails(errno.EINVAL, os.rename, root / "a", root / "a" / "b" / "c")
    fails(NOT_EMPTY, os.rename, root / "a" / "b" / "c", root / "a")


@case()
def moved_directory_knows_its_parent(root: Path) -> None:
    """After a move ``..`` is the new parent."""
    (root / "from" / "moved").mkdir(parents=True)
    (root / "to").mkdir()
    os.rename(root / "from" / "moved", root / "to" / "moved")
    equal(os.stat(root / "to" / "moved" / "..").st_ino, os.stat(root / "to").st_ino)


@case()
def open_file_moves_along(root: Path) -> None:
    """A file renamed while open is written through the open descriptor."""
    (root / "directory").mkdir()
    with opened(root / "old", os.O_CREAT | os.O_RDWR) as fd:
        os.rename(root / "old", root / "directory" / "new")
        os.write(fd, b"late")
    equal((root / "directory" / "new").read_bytes(), b"late")


@case()
def deep_tree_moves_whole(root: Path) -> None:
    """What lies below a renamed directory is found below its new name only."""
    (root / "old" / "a" / "b").mkdir(parents=True)
    (root / "old" / "a" / "b" / "file").write_bytes(b"x")
    holds((root / "old" / "a" / "b" / "file").exists(), "there before")
    os.rename(root / "old", root / "new")
    equal((root / "new" / "a" / "b" / "file").read_bytes(), b"x")
    fails(errno.ENOENT, os.stat, root / "old" / "a" / "b" / "file")


@case()
def symlink_itself_moves(root: Path) -> None:
    """rename of a symlink moves the symlink, and replaces one rather than what it points to."""
    (root / "target").write_bytes(b"t")
    (root / "link").symlink_to("target")
    os.rename(root / "link", root / "moved")
    equal(os.readlink(root / "moved"), "target")
    (root / "file").write_bytes(b"f")
    os.rename(root / "file", root / "moved")
    equal((root / "moved").read_bytes(), b"f")
    equal((root / "target").read_bytes(), b"t")


@case()
def noreplace(root: Path) -> None:
    """RENAME_NOREPLACE is EEXIST where the target exists, otherwise a rename."""
    (root / "old").write_bytes(b"old")
    (root / "new").write_bytes(b"new")
    fails(errno.EEXIST, rename2, root / "old", root / "new", NOREPLACE)
    equal((root / "new").read_bytes(), b"new")
    rename2(root / "old", root / "free", NOREPLACE)
    equal((root / "free").read_bytes(), b"old")


@case()
def exchange_files(root: Path) -> None:
    """RENAME_EXCHANGE swaps two files; ENOENT if one is missing."""
    (root / "one").write_bytes(b"1")
    (root / "two").write_bytes(b"2")
    rename2(root / "one", root / "two", EXCHANGE)
    equal(((root / "one").read_bytes(), (root / "two").read_bytes()), (b"2", b"1"))
    fails(errno.ENOENT, rename2, root / "one", root / "missing", EXCHANGE)


@case()
def exchange_file_and_directory(root: Path) -> None:
    """RENAME_EXCHANGE swaps a file and a full directory of different parents."""
    for name in ("left", "right"):
        (root / name).mkdir()
    (root / "left" / "tree" / "below").mkdir(parents=True)
    (root / "right" / "file").write_bytes(b"x")
    rename2(root / "left" / "tree", root / "right" / "file", EXCHANGE)
    equal((root / "left" / "tree").read_bytes(), b"x")
    equal(os.listdir(root / "right" / "file"), ["below"])
    equal(os.stat(root / "right" / "file" / "..").st_ino, os.stat(root / "right").st_ino)


@case("root", "whiteout")
def whiteout(root: Path) -> None:
    """RENAME_WHITEOUT leaves a character device 0:0 under the old name."""
    (root / "old").write_bytes(b"x")
    rename2(root / "old", root / "new", WHITEOUT)
    status = os.stat(root / "old")
    holds(stat.S_ISCHR(status.st_mode), "a character device")
    equal(status.st_rdev, 0)
    equal((root / "new").read_bytes(), b"x")


@case()
def contradicting_flags_are_einval(root: Path) -> None:
    """EXCHANGE with NOREPLACE or WHITEOUT, and unknown flags, are EINVAL."""
    (root / "one").touch()
    (root / "two").touch()
    for flags in (EXCHANGE | NOREPLACE, EXCHANGE | WHITEOUT, 1 << 20):
        fails(errno.EINVAL, rename2, root / "one", root / "two", flags)


@case()
def parents_times_change(root: Path) -> None:
    """A move changes mtime and ctime of both directories."""
    for name in ("from", "to"):
        (root / name).mkdir()
    (root / "from" / "file").touch()
    for name in ("from", "to"):
        os.utime(root / name, ns=(10**9, 10**9))
    os.rename(root / "from" / "file", root / "to" / "file")
    for name in ("from", "to"):
        holds(os.stat(root / name).st_mtime_ns > 10**9, f"new mtime of {name!r}")
