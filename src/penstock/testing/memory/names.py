# SPDX-License-Identifier: Apache-2.0
"""Names: looking up, making, linking, renaming and removing.

The kernel has checked permissions, sticky bits and types before it asks; what is checked here is
what a client other than the kernel could get wrong, or what another client may have changed.
"""

from __future__ import annotations

import errno
import os
import stat

from penstock.abi.fuse import RenameFlag
from penstock.fs import Context, Creation, Entry, FsError, NodeId, OpenReply
from penstock.testing.memory.nodes import Directory, Node
from penstock.testing.memory.state import State, check_changeable, check_name

__all__ = ["NameOperations"]

_TARGET_MAX = 4095


class NameOperations(State):
    """Operations on names."""

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Entry:
        with self._lock:
            if name in {b".", b".."}:
                return self._entry(self._relative(parent, name))
            return self._entry(self._child(parent, name)[2])

    def forget(self, nodeid: NodeId) -> None:
        with self._lock:
            node = self._table.forget(nodeid)
            if node is not None:
                self._free(node)

    def readlink(self, ctx: Context, nodeid: NodeId) -> bytes:
        with self._lock:
            node = self._table[nodeid]
            if not stat.S_ISLNK(node.mode):
                raise FsError(errno.EINVAL, f"inode {node.ino} is no symlink")
            return node.target

    def symlink(
        self, ctx: Context, parent: NodeId, name: bytes, target: bytes, new: Creation
    ) -> Entry:
        if not target:
            raise FsError(errno.ENOENT, "a symlink to nothing")
        if len(target) > _TARGET_MAX:
            raise FsError(errno.ENAMETOOLONG, f"a target of {len(target)} bytes")
        with self._lock:
            mode = stat.S_IFLNK | 0o777
            return self._entry(self._make(ctx, parent, name, mode, new, target=target))

    def mknod(
        self, ctx: Context, parent: NodeId, name: bytes, mode: int, rdev: int, new: Creation
    ) -> Entry:
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        if stat.S_IFMT(mode) not in _MKNOD_TYPES:
            raise FsError(errno.EINVAL, f"mknod makes no inode of mode {mode:o}")
        with self._lock:
            return self._entry(self._make(ctx, parent, name, mode, new, rdev=rdev))

    def mkdir(self, ctx: Context, parent: NodeId, name: bytes, mode: int, new: Creation) -> Entry:
        with self._lock:
            mode = stat.S_IFDIR | stat.S_IMODE(mode)
            return self._entry(self._make(ctx, parent, name, mode, new))

    def create(
        self, ctx: Context, parent: NodeId, name: bytes, mode: int, flags: int, new: Creation
    ) -> tuple[Entry, OpenReply]:
        with self._lock:
            mode = stat.S_IFREG | stat.S_IMODE(mode)
            node = self._make(ctx, parent, name, mode, new)
            return self._entry(node), OpenReply(self._open(node, flags))

    def tmpfile(
        self, ctx: Context, parent: NodeId, mode: int, flags: int, new: Creation
    ) -> tuple[Entry, OpenReply]:
        with self._lock:
            directory, _ = self._directory(parent)
            mode = stat.S_IFREG | stat.S_IMODE(mode)
            node = self._new_child(ctx, directory, mode, new)
            node.linkable = not flags & os.O_EXCL
            return self._entry(node), OpenReply(self._open(node, flags))

    def link(self, ctx: Context, nodeid: NodeId, newparent: NodeId, newname: bytes) -> Entry:
        with self._lock:
            node = self._table[nodeid]
            parent, children = self._place(newparent, newname)
            if node.children is not None:
                raise FsError(errno.EPERM, "directories have one name")
            check_changeable(node)
            if not node.nlink and not node.linkable:
                raise FsError(errno.ENOENT, f"inode {node.ino} has lost its last name")
            if node.nlink >= self._max_links:
                raise FsError(errno.EMLINK)
            node.nlink += 1
            self._changed(node)
            children.put(newname, node)
            self._changed(parent, data=True)
            return self._entry(node)

    def unlink(self, ctx: Context, parent: NodeId, name: bytes) -> None:
        with self._lock:
            directory, children, node = self._child(parent, name)
            if node.children is not None:
                raise FsError(errno.EISDIR, f"{name!r} is a directory")
            check_changeable(directory)
            check_changeable(node)
            children.remove(name)
            self._changed(directory, data=True)
            self._unnamed(node)

    def rmdir(self, ctx: Context, parent: NodeId, name: bytes) -> None:
        with self._lock:
            directory, children, node = self._child(parent, name)
            if node.children is None:
                raise FsError(errno.ENOTDIR, f"{name!r} is no directory")
            if len(node.children):
                raise FsError(errno.ENOTEMPTY, f"{len(node.children)} names in {name!r}")
            check_changeable(directory)
            check_changeable(node)
            children.remove(name)
            self._changed(directory, data=True)
            directory.nlink -= 1
            self._unnamed(node)

    def rename(
        self,
        ctx: Context,
        parent: NodeId,
        name: bytes,
        newparent: NodeId,
        newname: bytes,
        flags: int,
    ) -> None:
        exchange = bool(flags & RenameFlag.EXCHANGE)
        if flags & ~_RENAME_FLAGS or (exchange and flags != RenameFlag.EXCHANGE):
            raise FsError(errno.EINVAL, f"rename flags {flags:#x}")
        with self._lock:
            source, names, node = self._child(parent, name)
            target, newnames = self._directory(newparent)
            check_name(newname)
            other = newnames.get(newname)
            if other is None and exchange:
                raise FsError(errno.ENOENT, f"no {newname!r} to exchange with")
            if other is not None and flags & RenameFlag.NOREPLACE:
                raise FsError(errno.EEXIST, f"{newname!r} is there")
            for each in (source, target, node, other):
                if each is not None:
                    check_changeable(each)
            if node is other:
                return
            _check_circle(node, target)
            if other is not None and exchange:
                _check_circle(other, source)
            elif other is not None:
                _check_replaceable(node, other)
            self._check_links(node, source, target, other)
            whiteout = None
            if flags & RenameFlag.WHITEOUT:
                whiteout = self._new_child(ctx, source, stat.S_IFCHR, Creation())
                whiteout.nlink = 1
            newnames.put(newname, node)
            left = other if exchange else whiteout
            if left is not None:
                names.put(name, left)
            else:
                names.remove(name)
            self._moved(node, source, target)
            if exchange and other is not None:
                self._moved(other, target, source)
            elif other is not None:
                target.nlink -= other.children is not None
                self._unnamed(other)
            self._changed(source, data=True)
            self._changed(target, data=True)

    # With the lock held

    def _relative(self, nodeid: NodeId, name: bytes) -> Node:
        """``.`` and ``..``, which a decoded file handle is connected by."""
        node = self._table[nodeid]
        if name == b".":
            return node
        if node.children is None:
            raise FsError(errno.ENOTDIR, f"inode {node.ino} is no directory")
        if node.parent is None:
            raise FsError(errno.ENOENT, f"directory {node.ino} was removed")
        return node.parent

    def _place(self, nodeid: NodeId, name: bytes) -> tuple[Node, Directory]:
        """A directory where ``name`` can be made."""
        parent, children = self._directory(nodeid)
        check_name(name)
        if children.get(name) is not None:
            raise FsError(errno.EEXIST, f"{name!r} is there")
        check_changeable(parent, append=True)
        return parent, children

    def _make(
        self,
        ctx: Context,
        nodeid: NodeId,
        name: bytes,
        mode: int,
        new: Creation,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Node:
        parent, children = self._place(nodeid, name)
        if stat.S_ISDIR(mode) and parent.nlink >= self._max_links:
            raise FsError(errno.EMLINK)
        node = self._new_child(ctx, parent, mode, new, rdev=rdev, target=target)
        node.nlink = 1
        if node.children is not None:
            node.nlink = 2
            node.parent = parent
            parent.nlink += 1
        children.put(name, node)
        self._changed(parent, data=True)
        return node

    def _unnamed(self, node: Node) -> None:
        """One name of a node is gone; an empty directory's only one."""
        if node.children is not None:
            node.nlink = 0
            node.parent = None
        else:
            node.nlink -= 1
        node.linkable = False
        self._changed(node)
        self._free(node)

    def _moved(self, node: Node, source: Node, target: Node) -> None:
        self._changed(node)
        if node.children is not None and source is not target:
            node.parent = target
            source.nlink -= 1
            target.nlink += 1

    def _check_links(self, node: Node, source: Node, target: Node, other: Node | None) -> None:
        """Raises EMLINK if a directory would get one subdirectory too many."""
        if source is target:
            return
        for moved, place, gone in ((node, target, other), (other, source, node)):
            grows = moved is not None and moved.children is not None
            shrinks = gone is not None and gone.children is not None
            if grows and not shrinks and place.nlink >= self._max_links:
                raise FsError(errno.EMLINK)


_MKNOD_TYPES = (stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
# A number: the complement of an IntFlag keeps only the flags that have names.
_RENAME_FLAGS = int(RenameFlag.NOREPLACE | RenameFlag.EXCHANGE | RenameFlag.WHITEOUT)


def _check_circle(node: Node, place: Node) -> None:
    """Raises EINVAL if ``place`` is ``node`` or below it."""
    if node.children is None:
        return
    above: Node | None = place
    while above is not None:
        if above is node:
            raise FsError(errno.EINVAL, "a directory cannot be moved below itself")
        above = above.parent if above.parent is not above else None


def _check_replaceable(node: Node, other: Node) -> None:
    """Raises ENOTDIR, EISDIR or ENOTEMPTY if ``node`` cannot take the place of ``other``."""
    if node.children is not None and other.children is None:
        raise FsError(errno.ENOTDIR)
    if node.children is None and other.children is not None:
        raise FsError(errno.EISDIR)
    if other.children is not None and len(other.children):
        raise FsError(errno.ENOTEMPTY)
