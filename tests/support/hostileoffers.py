# SPDX-License-Identifier: Apache-2.0
"""What a hostile server offers as backing files, and how it says where files lie."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

from penstock.broker.protocol import Extent, Map, encode
from tests.support.hostileserver import Play

__all__ = ["OFFERED", "elsewhere", "opened", "pieces", "remove_offered"]


def pieces(node: int, length: int, extents: list[Extent], cuts: list[int]) -> list[bytes]:
    """The messages that register a file, cut where it is said."""
    borders = [0, *sorted(cut for cut in cuts if cut <= len(extents)), len(extents)]
    parts = [tuple(extents[a:b]) for a, b in itertools.pairwise(borders)]
    last = len(parts) - 1
    return [encode(Map(node, length, at < last, part), 7) for at, part in enumerate(parts)]


def opened(flags: int) -> Callable[[Play], int]:
    """Opens a file of the server's directory, as the server can."""
    made = os.O_CREAT * (not flags & os.O_PATH)
    return lambda play: os.open("file", flags | made, 0o600, dir_fd=play.known.tree)


def elsewhere(flags: int, folder: str = "/dev/shm") -> Callable[[Play], int]:
    """Opens a file of another mount; empty: of the very directory, by way of the tree of mounts."""

    def opener(play: Play) -> int:
        path = Path(folder or play.tree) / f"penstock-test-{os.getpid()}"
        path.touch()
        return os.open(path, flags)

    return opener


OFFERED: dict[str, Callable[[Play], int]] = {
    "reads and writes": opened(os.O_RDWR),
    "reads": opened(os.O_RDONLY),
    "writes": opened(os.O_WRONLY),
    "appends": opened(os.O_RDWR | os.O_APPEND),
    "a directory": lambda play: os.open(".", os.O_RDONLY, dir_fd=play.known.tree),
    "a directory's path": lambda play: os.open(".", os.O_PATH, dir_fd=play.known.tree),
    "a path": lambda play: os.open("/proc/self/exe", os.O_PATH),
    "a memory file": lambda play: os.memfd_create("x"),
    "an event": lambda play: os.eventfd(0),
    "a device": lambda play: os.open("/dev/zero", os.O_RDWR),
    "the device of FUSE": lambda play: os.open("/dev/fuse", os.O_RDWR),
}
for _flags in (os.O_RDWR, os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_PATH):
    OFFERED[f"elsewhere, {_flags:#o}"] = elsewhere(_flags)
    OFFERED[f"by another mount, {_flags:#o}"] = elsewhere(_flags, "")


def remove_offered() -> None:
    """Remove the file that :func:`elsewhere` makes."""
    Path(f"/dev/shm/penstock-test-{os.getpid()}").unlink(missing_ok=True)
