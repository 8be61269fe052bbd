# SPDX-License-Identifier: Apache-2.0
"""Times: what sets them, what moves them, what leaves them alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from penstock.testing.posix.calls import (
    UTIME_NOW,
    UTIME_OMIT,
    fallocate,
    next_tick,
    opened,
    utimens,
)
from penstock.testing.posix.registry import case, equal, fails, holds

OLD = 10**18
"""A time in 2001, nanoseconds."""
LATE = 15 * 10**17
"""A time in 2017: nothing of today is older."""


def _aged(path: Path) -> Path:
    """Set both times back."""
    os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    return path


def _moved(root: Path, path: Path, change: Callable[[], object]) -> tuple[bool, bool, bool]:
    """Which of atime, mtime and ctime a change moves."""
    _aged(path)
    next_tick(root)
    before = os.lstat(path)
    change()
    after = os.lstat(path)
    return (
        after.st_atime_ns != before.st_atime_ns,
        after.st_mtime_ns != before.st_mtime_ns,
        after.st_ctime_ns != before.st_ctime_ns,
    )


NONE = (False, False, False)
CHANGED = (False, False, True)
WRITTEN = (False, True, True)


@case()
def omitted_times_stay(root: Path) -> None:
    """UTIME_OMIT leaves one time and sets the other; both omitted change nothing, ctime either."""
    path = _aged_file(root)
    utimens(path, (5, 7), (0, UTIME_OMIT))
    equal((os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns), (5_000_000_007, OLD))
    utimens(path, (0, UTIME_OMIT), (6, 8))
    equal((os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns), (5_000_000_007, 6_000_000_008))
    next_tick(root)
    before = os.stat(path).st_ctime_ns
    utimens(path, (0, UTIME_OMIT), (0, UTIME_OMIT))
    equal(os.stat(path).st_ctime_ns, before, "ctime")


def _aged_file(root: Path) -> Path:
    path = root / "file"
    path.write_bytes(b"content")
    return _aged(path)


@case()
def one_time_is_the_present(root: Path) -> None:
    """UTIME_NOW sets one time to the present and leaves the other to be set or left."""
    path = _aged_file(root)
    utimens(path, (0, UTIME_NOW), (0, UTIME_OMIT))
    holds(os.stat(path).st_atime_ns > LATE, "atime is the present")
    equal(os.stat(path).st_mtime_ns, OLD)
    utimens(path, (3, 0), (0, UTIME_NOW))
    equal(os.stat(path).st_atime_ns, 3 * 10**9)
    holds(os.stat(path).st_mtime_ns > LATE, "mtime is the present")


@case()
def impossible_times_are_einval(root: Path) -> None:
    """Nanoseconds of a second or more, or below 0, are EINVAL and change nothing."""
    path = _aged_file(root)
    for nanoseconds in (10**9, -1):
        fails(errno.EINVAL, utimens, path, (0, nanoseconds), (0, 0))
        fails(errno.EINVAL, utimens, path, (0, 0), (0, nanoseconds))
    equal(os.stat(path).st_mtime_ns, OLD)


@case()
def times_by_descriptor(root: Path) -> None:
    """futimens sets the times of an open file, one opened for reading and one without a name."""
    path = _aged_file(root)
    with opened(path) as fd:
        os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
        equal(os.stat(path).st_mtime_ns, 2_000_000_002)
        path.unlink()
        os.utime(fd, ns=(3, 4))
        equal((os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns), (3, 4))


@case()
def times_of_directories_and_special_files(root: Path) -> None:
    """Directories and fifos keep the times they are given."""
    (root / "directory").mkdir()
    os.mkfifo(root / "fifo")
    for name in ("directory", "fifo"):
        os.utime(root / name, ns=(OLD + 1, OLD + 2))
        status = os.stat(root / name)
        equal((status.st_atime_ns, status.st_mtime_ns), (OLD + 1, OLD + 2), name)


@case()
def times_through_symlinks(root: Path) -> None:
    """utimensat follows a symlink, unless told not to: then its target's times stay."""
    path = _aged_file(root)
    (root / "link").symlink_to("file")
    os.utime(root / "link", ns=(7, 7), follow_symlinks=False)
    equal(os.stat(path).st_mtime_ns, OLD)
    equal(os.lstat(root / "link").st_mtime_ns, 7)
    os.utime(root / "link", ns=(8, 8))
    equal((os.stat(path).st_mtime_ns, os.lstat(root / "link").st_mtime_ns), (8, 7))


@case()
def writing_moves_mtime_and_ctime(root: Path) -> None:
    """write moves mtime and ctime; a write of no bytes moves nothing."""
    path = _aged_file(root)
    with opened(path, os.O_RDWR) as fd:
        equal(_moved(root, path, lambda: os.pwrite(fd, b"x", 0)), WRITTEN)
        equal(_moved(root, path, lambda: os.pwrite(fd, b"", 0)), NONE)


