# SPDX-License-Identifier: Apache-2.0
"""Reading directories."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from penstock.fs import Context, DirEntry, Entry, FileHandle, FsError, NodeId, OpenReply
from penstock.testing.memory.nodes import Node
from penstock.testing.memory.state import State

__all__ = ["DirectoryOperations"]

_DT_DIR = 4
_BATCH = 64
"""Entries taken at a time, so that the lock is not held while they are packed."""


class DirectoryOperations(State):
    """Operations on open directories."""

    def opendir(self, ctx: Context, nodeid: NodeId, flags: int) -> OpenReply:
        with self._lock:
            node = self._table[nodeid]
            if node.children is None:
                raise FsError(errno.ENOTDIR, f"inode {node.ino} is no directory")
            return OpenReply(self._open(node, flags))

    def readdir(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterator[DirEntry]:
        return (entry for entry, _ in self._list(fh, offset))

    def readdirplus(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterator[tuple[DirEntry, Entry | None]]:
        for entry, node in self._list(fh, offset):
            if node is None:
                yield entry, None
                continue
            with self._lock:
                # Not of a node that has been removed since: its space may have been given back.
                known = None if node.freed else self._entry(node)
            yield entry, known

    def releasedir(self, ctx: Context, nodeid: NodeId, fh: FileHandle, flags: int) -> None:
        self._locks.drop(self._opened(fh).ino, fh=fh)
        with self._lock:
            self._close(fh)

    def fsyncdir(self, ctx: Context, nodeid: NodeId, fh: FileHandle, datasync: bool) -> None:
        with self._lock:
            self._handle(fh)
            self._syncs["fsyncdir"] += 1

    def _opened(self, fh: FileHandle) -> Node:
        with self._lock:
            node = self._handle(fh).node
            if node.children is None:
                raise FsError(errno.ENOTDIR, f"inode {node.ino} is no directory")
            return node

    def _list(self, fh: FileHandle, offset: int) -> Iterator[tuple[DirEntry, Node | None]]:
        directory = self._opened(fh)
        children = directory.children
        assert children is not None
        if not directory.nlink:
            return
        if offset < 1:
            yield DirEntry(b".", directory.ino, 1, _DT_DIR), None
        if offset < 2:
            above = directory.parent or directory
            yield DirEntry(b"..", above.ino, 2, _DT_DIR), None
        while True:
            with self._lock:
                batch = children.after(offset, _BATCH)
            for cookie, name, node in batch:
                yield DirEntry(name, node.ino, cookie, node.type), node
            if not batch:
                return
            offset = batch[-1][0]
