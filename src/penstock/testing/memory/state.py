# SPDX-License-Identifier: Apache-2.0
"""What the parts of the memory filesystem share: its nodes, open files, budget and clock.

Invariant: ``_lock`` is held whenever any of it is looked at or changed, never while an answer or a
notification is given, and no method waits for anything while it holds it.
"""

from __future__ import annotations

import errno
import itertools
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from penstock.abi.fuse import InitFlag
from penstock.fs import (
    ROOT,
    Connection,
    Context,
    Creation,
    Entry,
    FileHandle,
    FsError,
    InodeTable,
    NodeId,
    Operations,
)
from penstock.testing.memory import acl
from penstock.testing.memory.content import Content
from penstock.testing.memory.locks import LockTable
from penstock.testing.memory.nodes import Directory, Handle, Node
from penstock.testing.memory.space import Space

__all__ = ["FS_APPEND_FL", "FS_IMMUTABLE_FL", "MemoryStatistics", "State"]

FS_IMMUTABLE_FL: Final = 0x10
FS_APPEND_FL: Final = 0x20

_NAME_MAX: Final = 255
_CAPABILITY: Final = b"security.capability"


@dataclass(frozen=True)
class MemoryStatistics:
    """A snapshot of a memory filesystem."""

    bytes_used: int
    bytes_limit: int
    inodes_used: int
    inodes_limit: int
    nodes_known: int
    """Inodes the kernel knows, the root included."""
    handles: int
    """Open files and directories."""
    locks_held: int
    locks_waiting: int
    syncs: dict[str, int]
    """How often fsync, fdatasync, fsyncdir and syncfs were called."""


