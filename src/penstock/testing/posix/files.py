# SPDX-License-Identifier: Apache-2.0
"""Reading, writing, truncating and copying files."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from pathlib import Path

from penstock.testing.posix.calls import forget, opened
from penstock.testing.posix.registry import case, equal, fails, holds

CREATE = os.O_CREAT | os.O_RDWR
MIB = 1 << 20


def _pattern(size: int) -> bytes:
    """Bytes in which no two blocks are equal."""
    return hashlib.shake_128(b"pattern").digest(size)


@case()
def written_data_is_read(root: Path) -> None:
    """What was written is read, by the same and by another descriptor, and after closing."""
    with opened(root / "file", CREATE) as fd, opened(root / "file") as other:
        equal(os.write(fd, b"hello world"), 11)
        equal(os.pread(fd, 100, 0), b"hello world")
        equal(os.pread(other, 100, 6), b"world")
        equal(os.fstat(other).st_size, 11)
    equal((root / "file").read_bytes(), b"hello world")


@case()
def reading_ends_at_the_end(root: Path) -> None:
    """Reading at and beyond the end gives nothing; across it, what is left."""
    (root / "file").write_bytes(b"0123456789")
    with opened(root / "file") as fd:
        equal(os.pread(fd, 100, 8), b"89")
        equal(os.pread(fd, 100, 10), b"")
        equal(os.pread(fd, 100, 1 << 40), b"")
        equal(os.pread(fd, 0, 0), b"")


@case()
def position_moves(root: Path) -> None:
    """read, write and lseek share one position; pread and pwrite leave it alone."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"abcdef")
        equal(os.lseek(fd, 2, os.SEEK_SET), 2)
        equal(os.read(fd, 2), b"cd")
        os.pwrite(fd, b"Z", 0)
        equal(os.lseek(fd, 0, os.SEEK_CUR), 4)
        equal(os.lseek(fd, -1, os.SEEK_END), 5)
        fails(errno.EINVAL, os.lseek, fd, -1, os.SEEK_SET)
        equal(os.pread(fd, 10, 0), b"Zbcdef")


@case()
def large_data_is_kept(root: Path) -> None:
    """Five MiB written in pieces of odd sizes are read back, in pieces of other sizes."""
    data = _pattern(5 * MIB + 123)
    with opened(root / "file", CREATE) as fd:
        position = 0
        for size in (1, 4095, 4096, 4097, MIB - 1, MIB + 7, 3 * MIB, 5 * MIB):
            position += os.pwrite(fd, data[position : position + size], position)
        equal(position, len(data))
        equal(os.fstat(fd).st_size, len(data))
        forget(fd)
        got = b"".join(os.pread(fd, 777_777, o) for o in range(0, len(data), 777_777))
    holds(got == data, "the same bytes")
    holds((root / "file").read_bytes() == data, "the same bytes after reopening")


@case()
def overwriting_in_the_middle(root: Path) -> None:
    """Overwriting changes exactly the range that was written."""
    data = bytearray(_pattern(3 * 4096))
    (root / "file").write_bytes(data)
    with opened(root / "file", os.O_RDWR) as fd:
        for offset, patch in ((0, b"a"), (4090, b"b" * 12), (8192, b"c" * 4096), (12287, b"d")):
            os.pwrite(fd, patch, offset)
            data[offset : offset + len(patch)] = patch
        forget(fd)
        holds(os.pread(fd, len(data), 0) == data, "the same bytes")


@case()
def appending(root: Path) -> None:
    """O_APPEND writes at the end, wherever the position is and whoever made the file longer."""
    (root / "file").write_bytes(b"start.")
    with (
        opened(root / "file", os.O_WRONLY | os.O_APPEND) as one,
        opened(root / "file", os.O_WRONLY | os.O_APPEND) as two,
    ):
        os.write(one, b"one.")
        os.write(two, b"two.")
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"three.")
    equal((root / "file").read_bytes(), b"start.one.two.three.")


@case()
def writing_beyond_the_end(root: Path) -> None:
    """A gap left by writing beyond the end reads as zeros."""
    with opened(root / "file", CREATE) as fd:
        os.pwrite(fd, b"a", 0)
        os.pwrite(fd, b"b", 10_000)
        equal(os.fstat(fd).st_size, 10_001)
        forget(fd)
        equal(os.pread(fd, 20_000, 0), b"a" + bytes(9_999) + b"b")


@case()
def truncating_cuts_and_extends(root: Path) -> None:
    """What is cut off is zeros when the file is made longer again."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"x" * 10_000)
        os.ftruncate(fd, 5_000)
        equal(os.fstat(fd).st_size, 5_000)
        os.ftruncate(fd, 12_000)
        equal(os.pread(fd, 20_000, 0), b"x" * 5_000 + bytes(7_000))
    os.truncate(root / "file", 0)
    equal((root / "file").read_bytes(), b"")


@case()
def truncating_and_writing_beyond(root: Path) -> None:
    """What was cut off does not come back when something is written beyond the new end."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"x" * 4096)
        os.ftruncate(fd, 100)
        os.pwrite(fd, b"y", 200)
        forget(fd)
        equal(os.pread(fd, 4096, 0), b"x" * 100 + bytes(100) + b"y")


@case()
def truncation_refusals(root: Path) -> None:
    """truncate: EINVAL for a negative size, EINVAL or EBADF through a read-only descriptor."""
    (root / "file").write_bytes(b"x")
    fails(errno.EINVAL, os.truncate, root / "file", -1)
    with opened(root / "file") as fd:
        fails(errno.EINVAL, os.ftruncate, fd, 0)


