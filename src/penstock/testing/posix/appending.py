# SPDX-License-Identifier: Apache-2.0
"""O_APPEND, and writes of several processes to one file."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from pathlib import Path

from penstock.testing.posix.calls import forget, opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, holds

APPEND = os.O_CREAT | os.O_RDWR | os.O_APPEND
COUNT = 200


@case()
def two_processes_append(root: Path) -> None:
    """Of what two processes append at the same time nothing is lost, torn or mixed."""
    path = root / "file"
    path.touch()
    with Peer() as peer, opened(path, APPEND) as fd:
        peer.start("append", path, "other" * 20 + "\n", COUNT)
        for _ in range(COUNT):
            os.write(fd, b"first" * 20 + b"\n")
        peer.answer()
        forget(fd)
    lines = Counter(path.read_bytes().splitlines())
    equal(lines, Counter({b"first" * 20: COUNT, b"other" * 20: COUNT}))


@case()
def appending_moves_the_position_to_the_end(root: Path) -> None:
    """After an append the position is the end of the file."""
    with opened(root / "file", APPEND) as fd:
        os.write(fd, b"12345")
        os.lseek(fd, 0, os.SEEK_SET)
        equal(os.read(fd, 2), b"12")
        os.write(fd, b"678")
        equal(os.lseek(fd, 0, os.SEEK_CUR), 8)
        equal(os.read(fd, 10), b"")


@case()
def appending_after_truncation(root: Path) -> None:
    """An append goes to the end as it is now, after the file was cut or extended by others."""
    path = root / "file"
    with opened(path, APPEND) as fd:
        os.write(fd, b"x" * 100)
        os.truncate(path, 3)
        os.write(fd, b"y")
        os.truncate(path, 8)
        os.write(fd, b"z")
        equal(os.pread(fd, 100, 0), b"xxxy\0\0\0\0z")


@case()
def append_can_be_switched(root: Path) -> None:
    """fcntl(F_SETFL) switches O_APPEND on and off."""
    path = root / "file"
    path.write_bytes(b"0123456789")
    with opened(path, os.O_RDWR) as fd:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        os.write(fd, b"a")
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
        os.write(fd, b"b")
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.lseek(fd, 5, os.SEEK_SET)
        os.write(fd, b"c")
    equal(path.read_bytes(), b"a1234c6789b")


@case()
def appending_what_another_process_sees(root: Path) -> None:
    """What one process appends, another reads at once, and finds the size grown."""
    path = root / "file"
    with opened(path, APPEND) as fd, Peer() as peer:
        other = peer.call("open", path, os.O_RDONLY)
        for number in range(5):
            os.write(fd, b"%d" % number)
            equal(peer.call("read", other, 100, 0), "01234"[: number + 1])
            equal(peer.call("os.stat", path)[6], number + 1)


@case()
def pwrite_with_append(root: Path) -> None:
    """Linux: pwrite through an O_APPEND descriptor appends, and leaves the position."""
    with opened(root / "file", APPEND) as fd:
        os.write(fd, b"abc")
        os.lseek(fd, 1, os.SEEK_SET)
        os.pwrite(fd, b"d", 0)
        equal(os.lseek(fd, 0, os.SEEK_CUR), 1)
        equal(os.pread(fd, 10, 0), b"abcd")


@case()
def large_appends_stay_together(root: Path) -> None:
    """An append of several MiB is one piece at the end."""
    data = bytes(range(256)) * 12_000
    with opened(root / "file", APPEND) as fd:
        os.write(fd, b"start")
        equal(os.write(fd, data), len(data))
        holds(os.pread(fd, len(data) + 10, 0) == b"start" + data, "the same bytes")


@case()
def two_processes_write_side_by_side(root: Path) -> None:
    """Two processes that write neighbouring bytes of one block lose none of them."""
    path = root / "file"
    path.write_bytes(bytes(256))
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        for offset in range(0, 256, 2):
            peer.start("write", other, "b", offset + 1)
            os.pwrite(fd, b"a", offset)
            peer.answer()
        equal(os.pread(fd, 300, 0), b"ab" * 128)
