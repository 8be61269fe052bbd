# SPDX-License-Identifier: Apache-2.0
"""Read-only: the content of the prepared tree, by every way there is to read."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
from pathlib import Path

from penstock.testing.posix import tree
from penstock.testing.posix.calls import getxattr_into, listxattr_into, opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import equal, fails, holds, read_case

BLOCK = tree.BLOCK
LARGE = f"size-{tree.SIZES[-1]}"
ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"


def _large() -> bytes:
    return tree.content(LARGE, tree.SIZES[-1])


@read_case()
def content_of_every_size(root: Path) -> None:
    """Files of all sizes around the borders of blocks have their bytes and their size."""
    for size in tree.SIZES:
        path = root / f"size-{size}"
        equal(os.stat(path).st_size, size)
        holds(path.read_bytes() == tree.content(path.name, size), f"content of {path.name}")


@read_case()
def reading_anywhere(root: Path) -> None:
    """pread gives what lies at any offset, short at the end and nothing beyond."""
    data = _large()
    with opened(root / LARGE) as fd:
        for offset in (0, 1, 4095, 4096, 65535, 1_000_003, len(data) - 5, len(data), 1 << 40):
            for length in (1, 100, 4097, 200_000):
                expected = data[offset : offset + length]
                holds(os.pread(fd, length, offset) == expected, f"{length} bytes at {offset}")


@read_case()
def reading_backwards(root: Path) -> None:
    """A file read from its end to its beginning has the same bytes."""
    data = _large()
    step = 9973
    with opened(root / LARGE) as fd:
        for offset in range(len(data) // step * step, -1, -step):
            holds(os.pread(fd, step, offset) == data[offset : offset + step], f"at {offset}")


@read_case()
def reading_by_vectors(root: Path) -> None:
    """preadv scatters, read and lseek move the position."""
    data = _large()
    with opened(root / LARGE) as fd:
        parts = [bytearray(7), bytearray(10_000), bytearray(1)]
        equal(os.preadv(fd, parts, 4090), 10_008)
        equal(b"".join(parts), data[4090:14_098])
        equal(os.lseek(fd, -3, os.SEEK_END), len(data) - 3)
        equal(os.read(fd, 100), data[-3:])
        equal(os.lseek(fd, 0, os.SEEK_CUR), len(data))


@read_case()
def two_processes_read(root: Path) -> None:
    """Another process reads the same."""
    with Peer() as peer:
        fd = peer.call("open", root / "size-4097", os.O_RDONLY)
        text = peer.call("read", fd, 5000, 0)
    equal(text.encode("latin-1"), tree.content("size-4097", 4097))


@read_case()
def mapped_files(root: Path) -> None:
    """A shared mapping shows the file's bytes, zeros to the end of its last page."""
    for size in (4097, 65537, tree.SIZES[-1]):
        name = f"size-{size}"
        with opened(root / name) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
            holds(view[:] == tree.content(name, size), f"the bytes of {name}")


@read_case()
def private_mappings_can_be_changed(root: Path) -> None:
    """A private mapping can be stored into; the file stays."""
    with opened(root / "size-4097") as fd:
        both = mmap.PROT_READ | mmap.PROT_WRITE
        with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, both) as view:
            view[:4] = b"mine"
            equal(view[:4], b"mine")
        equal(os.pread(fd, 4097, 0), tree.content("size-4097", 4097))
        fails(errno.EACCES, mmap.mmap, fd, 4097, mmap.MAP_SHARED, both)


@read_case()
def direct_reading(root: Path) -> None:
    """O_DIRECT reads the same bytes, or is EINVAL where there is no direct I/O; with the file open
    elsewhere too."""
    data = _large()
    for _ in range(2):
        with opened(root / LARGE) as cached:
            os.pread(cached, 100_000, 0)
            try:
                fd = os.open(root / LARGE, os.O_RDONLY | os.O_DIRECT)
            except OSError as error:
                equal(error.errno, errno.EINVAL, "the errno of a filesystem without direct I/O")
                continue
            with mmap.mmap(-1, 4 * BLOCK) as memory:
                try:
                    equal(os.preadv(fd, [memory], BLOCK), 4 * BLOCK)
                    holds(memory[:] == data[BLOCK : 5 * BLOCK], "the same bytes")
                    tail = len(data) // BLOCK * BLOCK
                    equal(os.preadv(fd, [memory], tail), len(data) - tail)
                    holds(memory[: len(data) - tail] == data[tail:], "the end of the file")
                finally:
                    os.close(fd)


