# SPDX-License-Identifier: Apache-2.0
"""Sparse files: holes, SEEK_DATA and SEEK_HOLE, fallocate, punching, and the space they take."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from penstock.testing.posix.calls import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    fallocate,
    forget,
    opened,
)
from penstock.testing.posix.registry import case, equal, fails, holds

CREATE = os.O_CREAT | os.O_RDWR
BLOCK = 65536
"""A multiple of the block size of every filesystem in use."""


def _holey(path: Path) -> int:
    """Data in blocks 2 and 5 of 8; an open descriptor."""
    fd = os.open(path, CREATE, 0o644)
    os.ftruncate(fd, 8 * BLOCK)
    os.pwrite(fd, b"x" * BLOCK, 2 * BLOCK)
    os.pwrite(fd, b"y" * BLOCK, 5 * BLOCK)
    return fd


@case("holes")
def holes_take_no_space(root: Path) -> None:
    """A terabyte of nothing takes (nearly) no space; a written megabyte about that much."""
    with opened(root / "file", CREATE) as fd:
        os.ftruncate(fd, 1 << 40)
        holds(os.fstat(fd).st_blocks <= 128, "few blocks")
        equal(os.pread(fd, 10, 1 << 39), bytes(10))
        os.pwrite(fd, b"x" * (1 << 20), 1 << 39)
        holds(2048 <= os.fstat(fd).st_blocks <= 2200, "2048 blocks of 512 bytes")


@case("holes")
def seeking_data_and_holes(root: Path) -> None:
    """SEEK_DATA and SEEK_HOLE find the borders of what was written."""
    fd = _holey(root / "file")
    try:
        for start, whence, found in (
            (0, os.SEEK_DATA, 2),
            (0, os.SEEK_HOLE, 0),
            (2, os.SEEK_DATA, 2),
            (2, os.SEEK_HOLE, 3),
            (3, os.SEEK_DATA, 5),
            (5, os.SEEK_HOLE, 6),
            (7, os.SEEK_HOLE, 7),
        ):
            equal(os.lseek(fd, start * BLOCK, whence), found * BLOCK, f"from block {start}")
        equal(os.lseek(fd, 2 * BLOCK + 5, os.SEEK_DATA), 2 * BLOCK + 5)
    finally:
        os.close(fd)


@case("holes")
def seeking_beyond_is_enxio(root: Path) -> None:
    """ENXIO at or beyond the end, and for SEEK_DATA where no data follows."""
    fd = _holey(root / "file")
    try:
        fails(errno.ENXIO, os.lseek, fd, 6 * BLOCK, os.SEEK_DATA)
        fails(errno.ENXIO, os.lseek, fd, 8 * BLOCK, os.SEEK_HOLE)
        fails(errno.ENXIO, os.lseek, fd, 9 * BLOCK, os.SEEK_DATA)
    finally:
        os.close(fd)


@case("holes")
def end_of_file_is_a_hole(root: Path) -> None:
    """In a file without holes SEEK_HOLE is the size."""
    (root / "file").write_bytes(b"x" * 100)
    with opened(root / "file") as fd:
        equal(os.lseek(fd, 0, os.SEEK_HOLE), 100)
        equal(os.lseek(fd, 50, os.SEEK_DATA), 50)


@case("holes")
def fallocate_reserves_and_extends(root: Path) -> None:
    """fallocate makes the file longer, takes the space, and keeps what is there."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"start")
        fallocate(fd, 0, 0, 4 * BLOCK)
        equal(os.fstat(fd).st_size, 4 * BLOCK)
        holds(os.fstat(fd).st_blocks * 512 >= 4 * BLOCK, "space is taken")
        equal(os.pread(fd, 10, 0), b"start" + bytes(5))
        fallocate(fd, 0, 0, BLOCK)
        equal(os.fstat(fd).st_size, 4 * BLOCK)


@case("holes")
def fallocate_keep_size(root: Path) -> None:
    """FALLOC_FL_KEEP_SIZE takes space beyond the end and leaves the size."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"start")
        fallocate(fd, FALLOC_KEEP_SIZE, 0, 4 * BLOCK)
        equal(os.fstat(fd).st_size, 5)
        holds(os.fstat(fd).st_blocks * 512 >= 4 * BLOCK, "space is taken")
        equal(os.pread(fd, 100, 0), b"start")
        os.ftruncate(fd, 2 * BLOCK)
        equal(os.pread(fd, 4, BLOCK), bytes(4))


@case("holes")
def punching_zeroes_and_frees(root: Path) -> None:
    """A punched range reads as zeros, whole blocks give their space back, the size stays."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"x" * (8 * BLOCK))
        before = os.fstat(fd).st_blocks
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 2 * BLOCK - 10, 3 * BLOCK + 20)
        equal(os.fstat(fd).st_size, 8 * BLOCK)
        holds(os.fstat(fd).st_blocks <= before - 3 * BLOCK // 512, "space is given back")
        forget(fd)
        expected = b"x" * (2 * BLOCK - 10) + bytes(3 * BLOCK + 20) + b"x" * (3 * BLOCK - 10)
        holds(os.pread(fd, 8 * BLOCK, 0) == expected, "zeros exactly in the range")
        equal(os.lseek(fd, 2 * BLOCK, os.SEEK_DATA), 5 * BLOCK)


@case("holes")
def punching_small_and_beyond(root: Path) -> None:
    """Punching inside a block, across the end and beyond it changes no byte outside."""
    punch = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"0123456789")
        fallocate(fd, punch, 2, 3)
        equal(os.pread(fd, 20, 0), b"01\0\0\x0056789")
        fallocate(fd, punch, 8, 1 << 30)
        fallocate(fd, punch, 1 << 40, 1 << 30)
        equal(os.pread(fd, 20, 0), b"01\0\0\x00567\0\0")


@case("holes")
def fallocate_refusals(root: Path) -> None:
    """fallocate: EINVAL for no length, EBADF for a read-only descriptor, EOPNOTSUPP for punching
    without keeping the size."""
    with opened(root / "file", CREATE) as fd, opened(root / "file") as reader:
        fails(errno.EINVAL, fallocate, fd, 0, 0, 0)
        fails(errno.EINVAL, fallocate, fd, 0, -1, 10)
        fails(errno.EBADF, fallocate, reader, 0, 0, 10)
        fails(errno.EOPNOTSUPP, fallocate, fd, FALLOC_PUNCH_HOLE, 0, 10)


@case("holes")
def truncation_gives_space_back(root: Path) -> None:
    """Blocks beyond the new end are free again."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"x" * (8 * BLOCK))
        os.ftruncate(fd, BLOCK)
        holds(os.fstat(fd).st_blocks * 512 <= 2 * BLOCK, "one block is left")
        os.ftruncate(fd, 8 * BLOCK)
        holds(os.fstat(fd).st_blocks * 512 <= 2 * BLOCK, "and extending takes nothing")


@case()
def counts_of_the_filesystem_follow(root: Path) -> None:
    """statvfs: names may be 255 bytes long, and free space is never more than there is."""
    status = os.statvfs(root)
    equal(status.f_namemax, 255)
    holds(0 <= status.f_bavail <= status.f_bfree <= status.f_blocks, "bavail ≤ bfree ≤ blocks")
    holds(status.f_ffree <= status.f_files, "ffree ≤ files")
    holds(status.f_frsize >= 512, "a fragment of at least 512 bytes")
