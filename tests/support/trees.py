# SPDX-License-Identifier: Apache-2.0
"""A read-only filesystem from a dictionary, which can also be made to lie.

Its tree is a dict: name → bytes (file), dict (directory), str (symlink) or :class:`Item`. Options
of :class:`TreeFilesystem` take operations away or spoil answers, one at a time, so that a test can
see what whoever talks to it makes of that.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.fs import (
    Answer,
    Attributes,
    Context,
    DirEntry,
    Entry,
    FileHandle,
    FsError,
    NodeId,
    OpenReply,
    Operations,
    StatFs,
    StatxReply,
)

__all__ = ["Item", "PlusTreeFilesystem", "TreeFilesystem"]


@dataclass
class Item:
    """One inode. ``content`` is bytes, a dict (of Items) or str."""

    content: Any
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 1_600_000_000_123_456_789
    rdev: int = 0
    kind: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    holes: tuple[tuple[int, int], ...] = ()
    nlink: int = 1
    size: int | None = None
    nodeid: int = 0

    @property
    def type(self) -> int:
        """S_IF*."""
        if self.kind:
            return self.kind
        if isinstance(self.content, bytes):
            return stat.S_IFREG
        return stat.S_IFDIR if isinstance(self.content, dict) else stat.S_IFLNK


class TreeFilesystem(Operations):
    """Serves a tree with READDIR and LOOKUP, and opens."""

    def __init__(self, tree: Mapping[str | bytes, Any]) -> None:
        self.nodes: dict[int, Item] = {}
        self.opened: dict[int, int] = {}
        self.forgotten: dict[int, int] = {}
        self.page = 1 << 30
        """Entries per listing request."""
        self.root = self.add(dict(tree))

    def add(self, content: Any) -> Item:
        """Number a tree; Items that occur twice are hard links."""
        item = content if isinstance(content, Item) else Item(content)
        if item.nodeid:
            item.nlink += 1
            return item
        item.nodeid = len(self.nodes) + 1
        self.nodes[item.nodeid] = item
        if isinstance(item.content, dict):
            item.mode = 0o755 if item.mode == 0o644 else item.mode
            item.content = {
                name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name: (
                    self.add(child)
                )
                for name, child in item.content.items()
            }
        return item

    def attributes(self, item: Item) -> Attributes:
        """What is said of an inode."""
        size = len(item.content) if item.size is None else item.size
        return Attributes.make(
            item.nodeid + 1000,
            item.type | item.mode,
            size=size,
            nlink=item.nlink,
            uid=item.uid,
            gid=item.gid,
            rdev=item.rdev,
            atime_ns=item.mtime_ns + 1,
            mtime_ns=item.mtime_ns,
            ctime_ns=item.mtime_ns,
        )

    def entry(self, item: Item) -> Entry:
        """The answer to a lookup."""
        return Entry.make(item.nodeid, self.attributes(item))

    def forget(self, nodeid: NodeId) -> None:
        self.forgotten[nodeid] = self.forgotten.get(nodeid, 0) + 1

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Entry:
        children = self.nodes[parent].content
        if not isinstance(children, dict):
            raise FsError(errno.ENOTDIR)
        if name not in children:
            raise FsError(errno.ENOENT)
        return self.entry(children[name])

    def getattr(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None
    ) -> tuple[Attributes, float]:
        return self.attributes(self.nodes[nodeid]), 1.0

    def readlink(self, ctx: Context, nodeid: NodeId) -> bytes:
        target = self.nodes[nodeid].content
        return target if isinstance(target, bytes) else target.encode()

    def open(
        self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool
    ) -> Answer[OpenReply]:
        self.opened[nodeid] = self.opened.get(nodeid, 0) + 1
        return OpenReply(FileHandle(nodeid + 7), 0)

    def release(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        flags: int,
        release_flags: int,
        lock_owner: int,
    ) -> Answer[None]:
        assert fh == nodeid + 7
        self.opened[nodeid] -= 1
        return None

    def read(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        size: int,
        flags: int,
        lock_owner: int | None,
    ) -> bytes:
        content: bytes = self.nodes[nodeid].content
        return content[offset : offset + size]

    def lseek(self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, whence: int) -> int:
        item = self.nodes[nodeid]
        size = len(item.content)
        if offset >= size:
            raise FsError(errno.ENXIO)
        in_hole = [end for start, end in item.holes if start <= offset < end]
        if whence == 4:
            later = [start for start, _ in item.holes if start >= offset]
            return offset if in_hole else min([*later, size])
        if in_hole and in_hole[0] >= size:
            raise FsError(errno.ENXIO)
        return in_hole[0] if in_hole else offset

    def listing(self, item: Item) -> list[tuple[bytes, Item]]:
        """The names of a directory; to be spoilt by tests."""
        return [(b".", item), (b"..", self.root), *item.content.items()]

    def readdir(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterable[DirEntry]:
        entries = self.listing(self.nodes[nodeid])[offset : offset + self.page]
        for number, (name, item) in enumerate(entries, offset + 1):
            yield DirEntry(name, item.nodeid + 1000, number, item.type >> 12)

    def getxattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> bytes:
        try:
            return self.nodes[nodeid].xattrs[name]
        except KeyError:
            raise FsError(errno.ENODATA) from None

    def listxattr(self, ctx: Context, nodeid: NodeId) -> list[bytes]:
        return list(self.nodes[nodeid].xattrs)

    def statfs(self, ctx: Context, nodeid: NodeId) -> StatFs:
        return StatFs.make(blocks=11, bfree=5, files=len(self.nodes))


class PlusTreeFilesystem(TreeFilesystem):
    """The same with READDIRPLUS and STATX, and opening nothing."""

    # What is not overridden in the class is not there, so take these away again.
    open = Operations.open
    release = Operations.release

    def readdirplus(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterable[tuple[DirEntry, Entry | None]]:
        listed = self.listing(self.nodes[nodeid])[offset:]
        for dirent, (name, item) in zip(
            self.readdir(ctx, nodeid, fh, offset), listed, strict=False
        ):
            yield dirent, None if name in {b".", b".."} else self.entry(item)

    def statx(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None, flags: int, mask: int
    ) -> tuple[StatxReply, float]:
        return StatxReply(self.attributes(self.nodes[nodeid]), 5_000_000_001, 0, 0), 1.0