@read_case()
def sending_and_splicing(root: Path) -> None:
    """sendfile and splice carry the same bytes."""
    data = _large()
    reader, writer = os.pipe()
    try:
        with opened(root / LARGE) as fd:
            got = b""
            while len(got) < 300_000:
                moved = os.splice(fd, writer, 50_000, offset_src=len(got))
                holds(moved > 0, "progress")
                while moved:
                    part = os.read(reader, moved)
                    got += part
                    moved -= len(part)
            holds(got == data[: len(got)], "the same bytes")
            equal(os.sendfile(writer, fd, 4095, 3), 3)
            equal(os.read(reader, 10), data[4095:4098])
    finally:
        os.close(reader)
        os.close(writer)


@read_case()
def reading_ahead(root: Path) -> None:
    """posix_fadvise is heeded or not; what is read afterwards is the same."""
    with opened(root / LARGE) as fd:
        for advice in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED):
            os.posix_fadvise(fd, 0, 0, advice)
            holds(os.pread(fd, 1 << 23, 0) == _large(), "the same bytes")


@read_case("holes")
def sparse_content(root: Path) -> None:
    """Holes read as zeros between the data, by read and by mapping."""
    expected = bytearray(8 * BLOCK)
    for block in (2, 5):
        expected[block * BLOCK : (block + 1) * BLOCK] = tree.content(f"sparse-{block}", BLOCK)
    path = root / "sparse"
    holds(path.read_bytes() == expected, "data and zeros")
    with opened(path) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
        holds(view[:] == expected, "data and zeros, mapped")


@read_case("holes")
def sparse_borders(root: Path) -> None:
    """SEEK_DATA and SEEK_HOLE find the borders of data and holes."""
    with opened(root / "sparse") as fd:
        for start, whence, found in (
            (0, os.SEEK_DATA, 2),
            (0, os.SEEK_HOLE, 0),
            (2, os.SEEK_HOLE, 3),
            (3, os.SEEK_DATA, 5),
            (5, os.SEEK_HOLE, 6),
            (7, os.SEEK_HOLE, 7),
        ):
            equal(os.lseek(fd, start * BLOCK, whence), found * BLOCK, f"from block {start}")
        fails(errno.ENXIO, os.lseek, fd, 6 * BLOCK, os.SEEK_DATA)
        fails(errno.ENXIO, os.lseek, fd, 8 * BLOCK, os.SEEK_HOLE)
    with opened(root / "size-4097") as fd:
        equal(os.lseek(fd, 0, os.SEEK_HOLE), 4097)
        equal(os.lseek(fd, 4000, os.SEEK_DATA), 4000)


@read_case("holes")
def hole_at_the_end(root: Path) -> None:
    """A hole after the data belongs to the file and reads as zeros."""
    with opened(root / "hole-at-end") as fd:
        equal(os.fstat(fd).st_size, 4 * BLOCK + 7)
        equal(os.lseek(fd, 0, os.SEEK_HOLE), BLOCK)
        holds(os.pread(fd, BLOCK, 0) == tree.content("hole-at-end", BLOCK), "the data")
        holds(os.pread(fd, 5 * BLOCK, BLOCK) == bytes(3 * BLOCK + 7), "zeros to the end")


