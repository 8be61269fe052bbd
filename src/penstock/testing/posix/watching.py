# SPDX-License-Identifier: Apache-2.0
"""inotify(7): changes that are made here are heard of here."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.sys.libc import call
from penstock.testing.posix.calls import opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, holds

ACCESS, MODIFY, ATTRIB, CLOSE_WRITE = 0x01, 0x02, 0x04, 0x08
MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400
_IGNORED = 0x8000
_ALL = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF


@contextmanager
def _watch(path: Path, mask: int = _ALL) -> Iterator[Callable[[], list[tuple[int, str]]]]:
    """A function that tells what happened since it was called last: (event, name)."""
    fd = call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        call("inotify_add_watch", fd, os.fsencode(path), mask)
        yield lambda: list(_events(fd))
    finally:
        os.close(fd)


def _events(fd: int) -> Iterator[tuple[int, str]]:
    while select.select([fd], [], [], 0)[0]:
        data = os.read(fd, 65536)
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0").decode()
            data = data[16 + length :]
            if not mask & _IGNORED:
                yield mask & 0xFFF, name


@case()
def names_are_heard_of(root: Path) -> None:
    """Making and removing names in a directory is told, each once and in order."""
    with _watch(root, CREATE | DELETE) as heard:
        (root / "file").touch()
        (root / "directory").mkdir()
        (root / "link").symlink_to("file")
        os.link(root / "file", root / "other")
        (root / "file").unlink()
        (root / "directory").rmdir()
        made = [(CREATE, name) for name in ("file", "directory", "link", "other")]
        equal(heard(), [*made, (DELETE, "file"), (DELETE, "directory")])


@case()
def renames_are_heard_of(root: Path) -> None:
    """A rename is told as one from and one to, in both directories."""
    (root / "one").mkdir()
    (root / "two").mkdir()
    (root / "one" / "file").touch()
    with _watch(root / "one") as left, _watch(root / "two") as right:
        os.rename(root / "one" / "file", root / "two" / "moved")
        equal(left(), [(MOVED_FROM, "file")])
        equal(right(), [(MOVED_TO, "moved")])


@case()
def writing_is_heard_of(root: Path) -> None:
    """Writing, truncating, chmod and closing are told of the file, by another process too."""
    path = root / "file"
    path.touch()
    with _watch(path, MODIFY | ATTRIB | CLOSE_WRITE) as heard, Peer() as peer:
        fd = peer.call("open", path, os.O_WRONLY)
        peer.call("write", fd, "x", 0)
        equal(heard(), [(MODIFY, "")])
        os.chmod(path, 0o600)
        equal(heard(), [(ATTRIB, "")])
        peer.call("close", fd)
        equal(heard(), [(CLOSE_WRITE, "")])
        os.truncate(path, 10)
        holds((MODIFY, "") in heard(), "truncating is told")


@case()
def end_of_a_file_is_heard_of(root: Path) -> None:
    """The end of a file is told when its last name and its last descriptor are gone."""
    path = root / "file"
    path.touch()
    with _watch(path, DELETE_SELF) as heard:
        with opened(path):
            path.unlink()
            equal(heard(), [])
        equal(heard(), [(DELETE_SELF, "")])
