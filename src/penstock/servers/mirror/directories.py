# SPDX-License-Identifier: Apache-2.0
"""Directories: opening, listing, making durable.

Positions are the source's own (``d_off``), so a listing goes on rightly whatever is made or
removed meanwhile, as the source's own listings do. One getdents64 is taken at a time; what is
not answered yet stays with the open directory for the next request, which nearly always goes on
there.

A listing with attributes asks each name for them. A name that has gone meanwhile is left out, one
on which another filesystem is mounted is listed without.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from penstock.abi.fuse import FOpen
from penstock.fs import (
    ROOT,
    Context,
    DirEntry,
    Entry,
    FileHandle,
    NodeId,
    OpenReply,
)
from penstock.servers.mirror.descriptors import Held
from penstock.servers.mirror.state import OpenNode, State
from penstock.sys.atcalls import syncfs
from penstock.sys.listing import read_directory

__all__ = ["DirectoryOperations"]

_new: Final = tuple.__new__
_CACHE: Final = int(FOpen.KEEP_CACHE | FOpen.CACHE_DIR)
_HALF: Final = 1 << 63
_DOTS: Final = frozenset({b".", b".."})


class DirectoryOperations(State):
    """Operations on open directories."""

    def opendir(self, ctx: Context, nodeid: NodeId, flags: int) -> OpenReply:
        how = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | flags & os.O_NOATIME
        held = Held(os.open(b".", how, dir_fd=self._source.directory(nodeid).fd))
        fh = self._opened(OpenNode(nodeid, how, held))
        return OpenReply(fh, _CACHE if self._options.cache == "immutable" else 0)

    def releasedir(self, ctx: Context, nodeid: NodeId, fh: FileHandle, flags: int) -> None:
        self._closed(fh)

    def fsyncdir(self, ctx: Context, nodeid: NodeId, fh: FileHandle, datasync: bool) -> None:
        held = self._fd(fh)
        self._slow()
        os.fsync(held.fd)

    def readdir(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterator[DirEntry]:
        root = self._inode_number() if nodeid == ROOT else 0
        for entry in self._listed(fh, offset):
            if root and entry[0] == b"..":
                entry = (b"..", root, *entry[2:])
            yield _new(DirEntry, entry)

    def readdirplus(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterator[tuple[DirEntry, Entry | None]]:
        directory = self._source.directory(nodeid)
        root = self._inode_number() if nodeid == ROOT else 0
        for listed in self._listed(fh, offset):
            name = listed[0]
            if name in _DOTS:
                if root:
                    listed = (name, root, *listed[2:])
                yield _new(DirEntry, listed), None
                continue
            entry = None
            fresh = False
            try:
                found = self._source.lookup(directory, name)
                if found is None:
                    continue
                fresh = self._nodes.get(self._nodes.id_of(found[21], found[7])) is None
                entry = self._entry(nodeid, directory, name, found)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
            try:
                yield _new(DirEntry, listed), entry
            except GeneratorExit:
                # It did not fit: the kernel was not given it and will not forget it.
                if fresh and entry is not None:
                    self._source.forget(NodeId(entry[0]))
                raise

    def _listed(self, fh: int, offset: int) -> Iterator[tuple[bytes, int, int, int]]:
        """The entries after a position."""
        node = self._file(fh)
        held = self._fd(fh)
        with node.lock:
            pending = node.pending
            if offset != node.position:
                # The position of the last entry answered; where the kernel goes on elsewhere,
                # what was read ahead is not what it wants.
                pending.clear()
                os.lseek(held.fd, offset - 2 * _HALF if offset >= _HALF else offset, os.SEEK_SET)
            elif offset == 0:
                pending.clear()
                os.lseek(held.fd, 0, os.SEEK_SET)
            node.position = offset
            while True:
                if not pending:
                    pending.extend(reversed(read_directory(held.fd)))
                    if not pending:
                        return
                entry = pending[-1]
                yield entry
                # Resumed: it was taken. (An entry that did not fit stays for the next request.)
                pending.pop()
                node.position = entry[2]

    def _inode_number(self) -> int:
        return self._source.stat(ROOT)[7]

    def syncfs(self, ctx: Context, nodeid: NodeId) -> None:
        self._slow()
        syncfs(self._source.root)
