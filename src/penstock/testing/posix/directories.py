# SPDX-License-Identifier: Apache-2.0
"""Directories: making, removing, listing while they change."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from penstock.testing.posix.calls import Dirent, getdents, opened
from penstock.testing.posix.registry import case, equal, fails, holds

MANY = 600
_KINDS = {
    stat.S_IFDIR: 4,
    stat.S_IFREG: 8,
    stat.S_IFLNK: 10,
    stat.S_IFIFO: 1,
}


def _rest(fd: int, size: int = 4096) -> list[Dirent]:
    """All entries from the present position on."""
    entries: list[Dirent] = []
    while part := getdents(fd, size):
        entries += part
        holds(len(entries) < 100 * MANY, "an end of the listing")
    return entries


def _fill(directory: Path, count: int = MANY) -> set[bytes]:
    names = {f"name-{number:04}".encode() for number in range(count)}
    for name in names:
        os.close(os.open(bytes(directory) + b"/" + name, os.O_CREAT | os.O_WRONLY, 0o644))
    return names


@case()
def made_directory_is_empty(root: Path) -> None:
    """A new directory is one, with the mode that was asked for, and has no names."""
    os.mkdir(root / "directory", 0o750)
    status = os.stat(root / "directory")
    holds(stat.S_ISDIR(status.st_mode), "a directory")
    equal(stat.S_IMODE(status.st_mode), 0o750)
    equal(os.listdir(root / "directory"), [])


@case("dirlinks")
def directories_count_their_subdirectories(root: Path) -> None:
    """A new directory has two links and is one more of its parent's; removed, one less."""
    before = os.stat(root).st_nlink
    (root / "one" / "below").mkdir(parents=True)
    equal(os.stat(root / "one" / "below").st_nlink, 2)
    equal(os.stat(root / "one").st_nlink, 3)
    equal(os.stat(root).st_nlink, before + 1)
    os.rmdir(root / "one" / "below")
    equal(os.stat(root / "one").st_nlink, 2)
    os.rmdir(root / "one")
    equal(os.stat(root).st_nlink, before)


@case()
def mkdir_over_a_name_is_eexist(root: Path) -> None:
    """mkdir over a file, a directory or a dangling symlink is EEXIST."""
    (root / "file").touch()
    (root / "directory").mkdir()
    (root / "link").symlink_to("nowhere")
    for name in ("file", "directory", "link"):
        fails(errno.EEXIST, os.mkdir, root / name)


@case()
def rmdir_rules(root: Path) -> None:
    """rmdir: ENOTEMPTY, ENOTDIR of a file, EINVAL of ``.``, and what is removed is gone."""
    (root / "full" / "below").mkdir(parents=True)
    (root / "file").touch()
    fails(errno.ENOTEMPTY, os.rmdir, root / "full")
    fails(errno.ENOTDIR, os.rmdir, root / "file")
    fails(errno.EINVAL, os.rmdir, f"{root}/full/.")
    fails(errno.ENOTEMPTY, os.rmdir, f"{root}/full/..")
    os.rmdir(root / "full" / "below")
    os.rmdir(root / "full")
    fails(errno.ENOENT, os.stat, root / "full")


