# SPDX-License-Identifier: Apache-2.0
"""Hard links, files without a name, and what removing leaves."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from penstock.testing.posix.calls import link_descriptor, opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails, holds

CREATE = os.O_CREAT | os.O_RDWR


@case()
def many_links(root: Path) -> None:
    """A file has as many links as names, in whatever directories, and lives with the last."""
    (root / "file").write_bytes(b"x")
    (root / "sub").mkdir()
    for number in range(50):
        os.link(root / "file", root / ("sub" if number % 2 else ".") / f"name-{number}")
    equal(os.stat(root / "file").st_nlink, 51)
    (root / "file").unlink()
    for number in range(49):
        os.unlink(root / ("sub" if number % 2 else ".") / f"name-{number}")
        equal(os.stat(root / "sub" / "name-49").st_nlink, 50 - number - 1)
    equal((root / "sub" / "name-49").read_bytes(), b"x")


@case()
def links_of_special_files(root: Path) -> None:
    """Fifos have hard links too: both names are the same pipe."""
    os.mkfifo(root / "one")
    os.link(root / "one", root / "two")
    with (
        opened(root / "one", os.O_RDONLY | os.O_NONBLOCK) as reader,
        opened(root / "two", os.O_WRONLY | os.O_NONBLOCK) as writer,
    ):
        os.write(writer, b"through")
        equal(os.read(reader, 100), b"through")


@case()
def link_follows_no_symlink_unless_told(root: Path) -> None:
    """linkat gives a symlink's target a second name if told to follow, else the symlink."""
    (root / "file").touch()
    (root / "link").symlink_to("file")
    with opened(root, os.O_DIRECTORY) as fd:
        os.link("link", "followed", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=True)
        os.link("link", "itself", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    equal(os.lstat(root / "followed").st_ino, os.lstat(root / "file").st_ino)
    holds((root / "itself").is_symlink(), "the symlink itself")


@case()
def link_errors(root: Path) -> None:
    """link: ENOTDIR below a file, ENAMETOOLONG, EEXIST over a dangling symlink, ENOENT where the
    new directory is missing."""
    (root / "file").touch()
    (root / "dangling").symlink_to("nowhere")
    fails(errno.ENOTDIR, os.link, root / "file", root / "file" / "below")
    fails(errno.ENAMETOOLONG, os.link, root / "file", root / ("n" * 256))
    fails(errno.EEXIST, os.link, root / "file", root / "dangling")
    fails(errno.ENOENT, os.link, root / "file", root / "missing" / "name")
    equal(os.stat(root / "file").st_nlink, 1)


@case()
def link_of_an_open_file_without_a_name(root: Path) -> None:
    """A file that has lost its last name gets no new one."""
    with opened(root / "file", CREATE) as fd:
        (root / "file").unlink()
        fails(errno.ENOENT, link_descriptor, fd, root / "again")
    equal(os.listdir(root), [])


@case("tmpfile")
def tmpfile_links_count(root: Path) -> None:
    """A file made by O_TMPFILE and linked twice has two links and goes with the last."""
    with opened(root, os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        link_descriptor(fd, root / "one")
        link_descriptor(fd, root / "two")
        equal(os.fstat(fd).st_nlink, 2)
        (root / "one").unlink()
        (root / "two").unlink()
        equal(os.fstat(fd).st_nlink, 0)
        fails(errno.ENOENT, link_descriptor, fd, root / "three")


@case("tmpfile")
def tmpfile_over_a_name_is_eexist(root: Path) -> None:
    """linkat of a file made by O_TMPFILE over a name is EEXIST, and it stays linkable."""
    (root / "file").touch()
    with opened(root, os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        fails(errno.EEXIST, link_descriptor, fd, root / "file")
        link_descriptor(fd, root / "other")


@case("tmpfile")
def tmpfile_rules(root: Path) -> None:
    """O_TMPFILE needs write access (EINVAL), a directory (ENOTDIR) that is there (ENOENT); the
    umask applies."""
    (root / "file").touch()
    fails(errno.EINVAL, os.open, root, os.O_TMPFILE | os.O_RDONLY, 0o600)
    fails(errno.ENOTDIR, os.open, root / "file", os.O_TMPFILE | os.O_RDWR, 0o600)
    fails(errno.ENOENT, os.open, root / "missing", os.O_TMPFILE | os.O_RDWR, 0o600)
    before = os.umask(0o027)
    try:
        with opened(root, os.O_TMPFILE | os.O_RDWR, 0o666) as fd:
            equal(stat.S_IMODE(os.fstat(fd).st_mode), 0o640)
    finally:
        os.umask(before)


@case()
def unlinked_file_is_seen_by_others_who_have_it(root: Path) -> None:
    """An unlinked file is shared by all processes that have it open, and gone for the rest."""
    path = root / "file"
    with opened(path, CREATE) as fd, Peer() as peer:
        other = peer.call("open", path, os.O_RDWR)
        path.unlink()
        fails(errno.ENOENT, peer.call, "open", path, os.O_RDONLY)
        os.pwrite(fd, b"shared", 0)
        equal(peer.call("read", other, 10, 0), "shared")
        peer.call("write", other, "back", 0)
        equal(os.pread(fd, 10, 0), b"backed")


@case()
def unlinked_file_is_opened_by_its_descriptor(root: Path) -> None:
    """A file without a name is opened again through /proc/self/fd, and is the same."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"content")
        (root / "file").unlink()
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            equal(os.read(again, 10), b"content")
            os.pwrite(again, b"C", 0)
        equal(os.pread(fd, 10, 0), b"Content")


@case("xattr")
def unlinked_file_keeps_its_attributes(root: Path) -> None:
    """Of a file without a name attributes are read and set through the descriptor."""
    with opened(root / "file", CREATE) as fd:
        os.setxattr(fd, "user.one", b"1")
        (root / "file").unlink()
        os.setxattr(fd, "user.two", b"2")
        equal(os.getxattr(fd, "user.one"), b"1")
        holds({"user.one", "user.two"} <= set(os.listxattr(fd)), "both are listed")


@case()
def one_of_two_names_goes_while_open(root: Path) -> None:
    """A file that is open keeps its other name when one is removed; the count follows."""
    with opened(root / "one", CREATE) as fd:
        os.link(root / "one", root / "two")
        (root / "one").unlink()
        equal(os.fstat(fd).st_nlink, 1)
        os.write(fd, b"late")
        equal((root / "two").read_bytes(), b"late")


@case()
def removed_working_directory(root: Path) -> None:
    """A process whose directory was removed finds nothing there: ENOENT, and no way to make
    anything."""
    (root / "gone").mkdir()
    with Peer() as peer:
        peer.call("chdir", root / "gone")
        os.rmdir(root / "gone")
        fails(errno.ENOENT, peer.call, "open", "file", os.O_CREAT | os.O_WRONLY)
        fails(errno.ENOENT, peer.call, "os.mkdir", "directory")
        equal(peer.call("os.stat", ".")[3], 0, "links")


@case()
def removed_tree_leaves_its_files_open(root: Path) -> None:
    """A file that is open stays readable and writable when its whole tree is removed."""
    (root / "a" / "b").mkdir(parents=True)
    with opened(root / "a" / "b" / "file", CREATE) as fd:
        os.write(fd, b"alive")
        (root / "a" / "b" / "file").unlink()
        os.rmdir(root / "a" / "b")
        os.rmdir(root / "a")
        os.write(fd, b"!")
        equal(os.pread(fd, 10, 0), b"alive!")
