# SPDX-License-Identifier: Apache-2.0
"""Attributes: asking, changing, statistics of the whole.

Facts about set-user-ID under HANDLE_KILLPRIV_V2
    - The filesystem below clears set-ID bits and ``security.capability`` when a file is written,
      truncated or given away. A process with CAP_FSETID keeps the bits, and the server has it; so
      where the kernel says that the caller has not (``kill_suidgid``), the server clears them.
    - A call that changes nothing is the kernel's way of having ``security.capability`` removed
      before a write that it carries itself, and is answered with the attributes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import Final

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
from penstock.servers.mirror.descriptors import Held
from penstock.servers.mirror.state import State
from penstock.sys.atcalls import (
    NOW,
    OMIT,
    STATX_BTIME,
    StatxTuple,
    chmod_fd,
    chown_fd,
    statx,
    utimens_fd,
)

__all__ = ["AttributeOperations"]

_NSEC: Final = 1_000_000_000
_SHOWN: Final = 0x10_0874
"""STATX_ATTR_*: COMPRESSED, IMMUTABLE, APPEND, NODUMP, ENCRYPTED, VERITY. Not AUTOMOUNT, MOUNT_ROOT
and DAX, which are the source's mount's."""


class AttributeOperations(State):
    """Operations on attributes."""

    def _stat(self, nodeid: int, fh: int | None = None) -> StatxTuple:
        """What statx says of a node, open or not."""
        node = self._files.get(fh) if fh is not None else None
        held = node.held if node is not None else None
        if held is None and nodeid in self._open:
            held = self._held(nodeid)
        return statx(held.fd) if held is not None else self._source.stat(nodeid)

    def getattr(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None
    ) -> tuple[Attributes, float]:
        return self._attributes(self._stat(nodeid, fh), nodeid), self._timeout

    def statx(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None, flags: int, mask: int
    ) -> tuple[StatxReply, float]:
        found = self._stat(nodeid, fh)
        born = found[13] * _NSEC + found[14] if found[0] & STATX_BTIME else None
        reply = StatxReply(
            self._attributes(found, nodeid), born, found[2] & _SHOWN, found[10] & _SHOWN
        )
        return reply, self._timeout

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> tuple[Attributes, float]:
        mode, uid, gid, size, atime, mtime, _, fh, _, kill = changes
        held = self._held(nodeid) or self._source.node(nodeid)
        if size is not None:
            self._act_as(ctx)
            self._truncate(nodeid, fh, size, kill=kill)
        elif kill:
            self._clear_set_id(held.fd)
        if uid is not None or gid is not None:
            self._chown(held, uid, gid)
        if mode is not None:
            self._chmod(held, mode & 0o7777)
        if atime is not None or mtime is not None:
            utimens_fd(held.fd, _timespec(atime), _timespec(mtime))
        return self._attributes(statx(held.fd), nodeid), self._timeout

    def _truncate(self, nodeid: int, fh: int | None, size: int, *, kill: bool) -> None:
        node = self._files.get(fh) if fh is not None else None
        opened = None
        if node is not None and node.flags & os.O_ACCMODE != os.O_RDONLY:
            opened = self._fd(fh or 0)
            if not _writable(opened.fd):
                opened = None
        held = opened or self._for_writing(nodeid)
        if kill:
            self._clear_set_id(held.fd)
        os.ftruncate(held.fd, size)

    def _for_writing(self, nodeid: int) -> Held:
        """A descriptor to change data through: one that is open, or a new one."""
        for node in self._open.get(nodeid, ()):
            held = node.held
            if held is not None and _writable(held.fd):
                return held
        found = self._source.stat(nodeid)
        if not stat.S_ISREG(found[6]):
            raise FsError(errno.EISDIR if stat.S_ISDIR(found[6]) else errno.EINVAL)
        return Held(self._source.open(nodeid, os.O_WRONLY | os.O_NONBLOCK))

    def _clear_set_id(self, fd: int) -> None:
        """What the kernel below leaves to whoever has CAP_FSETID."""
        if not self._powers.keeps_set_id:
            return
        mode = os.fstat(fd).st_mode
        bits = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
        if mode & bits and stat.S_ISREG(mode):
            chmod_fd(fd, mode & 0o7777 & ~bits)

    def _chown(self, held: Held, uid: int | None, gid: int | None) -> None:
        for asked, shown in ((uid, self._uid), (gid, self._gid)):
            if asked is not None and shown is not None and asked != shown:
                raise FsError(errno.EPERM, f"all files are shown as owned by {shown}")
        uid = None if self._uid is not None else uid
        gid = None if self._gid is not None else gid
        if uid is not None or gid is not None:
            chown_fd(held.fd, -1 if uid is None else uid, -1 if gid is None else gid)

    def _chmod(self, held: Held, mode: int) -> None:
        try:
            chmod_fd(held.fd, mode)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise FsError(
                errno.EOPNOTSUPP, "the mode of what is not open cannot be changed before Linux 6.6"
            ) from None

    def statfs(self, ctx: Context, nodeid: NodeId) -> StatFs:
        held = self._source.directories.get(nodeid)
        found = os.fstatvfs(self._source.root if held is None else held.fd)
        return StatFs.make(
            blocks=found.f_blocks,
            bfree=found.f_bfree,
            bavail=found.f_bavail,
            files=found.f_files,
            ffree=found.f_ffree,
            bsize=found.f_bsize,
            namelen=found.f_namemax,
            frsize=found.f_frsize,
        )


def _timespec(time: int | str | None) -> tuple[int, int]:
    if time is None:
        return 0, OMIT
    return (0, NOW) if isinstance(time, str) else divmod(time, _NSEC)


def _writable(fd: int) -> bool:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    return not flags & os.O_PATH and flags & os.O_ACCMODE != os.O_RDONLY
