# SPDX-License-Identifier: Apache-2.0
"""Copying inside the kernel: copy_file_range, sendfile, splice, and files that share blocks."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.testing.posix.calls import clone, clone_range, opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails, holds

CREATE = os.O_CREAT | os.O_RDWR
BLOCK = 65536


def _data(size: int) -> bytes:
    return hashlib.shake_128(b"copying").digest(size)


@contextmanager
def _pair(root: Path, data: bytes) -> Iterator[tuple[int, int]]:
    """A file with data and an empty one, both open for reading and writing."""
    (root / "from").write_bytes(data)
    with opened(root / "from", os.O_RDWR) as source, opened(root / "to", CREATE) as target:
        yield source, target


def _copy(source: int, target: int, length: int, start: int = 0, to: int = 0) -> int:
    """copy_file_range until ``length`` bytes are copied or the source ends."""
    done = 0
    while done < length:
        step = os.copy_file_range(source, target, length - done, start + done, to + done)
        if not step:
            break
        done += step
    return done


@case()
def copy_moves_positions(root: Path) -> None:
    """copy_file_range without offsets uses both positions and moves them by what it copied."""
    with _pair(root, b"0123456789") as (source, target):
        os.lseek(source, 2, os.SEEK_SET)
        equal(os.copy_file_range(source, target, 5), 5)
        equal(os.lseek(source, 0, os.SEEK_CUR), 7)
        equal(os.lseek(target, 0, os.SEEK_CUR), 5)
        equal(os.copy_file_range(source, target, 100), 3)
        equal(os.pread(target, 100, 0), b"23456789")


@case()
def copy_with_offsets_leaves_positions(root: Path) -> None:
    """copy_file_range with offsets leaves both positions."""
    with _pair(root, b"0123456789") as (source, target):
        os.lseek(source, 3, os.SEEK_SET)
        equal(os.copy_file_range(source, target, 4, 6, 2), 4)
        equal((os.lseek(source, 0, os.SEEK_CUR), os.lseek(target, 0, os.SEEK_CUR)), (3, 0))
        equal(os.pread(target, 100, 0), b"\0\x006789")


@case()
def copy_ends_at_the_end(root: Path) -> None:
    """copy_file_range is short at the end of the source and 0 beyond it; the target gets no longer
    than what was copied."""
    with _pair(root, b"x" * 100) as (source, target):
        equal(_copy(source, target, 1000, 60), 40)
        equal(os.pread(target, 100, 0), b"x" * 40)
        equal(os.copy_file_range(source, target, 10, 100, 0), 0)
        equal(os.copy_file_range(source, target, 10, 5000, 0), 0)
        equal(os.fstat(target).st_size, 40)


@case()
def copy_over_what_is_there(root: Path) -> None:
    """copy_file_range into the middle of a file changes the range alone."""
    data = _data(3 * BLOCK)
    with _pair(root, data) as (source, target):
        os.write(target, b"t" * 4 * BLOCK)
        equal(_copy(source, target, BLOCK + 50, 100, BLOCK - 7), BLOCK + 50)
        expected = b"t" * (BLOCK - 7) + data[100 : BLOCK + 150] + b"t" * (2 * BLOCK - 43)
        holds(os.pread(target, 5 * BLOCK, 0) == expected, "the range alone")


@case()
def copy_inside_one_file(root: Path) -> None:
    """copy_file_range inside a file copies ranges that touch each other."""
    data = _data(2 * BLOCK)
    with _pair(root, data) as (source, _):
        equal(_copy(source, source, BLOCK, 0, 2 * BLOCK), BLOCK)
        equal(_copy(source, source, 1000, 0, 1000), 1000)
        expected = data[:1000] * 2 + data[2000:] + data[:BLOCK]
        holds(os.pread(source, 4 * BLOCK, 0) == expected, "both copies")


@case()
def copy_of_an_overlap_is_einval(root: Path) -> None:
    """copy_file_range of overlapping ranges of one file is EINVAL in both directions, through two
    descriptors too, and changes nothing."""
    with _pair(root, b"0123456789" * 100) as (source, _), opened(root / "from", os.O_RDWR) as again:
        for start, to in ((0, 50), (50, 0), (10, 10)):
            fails(errno.EINVAL, os.copy_file_range, source, again, 60, start, to)
        equal(os.pread(source, 2000, 0), b"0123456789" * 100)


@case()
def copy_of_holes_reads_as_zeros(root: Path) -> None:
    """Holes that are copied read as zeros, over data too."""
    with _pair(root, b"") as (source, target):
        os.ftruncate(source, 4 * BLOCK)
        os.pwrite(source, b"island", 2 * BLOCK)
        os.pwrite(target, b"t" * 4 * BLOCK, 0)
        equal(_copy(source, target, 4 * BLOCK), 4 * BLOCK)
        expected = bytes(2 * BLOCK) + b"island" + bytes(2 * BLOCK - 6)
        holds(os.pread(target, 5 * BLOCK, 0) == expected, "zeros and the island")


@case()
def copy_refusals(root: Path) -> None:
    """copy_file_range: EBADF for a write-only source, a read-only or an appending target; EISDIR
    for a directory; EINVAL for a pipe."""
    reader, writer = os.pipe()
    try:
        with (
            _pair(root, b"x" * 100) as (source, target),
            opened(root / "from", os.O_WRONLY) as blind,
            opened(root / "to", os.O_WRONLY | os.O_APPEND) as appending,
            opened(root, os.O_DIRECTORY) as directory,
        ):
            fails(errno.EBADF, os.copy_file_range, blind, target, 10, 0, 0)
            fails(errno.EBADF, os.copy_file_range, source, appending, 10, 0, 0)
            fails(errno.EISDIR, os.copy_file_range, directory, target, 10, 0, 0)
            fails(errno.EINVAL, os.copy_file_range, reader, target, 10)
            equal(os.fstat(target).st_size, 0)
    finally:
        os.close(reader)
        os.close(writer)


@case()
def copy_of_unwritten_pages(root: Path) -> None:
    """copy_file_range sees what was written just before, and readers of the target see the copy."""
    with _pair(root, b"old" * 1000) as (source, target):
        equal(os.pread(target, 10, 0), b"")
        os.pwrite(source, b"new", 0)
        equal(_copy(source, target, 6), 6)
        equal(os.pread(target, 10, 0), b"newold")
        with Peer() as peer:
            other = peer.call("open", root / "to", os.O_RDONLY)
            equal(peer.call("read", other, 10, 0), "newold")


@case("others")
def copy_by_others_drops_set_id_bits(root: Path) -> None:
    """copy_file_range by an ordinary user drops the target's set-user-ID and set-group-ID."""
    root.chmod(0o755)
    for name in ("from", "to"):
        (root / name).write_bytes(b"content")
        (root / name).chmod(0o6777)
    with Peer(user=65534) as peer:
        source = peer.call("open", root / "from", os.O_RDONLY)
        target = peer.call("open", root / "to", os.O_WRONLY)
        equal(peer.call("os.copy_file_range", source, target, 4, 0, 0), 4)
    equal(os.stat(root / "to").st_mode & 0o7777, 0o777)
    equal(os.stat(root / "from").st_mode & 0o7777, 0o6777)