@case()
def truncating_moves_mtime_and_ctime(root: Path) -> None:
    """ftruncate and O_TRUNC move mtime and ctime where the size changes."""
    path = _aged_file(root)
    with opened(path, os.O_RDWR) as fd:
        equal(_moved(root, path, lambda: os.ftruncate(fd, 3)), WRITTEN)
        equal(_moved(root, path, lambda: os.ftruncate(fd, 9)), WRITTEN)
    equal(_moved(root, path, lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))), WRITTEN)


@case()
def opening_and_closing_move_nothing(root: Path) -> None:
    """Opening for writing, fsync and closing leave all times of what is not written."""
    path = _aged_file(root)

    def look() -> None:
        with opened(path, os.O_RDWR) as fd:
            os.fsync(fd)

    equal(_moved(root, path, look), NONE)


@case()
def reading_leaves_mtime_and_ctime(root: Path) -> None:
    """Reading a file, listing a directory and following a symlink leave mtime and ctime."""
    path = _aged_file(root)
    (root / "directory").mkdir()
    (root / "link").symlink_to("file")
    for each, look in (
        (path, path.read_bytes),
        (root / "directory", lambda: os.listdir(root / "directory")),
        (root / "link", lambda: os.readlink(root / "link")),
    ):
        equal(_moved(root, each, look)[1:], (False, False), each.name)


@case()
def chmod_and_links_move_ctime_alone(root: Path) -> None:
    """chmod, link and unlink of another name move ctime, not mtime nor atime."""
    path = _aged_file(root)
    for name, change in (
        ("chmod", lambda: os.chmod(path, 0o600)),
        ("link", lambda: os.link(path, root / "other")),
        ("unlink", lambda: os.unlink(root / "other")),
    ):
        equal(_moved(root, path, change), CHANGED, name)


@case()
def utime_moves_ctime(root: Path) -> None:
    """Setting a time to what it was moves ctime."""
    path = _aged_file(root)
    equal(_moved(root, path, lambda: os.utime(path, ns=(OLD, OLD))), CHANGED)


@case("root")
def chown_moves_ctime_alone(root: Path) -> None:
    """chown moves ctime alone."""
    path = _aged_file(root)
    equal(_moved(root, path, lambda: os.chown(path, 12, 34)), CHANGED)


@case("xattr")
def attributes_move_ctime_alone(root: Path) -> None:
    """Setting and removing an extended attribute move ctime alone; reading it moves nothing."""
    path = _aged_file(root)
    equal(_moved(root, path, lambda: os.setxattr(path, "user.name", b"v")), CHANGED, "set")
    equal(_moved(root, path, lambda: os.getxattr(path, "user.name")), NONE, "got")
    equal(_moved(root, path, lambda: os.removexattr(path, "user.name")), CHANGED, "removed")


@case("holes")
def fallocate_moves_times_if_the_size_changes(root: Path) -> None:
    """fallocate that makes a file longer moves mtime and ctime."""
    path = _aged_file(root)
    with opened(path, os.O_RDWR) as fd:
        equal(_moved(root, path, lambda: fallocate(fd, 0, 0, 100_000)), WRITTEN)


@case()
def renaming_leaves_the_files_mtime(root: Path) -> None:
    """rename leaves mtime and atime of what is renamed, and moves mtime and ctime of its
    directory."""
    path = _aged_file(root)
    (root / "sub").mkdir()
    os.rename(path, root / "sub" / "file")
    moved = root / "sub" / "file"
    equal(os.stat(moved).st_mtime_ns, OLD)
    directory = root / "sub"
    change = lambda: os.rename(moved, directory / "again")  # noqa: E731 - as its neighbours
    equal(_moved(root, directory, change)[1:], (True, True))


@case()
def failed_changes_move_nothing(root: Path) -> None:
    """What fails moves no time of the directory."""
    (root / "sub").mkdir()
    (root / "sub" / "file").touch()

    def fail() -> None:
        fails(errno.EEXIST, os.mkdir, root / "sub" / "file")
        fails(errno.ENOENT, os.unlink, root / "sub" / "missing")
        fails(errno.EEXIST, os.symlink, "x", root / "sub" / "file")
        fails(errno.ENOENT, os.rename, root / "sub" / "missing", root / "sub" / "new")

    equal(_moved(root, root / "sub", fail), NONE)


@case()
def every_change_of_names_moves_the_directory(root: Path) -> None:
    """mkdir, rmdir, symlink, mkfifo, link, rename and unlink each move mtime and ctime of the
    directory."""
    place = root / "place"
    place.mkdir()
    (root / "file").touch()
    for name, change in (
        ("mkdir", lambda: os.mkdir(place / "d")),
        ("rmdir", lambda: os.rmdir(place / "d")),
        ("symlink", lambda: os.symlink("x", place / "s")),
        ("mkfifo", lambda: os.mkfifo(place / "f")),
        ("link", lambda: os.link(root / "file", place / "l")),
        ("rename", lambda: os.rename(place / "l", place / "m")),
        ("replace", lambda: os.rename(place / "m", place / "s")),
        ("unlink", lambda: os.unlink(place / "s")),
    ):
        equal(_moved(root, place, change)[1:], (True, True), name)
