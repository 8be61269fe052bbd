# SPDX-License-Identifier: Apache-2.0
"""File handles, inode flags, and what statx tells."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from penstock.testing.posix.calls import (
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    birth_time_ns,
    file_handle,
    inode_flags,
    open_handle,
    opened,
    set_inode_flags,
    syncfs,
)
from penstock.testing.posix.registry import case, equal, fails, holds


@case("handles")
def handle_outlives_the_name(root: Path) -> None:
    """A handle opens its file after a rename, and again after another name took its place."""
    (root / "file").write_bytes(b"content")
    (root / "sub").mkdir()
    handle = file_handle(root / "file")
    os.rename(root / "file", root / "sub" / "moved")
    (root / "file").write_bytes(b"another")
    with opened(root, os.O_DIRECTORY) as mount:
        fd = open_handle(mount, handle)
        try:
            equal(os.read(fd, 10), b"content")
            equal(os.fstat(fd).st_ino, os.stat(root / "sub" / "moved").st_ino)
        finally:
            os.close(fd)


@case("handles")
def handle_of_a_removed_file_is_stale(root: Path) -> None:
    """The handle of a file that is gone is ESTALE, of one that is gone and made again as well."""
    (root / "file").write_bytes(b"content")
    handle = file_handle(root / "file")
    (root / "file").unlink()
    with opened(root, os.O_DIRECTORY) as mount:
        fails(errno.ESTALE, open_handle, mount, handle)
        (root / "file").write_bytes(b"again")
        fails(errno.ESTALE, open_handle, mount, handle)


@case("handles")
def handles_of_directories(root: Path) -> None:
    """A handle opens a directory, with its names and its parent."""
    (root / "directory" / "below").mkdir(parents=True)
    handle = file_handle(root / "directory")
    with opened(root, os.O_DIRECTORY) as mount:
        fd = open_handle(mount, handle, os.O_DIRECTORY)
        try:
            equal(os.listdir(fd), ["below"])
            equal(os.stat("..", dir_fd=fd).st_ino, os.stat(root).st_ino)
        finally:
            os.close(fd)


@case("handles")
def handles_are_the_files(root: Path) -> None:
    """Two names of a file have one handle, two files have two."""
    (root / "one").touch()
    (root / "two").touch()
    os.link(root / "one", root / "link")
    holds(file_handle(root / "one") != file_handle(root / "two"), "different handles")
    with opened(root, os.O_DIRECTORY) as mount:
        fd = open_handle(mount, file_handle(root / "link"))
        equal(os.fstat(fd).st_ino, os.stat(root / "one").st_ino)
        os.close(fd)


@case("flags", "root")
def immutable_files(root: Path) -> None:
    """An immutable file is EPERM to write, truncate, link, rename and remove, to root too; it can
    be read."""
    path = root / "file"
    path.write_bytes(b"content")
    with opened(path) as fd:
        before = inode_flags(fd)
        set_inode_flags(fd, before | FS_IMMUTABLE_FL)
        try:
            holds(inode_flags(fd) & FS_IMMUTABLE_FL, "the flag is told")
            fails(errno.EPERM, os.open, path, os.O_WRONLY)
            fails(errno.EPERM, os.truncate, path, 0)
            fails(errno.EPERM, os.link, path, root / "other")
            fails(errno.EPERM, os.rename, path, root / "moved")
            fails(errno.EPERM, os.unlink, path)
            fails(errno.EPERM, os.chmod, path, 0o600)
            equal(path.read_bytes(), b"content")
        finally:
            set_inode_flags(fd, before)
    path.unlink()


@case("flags", "root")
def append_only_files(root: Path) -> None:
    """An append-only file is only appended to: writing, truncating and removing are EPERM."""
    path = root / "file"
    path.write_bytes(b"start")
    with opened(path) as fd:
        before = inode_flags(fd)
        set_inode_flags(fd, before | FS_APPEND_FL)
        try:
            fails(errno.EPERM, os.open, path, os.O_WRONLY)
            fails(errno.EPERM, os.truncate, path, 0)
            fails(errno.EPERM, os.unlink, path)
            with opened(path, os.O_WRONLY | os.O_APPEND) as appending:
                os.write(appending, b"+end")
        finally:
            set_inode_flags(fd, before)
    equal(path.read_bytes(), b"start+end")


@case("flags", "root")
def immutable_directories(root: Path) -> None:
    """In an immutable directory no name is made, removed or renamed; files in it are written."""
    place = root / "place"
    place.mkdir()
    (place / "file").write_bytes(b"x")
    with opened(place, os.O_DIRECTORY) as fd:
        before = inode_flags(fd)
        set_inode_flags(fd, before | FS_IMMUTABLE_FL)
        try:
            refused = (errno.EPERM, errno.EACCES)
            fails(refused, os.mkdir, place / "new")
            fails(refused, os.unlink, place / "file")
            fails(refused, os.rename, place / "file", place / "moved")
            (place / "file").write_bytes(b"written")
        finally:
            set_inode_flags(fd, before)
    equal((place / "file").read_bytes(), b"written")


@case("btime")
def birth_is_not_before_its_time(root: Path) -> None:
    """Files that are made later are born later or at the same tick; a link and a copy by rename
    have the birth of their file."""
    births = []
    for number in range(5):
        (root / str(number)).touch()
        births.append(birth_time_ns(root / str(number)) or 0)
    equal(births, sorted(births))
    os.link(root / "0", root / "link")
    equal(birth_time_ns(root / "link"), births[0])


@case()
def blocks_follow_what_is_written(root: Path) -> None:
    """st_blocks counts 512 bytes of what a file takes: after fsync nothing for an empty one, a MiB
    or more for a MiB; st_blksize is a power of 2."""
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd:
        equal(os.fstat(fd).st_blocks, 0)
        os.write(fd, bytes(range(256)) * 4096)
        os.fsync(fd)
        holds(os.fstat(fd).st_blocks >= 2048, f"2048 blocks, not {os.fstat(fd).st_blocks}")
        size = os.fstat(fd).st_blksize
        holds(size >= 512 and not size & (size - 1), f"a power of 2, not {size}")


@case()
def everything_can_be_synced(root: Path) -> None:
    """fsync and fdatasync work on what was opened for reading, on directories and on files without
    a name; a fifo is EINVAL."""
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd, opened(root / "file") as reader:
        os.write(fd, b"x")
        (root / "file").unlink()
        for each in (fd, reader):
            os.fsync(each)
            os.fdatasync(each)
    with opened(root, os.O_DIRECTORY) as place:
        os.fsync(place)
        os.fdatasync(place)
    os.mkfifo(root / "fifo")
    with opened(root / "fifo", os.O_RDWR) as fifo:
        fails(errno.EINVAL, os.fsync, fifo)


@case()
def synchronous_writes(root: Path) -> None:
    """O_SYNC and O_DSYNC write as others do."""
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(root / "file", os.O_CREAT | os.O_RDWR | flag) as fd:
            equal(os.pwrite(fd, b"synced", 3), 6)
            equal(os.pread(fd, 100, 0), b"\0\0\0synced")


@case()
def a_filesystem_is_one(root: Path) -> None:
    """statvfs of a file and of its directory say the same; both are on one device."""
    (root / "file").touch()
    first, second = os.statvfs(root), os.statvfs(root / "file")
    equal((first.f_bsize, first.f_blocks), (second.f_bsize, second.f_blocks))
    equal((first.f_fsid, first.f_flag), (second.f_fsid, second.f_flag))
    equal(os.stat(root).st_dev, os.stat(root / "file").st_dev)


@case()
def a_small_filesystem_is_synced(root: Path) -> None:
    """syncfs of a directory succeeds."""
    (root / "file").write_bytes(b"x")
    with opened(root, os.O_DIRECTORY) as fd:
        syncfs(fd)