@read_case("holes")
def nothing_but_a_hole(root: Path) -> None:
    """A GiB of nothing takes nearly no space, has no data, and reads as zeros anywhere."""
    with opened(root / "all-hole") as fd:
        status = os.fstat(fd)
        equal(status.st_size, (1 << 30) + 5)
        holds(status.st_blocks <= 128, f"few blocks, not {status.st_blocks}")
        fails(errno.ENXIO, os.lseek, fd, 0, os.SEEK_DATA)
        equal(os.lseek(fd, 12345, os.SEEK_HOLE), 12345)
        for offset in (0, 12345, 1 << 29, 1 << 30):
            equal(os.pread(fd, 100, offset), bytes(min(100, (1 << 30) + 5 - offset)))


@read_case("xattr")
def attributes_have_their_values(root: Path) -> None:
    """Extended attributes of files and directories have their values, empty and larger ones."""
    for name in ("attributes", "directory"):
        listed = {n for n in os.listxattr(root / name) if n.startswith("user.")}
        equal(listed, set(tree.ATTRIBUTES))
        for attribute, value in tree.ATTRIBUTES.items():
            equal(os.getxattr(root / name, attribute), value, attribute)


@read_case("xattr")
def attributes_that_are_not_there(root: Path) -> None:
    """A missing attribute is ENODATA; a buffer too small for a value or a list ERANGE."""
    path = root / "attributes"
    fails(errno.ENODATA, os.getxattr, path, "user.missing")
    fails(errno.ENODATA, os.getxattr, root / "size-1", "user.small")
    equal(getxattr_into(path, "user.small", 0), 5)
    fails(errno.ERANGE, getxattr_into, path, "user.small", 4)
    length = listxattr_into(path, 0)
    fails(errno.ERANGE, listxattr_into, path, length - 1)


@read_case("trusted", "root")
def attributes_of_root(root: Path) -> None:
    """trusted.* is there for root, on symlinks too."""
    equal(os.getxattr(root / "size-1", "trusted.name"), b"file")
    equal(os.getxattr(root / "to-file", "trusted.name", follow_symlinks=False), b"link")


@read_case("security", "root")
def attributes_of_security(root: Path) -> None:
    """security.* has its value."""
    equal(os.getxattr(root / "size-1", "security.penstock"), b"label\0")


@read_case("acl")
def acls_have_their_entries(root: Path) -> None:
    """Access and default ACLs have their entries, and the mode shows the mask."""
    equal(os.getxattr(root / "acl", ACCESS), tree.ACL)
    equal(os.stat(root / "acl").st_mode & 0o777, 0o674)
    equal(os.getxattr(root / "acl-directory", DEFAULT), tree.DEFAULT_ACL)
    fails(errno.ENODATA, os.getxattr, root / "size-1", ACCESS)


@read_case("acl", "others")
def acls_hold(root: Path) -> None:
    """A user whom the ACL names is let in to read and write (which a read-only mount refuses with
    EROFS), another user only to read."""
    with Peer(user=1000) as peer:
        try:
            peer.call("listdir", root)
        except OSError:
            return  # a directory above keeps him out
        peer.call("open", root / "acl", os.O_RDONLY)
        fails(errno.EROFS, peer.call, "open", root / "acl", os.O_RDWR)
    with Peer(user=65534) as peer:
        peer.call("open", root / "acl", os.O_RDONLY)


@read_case("exec")
def scripts_run(root: Path) -> None:
    """A script with execute permission runs; without it EACCES."""
    done = subprocess.run([root / "script"], capture_output=True, check=False)
    equal((done.returncode, done.stdout), (0, b"it runs\n"))
    fails(errno.EACCES, subprocess.run, [root / "mode-0600"], check=False)


@read_case()
def locks_for_reading(root: Path) -> None:
    """Files of a read-only filesystem can be locked: to read by fcntl, in both ways by flock."""
    with opened(root / "locked") as fd, opened(root / "locked") as other:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fails(errno.EBADF, fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fails(errno.EAGAIN, fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)


@read_case()
def syncing_is_allowed(root: Path) -> None:
    """fsync and fdatasync of files and directories succeed: there is nothing to do."""
    for name in ("size-1", "directory"):
        with opened(root / name) as fd:
            os.fsync(fd)
            os.fdatasync(fd)
