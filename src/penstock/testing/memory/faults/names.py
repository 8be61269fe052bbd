# SPDX-License-Identifier: Apache-2.0
"""Faults about names, links and kinds."""

from __future__ import annotations

import stat
from typing import Any

from penstock.abi.fuse import RenameFlag
from penstock.fs import Context, Creation, Entry, FsError, NodeId
from penstock.testing.memory import MemoryFilesystem
from penstock.testing.memory.nodes import Directory, Node

__all__ = [
    "CaseIsIgnored",
    "CtimeOfLinksStays",
    "DeviceNumbersAreLost",
    "DirectoryTimesStay",
    "ExchangeMoves",
    "FullDirectoriesAreRemoved",
    "FullDirectoriesAreReplaced",
    "GroupIsNotInherited",
    "LinkIsACopy",
    "LinksAreNotCounted",
    "LongNamesAreCut",
    "RenameLeavesTheOldName",
    "SubdirectoriesAreNotCounted",
    "TargetsAreCut",
    "UmaskIsIgnored",
    "UnlinkForgetsToCount",
    "UnlinkedFilesAreEmptied",
    "WhiteoutLeavesNothing",
]


class TargetsAreCut(MemoryFilesystem):
    """A symlink's target is cut after 100 bytes."""

    def readlink(self, ctx: Context, nodeid: NodeId) -> bytes:
        return super().readlink(ctx, nodeid)[:100]


class LinksAreNotCounted(MemoryFilesystem):
    """A second name does not count."""

    def link(self, ctx: Context, nodeid: NodeId, newparent: NodeId, newname: bytes) -> Entry:
        super().link(ctx, nodeid, newparent, newname)
        with self._lock:
            node = self._table[nodeid]
            node.nlink = max(1, node.nlink - 1)
            return self._entry(node)


class LinkIsACopy(MemoryFilesystem):
    """A second name is another file with the same content."""

    def link(self, ctx: Context, nodeid: NodeId, newparent: NodeId, newname: bytes) -> Entry:
        with self._lock:
            old = self._table[nodeid]
            if old.content is None:
                raise FsError(1, "only regular files have links here")
            new = self._make(ctx, newparent, newname, old.mode, Creation())
            assert new.content is not None
            new.content.write(0, old.content.read(0, old.content.size))
            return self._entry(new)


class UnlinkForgetsToCount(MemoryFilesystem):
    """A name that is removed still counts as a link."""

    def _unnamed(self, node: Node) -> None:
        super()._unnamed(node)
        if node.children is None and not node.freed:
            node.nlink += 1


class UnlinkedFilesAreEmptied(MemoryFilesystem):
    """A file loses its content with its last name, open or not."""

    def _unnamed(self, node: Node) -> None:
        super()._unnamed(node)
        if node.content is not None and not node.nlink and not node.freed:
            node.content.truncate(0)


class RenameLeavesTheOldName(MemoryFilesystem):
    """A renamed file has its old name as well."""

    def rename(
        self,
        ctx: Context,
        parent: NodeId,
        name: bytes,
        newparent: NodeId,
        newname: bytes,
        flags: int,
    ) -> None:
        with self._lock:
            _, names, node = self._child(parent, name)
        super().rename(ctx, parent, name, newparent, newname, flags)
        if not flags and node.children is None:
            with self._lock:
                names.put(name, node)


class ExchangeMoves(MemoryFilesystem):
    """RENAME_EXCHANGE is carried out as a plain rename."""

    def rename(
        self,
        ctx: Context,
        parent: NodeId,
        name: bytes,
        newparent: NodeId,
        newname: bytes,
        flags: int,
    ) -> None:
        flags &= ~int(RenameFlag.EXCHANGE)
        super().rename(ctx, parent, name, newparent, newname, flags)


class WhiteoutLeavesNothing(MemoryFilesystem):
    """RENAME_WHITEOUT leaves no device under the old name."""

    def rename(
        self,
        ctx: Context,
        parent: NodeId,
        name: bytes,
        newparent: NodeId,
        newname: bytes,
        flags: int,
    ) -> None:
        flags &= ~int(RenameFlag.WHITEOUT)
        super().rename(ctx, parent, name, newparent, newname, flags)


class FullDirectoriesAreReplaced(MemoryFilesystem):
    """rename replaces a directory that is not empty."""

    def rename(
        self,
        ctx: Context,
        parent: NodeId,
        name: bytes,
        newparent: NodeId,
        newname: bytes,
        flags: int,
    ) -> None:
        with self._lock:
            other = self._directory(newparent)[1].get(newname)
            if not flags and other is not None and other.children is not None:
                other.children = Directory()
        super().rename(ctx, parent, name, newparent, newname, flags)


class FullDirectoriesAreRemoved(MemoryFilesystem):
    """rmdir removes a directory that is not empty."""

    def rmdir(self, ctx: Context, parent: NodeId, name: bytes) -> None:
        with self._lock:
            node = self._child(parent, name)[2]
            if node.children is not None:
                node.children = Directory()
        super().rmdir(ctx, parent, name)


class SubdirectoriesAreNotCounted(MemoryFilesystem):
    """Link counts of directories do not follow what moves."""

    def _moved(self, node: Node, source: Node, target: Node) -> None:
        before = source.nlink, target.nlink
        super()._moved(node, source, target)
        source.nlink, target.nlink = before


class CaseIsIgnored(MemoryFilesystem):
    """A name is found in any case."""

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Entry:
        try:
            return super().lookup(ctx, parent, name)
        except FsError:
            with self._lock:
                for other, node in self._directory(parent)[1]:
                    if other.lower() == name.lower():
                        return self._entry(node)
            raise


class LongNamesAreCut(MemoryFilesystem):
    """Names are cut after 200 bytes."""

    def create(self, ctx: Context, parent: NodeId, name: bytes, *rest: Any) -> Any:
        return super().create(ctx, parent, name[:200], *rest)


class DeviceNumbersAreLost(MemoryFilesystem):
    """Device nodes have small numbers only."""

    def mknod(
        self, ctx: Context, parent: NodeId, name: bytes, mode: int, rdev: int, new: Creation
    ) -> Entry:
        return super().mknod(ctx, parent, name, mode, rdev & 0xFFFF, new)


class UmaskIsIgnored(MemoryFilesystem):
    """The umask takes nothing from the mode."""

    def _new_child(self, ctx: Context, parent: Node, mode: int, new: Creation, **more: Any) -> Node:
        return super()._new_child(ctx, parent, mode, new._replace(umask=0), **more)


class GroupIsNotInherited(MemoryFilesystem):
    """What is made in a set-group-ID directory has its maker's group."""

    def _new_child(self, ctx: Context, parent: Node, mode: int, new: Creation, **more: Any) -> Node:
        node = super()._new_child(ctx, parent, mode, new, **more)
        node.gid = ctx.gid
        return node


class DirectoryTimesStay(MemoryFilesystem):
    """Times of a directory do not follow its names."""

    def _changed(self, node: Node, *, data: bool = False) -> None:
        if not (data and stat.S_ISDIR(node.mode)):
            super()._changed(node, data=data)


class CtimeOfLinksStays(MemoryFilesystem):
    """A new name leaves the file's ctime."""

    def link(self, ctx: Context, nodeid: NodeId, newparent: NodeId, newname: bytes) -> Entry:
        with self._lock:
            node = self._table[nodeid]
            before = node.ctime_ns
        super().link(ctx, nodeid, newparent, newname)
        with self._lock:
            node.ctime_ns = before
            return self._entry(node)
