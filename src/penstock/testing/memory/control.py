# SPDX-License-Identifier: Apache-2.0
"""ioctl(2) and locks.

The chattr(1) family (FS_IOC_GETFLAGS and friends) reaches the filesystem with the kernel's own
structures: 4 bytes of flags although the numbers say ``long``, and ``struct fsxattr``.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from penstock.abi.fuse import LkFlag
from penstock.fs import Answer, Context, FileHandle, FsError, IoctlReply, Lock, NodeId
from penstock.testing.memory.locks import Key, Owner
from penstock.testing.memory.nodes import Node
from penstock.testing.memory.state import FS_APPEND_FL, FS_IMMUTABLE_FL, State, generation

__all__ = ["ControlOperations"]

FS_IOC_GETFLAGS: Final = 0x8008_6601
FS_IOC_SETFLAGS: Final = 0x4008_6602
FS_IOC_GETVERSION: Final = 0x8008_7601
FS_IOC_FSGETXATTR: Final = 0x801C_581F
FS_IOC_FSSETXATTR: Final = 0x401C_5820

_FLAGS: Final = struct.Struct("<I")
_FSXATTR: Final = struct.Struct("<5I8x")

_CHANGEABLE: Final = 0x40 | 0x80 | 0x08 | FS_IMMUTABLE_FL | FS_APPEND_FL
"""NODUMP, NOATIME, SYNC and the two that forbid changes."""

_XFLAGS: Final = {0x08: 0x20, 0x10: 0x08, 0x20: 0x10, 0x40: 0x80, 0x80: 0x40}
"""FS_*_FL → FS_XFLAG_*."""


class ControlOperations(State):
    """ioctl and locks."""

    def ioctl(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        cmd: int,
        arg: int,
        data: memoryview,
        out_size: int,
        flags: int,
    ) -> IoctlReply:
        with self._lock:
            node = self._table[nodeid]
            if cmd == FS_IOC_GETFLAGS:
                return IoctlReply(0, _FLAGS.pack(node.flags))
            if cmd == FS_IOC_GETVERSION:
                return IoctlReply(0, _FLAGS.pack(generation(node)))
            if cmd == FS_IOC_FSGETXATTR:
                xflags = sum(bit for flag, bit in _XFLAGS.items() if node.flags & flag)
                return IoctlReply(0, _FSXATTR.pack(xflags, 0, 0, node.projid, 0))
            if cmd == FS_IOC_SETFLAGS:
                (value,) = _unpack(_FLAGS, data)
                self._set_flags(ctx, node, value)
                return IoctlReply()
            if cmd == FS_IOC_FSSETXATTR:
                xflags, extsize, _, projid, cowextsize = _unpack(_FSXATTR, data)
                if extsize or cowextsize or xflags & ~sum(_XFLAGS.values()):
                    raise FsError(errno.EOPNOTSUPP, f"inode flags {xflags:#x}")
                self._set_flags(ctx, node, sum(f for f, bit in _XFLAGS.items() if xflags & bit))
                node.projid = projid
                return IoctlReply()
        raise FsError(errno.ENOTTY, f"ioctl {cmd:#x}")

    def getlk(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, owner: int, lock: Lock, flags: int
    ) -> Lock:
        flock = bool(flags & LkFlag.FLOCK)
        return self._locks.getlk(self._key(fh, flock=flock), Owner(owner, flock), lock)

    def setlk(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        owner: int,
        lock: Lock,
        flags: int,
        wait: bool,
    ) -> Answer[None]:
        flock = bool(flags & LkFlag.FLOCK)
        key = self._key(fh, flock=flock)
        return self._locks.setlk(key, Owner(owner, flock), fh, lock, wait=wait)

    def _key(self, fh: FileHandle, *, flock: bool) -> Key:
        with self._lock:
            return Key(self._handle(fh).node.ino, flock)

    def _set_flags(self, ctx: Context, node: Node, value: int) -> None:
        if value & ~_CHANGEABLE:
            raise FsError(errno.EOPNOTSUPP, f"inode flags {value:#x}")
        guarded = FS_IMMUTABLE_FL | FS_APPEND_FL
        if (value ^ node.flags) & guarded and ctx.uid != 0:
            raise FsError(errno.EPERM, "only root makes a file immutable or append-only")
        node.flags = value
        self._changed(node)


def _unpack(layout: struct.Struct, data: memoryview) -> tuple[int, ...]:
    if len(data) < layout.size:
        raise FsError(errno.EINVAL, f"an argument of {len(data)} bytes, not {layout.size}")
    return layout.unpack_from(data)