@case()
def sendfile_moves_its_position(root: Path) -> None:
    """sendfile without an offset reads from the position and moves it; at the end it is 0."""
    with _pair(root, b"0123456789") as (source, target):
        equal(os.sendfile(target, source, None, 4), 4)
        equal(os.sendfile(target, source, None, 100), 6)
        equal(os.sendfile(target, source, None, 100), 0)
        equal(os.pread(target, 100, 0), b"0123456789")


@case()
def splice_out_of_a_file(root: Path) -> None:
    """splice from a file into a pipe carries its bytes, also of a hole and up to the end."""
    reader, writer = os.pipe()
    try:
        with _pair(root, b"data") as (source, _):
            os.ftruncate(source, 10)
            equal(os.splice(source, writer, 100, offset_src=2), 8)
            equal(os.read(reader, 100), b"ta" + bytes(6))
            equal(os.splice(source, writer, 100, offset_src=10), 0)
    finally:
        os.close(reader)
        os.close(writer)


@case()
def splice_into_a_file(root: Path) -> None:
    """splice from a pipe writes at the offset, many pages in one go too."""
    data = _data(BLOCK)
    reader, writer = os.pipe()
    try:
        with _pair(root, b"") as (_, target):
            os.write(writer, data)
            done = 0
            while done < len(data):
                step = os.splice(reader, target, len(data) - done, offset_dst=5 + done)
                holds(step > 0, "progress")
                done += step
            holds(os.pread(target, 2 * BLOCK, 0) == bytes(5) + data, "the same bytes")
    finally:
        os.close(reader)
        os.close(writer)


@case("reflink")
def clone_shares_and_parts(root: Path) -> None:
    """FICLONE makes an equal file; writing to one of the two leaves the other."""
    data = _data(4 * BLOCK)
    with _pair(root, data) as (source, target):
        clone(target, source)
        holds(os.pread(target, 5 * BLOCK, 0) == data, "the same bytes")
        os.pwrite(target, b"changed", BLOCK)
        os.pwrite(source, b"elsewhere", 3 * BLOCK)
        equal(os.pread(source, 7, BLOCK), data[BLOCK : BLOCK + 7])
        equal(os.pread(target, 9, 3 * BLOCK), data[3 * BLOCK : 3 * BLOCK + 9])


@case("reflink")
def clone_of_a_range(root: Path) -> None:
    """FICLONERANGE shares a range; EINVAL for one that begins inside a block."""
    data = _data(4 * BLOCK)
    with _pair(root, data) as (source, target):
        clone_range(target, source, BLOCK, 2 * BLOCK, BLOCK)
        equal(os.fstat(target).st_size, 3 * BLOCK)
        expected = bytes(BLOCK) + data[BLOCK : 3 * BLOCK]
        holds(os.pread(target, 5 * BLOCK, 0) == expected, "the range alone")
        fails(errno.EINVAL, clone_range, target, source, 1, BLOCK, 0)
