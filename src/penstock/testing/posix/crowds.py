# SPDX-License-Identifier: Apache-2.0
"""Large directories, and directories that change while they are read."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path

from penstock.testing.posix.calls import Dirent, getdents, opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails, holds

MANY = 10_000
DOTS = {b".", b".."}


def _fill(place: Path, count: int) -> set[bytes]:
    names = {b"name-%05d" % number for number in range(count)}
    with opened(place, os.O_DIRECTORY) as fd:
        for name in names:
            os.mknod(name, 0o100600, dir_fd=fd)
    return names


def _all(fd: int, size: int = 32768) -> list[Dirent]:
    entries: list[Dirent] = []
    while part := getdents(fd, size):
        entries += [entry for entry in part if entry.name not in DOTS]
        holds(len(entries) < 10 * MANY, "an end of the listing")
    return entries


def _once(listed: list[bytes], names: set[bytes]) -> None:
    """Every one of ``names`` is listed once, no name twice."""
    twice = [name for name, count in Counter(listed).items() if count > 1]
    equal(twice[:5], [], "listed twice")
    equal(sorted(names - set(listed))[:5], [], "not listed")


@case()
def ten_thousand_names_beside_a_crowd(root: Path) -> None:
    """While another process makes and removes names, 10,000 that are there all the time are listed
    once each, again and again."""
    names = _fill(root, MANY)
    with Peer() as peer, opened(root, os.O_DIRECTORY) as fd:
        peer.start("churn", root, 400)
        for size in (65536, 4096):
            os.lseek(fd, 0, os.SEEK_SET)
            listed = [entry.name for entry in _all(fd, size)]
            _once([name for name in listed if name in names], names)
        peer.answer()


@case()
def positions_beside_a_crowd(root: Path) -> None:
    """Positions taken before stay good while another process makes and removes names."""
    names = _fill(root, 1500)
    with opened(root, os.O_DIRECTORY) as fd, Peer() as peer:
        entries = _all(fd)
        peer.start("churn", root, 300)
        for index in (10, 700, 1490):
            os.lseek(fd, entries[index].next, os.SEEK_SET)
            rest = {entry.name for entry in _all(fd)} & names
            equal(rest, {entry.name for entry in entries[index + 1 :]} & names)
        peer.answer()


@case()
def removed_while_two_read(root: Path) -> None:
    """Two readers of one directory go on each by itself while names that both have seen go."""
    names = _fill(root, 1000)
    with opened(root, os.O_DIRECTORY) as one, opened(root, os.O_DIRECTORY) as two:
        first = [entry.name for entry in getdents(one, 4096)]
        second = [entry.name for entry in getdents(two, 8192)]
        gone = [name for name in first if name in names and name in second]
        for name in gone:
            os.unlink(name, dir_fd=one)
        stay = names - set(gone)
        _once([n for n in first + [e.name for e in _all(one)] if n in stay], stay)
        _once([n for n in second + [e.name for e in _all(two)] if n in stay], stay)


@case()
def half_removed_directory(root: Path) -> None:
    """After every other of 2,000 names was removed and 500 new ones made, exactly the rest is
    listed, and what was removed is not found."""
    names = _fill(root, 2000)
    odd = {name for name in names if name[-1] % 2}
    with opened(root, os.O_DIRECTORY) as fd:
        for name in odd:
            os.unlink(name, dir_fd=fd)
        new = {b"another-%03d" % number for number in range(500)}
        for name in new:
            os.mknod(name, 0o100600, dir_fd=fd)
        os.lseek(fd, 0, os.SEEK_SET)
        equal({entry.name for entry in _all(fd)} ^ ((names - odd) | new), set())
        fails(errno.ENOENT, os.stat, sorted(odd)[7], dir_fd=fd)


@case()
def renamed_while_read(root: Path) -> None:
    """While names of a directory are renamed, those that are not touched are listed once each."""
    names = _fill(root, 1200)
    moving = {name for name in names if name[-1] % 3 == 0}
    listed: list[bytes] = []
    queue = sorted(moving)
    with opened(root, os.O_DIRECTORY) as fd:
        while part := getdents(fd, 2048):
            listed += [entry.name for entry in part]
            for _ in range(20):
                if queue:
                    name = queue.pop()
                    os.rename(name, b"moved-" + name, src_dir_fd=fd, dst_dir_fd=fd)
    _once([name for name in listed if name in names - moving], names - moving)


@case()
def a_name_is_always_there(root: Path) -> None:
    """While another process gives two files each other's name over and over, a third name that is
    replaced by rename is never missing."""
    for name in ("one", "two", "always", "next"):
        (root / name).write_bytes(name.encode())
    with Peer() as peer:
        peer.start("exchange", root / "one", root / "two", root / "spare", 200)
        for _ in range(200):
            (root / "next").write_bytes(b"next")
            os.rename(root / "next", root / "always")
            equal((root / "always").read_bytes(), b"next")
        peer.answer()
    equal(sorted(os.listdir(root)), ["always", "one", "two"])


@case()
def many_directories_in_one(root: Path) -> None:
    """500 directories in one are made, listed, entered and removed."""
    for number in range(500):
        os.mkdir(root / f"d{number}")
    equal(len(os.listdir(root)), 500)
    for number in range(0, 500, 50):
        equal(os.stat(root / f"d{number}" / "..").st_ino, os.stat(root).st_ino)
    for number in range(500):
        os.rmdir(root / f"d{number}")
    equal(os.listdir(root), [])


@case()
def long_names_in_a_crowd(root: Path) -> None:
    """300 names of 200 bytes and more are listed once each in pieces of 1 KiB."""
    names = {b"%03d-" % number + b"x" * (200 + number % 50) for number in range(300)}
    with opened(root, os.O_DIRECTORY) as fd:
        for name in names:
            os.mknod(name, 0o100600, dir_fd=fd)
        os.lseek(fd, 0, os.SEEK_SET)
        _once([entry.name for entry in _all(fd, 1024)], names)


@case()
def buffer_too_small_for_a_name(root: Path) -> None:
    """getdents into a buffer that holds no entry is EINVAL, and the position stays."""
    (root / ("n" * 200)).touch()
    with opened(root, os.O_DIRECTORY) as fd:
        seen = []
        for size in (16, 8192):
            try:
                seen += [entry.name for entry in getdents(fd, size)]
            except OSError as error:
                equal((error.errno, size), (errno.EINVAL, 16))
        holds(b"n" * 200 in seen, "the name is listed afterwards")