class State(Operations):
    """The state. Arguments are :class:`penstock.testing.memory.MemoryFilesystem`'s."""

    want = (
        InitFlag.ATOMIC_O_TRUNC
        | InitFlag.EXPORT_SUPPORT
        | InitFlag.DONT_MASK
        | InitFlag.READDIRPLUS_AUTO
        | InitFlag.POSIX_ACL
        | InitFlag.CACHE_SYMLINKS
        | InitFlag.HANDLE_KILLPRIV_V2
        | InitFlag.SECURITY_CTX
        | InitFlag.CREATE_SUPP_GROUP
        | InitFlag.DIRECT_IO_ALLOW_MMAP
    )

    def __init__(
        self,
        *,
        limit: int = 64 << 20,
        inodes: int = 1 << 16,
        max_links: int = 65_000,
        timeout: float = 1.0,
        dax_window: int = 0,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._lock = threading.Lock()
        self._space = Space(limit, inodes)
        self._max_links = max_links
        self._timeout = timeout
        self._dax_window = dax_window
        self._clock = clock
        self._numbers = itertools.count(ROOT)
        self._handle_ids = itertools.count(1)
        self._handles: dict[int, Handle] = {}
        self._locks = LockTable()
        self._syncs: Counter[str] = Counter()
        self._umask_is_ours = False
        self.wakeup: Callable[[int], None] | None = None
        """Called, in any thread, with the poll handle whose events have changed; to be set to the
        ``poll_wakeup`` of the mount's notifier."""
        self._root = self._new_node(stat.S_IFDIR | 0o755, 0, 0)
        self._root.parent = self._root
        self._root.nlink = 2
        self._table: InodeTable[Node] = InodeTable(self._root, self._root.ino)

    def init(self, connection: Connection) -> None:
        self._umask_is_ours = bool(connection.flags & InitFlag.DONT_MASK)

    def destroy(self) -> None:
        """Forget the kernel's references; names and data stay, and can be mounted again."""
        with self._lock:
            nodes = [*self._table, *(handle.node for handle in self._handles.values())]
            self._handles.clear()
            self._table = InodeTable(self._root, self._root.ino)
            self._locks = LockTable()
            for node in nodes:
                node.opens = 0
                node.pollers.clear()
                self._free(node)

    def statistics(self) -> MemoryStatistics:
        """A snapshot; may be taken at any time from any thread."""
        with self._lock:
            return MemoryStatistics(
                bytes_used=self._space.used,
                bytes_limit=self._space.limit,
                inodes_used=self._space.inodes_used,
                inodes_limit=self._space.inodes,
                nodes_known=len(self._table),
                handles=len(self._handles),
                locks_held=self._locks.held,
                locks_waiting=self._locks.waiting,
                syncs=dict(self._syncs),
            )

    def wait_waiting_locks(self, count: int, timeout: float) -> bool:
        """Wait until exactly ``count`` lock requests wait; False after ``timeout`` seconds."""
        return self._locks.wait_waiting(count, timeout)

    # Nodes

    def _new_node(self, mode: int, uid: int, gid: int, rdev: int = 0, target: bytes = b"") -> Node:
        self._space.take_inode()
        try:
            self._space.take(len(target))
        except FsError:
            self._space.give_inode()
            raise
        node = Node(next(self._numbers), mode, uid, gid, self._clock(), rdev=rdev, target=target)
        if stat.S_ISREG(mode):
            node.content = Content(self._space)
        elif stat.S_ISDIR(mode):
            node.children = Directory()
        return node

    def _new_child(
        self,
        ctx: Context,
        parent: Node,
        mode: int,
        new: Creation,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Node:
        """An inode made in ``parent``, not named yet: owner, mode and ACLs by its rules."""
        default = parent.xattrs.get(acl.DEFAULT) if not stat.S_ISLNK(mode) else None
        xattrs = dict(new.security)
        if default is not None:
            mode, access = acl.inherit(default, mode)
            if access is not None:
                xattrs[acl.ACCESS] = access
            if stat.S_ISDIR(mode):
                xattrs[acl.DEFAULT] = default
        elif self._umask_is_ours and not stat.S_ISLNK(mode):
            mode &= ~new.umask
        gid = ctx.gid
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        node = self._new_node(mode, ctx.uid, gid, rdev, target)
        try:
            self._space.take(sum(len(name) + len(value) for name, value in xattrs.items()))
        except FsError:
            self._free(node)
            raise
        node.xattrs = xattrs
        return node

    def _free(self, node: Node) -> None:
        """Give an inode's space back if nothing refers to it any more."""
        if node.nlink or node.opens or node.freed or self._table.find(node.ino) is not None:
            return
        node.freed = True
        if node.content is not None:
            node.content.free()
        xattrs = sum(len(name) + len(value) for name, value in node.xattrs.items())
        self._space.take(-xattrs - len(node.target))
        self._space.give_inode()

    def _entry(self, node: Node) -> Entry:
        nodeid = self._table.add(node, node.ino)
        return Entry.make(
            nodeid,
            node.attributes(),
            generation=generation(node),
            entry_timeout=self._timeout,
            attr_timeout=self._timeout,
        )

    def _directory(self, nodeid: NodeId) -> tuple[Node, Directory]:
        """A directory that still has a name.

        Raises:
            FsError: ESTALE, ENOTDIR, ENOENT.
        """
        node = self._table[nodeid]
        if node.children is None:
            raise FsError(errno.ENOTDIR, f"inode {node.ino} is no directory")
        if not node.nlink:
            raise FsError(errno.ENOENT, f"directory {node.ino} was removed")
        return node, node.children

    def _child(self, nodeid: NodeId, name: bytes) -> tuple[Node, Directory, Node]:
        """A directory, its names, and the node called ``name`` in it. Raises ENOENT as well."""
        parent, children = self._directory(nodeid)
        check_name(name)
        node = children.get(name)
        if node is None:
            raise FsError(errno.ENOENT, f"no {name!r} in directory {parent.ino}")
        return parent, children, node

    def _content(self, node: Node) -> Content:
        """The data of a regular file. Raises EISDIR, EINVAL."""
        if node.content is None:
            raise FsError(errno.EISDIR if node.children is not None else errno.EINVAL)
        return node.content

    # Open files

    def _open(self, node: Node, flags: int) -> FileHandle:
        fh = FileHandle(next(self._handle_ids))
        self._handles[fh] = Handle(node, flags, node.size)
        node.opens += 1
        return fh

    def _close(self, fh: FileHandle) -> None:
        handle = self._handles.pop(fh, None)
        if handle is None:
            return
        node = handle.node
        node.opens -= 1
        node.pollers = {kh: other for kh, other in node.pollers.items() if other is not handle}
        self._free(node)

    def _handle(self, fh: FileHandle) -> Handle:
        """An open file. Raises EBADF."""
        try:
            return self._handles[fh]
        except KeyError:
            raise FsError(errno.EBADF, f"{fh} is no open file") from None

    # Rules

    def _changed(self, node: Node, *, data: bool = False) -> None:
        """Stamp a change of the inode, with ``data`` of its content or names too."""
        node.ctime_ns = self._clock()
        if data:
            node.mtime_ns = node.ctime_ns

    def _kill_privileges(self, node: Node, *, bits: bool) -> None:
        """What a change of content or owner takes away: file capabilities, and with ``bits``
        set-user-ID, and set-group-ID where it means what it says."""
        value = node.xattrs.pop(_CAPABILITY, None)
        if value is not None:
            self._space.take(-len(_CAPABILITY) - len(value))
        if bits and not stat.S_ISDIR(node.mode):
            node.mode &= ~stat.S_ISUID
            if node.mode & stat.S_IXGRP:
                node.mode &= ~stat.S_ISGID

    def _wake(self, kernel_handles: list[int]) -> None:
        """Tell pollers. Called without the lock."""
        if self.wakeup is not None:
            for kh in kernel_handles:
                self.wakeup(kh)


def check_name(name: bytes) -> None:
    """Raises ENAMETOOLONG, or EINVAL for what is no name."""
    if len(name) > _NAME_MAX:
        raise FsError(errno.ENAMETOOLONG, f"{len(name)} bytes, more than {_NAME_MAX}")
    if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        raise FsError(errno.EINVAL, f"{name!r} is no name")


def check_changeable(node: Node, *, append: bool = False) -> None:
    """Raises EPERM if chattr(1) forbids a change; ``append``: one that only adds."""
    if node.flags & FS_IMMUTABLE_FL or (node.flags & FS_APPEND_FL and not append):
        raise FsError(errno.EPERM, f"inode {node.ino} is immutable or append-only")


def generation(node: Node) -> int:
    """Never 0, and of each inode another, so that it is seen to arrive."""
    return (node.ino * 0x9E37_79B1) & 0x7FFF_FFFF | 1
