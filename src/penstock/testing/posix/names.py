# SPDX-License-Identifier: Apache-2.0
"""Names: creating, looking up, removing, linking, symbolic links, special files."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from penstock.testing.posix.calls import link_descriptor, opened
from penstock.testing.posix.registry import case, equal, fails, holds

CREATE = os.O_CREAT | os.O_EXCL | os.O_RDWR


@case()
def created_file_is_found(root: Path) -> None:
    """A file that was created is a regular file of size 0 with one link."""
    os.close(os.open(root / "file", CREATE, 0o640))
    status = os.lstat(root / "file")
    equal(stat.S_IFMT(status.st_mode), stat.S_IFREG)
    equal((status.st_size, status.st_nlink, status.st_uid), (0, 1, os.geteuid()))


@case()
def exclusive_creation_fails_if_there(root: Path) -> None:
    """O_CREAT|O_EXCL fails with EEXIST for a file, a directory and a dangling symlink."""
    (root / "file").touch()
    (root / "directory").mkdir()
    (root / "dangling").symlink_to("nowhere")
    for name in ("file", "directory", "dangling"):
        fails(errno.EEXIST, os.open, root / name, CREATE)
    holds(not (root / "nowhere").exists(), "nothing made through the symlink")


@case()
def creation_opens_what_is_there(root: Path) -> None:
    """O_CREAT without O_EXCL opens an existing file and keeps its content and mode."""
    (root / "file").write_bytes(b"old")
    (root / "file").chmod(0o600)
    with opened(root / "file", os.O_CREAT | os.O_RDWR, 0o777) as fd:
        equal(os.read(fd, 10), b"old")
    equal(stat.S_IMODE((root / "file").stat().st_mode), 0o600)


@case()
def creation_through_dangling_symlink(root: Path) -> None:
    """O_CREAT on a dangling symlink makes the file it points to."""
    (root / "link").symlink_to("target")
    os.close(os.open(root / "link", os.O_CREAT | os.O_WRONLY, 0o644))
    holds((root / "target").is_file(), "the target exists")


@case()
def missing_name_is_enoent(root: Path) -> None:
    """What is not there is ENOENT to every call."""
    missing = root / "missing"
    for call in (os.stat, os.unlink, os.rmdir, os.readlink, os.listdir):
        fails(errno.ENOENT, call, missing)
    fails(errno.ENOENT, os.open, missing, os.O_RDWR)
    fails(errno.ENOENT, os.mkdir, missing / "below")


@case()
def missing_name_can_be_made(root: Path) -> None:
    """A name that was looked for in vain is found once it is made, and gone once removed."""
    path = root / "name"
    for _ in range(3):
        fails(errno.ENOENT, os.stat, path)
        path.touch()
        holds(path.exists(), "made")
        path.unlink()


@case()
def long_names(root: Path) -> None:
    """Names of 255 bytes work, of 256 bytes are ENAMETOOLONG."""
    longest = root / ("n" * 255)
    longest.write_bytes(b"x")
    equal(os.listdir(root), ["n" * 255])
    too_long = root / ("n" * 256)
    fails(errno.ENAMETOOLONG, os.stat, too_long)
    fails(errno.ENAMETOOLONG, os.mkdir, too_long)
    fails(errno.ENAMETOOLONG, os.rename, longest, too_long)


@case()
def names_are_bytes(root: Path) -> None:
    """Any byte but NUL and slash can be in a name; case and form matter."""
    names = {b"\xff\xfe", b" ", b"a\nb", b"\\", b"...", b"-", b"A", b"a", b"\xc3\xa9", b"e\xcc\x81"}
    for name in names:
        os.close(os.open(bytes(root) + b"/" + name, CREATE, 0o644))
    equal(set(os.listdir(bytes(root))), names)


@case()
def file_is_no_directory(root: Path) -> None:
    """A file as a part of a path, or with a trailing slash, is ENOTDIR."""
    (root / "file").touch()
    fails(errno.ENOTDIR, os.stat, root / "file" / "below")
    fails(errno.ENOTDIR, os.stat, f"{root}/file/")
    fails(errno.ENOTDIR, os.listdir, root / "file")
    fails(errno.ENOTDIR, os.open, root / "file", os.O_DIRECTORY)


@case()
def unlink_removes_once(root: Path) -> None:
    """unlink removes a name; a second time it is ENOENT."""
    (root / "file").touch()
    os.unlink(root / "file")
    fails(errno.ENOENT, os.unlink, root / "file")
    equal(os.listdir(root), [])


@case()
def unlink_of_directory_is_eisdir(root: Path) -> None:
    """unlink of a directory is EISDIR and changes nothing."""
    (root / "directory").mkdir()
    fails(errno.EISDIR, os.unlink, root / "directory")
    holds((root / "directory").is_dir(), "still there")


@case()
def unlinked_file_lives_while_open(root: Path) -> None:
    """An open file without a name has 0 links and can be read, written, truncated and stat'ed."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"content")
        os.unlink(root / "file")
        equal(os.fstat(fd).st_nlink, 0)
        equal(os.pread(fd, 10, 0), b"content")
        os.pwrite(fd, b"more", 7)
        equal(os.fstat(fd).st_size, 11)
        os.ftruncate(fd, 4)
        os.fchmod(fd, 0o600)
        equal(os.pread(fd, 10, 0), b"cont")


