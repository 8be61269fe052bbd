# SPDX-License-Identifier: Apache-2.0
"""Which error it is: the rules of errno that programs rely on."""

from __future__ import annotations

import errno
import fcntl
import os
import termios
from pathlib import Path

from penstock.testing.posix.calls import opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails, holds

CREATE = os.O_CREAT | os.O_WRONLY


@case()
def too_many_symlinks(root: Path) -> None:
    """A chain of 40 symlinks is followed, of 41 is ELOOP."""
    (root / "0").write_bytes(b"end")
    for number in range(41):
        (root / str(number + 1)).symlink_to(str(number))
    equal((root / "40").read_bytes(), b"end")
    fails(errno.ELOOP, os.stat, root / "41")
    equal(os.readlink(root / "41"), "40")


@case()
def circles_of_symlinks(root: Path) -> None:
    """Two symlinks that lead to each other are ELOOP to all that follows them."""
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    for call in (os.stat, os.listdir, os.chdir):
        fails(errno.ELOOP, call, root / "a")
    fails(errno.ELOOP, os.open, root / "a", CREATE)
    fails(errno.ELOOP, os.truncate, root / "a", 0)
    fails(errno.ELOOP, os.mkdir, root / "a" / "below")


@case()
def not_a_directory_to_any_call(root: Path) -> None:
    """A file in the place of a directory is ENOTDIR to every call that goes through it."""
    (root / "file").touch()
    below = root / "file" / "below"
    for call in (os.stat, os.lstat, os.unlink, os.rmdir, os.readlink, os.mkdir, os.mkfifo):
        fails(errno.ENOTDIR, call, below)
    fails(errno.ENOTDIR, os.open, below, CREATE)
    fails(errno.ENOTDIR, os.symlink, "x", below)
    fails(errno.ENOTDIR, os.rename, below, root / "new")
    fails(errno.ENOTDIR, os.rename, root / "file", below)
    fails(errno.ENOTDIR, os.chmod, below, 0o600)


@case()
def names_too_long_for_any_call(root: Path) -> None:
    """A name of 256 bytes is ENAMETOOLONG to every call, a path of 4096 bytes as well."""
    name = root / ("n" * 256)
    (root / "file").touch()
    for call in (os.stat, os.lstat, os.unlink, os.rmdir, os.readlink, os.mkdir, os.mkfifo):
        fails(errno.ENAMETOOLONG, call, name)
    fails(errno.ENAMETOOLONG, os.open, name, CREATE)
    fails(errno.ENAMETOOLONG, os.symlink, "x", name)
    fails(errno.ENAMETOOLONG, os.rename, root / "file", name)
    fails(errno.ENAMETOOLONG, os.stat, f"{root}/{'./' * 2048}file")


@case()
def long_names_in_bytes(root: Path) -> None:
    """The limit of names is 255 bytes, not characters."""
    (root / ("é" * 127)).touch()
    equal(os.listdir(root), ["é" * 127])
    fails(errno.ENAMETOOLONG, os.mkdir, root / ("é" * 128))


@case()
def directories_are_not_written(root: Path) -> None:
    """Opening a directory for writing, creating over it and truncating by O_TRUNC are EISDIR."""
    (root / "directory").mkdir()
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_RDONLY | os.O_TRUNC):
        fails(errno.EISDIR, os.open, root / "directory", flags)
    fails(errno.EEXIST, os.open, root / "directory", os.O_CREAT | os.O_EXCL)
    fails(errno.EISDIR, os.open, f"{root}/new/", CREATE)
    equal(os.listdir(root), ["directory"])


@case()
def trailing_slashes(root: Path) -> None:
    """With a slash at its end a name is a directory's: mkdir and rename of directories work, of
    files ENOTDIR."""
    os.mkdir(f"{root}/one/")
    os.rename(f"{root}/one/", f"{root}/two/")
    (root / "file").touch()
    fails(errno.ENOTDIR, os.rename, f"{root}/file", f"{root}/new/")
    fails(errno.ENOTDIR, os.unlink, f"{root}/file/")
    fails(errno.ENOENT, os.link, f"{root}/file", f"{root}/new/")
    fails(errno.ENOTDIR, os.rmdir, f"{root}/file/")
    os.rmdir(f"{root}/two/")
    equal(os.listdir(root), ["file"])


