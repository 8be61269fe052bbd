# SPDX-License-Identifier: Apache-2.0
"""Inodes and directories of the memory filesystem. Not thread-safe."""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from penstock.fs import Attributes
from penstock.testing.memory.content import BLOCK, Content

__all__ = ["Directory", "Handle", "Node"]

_FIRST_COOKIE: Final = 3
"""1 and 2 are the positions after ``.`` and ``..``."""


class Directory:
    """Names in the order they were made.

    A name keeps its cookie for as long as it exists, and cookies only grow: a reader that goes on
    from any cookie it has seen gets every name that was there all the time exactly once,
    whatever is created and removed meanwhile.
    """

    __slots__ = ("_cookies", "_entries", "_next", "_order")

    def __init__(self) -> None:
        self._cookies: dict[bytes, int] = {}
        self._entries: dict[int, tuple[bytes, Node]] = {}
        # Cookies in order, those of removed names included until they are the greater part.
        self._order: list[int] = []
        self._next = _FIRST_COOKIE

    def __len__(self) -> int:
        return len(self._cookies)

    def __iter__(self) -> Iterator[tuple[bytes, Node]]:
        return iter(list(self._entries.values()))

    def get(self, name: bytes) -> Node | None:
        """The node under a name."""
        cookie = self._cookies.get(name)
        return None if cookie is None else self._entries[cookie][1]

    def put(self, name: bytes, node: Node) -> None:
        """Give a name to a node, or an existing name to another."""
        cookie = self._cookies.get(name)
        if cookie is None:
            cookie = self._cookies[name] = self._next
            self._next += 1
            self._order.append(cookie)
        self._entries[cookie] = (name, node)

    def remove(self, name: bytes) -> None:
        """Remove a name that is there."""
        del self._entries[self._cookies.pop(name)]
        if len(self._order) > 2 * len(self._entries) + 16:
            self._order = [cookie for cookie in self._order if cookie in self._entries]

    def after(self, cookie: int, count: int) -> list[tuple[int, bytes, Node]]:
        """At most ``count`` entries behind position ``cookie``, each with its own cookie."""
        found: list[tuple[int, bytes, Node]] = []
        for position in range(bisect_right(self._order, cookie), len(self._order)):
            entry = self._entries.get(self._order[position])
            if entry is not None:
                found.append((self._order[position], *entry))
                if len(found) == count:
                    break
        return found


@dataclass(slots=True, eq=False)
class Node:
    """An inode. ``content`` is a regular file's, ``children`` and ``parent`` a directory's,
    ``target`` a symlink's."""

    ino: int
    mode: int
    uid: int
    gid: int
    now: int
    """Time of birth, ns."""
    rdev: int = 0
    nlink: int = 0
    atime_ns: int = field(init=False)
    mtime_ns: int = field(init=False)
    ctime_ns: int = field(init=False)
    content: Content | None = None
    children: Directory | None = None
    parent: Node | None = None
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    flags: int = 0
    """FS_*_FL of chattr(1)."""
    projid: int = 0
    opens: int = 0
    linkable: bool = False
    """Made by O_TMPFILE without O_EXCL: may get its first name."""
    freed: bool = False
    pollers: dict[int, Handle] = field(default_factory=dict)
    """Who is to be told when the file grows: poll handle of the kernel → open file."""
    windows: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """DAX mappings: offset in the window → (offset in the file, length, flags)."""

    def __post_init__(self) -> None:
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.now

    @property
    def type(self) -> int:
        """DT_* of directory entries."""
        return stat.S_IFMT(self.mode) >> 12

    @property
    def size(self) -> int:
        """``st_size``, bytes."""
        return self.content.size if self.content is not None else len(self.target)

    def attributes(self) -> Attributes:
        """As the kernel wants them."""
        blocks = self.content.allocated // 512 if self.content is not None else 0
        return Attributes.make(
            self.ino,
            self.mode,
            size=self.size,
            blocks=blocks,
            nlink=self.nlink,
            uid=self.uid,
            gid=self.gid,
            rdev=self.rdev,
            blksize=BLOCK,
            atime_ns=self.atime_ns,
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
        )


@dataclass(slots=True, eq=False)
class Handle:
    """An open file description."""

    node: Node
    flags: int
    told: int = 0
    """Bytes of the file that its reader has seen: poll reports what lies beyond."""
