# SPDX-License-Identifier: Apache-2.0
"""Truncating: sizes, zeros, who may."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from penstock.testing.posix.calls import forget, opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails, holds

CREATE = os.O_CREAT | os.O_RDWR
SIZES = (0, 1, 4095, 4096, 4097, 8191, 8192, 65535, 65536, 65537)


@case()
def every_size_is_kept(root: Path) -> None:
    """A file can be cut and extended to any size around the borders of blocks; what is left is
    what was written, what is new is zeros."""
    full = b"x" * 70_000
    for size in SIZES:
        path = root / f"size-{size}"
        path.write_bytes(full)
        os.truncate(path, size)
        equal(os.stat(path).st_size, size)
        os.truncate(path, 70_000)
        with opened(path) as fd:
            forget(fd)
        holds(path.read_bytes() == full[:size] + bytes(70_000 - size), f"zeros from {size} on")


@case()
def cut_part_does_not_come_back(root: Path) -> None:
    """What was cut off a block does not come back when the file is extended after it was closed."""
    path = root / "file"
    path.write_bytes(b"secret" * 1000)
    os.truncate(path, 3)
    os.truncate(path, 6000)
    with opened(path) as fd:
        forget(fd)
        equal(os.pread(fd, 10_000, 0), b"sec" + bytes(5997))


@case()
def truncating_to_the_same_size_changes_no_byte(root: Path) -> None:
    """truncate to the size that a file has leaves its content."""
    path = root / "file"
    path.write_bytes(b"x" * 5000)
    os.truncate(path, 5000)
    equal(path.read_bytes(), b"x" * 5000)


@case()
def position_stays_when_a_file_is_cut(root: Path) -> None:
    """ftruncate leaves the position: the next write makes a gap of zeros."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"x" * 100)
        os.ftruncate(fd, 10)
        os.write(fd, b"y")
        equal(os.pread(fd, 200, 0), b"x" * 10 + bytes(90) + b"y")


@case()
def cutting_through_another_descriptor(root: Path) -> None:
    """A reader whose position lies beyond the new end reads nothing, and what is written later."""
    path = root / "file"
    path.write_bytes(b"x" * 100)
    with opened(path) as reader, opened(path, os.O_WRONLY) as writer:
        equal(os.read(reader, 50), b"x" * 50)
        os.ftruncate(writer, 20)
        equal(os.read(reader, 50), b"")
        os.pwrite(writer, b"new", 50)
        equal(os.read(reader, 50), b"new")


@case()
def sizes_beyond_four_gib(root: Path) -> None:
    """A file may be longer than 4 GiB: offsets are 64 bits wide."""
    with opened(root / "file", CREATE) as fd:
        for size in ((1 << 32) - 1, (1 << 32) + 1, (5 << 32) + 7):
            os.ftruncate(fd, size)
            equal(os.fstat(fd).st_size, size)
        os.pwrite(fd, b"far", (1 << 32) + 10)
        equal(os.pread(fd, 5, (1 << 32) + 9), b"\0far\0")
        equal(os.pread(fd, 3, 10), bytes(3))
        os.ftruncate(fd, 0)


@case()
def truncate_errors(root: Path) -> None:
    """truncate: ENOENT, ENOTDIR, EISDIR, EINVAL for a fifo or a negative size."""
    (root / "file").touch()
    os.mkfifo(root / "fifo")
    fails(errno.ENOENT, os.truncate, root / "missing", 0)
    fails(errno.ENOTDIR, os.truncate, root / "file" / "below", 0)
    fails(errno.EISDIR, os.truncate, root, 0)
    fails(errno.EINVAL, os.truncate, root / "fifo", 0)
    fails(errno.EINVAL, os.truncate, root / "file", -1)


@case()
def sizes_beyond_all_are_efbig(root: Path) -> None:
    """The largest offset is EFBIG, or works where files may be that large."""
    with opened(root / "file", CREATE) as fd:
        try:
            os.ftruncate(fd, (1 << 63) - 1)
        except OSError as error:
            equal(error.errno, errno.EFBIG)
            equal(os.fstat(fd).st_size, 0)
        else:
            equal(os.fstat(fd).st_size, (1 << 63) - 1)
        fails((errno.EFBIG, errno.EINVAL), os.pwrite, fd, b"xy", (1 << 63) - 1)


@case("others")
def truncating_needs_write(root: Path) -> None:
    """truncate and O_TRUNC need write permission; a descriptor open for writing is enough
    whatever the mode says later."""
    root.chmod(0o755)
    path = root / "file"
    path.write_bytes(b"content")
    path.chmod(0o644)
    with Peer(user=65534) as peer:
        fails(errno.EACCES, peer.call, "truncate", path, 0)
        fails(errno.EACCES, peer.call, "open", path, os.O_RDONLY | os.O_TRUNC)
        path.chmod(0o666)
        fd = peer.call("open", path, os.O_RDWR)
        path.chmod(0o600)
        peer.call("os.ftruncate", fd, 2)
    equal(path.read_bytes(), b"co")


@case()
def mode_zero_of_creation_can_be_truncated(root: Path) -> None:
    """A file made with mode 0 can be truncated and written through the descriptor that made it."""
    with opened(root / "file", CREATE, 0) as fd:
        os.ftruncate(fd, 10)
        os.pwrite(fd, b"abc", 4)
        equal(os.pread(fd, 20, 0), bytes(4) + b"abc" + bytes(3))


@case()
def truncating_an_unlinked_file(root: Path) -> None:
    """A file without a name is cut and extended as any other."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"x" * 10_000)
        (root / "file").unlink()
        os.ftruncate(fd, 5)
        os.ftruncate(fd, 8)
        equal(os.pread(fd, 100, 0), b"xxxxx\0\0\0")
