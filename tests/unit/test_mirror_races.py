# SPDX-License-Identifier: Apache-2.0
"""Somebody underneath exchanges directories and symlinks all the time: nothing outside is reached.

A thread of this process plays that somebody, with renameat2(RENAME_EXCHANGE), which leaves no
moment at which a name is absent. Whatever the operations answer, what they touch lies inside.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.fs import ROOT, FileHandle, NodeId
from penstock.servers.mirror.server import MirrorServer
from penstock.sys.files import rename2
from tests.support.mirrors import NEW, NOTHING, caller, mirror_of

EXCHANGE = 2
SECONDS = 1.0
SECRET = b"what is outside"


@contextlib.contextmanager
def exchanging(one: Path, other: Path) -> Iterator[None]:
    """Have two names exchanged again and again."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            rename2(one, other, EXCHANGE)
            time.sleep(0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(params=["handles", "names"])
def mirror(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MirrorServer]:
    top, outside = tmp_path / "source", tmp_path / "outside"
    (top / "d" / "sub").mkdir(parents=True)
    (outside / "sub").mkdir(parents=True)
    for place, content in ((top / "d", b"what is inside"), (outside, SECRET)):
        (place / "file").write_bytes(content)
        (place / "sub" / "file").write_bytes(content)
    (top / "link").symlink_to(outside)
    (top / "filelink").symlink_to(outside / "file")
    with mirror_of(top, handles=request.param == "handles") as operations:
        yield operations


def contents(mirror: MirrorServer, node: int) -> bytes:
    """What reading a node gives."""
    reply = mirror.open(caller(), NodeId(node), os.O_RDONLY, False)
    try:
        held = mirror.read(caller(), NodeId(node), reply.fh, 0, 100, 0, None)
        return os.pread(held.fd, 100, 0)  # type: ignore[union-attr]
    finally:
        mirror.release(caller(), NodeId(node), reply.fh, 0, 0, 0)


def everything(mirror: MirrorServer, number: int) -> set[bytes]:
    """Do all kinds of things by way of ``d``; what was read."""
    read: set[bytes] = set()
    who = caller()
    tried = contextlib.suppress(OSError)
    mirror.source.directories.clear()  # so that ways are looked for anew
    node = 0
    with tried:
        node = mirror.lookup(who, ROOT, b"d")[0]
    if not node:
        return read
    directory = NodeId(node)
    name = b"made %d" % number
    with tried:
        found = mirror.lookup(who, directory, b"file")[0]
        if found:
            mirror.source.directories.clear()
            read.add(contents(mirror, found))
    with tried:
        below = mirror.lookup(who, directory, b"sub")[0]
        mirror.source.directories.clear()
        found = mirror.lookup(who, NodeId(below), b"file")[0]
        mirror.source.directories.clear()
        read.add(contents(mirror, found))
        mirror.setattr(who, NodeId(found), NOTHING._replace(mode=0o600))
    with tried:
        entry, reply = mirror.create(who, directory, name, stat.S_IFREG | 0o600, os.O_RDWR, NEW)
        mirror.release(who, NodeId(entry[0]), reply.fh, 0, 0, 0)
    mirror.source.directories.clear()
    with tried:
        mirror.mkdir(who, directory, b"directory", 0o700, NEW)
    with tried:
        mirror.symlink(who, directory, b"symlink", b"x", NEW)
    with tried:
        mirror.link(who, NodeId(mirror.lookup(who, directory, name)[0]), directory, b"linked")
    with tried:
        mirror.rename(who, directory, b"linked", directory, b"renamed", 0)
    with tried:
        mirror.setxattr(who, directory, b"user.made", b"1", 0, 0)
    for each in (b"renamed", b"symlink", name):
        with tried:
            mirror.unlink(who, directory, each)
    with tried:
        mirror.rmdir(who, directory, b"directory")
    with tried:
        fh: FileHandle = mirror.opendir(who, directory, 0).fh
        try:
            list(mirror.readdirplus(who, directory, fh, 0))
        finally:
            mirror.releasedir(who, directory, fh, 0)
    with tried:
        mirror.setattr(who, directory, NOTHING._replace(mode=0o755))
    return read


def snapshot(place: Path) -> list[tuple[str, int, int, bytes]]:
    """All there is below a directory: names, modes, times of change, content."""
    found = []
    for path in sorted([place, *place.rglob("*")]):
        known = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found.append((str(path), known.st_mode, known.st_ctime_ns, content))
    return found


def test_a_directory_and_a_link_that_leads_out(mirror: MirrorServer, tmp_path: Path) -> None:
    top = tmp_path / "source"
    before = snapshot(tmp_path / "outside")
    read: set[bytes] = set()
    numbers = itertools.count()
    with exchanging(top / "d", top / "link"):
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            read |= everything(mirror, next(numbers))
    assert next(numbers) > 20
    assert read == {b"what is inside"}
    assert snapshot(tmp_path / "outside") == before


def test_a_file_and_a_link_that_leads_out(mirror: MirrorServer, tmp_path: Path) -> None:
    top = tmp_path / "source"
    (top / "file").write_bytes(b"what is inside")
    before = snapshot(tmp_path / "outside")
    who = caller()
    read: set[bytes] = set()
    tried = contextlib.suppress(OSError)
    with exchanging(top / "file", top / "filelink"):
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with tried:
                node = NodeId(mirror.lookup(who, ROOT, b"file")[0])
                mirror.setattr(who, node, NOTHING._replace(mode=0o640))
                mirror.setattr(who, node, NOTHING._replace(atime_ns=5, mtime_ns=7))
                read.add(contents(mirror, node))
                mirror.setattr(who, node, NOTHING._replace(size=14))
                mirror.setxattr(who, node, b"user.made", b"1", 0, 0)
    assert read == {b"what is inside"}
    assert snapshot(tmp_path / "outside") == before


def test_a_directory_that_is_moved_out_and_back(mirror: MirrorServer, tmp_path: Path) -> None:
    """Its own content may be read, which is the source's; its parent's may not."""
    top, outside = tmp_path / "source", tmp_path / "outside"
    (outside / "place").mkdir()
    who = caller()
    below = NodeId(mirror.lookup(who, ROOT, b"d")[0])
    tried = contextlib.suppress(OSError)
    above: set[int] = set()
    with exchanging(top / "d", outside / "place"):
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with tried:
                mirror.source.directory(below)
                above.add(mirror.lookup(who, below, b"..")[0])
            with tried:
                mirror.lookup(who, ROOT, b"d")
    assert above <= {ROOT}
