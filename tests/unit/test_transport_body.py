# SPDX-License-Identifier: Apache-2.0
"""Replies whose bodies lie in files, put together by copy and moved by splice."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.session import ZEROS, FileBody, FileRange
from penstock.transport.body import CopyBuffer, ShortBody, SplicePipe

HEAD = b"0123456789abcdef"
CONTENT = bytes(range(256)) * 2048


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def body(*ranges: FileRange, exact: bool = True) -> FileBody:
    return FileBody(ranges, sum(part.length for part in ranges), splice=True, exact=exact)


def expected(ranges: tuple[FileRange, ...]) -> bytes:
    return b"".join(
        bytes(part.length) if part.fd == ZEROS else CONTENT[part.offset : part.offset + part.length]
        for part in ranges
    )


def bodies(fd: int) -> list[FileBody]:
    return [
        body(FileRange(fd, 0, 4096)),
        body(FileRange(fd, 4095, 2)),
        body(FileRange(fd, 1, 300_000)),
        body(FileRange(ZEROS, 0, 100_000)),
        body(FileRange(fd, 10, 5000), FileRange(ZEROS, 0, 12_345), FileRange(fd, 0, 7)),
    ]


def test_copy_puts_head_and_ranges_together(image: int) -> None:
    buffer = CopyBuffer()
    for wanted in bodies(image):
        assert bytes(buffer.fill(HEAD, wanted)) == HEAD + expected(wanted.ranges)


def test_splice_moves_one_message(image: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, SplicePipe() as pipe:
        for wanted in bodies(image):
            assert pipe.fits(wanted)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            pipe.send(ours.fileno(), HEAD, wanted)
            total = len(HEAD) + wanted.length
            got = theirs.recv(total, socket.MSG_WAITALL)
            assert got == HEAD + expected(wanted.ranges)


def test_a_file_that_ends_early(image: int) -> None:
    short = body(FileRange(image, len(CONTENT) - 10, 100))
    with pytest.raises(ShortBody):
        CopyBuffer().fill(HEAD, short)
    ours, theirs = socket.socketpair()
    with ours, theirs, SplicePipe() as pipe:
        with pytest.raises(ShortBody):
            pipe.send(ours.fileno(), HEAD, short)
        pipe.send(ours.fileno(), HEAD, body(FileRange(image, 0, 3)))
        assert theirs.recv(100) == HEAD + CONTENT[:3], "the failed reply was left in the pipe"


def test_an_inexact_body_ends_with_its_file(image: int) -> None:
    message = CopyBuffer().fill(HEAD, body(FileRange(image, len(CONTENT) - 10, 100), exact=False))
    assert bytes(message) == HEAD + CONTENT[-10:]


def test_pieces_are_counted_by_the_pages_they_touch() -> None:
    with SplicePipe() as pipe:
        page = os.sysconf("SC_PAGESIZE")
        whole = body(FileRange(5, 0, pipe.max_pages * page))
        assert pipe.fits(whole)
        assert not pipe.fits(body(FileRange(5, 1, pipe.max_pages * page)))
        assert not pipe.fits(body(*[FileRange(5, n * 2 * page, 1) for n in range(pipe.slots)]))


def test_copy_tells_before_it_waits(tmp_path: Path) -> None:
    path = tmp_path / "cold"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        told: list[bool] = []
        buffer = CopyBuffer(lambda: told.append(True))
        wanted = body(FileRange(fd, 0, 4096))
        assert bytes(buffer.fill(HEAD, wanted)) == HEAD + CONTENT[:4096]
        cold = len(told)
        assert bytes(buffer.fill(HEAD, wanted)) == HEAD + CONTENT[:4096]
        assert len(told) == cold, "a read from the page cache was announced as waiting"
    finally:
        os.close(fd)
