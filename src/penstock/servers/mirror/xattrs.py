# SPDX-License-Identifier: Apache-2.0
"""Extended attributes, POSIX ACLs among them.

The kernel decides who may see and set which: it asks CAP_SYS_ADMIN of callers for ``trusted.*``
and most of ``security.*``, ownership for ACLs. What the server's own rights do not reach is the
source's refusal (:mod:`penstock.servers.mirror.rights`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

from penstock.abi.fuse import INVALID_UIDGID, SetxattrFlag
from penstock.fs import ROOT, Context, FsError, NodeId
from penstock.servers.mirror.descriptors import Held
from penstock.servers.mirror.state import State
from penstock.sys.atcalls import chmod_fd, statx
from penstock.sys.xattrat import (
    getxattrat,
    have_xattrat,
    listxattrat,
    removexattrat,
    setxattrat,
)

__all__ = ["XattrOperations"]

_KILL_SGID: Final = int(SetxattrFlag.ACL_KILL_SGID)
_TRUSTED: Final = b"trusted."
_NEED_ADMIN: Final = (b"trusted.", b"security.")
_CAPABILITY: Final = b"security.capability"
_ACCESS: Final = b"system.posix_acl_access"
_MAY_LIST_TRUSTED: Final = frozenset({0, INVALID_UIDGID})


class XattrOperations(State):
    """Operations on extended attributes."""

    _have_at: bool | None = None

    def getxattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> bytes:
        held, place = self._where(nodeid)
        if place is None:
            return os.getxattr(held.fd, name)
        return getxattrat(held.fd, place, name)

    def listxattr(self, ctx: Context, nodeid: NodeId) -> Sequence[bytes]:
        held, place = self._where(nodeid)
        if place is None:
            names = [os.fsencode(name) for name in os.listxattr(held.fd)]
        else:
            names = listxattrat(held.fd, place)
        if ctx.uid in _MAY_LIST_TRUSTED:
            return names
        return [name for name in names if not name.startswith(_TRUSTED)]

    def setxattr(
        self,
        ctx: Context,
        nodeid: NodeId,
        name: bytes,
        value: bytes,
        flags: int,
        setxattr_flags: int,
    ) -> None:
        held, place = self._where(nodeid)
        try:
            if place is None:
                os.setxattr(held.fd, name, value, flags)
            else:
                setxattrat(held.fd, place, name, value, flags)
        except PermissionError as error:
            raise self._refusal(ctx, name, error) from None
        if setxattr_flags & _KILL_SGID and name == _ACCESS:
            target = self._held(nodeid) or self._source.node(nodeid)
            mode = statx(target.fd)[6]
            if mode & stat.S_ISGID:
                chmod_fd(target.fd, mode & 0o7777 & ~stat.S_ISGID)

    def removexattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> None:
        held, place = self._where(nodeid)
        try:
            if place is None:
                os.removexattr(held.fd, name)
            else:
                removexattrat(held.fd, place, name)
        except PermissionError as error:
            raise self._refusal(ctx, name, error) from None

    def _refusal(self, ctx: Context, name: bytes, error: OSError) -> OSError:
        """What to answer where the source answers EPERM. Root is let do this by the kernel, so
        where it is the server that may not, such attributes are not carried here."""
        ours = name.startswith(_NEED_ADMIN) and name != _CAPABILITY
        if ours and ctx.uid in _MAY_LIST_TRUSTED and not self._powers.administers:
            return FsError(errno.EOPNOTSUPP, f"{name!r} is not carried without -o trusted")
        return error

    def _where(self, nodeid: int) -> tuple[Held, bytes | None]:
        """A directory and a name, or an open file and None: how a node's attributes are reached."""
        if self._have_at is None:
            type(self)._have_at = have_xattrat()
        if self._have_at:
            if nodeid == ROOT:
                return self._source.directory(ROOT), b"."
            held = self._source.directories.get(nodeid) or self._source.removed.get(nodeid)
            if held is not None:
                return held, b"."
            place = self._source.by_name(nodeid)
            if place is not None:
                return place[0], place[1]
        for node in self._open.get(nodeid, ()):
            held = node.held
            if held is not None:
                return held, None
        kind = self._source.stat(nodeid)[6]
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise FsError(errno.EOPNOTSUPP, f"the attributes of node {nodeid} are out of reach")
        return Held(self._source.open(nodeid, os.O_RDONLY | os.O_NONBLOCK)), None
