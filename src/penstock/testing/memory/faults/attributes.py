# SPDX-License-Identifier: Apache-2.0
"""Faults about attributes, extended attributes and access control lists."""

from __future__ import annotations

import errno
import stat
from typing import Any

from penstock.fs import Attributes, Context, Creation, FsError, NodeId, SetAttr, StatFs
from penstock.testing.memory import MemoryFilesystem, acl
from penstock.testing.memory.nodes import Node

__all__ = [
    "AclsAreNotInherited",
    "AclsLeaveTheMode",
    "AttributesAreAlwaysSet",
    "AttributesStay",
    "BirthIsForgotten",
    "ChmodForgetsTheAcl",
    "CtimeStays",
    "EmptyValuesAreMissing",
    "EverythingIsFree",
    "ListsForgetTheLast",
    "NanosecondsAreLost",
    "OmittedTimesAreSet",
    "OwnersAreSixteenBits",
    "OwnersKeepSetIds",
    "SetIdsSurviveWriting",
    "TimesStartIn1970",
    "WritingLeavesTheTime",
]

_Answer = tuple[Attributes, float]


def _whole_seconds(time: int | str | None) -> Any:
    return time // 10**9 * 10**9 if isinstance(time, int) else time


def _not_negative(time: int | str | None) -> Any:
    return max(0, time) if isinstance(time, int) else time


class NanosecondsAreLost(MemoryFilesystem):
    """Times that are set lose their nanoseconds."""

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> _Answer:
        changes = changes._replace(
            atime_ns=_whole_seconds(changes.atime_ns), mtime_ns=_whole_seconds(changes.mtime_ns)
        )
        return super().setattr(ctx, nodeid, changes)


class TimesStartIn1970(MemoryFilesystem):
    """Times before 1970 become 1970."""

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> _Answer:
        changes = changes._replace(
            atime_ns=_not_negative(changes.atime_ns), mtime_ns=_not_negative(changes.mtime_ns)
        )
        return super().setattr(ctx, nodeid, changes)


class OmittedTimesAreSet(MemoryFilesystem):
    """Setting one time sets the other."""

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> _Answer:
        if changes.atime_ns is not None and changes.mtime_ns is None:
            changes = changes._replace(mtime_ns=changes.atime_ns)
        return super().setattr(ctx, nodeid, changes)


class CtimeStays(MemoryFilesystem):
    """chmod, chown and utime leave ctime."""

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> _Answer:
        with self._lock:
            before = self._table[nodeid].ctime_ns
        if changes.size is None:
            changes = changes._replace(ctime_ns=before)
        return super().setattr(ctx, nodeid, changes)


class OwnersAreSixteenBits(MemoryFilesystem):
    """Users and groups lose their high bits."""

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> _Answer:
        if changes.uid is not None:
            changes = changes._replace(uid=changes.uid & 0xFFFF)
        return super().setattr(ctx, nodeid, changes)


class SetIdsSurviveWriting(MemoryFilesystem):
    """Writing and truncating by ordinary users leave set-user-ID."""

    def _kill_privileges(self, node: Node, *, bits: bool) -> None:
        super()._kill_privileges(node, bits=False)


class OwnersKeepSetIds(MemoryFilesystem):
    """A change of owner leaves set-user-ID."""

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> _Answer:
        with self._lock:
            mode = stat.S_IMODE(self._table[nodeid].mode)
        if changes.uid is not None and changes.mode is None:
            changes = changes._replace(mode=mode)
        return super().setattr(ctx, nodeid, changes)


class WritingLeavesTheTime(MemoryFilesystem):
    """Writing leaves mtime."""

    def write(self, ctx: Context, nodeid: NodeId, *rest: Any) -> int:
        with self._lock:
            node = self._table[nodeid]
            before = node.mtime_ns
        written = super().write(ctx, nodeid, *rest)
        with self._lock:
            node.mtime_ns = before
        return written


class BirthIsForgotten(MemoryFilesystem):
    """The time of birth is 1970."""

    def statx(self, ctx: Context, nodeid: NodeId, fh: Any, flags: int, mask: int) -> Any:
        reply, timeout = super().statx(ctx, nodeid, fh, flags, mask)
        return reply._replace(btime_ns=0), timeout


class EverythingIsFree(MemoryFilesystem):
    """The filesystem says that more is free than there is."""

    def statfs(self, ctx: Context, nodeid: NodeId) -> StatFs:
        status = super().statfs(ctx, nodeid)
        return status._replace(bfree=status.blocks + 1000, bavail=status.blocks + 1000)


class AttributesAreAlwaysSet(MemoryFilesystem):
    """XATTR_CREATE and XATTR_REPLACE are not heeded."""

    def setxattr(
        self, ctx: Context, nodeid: NodeId, name: bytes, value: bytes, flags: int, more: int
    ) -> None:
        super().setxattr(ctx, nodeid, name, value, 0, more)


class EmptyValuesAreMissing(MemoryFilesystem):
    """An extended attribute without a value is not there."""

    def getxattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> bytes:
        value = super().getxattr(ctx, nodeid, name)
        if not value:
            raise FsError(errno.ENODATA)
        return value


class ListsForgetTheLast(MemoryFilesystem):
    """The list of extended attributes lacks the last of several."""

    def listxattr(self, ctx: Context, nodeid: NodeId) -> list[bytes]:
        names = super().listxattr(ctx, nodeid)
        return names[:-1] if len(names) > 1 else names


class AttributesStay(MemoryFilesystem):
    """Removing an extended attribute does nothing."""

    def removexattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> None:
        super().getxattr(ctx, nodeid, name)


class AclsAreNotInherited(MemoryFilesystem):
    """A default ACL is not handed on."""

    def _new_child(self, ctx: Context, parent: Node, mode: int, new: Creation, **more: Any) -> Node:
        kept = parent.xattrs.pop(acl.DEFAULT, None)
        try:
            return super()._new_child(ctx, parent, mode, new, **more)
        finally:
            if kept is not None:
                parent.xattrs[acl.DEFAULT] = kept


class ChmodForgetsTheAcl(MemoryFilesystem):
    """chmod leaves the ACL as it was."""

    def _chmod(self, node: Node, mode: int) -> None:
        kept = node.xattrs.get(acl.ACCESS)
        super()._chmod(node, mode)
        if kept is not None:
            node.xattrs[acl.ACCESS] = kept


class AclsLeaveTheMode(MemoryFilesystem):
    """An ACL that is set does not change the mode."""

    def _set_acl(self, node: Node, name: bytes, value: bytes, setxattr_flags: int) -> None:
        mode = node.mode
        super()._set_acl(node, name, value, setxattr_flags)
        node.mode = mode