@case()
def removed_directory_is_dead(root: Path) -> None:
    """In a removed directory that is open nothing can be listed or made: ENOENT."""
    (root / "gone").mkdir()
    with opened(root / "gone", os.O_DIRECTORY) as fd:
        os.rmdir(root / "gone")
        equal(os.fstat(fd).st_nlink, 0)
        fails(errno.ENOENT, os.open, "file", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        fails(errno.ENOENT, os.mkdir, "directory", dir_fd=fd)
        fails(errno.ENOENT, getdents, fd)


@case()
def dot_and_dotdot(root: Path) -> None:
    """``.`` and ``..`` are listed once each and lead where they should."""
    (root / "directory").mkdir()
    with opened(root / "directory", os.O_DIRECTORY) as fd:
        listed = {entry.name: entry.ino for entry in _rest(fd)}
    equal(set(listed), {b".", b".."})
    equal(listed[b"."], os.stat(root / "directory").st_ino)
    equal(os.stat(root / "directory" / "..").st_ino, os.stat(root).st_ino)


@case()
def listing_tells_kind_and_inode(root: Path) -> None:
    """Each entry's type and inode number are what lstat says."""
    (root / "file").touch()
    (root / "directory").mkdir()
    (root / "link").symlink_to("file")
    os.mkfifo(root / "fifo")
    with opened(root, os.O_DIRECTORY) as fd:
        entries = [entry for entry in _rest(fd) if not entry.name.startswith(b".")]
    equal(len(entries), 4)
    for entry in entries:
        status = os.lstat(root / os.fsdecode(entry.name))
        equal(entry.ino, status.st_ino)
        equal(entry.type, _KINDS[stat.S_IFMT(status.st_mode)])


@case()
def many_names_are_listed_once(root: Path) -> None:
    """Each of many names is listed exactly once, read in pieces of any size."""
    names = _fill(root)
    for size in (512, 4096, 65536):
        with opened(root, os.O_DIRECTORY) as fd:
            listed = [e.name for e in _rest(fd, size) if e.name not in {b".", b".."}]
        equal(len(listed), len(names), f"entries in pieces of {size} bytes")
        equal(set(listed), names)


@case()
def listing_survives_removal(root: Path) -> None:
    """While a directory is read and its names removed as they are seen, none is left out."""
    names = _fill(root)
    seen: list[bytes] = []
    with opened(root, os.O_DIRECTORY) as fd:
        while part := getdents(fd, 1024):
            for entry in part:
                if entry.name not in {b".", b".."}:
                    seen.append(entry.name)
                    os.unlink(entry.name, dir_fd=fd)
    equal(len(seen), len(set(seen)), "names seen once")
    equal(set(seen), names)
    equal(os.listdir(root), [])


@case()
def listing_survives_creation(root: Path) -> None:
    """While names are created, those that were there all the time are listed exactly once."""
    names = _fill(root, 200)
    seen: list[bytes] = []
    number = 0
    with opened(root, os.O_DIRECTORY) as fd:
        while (part := getdents(fd, 1024)) and number < 10 * MANY:
            for entry in part:
                seen.append(entry.name)
                if number < MANY:
                    os.close(os.open(f"new-{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
                number += 1
    old = [name for name in seen if name in names]
    equal(len(old), len(names))
    equal(set(old), names)


@case()
def seekdir_returns_to_a_position(root: Path) -> None:
    """A position taken from an entry is where the listing goes on, in another descriptor too."""
    _fill(root, 100)
    with opened(root, os.O_DIRECTORY) as fd, opened(root, os.O_DIRECTORY) as other:
        entries = _rest(fd)
        for index in (1, 50, 99):
            for each in (fd, other):
                os.lseek(each, entries[index].next, os.SEEK_SET)
                equal([e.name for e in _rest(each)], [e.name for e in entries[index + 1 :]])


@case()
def position_survives_removal(root: Path) -> None:
    """A position stays good when the names around it are removed."""
    _fill(root, 100)
    with opened(root, os.O_DIRECTORY) as fd:
        entries = [e for e in _rest(fd) if e.name not in {b".", b".."}]
        for entry in (*entries[30:60], *entries[80:90]):
            os.unlink(entry.name, dir_fd=fd)
        os.lseek(fd, entries[45].next, os.SEEK_SET)
        expected = [e.name for e in (*entries[60:80], *entries[90:])]
        equal([e.name for e in _rest(fd) if e.name not in {b".", b".."}], expected)


@case()
def rewinding_sees_what_is_new(root: Path) -> None:
    """After going back to the start, names made and removed meanwhile are right."""
    (root / "old").touch()
    with opened(root, os.O_DIRECTORY) as fd:
        equal({e.name for e in _rest(fd)}, {b".", b"..", b"old"})
        (root / "new").touch()
        (root / "old").unlink()
        os.lseek(fd, 0, os.SEEK_SET)
        equal({e.name for e in _rest(fd)}, {b".", b"..", b"new"})


@case()
def directory_times_change_with_names(root: Path) -> None:
    """Making and removing a name changes a directory's mtime and ctime; writing does not."""
    directory = root / "directory"
    directory.mkdir()

    def changed() -> bool:
        touched = os.stat(directory).st_mtime_ns != 10**9
        os.utime(directory, ns=(10**9, 10**9))
        return touched

    changed()
    (directory / "file").touch()
    holds(changed(), "creating changes mtime")
    (directory / "file").write_bytes(b"x")
    holds(not changed(), "writing to a file in it does not")
    os.link(directory / "file", directory / "link")
    holds(changed(), "linking changes mtime")
    (directory / "file").unlink()
    holds(changed(), "removing changes mtime")


@case()
def directory_cannot_be_read_or_written(root: Path) -> None:
    """read of a directory is EISDIR; so is opening one for writing, and truncating it."""
    with opened(root, os.O_RDONLY) as fd:
        fails(errno.EISDIR, os.read, fd, 10)
    fails(errno.EISDIR, os.open, root, os.O_WRONLY)
    fails(errno.EISDIR, os.truncate, root, 0)


@case("root")
def setgid_directory_hands_on_its_group(root: Path) -> None:
    """What is made in a set-group-ID directory has its group; directories also the bit."""
    os.chown(root, -1, 12345)
    root.chmod(stat.S_ISGID | 0o755)
    (root / "file").touch()
    (root / "directory").mkdir()
    (root / "link").symlink_to("file")
    equal({os.lstat(root / n).st_gid for n in ("file", "directory", "link")}, {12345})
    holds(os.stat(root / "directory").st_mode & stat.S_ISGID, "the bit is inherited")
    holds(not os.stat(root / "file").st_mode & stat.S_ISGID, "files do not get it")


@case()
def deep_paths(root: Path) -> None:
    """A hundred directories deep, paths and relative steps work."""
    path = root
    for _ in range(100):
        path /= "d"
        path.mkdir()
    (path / "file").write_bytes(b"deep")
    equal((path / "file").read_bytes(), b"deep")
    up = path
    for _ in range(100):
        up /= ".."
    equal(os.stat(up).st_ino, os.stat(root).st_ino)
