# SPDX-License-Identifier: Apache-2.0
"""Attributes, extended attributes, statistics of the whole, and durability.

Facts about set-user-ID under HANDLE_KILLPRIV_V2 (fs/fuse/dir.c, uapi/linux/fuse.h)
    - Writing, truncating and changing the owner drop ``security.capability`` always.
    - Writing and truncating drop set-ID bits when the kernel says so (``kill_suidgid``: the
      caller lacks CAP_FSETID); changing the owner does always. Set-group-ID without group
      execution is mandatory locking's mark and stays.
"""

from __future__ import annotations

import errno
import stat

from penstock.abi.fuse import SetxattrFlag, XattrFlag
from penstock.fs import (
    Attributes,
    Context,
    FileHandle,
    FsError,
    NodeId,
    SetAttr,
    StatFs,
    StatxReply,
)
from penstock.testing.memory import acl
from penstock.testing.memory.content import BLOCK
from penstock.testing.memory.nodes import Node
from penstock.testing.memory.state import (
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    State,
    check_changeable,
)

__all__ = ["AttributeOperations"]

_XATTR_NAME_MAX = 255
_XATTR_SIZE_MAX = 65_536
_PREFIXES = (b"user.", b"trusted.", b"security.")

_STATX_ATTR_IMMUTABLE = 0x10
_STATX_ATTR_APPEND = 0x20