@case()
def name_can_be_made_again_while_open(root: Path) -> None:
    """A new file under the name of a removed one that is open is another file."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"old")
        os.unlink(root / "file")
        (root / "file").write_bytes(b"new")
        equal(os.pread(fd, 10, 0), b"old")
        holds(os.fstat(fd).st_ino != (root / "file").stat().st_ino, "another inode")


@case()
def hard_links_are_one_file(root: Path) -> None:
    """Two names of one file have one inode, one content, one mode and a count of 2."""
    (root / "one").write_bytes(b"x")
    os.link(root / "one", root / "two")
    first, second = os.stat(root / "one"), os.stat(root / "two")
    equal((first.st_ino, first.st_nlink), (second.st_ino, 2))
    (root / "two").write_bytes(b"changed")
    (root / "two").chmod(0o600)
    equal((root / "one").read_bytes(), b"changed")
    equal(stat.S_IMODE(os.stat(root / "one").st_mode), 0o600)
    os.unlink(root / "one")
    equal(os.stat(root / "two").st_nlink, 1)
    equal((root / "two").read_bytes(), b"changed")


@case()
def link_refusals(root: Path) -> None:
    """link: EEXIST over a name, EPERM of a directory, ENOENT of nothing."""
    (root / "file").touch()
    (root / "other").touch()
    (root / "directory").mkdir()
    fails(errno.EEXIST, os.link, root / "file", root / "other")
    fails(errno.EPERM, os.link, root / "directory", root / "name")
    fails(errno.ENOENT, os.link, root / "missing", root / "name")
    equal(os.stat(root / "file").st_nlink, 1)


@case()
def link_of_symlink_links_the_symlink(root: Path) -> None:
    """link without following gives a symlink a second name."""
    (root / "link").symlink_to("target")
    os.link(root / "link", root / "other", follow_symlinks=False)
    equal(os.readlink(root / "other"), "target")
    equal(os.lstat(root / "link").st_nlink, 2)


@case()
def link_changes_ctime(root: Path) -> None:
    """A new name changes the file's ctime, not its mtime."""
    (root / "file").touch()
    os.utime(root / "file", ns=(10**9, 10**9))
    before = os.stat(root / "file")
    os.link(root / "file", root / "other")
    after = os.stat(root / "file")
    holds(after.st_ctime_ns >= before.st_ctime_ns, "ctime goes forward")
    equal(after.st_mtime_ns, 10**9)


@case()
def symlinks_keep_their_target(root: Path) -> None:
    """readlink gives exactly what symlink was given; the size is its length."""
    for number, target in enumerate(("a", "../b/./c//", "/" * 100, "\udcff", "t" * 1000)):
        path = root / str(number)
        os.symlink(target, path)
        equal(os.readlink(path), target)
        equal(os.lstat(path).st_size, len(os.fsencode(target)))
        equal(stat.S_IFMT(os.lstat(path).st_mode), stat.S_IFLNK)


@case("long-symlinks")
def longest_symlink(root: Path) -> None:
    """A target of 4095 bytes is kept; one of 4096 is ENAMETOOLONG."""
    target = "/".join(["t" * 127] * 32)
    os.symlink(target, root / "link")
    equal(os.readlink(root / "link"), target)
    equal(os.lstat(root / "link").st_size, 4095)
    fails(errno.ENAMETOOLONG, os.symlink, "t" * 4096, root / "other")