@case()
def o_trunc_empties(root: Path) -> None:
    """O_TRUNC empties the file for everybody who has it open."""
    (root / "file").write_bytes(b"content")
    with opened(root / "file") as reader:
        os.close(os.open(root / "file", os.O_WRONLY | os.O_TRUNC))
        equal(os.fstat(reader).st_size, 0)
        equal(os.pread(reader, 10, 0), b"")


@case()
def access_modes(root: Path) -> None:
    """Writing through a read-only descriptor and reading through a write-only one are EBADF."""
    (root / "file").write_bytes(b"x")
    with opened(root / "file", os.O_RDONLY) as fd:
        fails(errno.EBADF, os.write, fd, b"y")
    with opened(root / "file", os.O_WRONLY) as fd:
        fails(errno.EBADF, os.read, fd, 1)


@case()
def writing_changes_times(root: Path) -> None:
    """Writing and truncating change mtime and ctime; reading does not."""
    path = root / "file"
    path.write_bytes(b"x")

    def changed() -> bool:
        touched = os.stat(path).st_mtime_ns != 10**9
        os.utime(path, ns=(10**9, 10**9))
        return touched

    changed()
    path.read_bytes()
    holds(not changed(), "reading leaves mtime")
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"y")
        holds(changed(), "writing changes mtime")
    os.truncate(path, 5)
    holds(changed(), "truncating changes mtime")


@case()
def vectors(root: Path) -> None:
    """writev and preadv gather and scatter."""
    with opened(root / "file", CREATE) as fd:
        equal(os.writev(fd, [b"abc", b"", b"defg"]), 7)
        parts = [bytearray(2), bytearray(10)]
        equal(os.preadv(fd, parts, 1), 6)
        equal((bytes(parts[0]), bytes(parts[1][:4])), (b"bc", b"defg"))


@case()
def durability_calls(root: Path) -> None:
    """fsync and fdatasync of a file, fsync of a directory and syncfs succeed."""
    with opened(root / "file", CREATE) as fd:
        os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
    with opened(root, os.O_DIRECTORY) as fd:
        os.fsync(fd)


@case()
def sendfile_reads_and_splice_writes(root: Path) -> None:
    """sendfile from a file into another copies it; splice moves pipe data into a file."""
    data = _pattern(300_000)
    (root / "from").write_bytes(data)
    with opened(root / "from") as source, opened(root / "to", CREATE) as target:
        sent = 0
        while sent < len(data):
            step = os.sendfile(target, source, sent, len(data) - sent)
            holds(step > 0, "progress")
            sent += step
    holds((root / "to").read_bytes() == data, "the same bytes")
    reader, writer = os.pipe()
    try:
        os.write(writer, b"piped")
        with opened(root / "piped", CREATE) as target:
            equal(os.splice(reader, target, 5, offset_dst=3), 5)
    finally:
        os.close(reader)
        os.close(writer)
    equal((root / "piped").read_bytes(), b"\0\0\0piped")


@case()
def copy_file_range_copies(root: Path) -> None:
    """copy_file_range copies ranges between and inside files, and is 0 at the end."""
    data = _pattern(100_000)
    (root / "from").write_bytes(data)
    with opened(root / "from", os.O_RDWR) as source, opened(root / "to", CREATE) as target:
        done = 0
        while done < 60_000:
            step = os.copy_file_range(source, target, 60_000 - done, 1_000 + done, 50 + done)
            holds(step > 0, "progress")
            done += step
        equal(os.copy_file_range(source, target, 10, len(data), 0), 0)
        holds(os.pread(target, 70_000, 0) == bytes(50) + data[1_000:61_000], "copied")
        equal(os.copy_file_range(source, source, 10, 0, 100_000), 10)
        equal(os.pread(source, 20, 100_000), data[:10])


@case()
def copy_file_range_refusals(root: Path) -> None:
    """copy_file_range: EINVAL for overlapping ranges, EBADF for wrongly opened files."""
    (root / "file").write_bytes(b"x" * 1000)
    with opened(root / "file", os.O_RDWR) as fd, opened(root / "file") as reader:
        fails(errno.EINVAL, os.copy_file_range, fd, fd, 100, 0, 50)
        fails(errno.EBADF, os.copy_file_range, fd, reader, 100, 0, 500)


@case()
def two_handles_see_one_size(root: Path) -> None:
    """A size changed through one descriptor is seen through every other and by name."""
    with opened(root / "file", CREATE) as one, opened(root / "file", os.O_RDWR) as two:
        for size in (10, 5_000, 1):
            os.ftruncate(one, size)
            equal(os.fstat(two).st_size, size)
            equal(os.stat(root / "file").st_size, size)
            equal(len(os.pread(two, 10_000, 0)), size)


@case()
def direct_reads_agree(root: Path) -> None:
    """A file read past the page cache (O_DIRECT), where that is possible, has the same bytes."""
    data = _pattern(64 << 10)
    (root / "file").write_bytes(data)
    try:
        fd = os.open(root / "file", os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        equal(error.errno, errno.EINVAL, "the errno of a filesystem without direct I/O")
        return
    # Anonymous memory is aligned as O_DIRECT wants it.
    with mmap.mmap(-1, 64 << 10) as buffer:
        try:
            equal(os.preadv(fd, [buffer], 0), len(data))
            holds(buffer[:] == data, "the same bytes")
            buffer[:4096] = b"z" * 4096
            with memoryview(buffer)[:4096] as part:
                equal(os.pwritev(fd, [part], 4096), 4096)
        finally:
            os.close(fd)
    holds((root / "file").read_bytes()[4096:8192] == b"z" * 4096, "written")
