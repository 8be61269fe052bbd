# SPDX-License-Identifier: Apache-2.0
"""Read-only: names, kinds, modes, owners, times and links of the prepared tree."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from penstock.testing.posix import tree
from penstock.testing.posix.calls import Dirent, file_handle, getdents, open_handle, opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import equal, fails, holds, read_case

DOTS = {b".", b".."}


def _rest(fd: int, size: int = 4096) -> list[Dirent]:
    entries: list[Dirent] = []
    while part := getdents(fd, size):
        entries += part
        holds(len(entries) < 100 * tree.MANY, "an end of the listing")
    return entries


@read_case()
def names_of_any_bytes(root: Path) -> None:
    """Every name is listed with its very bytes, and leads to its own file."""
    place = bytes(root / "names")
    equal(sorted(os.listdir(place)), sorted(tree.NAMES))
    for name in tree.NAMES:
        with opened(os.fsdecode(place + b"/" + name)) as fd:
            equal(os.read(fd, 1000), name)


@read_case()
def missing_names(root: Path) -> None:
    """What is not there is ENOENT, in the case that was not written too; a name that is too long,
    ENAMETOOLONG."""
    for name in ("missing", "Directory", "SIZE-1", "n" * 255):
        for call in (os.stat, os.lstat, os.readlink, os.listdir):
            fails(errno.ENOENT, call, root / name)
    fails(errno.ENAMETOOLONG, os.stat, root / ("n" * 256))
    for call in (os.stat, os.listdir):
        fails(errno.ENOTDIR, call, root / "size-1" / "below")


@read_case()
def modes_are_kept(root: Path) -> None:
    """All twelve bits of the mode are kept, of files and directories."""
    for mode in tree.MODES:
        equal(os.stat(root / f"mode-{mode:04o}").st_mode, stat.S_IFREG | mode)
    equal(os.stat(root / "sticky").st_mode, stat.S_IFDIR | 0o1777)
    equal(os.stat(root / "setgid").st_mode, stat.S_IFDIR | 0o2755)


@read_case("root")
def owners_are_kept(root: Path) -> None:
    """User and group are kept, those over 65535 and those of symlinks as well."""
    status = os.stat(root / "owned")
    equal((status.st_uid, status.st_gid), (100_000, 200_000))
    status = os.lstat(root / "to-owned")
    equal((status.st_uid, status.st_gid), (1, 2))


@read_case("nanoseconds")
def times_are_kept(root: Path) -> None:
    """Times are kept to the nanosecond, before 1970 and after 2038, of files, symlinks and
    directories."""
    for index, mtime in enumerate(tree.TIMES):
        equal(os.stat(root / f"time-{index}").st_mtime_ns, mtime, f"time-{index}")
    for name in ("time-link", "empty"):
        equal(os.lstat(root / name).st_mtime_ns, tree.TIMES[4], name)


@read_case()
def seconds_are_kept(root: Path) -> None:
    """Times between 1970 and 2038 are right to the second."""
    for index in (0, 1, 4):
        equal(os.stat(root / f"time-{index}").st_mtime_ns // 10**9, tree.TIMES[index] // 10**9)


@read_case()
def looking_changes_no_time(root: Path) -> None:
    """Reading, listing and following change no time on a read-only filesystem."""
    names = ("size-4097", "many", "to-file")
    before = [os.lstat(root / name) for name in names]
    (root / "size-4097").read_bytes()
    os.listdir(root / "many")
    os.readlink(root / "to-file")
    equal([os.lstat(root / name) for name in names], before)


@read_case()
def hard_links_are_one_inode(root: Path) -> None:
    """Three names of one file have one inode number, a count of 3 and the same content."""
    paths = (root / "hard-a", root / "hard-b", root / "directory" / "hard-c")
    statuses = [os.stat(path) for path in paths]
    equal({status.st_ino for status in statuses}, {statuses[0].st_ino})
    equal([status.st_nlink for status in statuses], [3, 3, 3])
    equal([path.read_bytes() for path in paths], [b"hard"] * 3)
    equal(os.stat(root / "size-1").st_nlink, 1)


@read_case("dirlinks")
def directories_count_subdirectories(root: Path) -> None:
    """A directory's link count is 2 and one for each subdirectory."""
    equal(os.stat(root / "directory").st_nlink, 5)
    equal(os.stat(root / "empty").st_nlink, 2)
    equal(os.stat(root / "many").st_nlink, 2)


@read_case()
def inode_numbers_are_unique(root: Path) -> None:
    """Files have inode numbers of their own, the same each time, and one device."""
    paths = [root / f"size-{size}" for size in tree.SIZES] + [root / "many", root / "fifo"]
    numbers = [os.stat(path).st_ino for path in paths]
    equal(len(set(numbers)), len(paths))
    equal([os.stat(path).st_ino for path in reversed(paths)], numbers[::-1])
    equal({os.stat(path).st_dev for path in paths}, {os.stat(root).st_dev})


@read_case()
def symlinks_have_their_target(root: Path) -> None:
    """readlink gives the very target, the size is its length, the mode 0777."""
    for length in tree.SYMLINKS:
        path = root / f"symlink-{length}"
        equal(os.readlink(path), "s" * length)
        status = os.lstat(path)
        equal((status.st_size, status.st_mode), (length, stat.S_IFLNK | 0o777))


@read_case()
def symlinks_lead_there(root: Path) -> None:
    """Symlinks are followed to files and directories, through each other; a dangling one is ENOENT,
    a circle ELOOP."""
    equal((root / "to-file").read_bytes(), b"below")
    equal((root / "to-directory" / "file").read_bytes(), b"below")
    equal((root / "to-link").read_bytes(), b"below")
    fails(errno.ENOENT, os.stat, root / "dangling")
    fails(errno.ELOOP, os.stat, root / "circle")
    fails(errno.ELOOP, os.open, root / "to-file", os.O_NOFOLLOW)