@case()
def dots_are_not_changed(root: Path) -> None:
    """``.`` and ``..`` are neither made, removed nor renamed."""
    (root / "d").mkdir()
    fails(errno.EEXIST, os.mkdir, f"{root}/d/.")
    fails(errno.EEXIST, os.mkdir, f"{root}/d/..")
    fails(errno.EINVAL, os.rmdir, f"{root}/d/.")
    fails((errno.EBUSY, errno.EINVAL), os.rename, f"{root}/d/.", root / "new")
    fails((errno.EBUSY, errno.EINVAL), os.rename, f"{root}/d/..", root / "new")
    fails((errno.EISDIR, errno.EINVAL), os.unlink, f"{root}/d/.")


@case()
def unlink_by_rmdir_and_back(root: Path) -> None:
    """rmdir of a symlink to a directory is ENOTDIR; unlink removes the symlink alone."""
    (root / "directory").mkdir()
    (root / "link").symlink_to("directory")
    fails(errno.ENOTDIR, os.rmdir, root / "link")
    os.unlink(root / "link")
    holds((root / "directory").is_dir(), "the directory stays")


@case()
def nofollow_and_path_descriptors(root: Path) -> None:
    """O_NOFOLLOW of a symlink is ELOOP, with O_PATH it opens the symlink, which cannot be read."""
    (root / "link").symlink_to("target")
    fails(errno.ELOOP, os.open, root / "link", os.O_NOFOLLOW)
    with opened(root / "link", os.O_PATH | os.O_NOFOLLOW) as fd:
        equal(os.readlink("", dir_fd=fd), "target")
        fails(errno.EBADF, os.read, fd, 1)
        fails(errno.EBADF, os.fchmod, fd, 0o600)


@case()
def sockets_and_fifos_are_not_opened(root: Path) -> None:
    """A fifo without a reader is ENXIO to a writer that does not wait; O_DIRECTORY of it is
    ENOTDIR."""
    os.mkfifo(root / "fifo")
    fails(errno.ENXIO, os.open, root / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    fails(errno.ENOTDIR, os.open, root / "fifo", os.O_DIRECTORY | os.O_NONBLOCK)


@case()
def unknown_ioctl(root: Path) -> None:
    """An ioctl of terminals is ENOTTY for a file: isatty is false."""
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd:
        holds(not os.isatty(fd), "no terminal")
        fails(errno.ENOTTY, fcntl.ioctl, fd, termios.TIOCGWINSZ, bytes(8))


@case()
def seeking_errors(root: Path) -> None:
    """lseek: EINVAL for positions before the file and unknown origins; beyond the end it works."""
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"x" * 10)
        fails(errno.EINVAL, os.lseek, fd, -11, os.SEEK_END)
        fails(errno.EINVAL, os.lseek, fd, 0, 99)
        equal(os.lseek(fd, 1 << 40, os.SEEK_SET), 1 << 40)
        equal(os.read(fd, 10), b"")
        fails(errno.EINVAL, os.pread, fd, 1, -1)


@case()
def writing_limits(root: Path) -> None:
    """A process at its limit of file size (RLIMIT_FSIZE) gets a short write, then EFBIG."""
    path = root / "file"
    with Peer() as peer:
        fd = peer.call("open", path, os.O_CREAT | os.O_RDWR)
        peer.call("limit", 5000)
        equal(peer.call("write", fd, "x" * 9000, 0), 5000)
        fails(errno.EFBIG, peer.call, "write", fd, "y", 5000)
        fails(errno.EFBIG, peer.call, "os.ftruncate", fd, 6000)
    equal(path.stat().st_size, 5000)


@case("others")
def errors_tell_nothing_of_closed_directories(root: Path) -> None:
    """In a directory that one may not search, what is there and what is not are both EACCES."""
    (root / "closed").mkdir(mode=0o700)
    (root / "closed" / "file").touch()
    with Peer(user=65534) as peer:
        for name in ("file", "missing"):
            fails(errno.EACCES, peer.call, "os.stat", root / "closed" / name)
            fails(errno.EACCES, peer.call, "unlink", root / "closed" / name)
