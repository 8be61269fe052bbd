# SPDX-License-Identifier: Apache-2.0
"""File data: open files, reading and writing, space, seeking, copying, polling.

Polling
    A file is readable for a handle when it has grown beyond what was read through the handle, so
    that a reader can wait for a growing file. Only reads that come here count: a file opened with
    O_NONBLOCK is therefore read past the page cache (FOPEN_DIRECT_IO).
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Sequence

from penstock.abi.fuse import FallocMode, FOpen, PollFlag, ReleaseFlag, WriteFlag
from penstock.fs import Context, FileHandle, FsError, NodeId, OpenReply
from penstock.testing.memory.attributes import AttributeOperations
from penstock.testing.memory.content import BLOCK
from penstock.testing.memory.locks import Owner
from penstock.testing.memory.nodes import Node
from penstock.testing.memory.state import FS_APPEND_FL, check_changeable

__all__ = ["FileOperations"]

_MAX_OFFSET = (1 << 63) - 1
_COPY_MAX = 16 << 20
"""Bytes that one copy_file_range copies, so that it takes bounded time; the caller goes on."""
_FS_NOATIME_FL = 0x80
_DAY_NS = 86_400_000_000_000


class FileOperations(AttributeOperations):
    """Operations on open files."""

    def open(self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool) -> OpenReply:
        with self._lock:
            node = self._table[nodeid]
            content = self._content(node)
            if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
                check_changeable(node, append=True)
                if node.flags & FS_APPEND_FL and flags & (os.O_APPEND | os.O_TRUNC) != os.O_APPEND:
                    raise FsError(errno.EPERM, f"inode {node.ino} can only be appended to")
            if flags & os.O_TRUNC:
                content.truncate(0)
                self._kill_privileges(node, bits=kill_suidgid)
                self._changed(node, data=True)
            cache = FOpen.DIRECT_IO if flags & os.O_NONBLOCK else FOpen.KEEP_CACHE
            return OpenReply(self._open(node, flags), cache)

    def read(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        size: int,
        flags: int,
        lock_owner: int | None,
    ) -> bytes:
        with self._lock:
            handle = self._handle(fh)
            data = self._content(handle.node).read(offset, size)
            handle.told = max(handle.told, offset + len(data))
            if not flags & os.O_NOATIME:
                self._accessed(handle.node)
            return data

    def write(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        data: memoryview,
        flags: int,
        write_flags: int,
        lock_owner: int | None,
    ) -> int:
        with self._lock:
            node = self._handle(fh).node
            content = self._content(node)
            size = content.size
            if flags & os.O_APPEND and not write_flags & WriteFlag.CACHE:
                offset = size
            if offset + len(data) > _MAX_OFFSET:
                raise FsError(errno.EFBIG, f"{len(data)} bytes at {offset}")
            written = content.write(offset, data)
            self._kill_privileges(node, bits=bool(write_flags & WriteFlag.KILL_SUIDGID))
            self._changed(node, data=True)
            grown = self._take_pollers(node) if content.size > size else []
        self._wake(grown)
        return written

    def flush(self, ctx: Context, nodeid: NodeId, fh: FileHandle, lock_owner: int) -> None:
        ino = self._ino(fh)
        self._locks.drop(ino, owner=Owner(lock_owner, flock=False))

    def release(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        flags: int,
        release_flags: int,
        lock_owner: int,
    ) -> None:
        ino = self._ino(fh)
        flock = Owner(lock_owner, flock=True) if release_flags & ReleaseFlag.FLOCK_UNLOCK else None
        self._locks.drop(ino, owner=flock, fh=fh)
        with self._lock:
            self._close(fh)

    def fsync(self, ctx: Context, nodeid: NodeId, fh: FileHandle, datasync: bool) -> None:
        with self._lock:
            self._handle(fh)
            self._syncs["fdatasync" if datasync else "fsync"] += 1

    def fallocate(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, length: int, mode: int
    ) -> None:
        with self._lock:
            node = self._handle(fh).node
            content = self._content(node)
            check_changeable(node)
            if not length or offset + length > _MAX_OFFSET:
                raise FsError(errno.EFBIG if length else errno.EINVAL)
            if mode == FallocMode.PUNCH_HOLE | FallocMode.KEEP_SIZE:
                content.punch(offset, length)
            elif mode | FallocMode.KEEP_SIZE == FallocMode.ZERO_RANGE | FallocMode.KEEP_SIZE:
                content.zero(offset, length)
            elif mode | FallocMode.KEEP_SIZE == FallocMode.KEEP_SIZE:
                content.allocate(offset, length)
            else:
                raise FsError(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}")
            grown: list[int] = []
            if not mode & FallocMode.KEEP_SIZE and offset + length > content.size:
                content.size = offset + length
                grown = self._take_pollers(node)
            self._kill_privileges(node, bits=False)
            self._changed(node, data=True)
        self._wake(grown)

    def lseek(self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, whence: int) -> int:
        with self._lock:
            return self._content(self._handle(fh).node).seek(offset, whence)

    def copy_file_range(
        self,
        ctx: Context,
        nodeid_in: NodeId,
        fh_in: FileHandle,
        offset_in: int,
        nodeid_out: NodeId,
        fh_out: FileHandle,
        offset_out: int,
        length: int,
        flags: int,
    ) -> int:
        if flags:
            raise FsError(errno.EINVAL, f"copy_file_range flags {flags:#x}")
        with self._lock:
            source, target = self._handle(fh_in).node, self._handle(fh_out).node
            length = min(length, _COPY_MAX)
            if source is target and abs(offset_in - offset_out) < length:
                raise FsError(errno.EINVAL, "the ranges overlap")
            if offset_out + length > _MAX_OFFSET:
                raise FsError(errno.EFBIG, f"{length} bytes at {offset_out}")
            check_changeable(target)
            content = self._content(target)
            size = content.size
            copied = content.write(offset_out, self._content(source).read(offset_in, length))
            self._kill_privileges(target, bits=bool(ctx.uid))
            self._changed(target, data=True)
            grown = self._take_pollers(target) if content.size > size else []
        self._wake(grown)
        return copied

    def bmap(self, ctx: Context, nodeid: NodeId, block: int, blocksize: int) -> int:
        """There is no device: 0 for a hole, else a number that no other block of a file has."""
        if not 0 < blocksize <= BLOCK or BLOCK % blocksize:
            raise FsError(errno.EINVAL, f"blocks of {blocksize} bytes")
        with self._lock:
            node = self._table[nodeid]
            index = block * blocksize // BLOCK
            if not self._content(node).is_allocated(index):
                return 0
            return (node.ino << 40) + block

    def poll(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, kh: int, flags: int, events: int
    ) -> int:
        with self._lock:
            handle = self._handle(fh)
            ready = select.POLLOUT | select.POLLWRNORM
            if handle.node.size > handle.told:
                ready |= select.POLLIN | select.POLLRDNORM
            if flags & PollFlag.SCHEDULE_NOTIFY:
                handle.node.pollers[kh] = handle
            return ready & events

    # The DAX window of virtiofs

    def setupmapping(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        length: int,
        flags: int,
        moffset: int,
    ) -> None:
        """Recorded in the inode, where :meth:`mappings` shows it; there is nothing to map."""
        if not self._dax_window:
            raise FsError(errno.ENOSYS, "this filesystem has no DAX window")
        if not length or moffset + length > self._dax_window:
            raise FsError(errno.EINVAL, f"{length} bytes at {moffset} are not in the window")
        with self._lock:
            node = self._table[nodeid]
            self._content(node)
            node.windows[moffset] = (offset, length, flags)

    def removemapping(
        self, ctx: Context, nodeid: NodeId, ranges: Sequence[tuple[int, int]]
    ) -> None:
        if not self._dax_window:
            raise FsError(errno.ENOSYS, "this filesystem has no DAX window")
        with self._lock:
            windows = self._table[nodeid].windows
            for moffset, length in ranges:
                if windows.get(moffset, (0, -1, 0))[1] != length:
                    raise FsError(errno.EINVAL, f"{length} bytes at {moffset} are not mapped")
                del windows[moffset]

    def mappings(self, nodeid: NodeId) -> dict[int, tuple[int, int, int]]:
        """What is mapped: offset in the window → (offset in the file, length, flags)."""
        with self._lock:
            return dict(self._table[nodeid].windows)

    def _ino(self, fh: FileHandle) -> int:
        with self._lock:
            return self._handle(fh).node.ino

    def _accessed(self, node: Node) -> None:
        """Stamp a reading, as seldom as relatime does: not twice between two changes."""
        now = self._clock()
        if node.flags & _FS_NOATIME_FL:
            return
        if node.atime_ns <= max(node.mtime_ns, node.ctime_ns) or now - node.atime_ns >= _DAY_NS:
            node.atime_ns = now