@case()
def symlink_refusals(root: Path) -> None:
    """symlink: ENOENT for an empty target, EEXIST over a name; readlink of a file is EINVAL."""
    (root / "file").touch()
    fails(errno.ENOENT, os.symlink, "", root / "link")
    fails(errno.EEXIST, os.symlink, "target", root / "file")
    fails(errno.EINVAL, os.readlink, root / "file")
    fails(errno.EINVAL, os.readlink, root)


@case()
def symlinks_are_followed(root: Path) -> None:
    """Relative and absolute symlinks lead to files and directories; circles are ELOOP."""
    (root / "directory").mkdir()
    (root / "directory" / "file").write_bytes(b"x")
    (root / "relative").symlink_to("directory/file")
    (root / "absolute").symlink_to(root / "directory")
    (root / "circle").symlink_to("circle")
    equal((root / "relative").read_bytes(), b"x")
    equal((root / "absolute" / "file").read_bytes(), b"x")
    fails(errno.ELOOP, os.stat, root / "circle")
    fails(errno.ELOOP, os.open, root / "relative", os.O_RDONLY | os.O_NOFOLLOW)


@case()
def replaced_symlink_is_followed_anew(root: Path) -> None:
    """A symlink that is removed and made again leads to the new target."""
    (root / "one").write_bytes(b"1")
    (root / "two").write_bytes(b"2")
    for target in ("one", "two", "one"):
        (root / "link").unlink(missing_ok=True)
        (root / "link").symlink_to(target)
        equal((root / "link").read_bytes(), (root / target).read_bytes())


@case("tmpfile")
def tmpfile_has_no_name_until_linked(root: Path) -> None:
    """O_TMPFILE makes a file with 0 links, in no listing, that linkat can name."""
    with opened(root, os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        os.write(fd, b"hidden")
        equal(os.fstat(fd).st_nlink, 0)
        equal(os.listdir(root), [])
        link_descriptor(fd, root / "named")
        equal(os.fstat(fd).st_nlink, 1)
    equal((root / "named").read_bytes(), b"hidden")
    equal(stat.S_IMODE((root / "named").stat().st_mode), 0o600)


@case("tmpfile")
def exclusive_tmpfile_cannot_be_linked(root: Path) -> None:
    """O_TMPFILE|O_EXCL: linkat is ENOENT."""
    with opened(root, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600) as fd:
        fails(errno.ENOENT, link_descriptor, fd, root / "named")


@case()
def fifo_carries_data(root: Path) -> None:
    """A fifo made by mkfifo is one, and carries data between its two ends."""
    os.mkfifo(root / "fifo", 0o600)
    holds(stat.S_ISFIFO(os.stat(root / "fifo").st_mode), "a fifo")
    with (
        opened(root / "fifo", os.O_RDONLY | os.O_NONBLOCK) as reader,
        opened(root / "fifo", os.O_WRONLY) as writer,
    ):
        os.write(writer, b"through")
        equal(os.read(reader, 100), b"through")


@case()
def socket_can_be_bound(root: Path) -> None:
    """Binding makes a socket that can be connected to; its removal ends that."""
    with (
        opened(root, os.O_PATH) as fd,
        socket.socket(socket.AF_UNIX) as server,
        socket.socket(socket.AF_UNIX) as client,
        socket.socket(socket.AF_UNIX) as late,
    ):
        # By descriptor, since a socket's address holds 107 bytes only.
        address = f"/proc/self/fd/{fd}/socket"
        server.bind(address)
        server.listen(1)
        holds(stat.S_ISSOCK(os.stat(root / "socket").st_mode), "a socket")
        client.connect(address)
        os.unlink(root / "socket")
        fails(errno.ENOENT, late.connect, address)


@case("root", "devices")
def device_nodes_keep_their_numbers(root: Path) -> None:
    """mknod keeps type and device numbers, small and large."""
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        for major, minor in ((1, 3), (0, 0), (8, 255), (259, 1000), (511, 262143)):
            path = root / f"{kind:o}-{major}-{minor}"
            os.mknod(path, kind | 0o600, os.makedev(major, minor))
            status = os.stat(path)
            equal(stat.S_IFMT(status.st_mode), kind)
            equal((os.major(status.st_rdev), os.minor(status.st_rdev)), (major, minor))


@case()
def mknod_makes_regular_files(root: Path) -> None:
    """mknod with S_IFREG makes an ordinary file."""
    os.mknod(root / "file", stat.S_IFREG | 0o600)
    (root / "file").write_bytes(b"x")
    fails(errno.EEXIST, os.mknod, root / "file", stat.S_IFREG | 0o600)
    equal((root / "file").read_bytes(), b"x")
