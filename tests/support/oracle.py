# SPDX-License-Identifier: Apache-2.0
"""Everything that can be asked of a mounted tree, so that two mounts of one image can be compared.

:func:`capture` asks through system calls alone; which filesystem answers does not matter. Call it
only in a process that serves no part of the tree. :func:`differences` says in words where two
captures differ, since a plain comparison of two large trees is not readable.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.syscalls import statx

__all__ = [
    "Counts",
    "Node",
    "acls",
    "assert_same",
    "capture",
    "counts",
    "data_ranges",
    "differences",
]

FS_IOC_GETFLAGS: Final = 0x8008_6601
FS_IOC_GETVERSION: Final = 0x8008_7601
FS_IOC_FSGETXATTR: Final = 0x801C_581F
WHOLE: Final = 1 << 27
"""Larger files are compared where they have data, and at the borders of it."""
_MOST_RANGES: Final = 100_000
_SHOWN: Final = 12


class Node(NamedTuple):
    """Everything about one file but its name. Times in nanoseconds since 1970."""

    ino: int
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    blocks512: int
    block_size: int
    rdev: int
    atime: int
    mtime: int
    ctime: int
    born: int | None
    statx_mask: int
    xattrs: Mapping[bytes, bytes]
    target: bytes
    digest: str
    layout: tuple[tuple[int, int], ...]
    """Ranges with data, as SEEK_DATA and SEEK_HOLE tell them."""
    flags: int | None
    generation: int | None
    fsxattr: tuple[int, ...] | None
    """xflags, extent size, extents, project id of FS_IOC_FSGETXATTR."""
    names: tuple[bytes, ...]
    """Of a directory, in order."""


class Counts(NamedTuple):
    """statfs(2)."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    namemax: int


def counts(top: Path) -> Counts:
    """What statfs says of a mount."""
    st = os.statvfs(top)
    return Counts(
        st.f_bsize, st.f_frsize, st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree,
        st.f_favail, st.f_namemax,
    )  # fmt: skip


def data_ranges(fd: int, size: int) -> tuple[tuple[int, int], ...]:
    """Ranges with data, from start to (exclusive) end."""
    ranges: list[tuple[int, int]] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        assert start < position <= size, (start, position, size)
        ranges.append((start, position))
        assert len(ranges) < _MOST_RANGES
    return tuple(ranges)


def _digest(fd: int, size: int, layout: tuple[tuple[int, int], ...]) -> str:
    """SHA-256 of the content, or of a large file's data with the zeros at its borders."""
    ranges = layout
    if size <= WHOLE:
        ranges = ((0, size),)
    else:
        edge = 4096
        ranges = tuple((max(0, start - edge), min(size, end + edge)) for start, end in layout)
    digest = hashlib.sha256()
    for start, end in ranges:
        digest.update(struct.pack("<QQ", start, end))
        while start < end:
            data = os.pread(fd, min(1 << 20, end - start), start)
            assert data, f"read at {start} of {size} ends early"
            digest.update(data)
            start += len(data)
    assert os.pread(fd, 10, size) == b""
    return digest.hexdigest()


def _ioctls(fd: int) -> tuple[int | None, int | None, tuple[int, ...] | None]:
    answers: list[tuple[int, ...] | None] = []
    for number, layout in (
        (FS_IOC_GETFLAGS, "<I4x"), (FS_IOC_GETVERSION, "<I4x"), (FS_IOC_FSGETXATTR, "<4I12x")
    ):  # fmt: skip
        try:
            answer = fcntl.ioctl(fd, number, bytes(struct.calcsize(layout)))
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
                raise
            answers.append(None)
        else:
            answers.append(struct.unpack(layout, answer))
    flags, generation, fsxattr = answers
    return flags[0] if flags else None, generation[0] if generation else None, fsxattr


def _node(full: bytes) -> Node:
    st = os.lstat(full)
    more = statx(full)
    target = os.readlink(full) if stat.S_ISLNK(st.st_mode) else b""
    digest = ""
    layout: tuple[tuple[int, int], ...] = ()
    names: tuple[bytes, ...] = ()
    flags = generation = fsxattr = None
    if stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode):
        fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags, generation, fsxattr = _ioctls(fd)
            if stat.S_ISREG(st.st_mode):
                layout = data_ranges(fd, st.st_size)
                digest = _digest(fd, st.st_size, layout)
            else:
                names = tuple(sorted(os.listdir(full)))
        finally:
            os.close(fd)
    attributes = os.listxattr(full, follow_symlinks=False)
    return Node(
        st.st_ino, st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_size, st.st_blocks,
        st.st_blksize, st.st_rdev, st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns, more.born_ns,
        more.mask,
        {os.fsencode(name): os.getxattr(full, name, follow_symlinks=False) for name in attributes},
        target, digest, layout, flags, generation, fsxattr, names,
    )  # fmt: skip


def capture(top: Path) -> dict[bytes, Node]:
    """The tree below a mount point by path; ``/`` is the mount point itself."""
    tree: dict[bytes, Node] = {}
    pending = [b"/"]
    base = os.fsencode(top)
    while pending:
        path = pending.pop()
        node = tree[path] = _node(base + path)
        pending += [path.rstrip(b"/") + b"/" + name for name in node.names]
    for path, node in tree.items():  # what scandir says without asking the inode
        if stat.S_ISDIR(node.mode):
            with os.scandir(base + path) as entries:
                for entry in entries:
                    child = tree[path.rstrip(b"/") + b"/" + entry.name]
                    assert entry.inode() == child.ino, (path, entry)
                    assert entry.is_symlink() == stat.S_ISLNK(child.mode), (path, entry)
    return tree


def acls(top: Path) -> str:
    """What getfacl prints of the whole tree, with numbers for owners."""
    done = subprocess.run(
        ["getfacl", "--recursive", "--numeric", "--physical", "--no-effective", "."],
        cwd=top,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    blocks = sorted(done.stdout.split(b"\n\n"))
    return os.fsdecode(b"\n\n".join(blocks))


def differences(
    expected: Mapping[bytes, Node], seen: Mapping[bytes, Node], ignore: frozenset[str] = frozenset()
) -> list[str]:
    """Where two captures differ: one line for each, at most a dozen and a count of the others.

    Args:
        expected: what should be.
        seen: what is.
        ignore: fields of :class:`Node` to leave out.
    """
    lines = [f"{path!r}: missing" for path in expected.keys() - seen.keys()]
    lines += [f"{path!r}: should not be there" for path in seen.keys() - expected.keys()]
    for path in sorted(expected.keys() & seen.keys()):
        one, other = expected[path], seen[path]
        if one == other:
            continue
        for field, want, have in zip(Node._fields, one, other, strict=True):
            if field not in ignore and want != have:
                lines.append(f"{path[:60]!r}: {field} is {have!r:.200}, expected {want!r:.200}")
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"and {len(lines) - _SHOWN} more"]
    return lines


def assert_same(
    expected: Mapping[bytes, Node], seen: Mapping[bytes, Node], ignore: frozenset[str] = frozenset()
) -> None:
    """Fail with :func:`differences`, one a line, if there are any."""
    lines = differences(expected, seen, ignore)
    if lines:
        raise AssertionError("\n".join(["the trees differ", *lines]))