class AttributeOperations(State):
    """Operations on attributes."""

    def getattr(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None
    ) -> tuple[Attributes, float]:
        with self._lock:
            return self._table[nodeid].attributes(), self._timeout

    def statx(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None, flags: int, mask: int
    ) -> tuple[StatxReply, float]:
        with self._lock:
            node = self._table[nodeid]
            shown = _STATX_ATTR_IMMUTABLE if node.flags & FS_IMMUTABLE_FL else 0
            shown |= _STATX_ATTR_APPEND if node.flags & FS_APPEND_FL else 0
            known = _STATX_ATTR_IMMUTABLE | _STATX_ATTR_APPEND
            return StatxReply(node.attributes(), node.now, shown, known), self._timeout

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> tuple[Attributes, float]:
        with self._lock:
            node = self._table[nodeid]
            check_changeable(node)
            grown = self._resize(node, changes.size) if changes.size is not None else []
            if changes.kill_suidgid:
                self._kill_privileges(node, bits=True)
            if changes.uid is not None or changes.gid is not None:
                node.uid = node.uid if changes.uid is None else changes.uid
                node.gid = node.gid if changes.gid is None else changes.gid
                self._kill_privileges(node, bits=True)
            if changes.mode is not None:
                self._chmod(node, changes.mode)
            self._set_times(node, changes)
            answer = node.attributes(), self._timeout
        self._wake(grown)
        return answer

    def access(self, ctx: Context, nodeid: NodeId, mask: int) -> None:
        """By mode bits alone; asked only when neither default_permissions nor ACLs are in force."""
        with self._lock:
            node = self._table[nodeid]
            if ctx.uid == 0:
                allowed = 7 if node.mode & 0o111 or node.children is not None else 6
            else:
                shift = 6 if ctx.uid == node.uid else 3 if ctx.gid == node.gid else 0
                allowed = node.mode >> shift & 7
            if mask & 7 & ~allowed:
                raise FsError(errno.EACCES)

    def statfs(self, ctx: Context, nodeid: NodeId) -> StatFs:
        with self._lock:
            space = self._space
            free = (space.limit - space.used) // BLOCK
            return StatFs.make(
                blocks=space.limit // BLOCK,
                bfree=free,
                bavail=free,
                files=space.inodes,
                ffree=space.inodes - space.inodes_used,
                bsize=BLOCK,
            )

    # Extended attributes

    def getxattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> bytes:
        with self._lock:
            node = self._table[nodeid]
            value = node.xattrs.get(name)
            if value is None:
                raise FsError(errno.ENODATA, f"no {name!r} on inode {node.ino}")
            return value

    def listxattr(self, ctx: Context, nodeid: NodeId) -> list[bytes]:
        with self._lock:
            return list(self._table[nodeid].xattrs)

    def setxattr(
        self,
        ctx: Context,
        nodeid: NodeId,
        name: bytes,
        value: bytes,
        flags: int,
        setxattr_flags: int,
    ) -> None:
        if len(name) > _XATTR_NAME_MAX:
            raise FsError(errno.ERANGE, f"a name of {len(name)} bytes")
        if len(value) > _XATTR_SIZE_MAX:
            raise FsError(errno.E2BIG, f"a value of {len(value)} bytes")
        with self._lock:
            node = self._table[nodeid]
            check_changeable(node)
            there = name in node.xattrs
            if flags & XattrFlag.CREATE and there:
                raise FsError(errno.EEXIST, f"{name!r} is there")
            if flags & XattrFlag.REPLACE and not there:
                raise FsError(errno.ENODATA, f"no {name!r} to replace")
            if name in {acl.ACCESS, acl.DEFAULT}:
                self._set_acl(node, name, value, setxattr_flags)
            elif name in _PREFIXES:
                raise FsError(errno.EINVAL, f"{name!r} is a namespace, not a name in it")
            elif name.startswith(_PREFIXES):
                self._put_xattr(node, name, value)
            else:
                raise FsError(errno.EOPNOTSUPP, f"no attributes like {name!r} here")
            self._changed(node)

    def removexattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> None:
        with self._lock:
            node = self._table[nodeid]
            check_changeable(node)
            if name not in node.xattrs:
                raise FsError(errno.ENODATA, f"no {name!r} on inode {node.ino}")
            self._put_xattr(node, name, None)
            self._changed(node)

    # The filesystem as a whole

    def syncfs(self, ctx: Context, nodeid: NodeId) -> None:
        with self._lock:
            self._syncs["syncfs"] += 1

    # With the lock held

    def _resize(self, node: Node, size: int) -> list[int]:
        """Truncate; who polls for growth."""
        content = self._content(node)
        grown = size > content.size
        content.truncate(size)
        self._kill_privileges(node, bits=False)
        self._changed(node, data=True)
        return self._take_pollers(node) if grown else []

    def _take_pollers(self, node: Node) -> list[int]:
        """Who has asked to be told, once."""
        waiting = list(node.pollers)
        node.pollers.clear()
        return waiting

    def _chmod(self, node: Node, mode: int) -> None:
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        access = node.xattrs.get(acl.ACCESS)
        if access is not None:
            node.xattrs[acl.ACCESS] = acl.chmod(access, mode)

    def _set_times(self, node: Node, changes: SetAttr) -> None:
        now = self._clock()
        atime, mtime = changes.atime_ns, changes.mtime_ns
        if atime is not None:
            node.atime_ns = now if isinstance(atime, str) else atime
        if mtime is not None:
            node.mtime_ns = now if isinstance(mtime, str) else mtime
        node.ctime_ns = now if changes.ctime_ns is None else changes.ctime_ns

    def _set_acl(self, node: Node, name: bytes, value: bytes, setxattr_flags: int) -> None:
        if stat.S_ISLNK(node.mode):
            raise FsError(errno.EOPNOTSUPP, "symlinks have no ACL")
        if name == acl.DEFAULT:
            if node.children is None:
                raise FsError(errno.EACCES, "only directories have a default ACL")
            acl.parse(value)
            self._put_xattr(node, name, value)
            return
        mode, plain = acl.mode_of(value)
        self._put_xattr(node, name, None if plain else value)
        node.mode = node.mode & ~0o777 | mode
        if setxattr_flags & SetxattrFlag.ACL_KILL_SGID:
            node.mode &= ~stat.S_ISGID

    def _put_xattr(self, node: Node, name: bytes, value: bytes | None) -> None:
        """Set or (None) remove an attribute and pay for it. Raises ENOSPC."""
        old = node.xattrs.get(name)
        cost = 0 if old is None else -len(name) - len(old)
        cost += 0 if value is None else len(name) + len(value)
        self._space.take(cost)
        if value is None:
            node.xattrs.pop(name, None)
        else:
            node.xattrs[name] = value