@read_case()
def large_directory_is_listed_once(root: Path) -> None:
    """Each of many names is listed exactly once, in pieces of any size."""
    names = {tree.many_name(number).encode() for number in range(tree.MANY)}
    for size in (512, 4096, 65536):
        with opened(root / "many", os.O_DIRECTORY) as fd:
            listed = [e.name for e in _rest(fd, size) if e.name not in DOTS]
        equal(len(listed), len(names), f"entries in pieces of {size} bytes")
        equal(set(listed), names)


@read_case()
def large_directory_is_searched(root: Path) -> None:
    """Names of a large directory are found, and lead to their own files; others are not."""
    for number in range(0, tree.MANY, 83):
        path = root / "many" / tree.many_name(number)
        equal(path.read_bytes(), b"%d" % number)
        fails(errno.ENOENT, os.stat, f"{path}y")


@read_case()
def positions_are_returned_to(root: Path) -> None:
    """A position of a listing is where it goes on, in another descriptor too."""
    with opened(root / "many", os.O_DIRECTORY) as fd, opened(root / "many") as other:
        entries = _rest(fd)
        for index in (0, 1, 700, len(entries) - 2):
            for each in (fd, other):
                os.lseek(each, entries[index].next, os.SEEK_SET)
                rest = [e.name for e in _rest(each)]
                equal(rest, [e.name for e in entries[index + 1 :]], f"after entry {index}")


@read_case()
def listing_tells_kind_and_inode(root: Path) -> None:
    """Each entry's kind and inode number are what lstat says, of ``.`` and ``..`` as well."""
    kinds = {stat.S_IFDIR: 4, stat.S_IFREG: 8, stat.S_IFLNK: 10, stat.S_IFIFO: 1}
    kinds |= {stat.S_IFSOCK: 12, stat.S_IFCHR: 2, stat.S_IFBLK: 6}
    for place in (root / "directory", root / "names"):
        with opened(place, os.O_DIRECTORY) as fd:
            for entry in _rest(fd):
                status = os.lstat(os.fsdecode(bytes(place) + b"/" + entry.name))
                equal(entry.ino, status.st_ino, repr(entry.name))
                equal(entry.type, kinds[stat.S_IFMT(status.st_mode)], repr(entry.name))
    equal(os.stat(root / "directory" / "..").st_ino, os.stat(root).st_ino)


@read_case()
def empty_directory(root: Path) -> None:
    """An empty directory lists ``.`` and ``..`` alone."""
    with opened(root / "empty", os.O_DIRECTORY) as fd:
        equal({entry.name for entry in _rest(fd)}, DOTS)


@read_case()
def deep_paths(root: Path) -> None:
    """Many directories deep, paths and steps upwards work."""
    bottom = root.joinpath(*["d"] * tree.DEPTH)
    equal((bottom / "bottom").read_bytes(), b"deep")
    equal(os.stat(bottom.joinpath(*[".."] * tree.DEPTH)).st_ino, os.stat(root).st_ino)


@read_case()
def special_files(root: Path) -> None:
    """Fifos and sockets are what they were; nobody listens at the socket."""
    status = os.stat(root / "fifo")
    equal(status.st_mode, stat.S_IFIFO | 0o640)
    holds(stat.S_ISSOCK(os.stat(root / "socket").st_mode), "a socket")
    fails(errno.ENXIO, os.open, root / "socket", os.O_RDONLY)
    with (
        opened(root / "fifo", os.O_RDONLY | os.O_NONBLOCK) as reader,
        opened(root / "fifo", os.O_WRONLY) as writer,
    ):
        os.write(writer, b"through")
        equal(os.read(reader, 100), b"through")


@read_case("root", "devices")
def devices(root: Path) -> None:
    """Device nodes have their kinds and numbers."""
    for name, kind, major, minor in (
        ("character", stat.S_IFCHR, 1, 3),
        ("block", stat.S_IFBLK, 259, 70_000),
    ):
        status = os.stat(root / name)
        equal(status.st_mode, kind | 0o600)
        equal((os.major(status.st_rdev), os.minor(status.st_rdev)), (major, minor))


@read_case("others")
def permissions_hold(root: Path) -> None:
    """Another user is let in where the mode lets him in, and nowhere else."""
    with Peer(user=65534) as peer:
        try:
            peer.call("listdir", root)
        except OSError:
            return  # a directory above keeps him out
        peer.call("open", root / "mode-0444", os.O_RDONLY)
        for name in ("mode-0000", "mode-0600"):
            fails(errno.EACCES, peer.call, "open", root / name, os.O_RDONLY)


@read_case("handles")
def handles_lead_to_their_files(root: Path) -> None:
    """File handles open their files and directories."""
    with opened(root, os.O_DIRECTORY) as mount:
        for name in ("size-4097", "many", "hard-a"):
            fd = open_handle(mount, file_handle(root / name))
            try:
                equal(os.fstat(fd).st_ino, os.stat(root / name).st_ino)
            finally:
                os.close(fd)


@read_case()
def filesystem_says_read_only(root: Path) -> None:
    """statvfs says that the filesystem is read-only, with names of 255 bytes."""
    status = os.statvfs(root)
    holds(status.f_flag & os.ST_RDONLY, "ST_RDONLY")
    equal(status.f_namemax, 255)
    holds(status.f_bfree <= status.f_blocks, "bfree ≤ blocks")
