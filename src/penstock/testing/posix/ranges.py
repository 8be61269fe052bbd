# SPDX-License-Identifier: Apache-2.0
"""fallocate(2) in all its modes, and holes in odd places."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from penstock.testing.posix.calls import (
    FALLOC_COLLAPSE_RANGE,
    FALLOC_INSERT_RANGE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    fallocate,
    forget,
    opened,
)
from penstock.testing.posix.registry import case, equal, fails, holds

CREATE = os.O_CREAT | os.O_RDWR
BLOCK = 65536
PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


def _blocks(fd: int, words: str) -> None:
    """Fill a file: one block of each letter."""
    os.pwrite(fd, b"".join(letter.encode() * BLOCK for letter in words), 0)


def _shown(fd: int) -> str:
    """The first letter of each block; a dot for a zero, a question mark for a mixed block."""
    size = os.fstat(fd).st_size
    found = []
    for offset in range(0, size, BLOCK):
        letters = set(os.pread(fd, BLOCK, offset))
        found.append(chr(letters.pop() or ord(".")) if len(letters) == 1 else "?")
    return "".join(found)


@case("zero")
def zeroing_a_range(root: Path) -> None:
    """FALLOC_FL_ZERO_RANGE zeroes exactly the range, and keeps the size inside the file."""
    with opened(root / "file", CREATE) as fd:
        _blocks(fd, "abcd")
        fallocate(fd, FALLOC_ZERO_RANGE, BLOCK - 10, BLOCK + 20)
        equal(os.fstat(fd).st_size, 4 * BLOCK)
        forget(fd)
        data = os.pread(fd, 4 * BLOCK, 0)
        expected = b"a" * (BLOCK - 10) + bytes(BLOCK + 20) + b"c" * (BLOCK - 10) + b"d" * BLOCK
        holds(data == expected, "zeros in the range alone")


@case("zero")
def zeroing_beyond_the_end(root: Path) -> None:
    """FALLOC_FL_ZERO_RANGE across the end makes the file longer, with KEEP_SIZE it does not."""
    with opened(root / "file", CREATE) as fd:
        _blocks(fd, "ab")
        fallocate(fd, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, BLOCK, 3 * BLOCK)
        equal(_shown(fd), "a.")
        fallocate(fd, FALLOC_ZERO_RANGE, BLOCK, 3 * BLOCK)
        equal(_shown(fd), "a...")


@case("collapse")
def collapsing_a_range(root: Path) -> None:
    """FALLOC_FL_COLLAPSE_RANGE takes blocks out and moves what follows."""
    with opened(root / "file", CREATE) as fd:
        _blocks(fd, "abcde")
        fallocate(fd, FALLOC_COLLAPSE_RANGE, BLOCK, 2 * BLOCK)
        equal(_shown(fd), "ade")
        fails(errno.EINVAL, fallocate, fd, FALLOC_COLLAPSE_RANGE, BLOCK, 2 * BLOCK)
        fails(errno.EINVAL, fallocate, fd, FALLOC_COLLAPSE_RANGE, 1, BLOCK)
        equal(_shown(fd), "ade")


@case("collapse")
def inserting_a_range(root: Path) -> None:
    """FALLOC_FL_INSERT_RANGE makes room with a hole and moves what follows."""
    with opened(root / "file", CREATE) as fd:
        _blocks(fd, "abc")
        fallocate(fd, FALLOC_INSERT_RANGE, BLOCK, 2 * BLOCK)
        equal(_shown(fd), "a..bc")
        fails(errno.EINVAL, fallocate, fd, FALLOC_INSERT_RANGE, 5 * BLOCK, BLOCK)
        fails(errno.EINVAL, fallocate, fd, FALLOC_INSERT_RANGE, 7, BLOCK)


@case("holes")
def contradicting_modes(root: Path) -> None:
    """Unknown modes, and modes that do not go together, are EOPNOTSUPP or EINVAL."""
    with opened(root / "file", CREATE) as fd:
        _blocks(fd, "ab")
        refused = (errno.EOPNOTSUPP, errno.EINVAL)
        for mode in (
            FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
            FALLOC_COLLAPSE_RANGE | FALLOC_KEEP_SIZE,
            FALLOC_INSERT_RANGE | FALLOC_COLLAPSE_RANGE,
            1 << 20,
        ):
            fails(refused, fallocate, fd, mode, 0, BLOCK)
        equal(_shown(fd), "ab")


@case("holes")
def fallocate_of_other_things(root: Path) -> None:
    """fallocate of a pipe is ESPIPE, of a directory EBADF (it is open for reading), beyond all
    sizes EFBIG."""
    reader, writer = os.pipe()
    try:
        fails(errno.ESPIPE, fallocate, writer, 0, 0, 10)
    finally:
        os.close(reader)
        os.close(writer)
    with opened(root, os.O_DIRECTORY) as fd:
        fails(errno.EBADF, fallocate, fd, 0, 0, 10)
    with opened(root / "file", CREATE) as fd:
        fails(errno.EFBIG, fallocate, fd, 0, (1 << 63) - 10, 20)
        equal(os.fstat(fd).st_size, 0)


@case("holes")
def allocation_in_the_middle_of_a_hole(root: Path) -> None:
    """fallocate of a part of a hole changes no byte, and data written there is read."""
    with opened(root / "file", CREATE) as fd:
        os.ftruncate(fd, 4 * BLOCK)
        fallocate(fd, 0, BLOCK + 5, BLOCK)
        equal(_shown(fd), "....")
        os.pwrite(fd, b"z" * 10, BLOCK + 100)
        equal(os.pread(fd, 12, BLOCK + 99), b"\0" + b"z" * 10 + b"\0")


@case("holes")
def hole_punched_at_the_end(root: Path) -> None:
    """Punching the last block leaves the size, and SEEK_DATA finds nothing there."""
    with opened(root / "file", CREATE) as fd:
        _blocks(fd, "abc")
        fallocate(fd, PUNCH, 2 * BLOCK, BLOCK)
        equal(_shown(fd), "ab.")
        fails(errno.ENXIO, os.lseek, fd, 2 * BLOCK, os.SEEK_DATA)
        equal(os.lseek(fd, 0, os.SEEK_HOLE), 2 * BLOCK)


@case("holes")
def punched_hole_is_filled_again(root: Path) -> None:
    """What is written into a punched hole is there, its surroundings are zeros."""
    with opened(root / "file", CREATE) as fd:
        _blocks(fd, "abc")
        fallocate(fd, PUNCH, BLOCK, BLOCK)
        os.pwrite(fd, b"new", BLOCK + 1000)
        block = os.pread(fd, BLOCK, BLOCK)
        holds(block == bytes(1000) + b"new" + bytes(BLOCK - 1003), "zeros around it")
        equal(os.lseek(fd, BLOCK, os.SEEK_DATA) // BLOCK, 1)


@case("holes")
def everything_is_a_hole(root: Path) -> None:
    """In a file that was only truncated SEEK_HOLE is the offset itself, SEEK_DATA is ENXIO; an
    empty file has neither."""
    with opened(root / "file", CREATE) as fd:
        fails(errno.ENXIO, os.lseek, fd, 0, os.SEEK_DATA)
        fails(errno.ENXIO, os.lseek, fd, 0, os.SEEK_HOLE)
        os.ftruncate(fd, 10 * BLOCK)
        equal(os.lseek(fd, 3 * BLOCK + 7, os.SEEK_HOLE), 3 * BLOCK + 7)
        fails(errno.ENXIO, os.lseek, fd, 0, os.SEEK_DATA)


@case("holes")
def seeking_moves_the_position(root: Path) -> None:
    """SEEK_DATA and SEEK_HOLE move the position; where they fail it stays."""
    with opened(root / "file", CREATE) as fd:
        os.ftruncate(fd, 4 * BLOCK)
        os.pwrite(fd, b"d" * BLOCK, 2 * BLOCK)
        os.lseek(fd, 0, os.SEEK_DATA)
        equal(os.read(fd, 1), b"d")
        fails(errno.ENXIO, os.lseek, fd, 3 * BLOCK, os.SEEK_DATA)
        equal(os.lseek(fd, 0, os.SEEK_CUR), 2 * BLOCK + 1)


@case("holes")
def copying_by_data_and_holes(root: Path) -> None:
    """Walking a file by SEEK_DATA and SEEK_HOLE visits every byte that is not zero."""
    with opened(root / "file", CREATE) as fd:
        islands = (0, 3 * BLOCK + 17, 6 * BLOCK - 1, 11 * BLOCK)
        for number, offset in enumerate(islands):
            os.pwrite(fd, b"island-%d" % number, offset)
        size = 14 * BLOCK + 3
        os.ftruncate(fd, size)
        copy = bytearray(size)
        position = 0
        while True:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                equal(error.errno, errno.ENXIO)
                break
            position = os.lseek(fd, start, os.SEEK_HOLE)
            holds(position > start, "a hole after its data")
            copy[start:position] = os.pread(fd, position - start, start)
        holds(bytes(copy) == os.pread(fd, size, 0), "the same bytes")


@case("space")
def space_of_the_filesystem_follows(root: Path) -> None:
    """statvfs: space that a file takes is missing, and is back when the file is gone."""
    with opened(root, os.O_DIRECTORY) as place, opened(root / "file", CREATE) as fd:
        os.fsync(place)
        before = os.fstatvfs(place)
        fallocate(fd, 0, 0, 64 * BLOCK)
        os.fsync(fd)
        less = (before.f_bfree - os.fstatvfs(place).f_bfree) * before.f_frsize
        holds(less >= 32 * BLOCK, f"{64 * BLOCK} bytes fewer are free, not {less}")
        os.ftruncate(fd, 0)
