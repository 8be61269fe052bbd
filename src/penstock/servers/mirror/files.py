# SPDX-License-Identifier: Apache-2.0
"""File data: open files, reading and writing, space, seeking, copying, ioctls.

An open really opens the source with the caller's flags, so that the source's own refusals are
what the caller gets (ETXTBSY, EROFS, EINVAL to O_DIRECT, …).

Facts
    - O_DIRECT is asked of the source and then taken off our descriptor: reads and writes that come
      here go through buffers that are aligned to nothing.
    - O_APPEND as well is a matter of each WRITE: the kernel writes back mapped pages through any
      descriptor, at their own offsets, and fcntl(2) changes the flag. RWF_APPEND and RWF_NOAPPEND
      (Linux 6.9) say it per call; where the latter is missing no descriptor has O_APPEND.
    - A file that is unlinked while the kernel carries its data has no way back to it but a
      descriptor, opened before its name goes.
    - Where the kernel carries a file's data it writes as nobody, and so takes set-ID bits from it
      whoever writes. Files that have such bits are therefore not given to it.
    - Whoever is told KEEP_CACHE keeps pages from the last time the file was open. It is said only
      if size, mtime and ctime are what they were then.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from itertools import islice
from typing import Final

from penstock.abi.fuse import FOpen, WriteFlag
from penstock.fs import (
    Backing,
    Context,
    Data,
    FileHandle,
    FsError,
    IoctlReply,
    NodeId,
    OpenReply,
    WholeFile,
)
from penstock.servers.mirror.attributes import AttributeOperations
from penstock.servers.mirror.descriptors import Held
from penstock.servers.mirror.options import MirrorOptions
from penstock.servers.mirror.rights import Powers
from penstock.servers.mirror.source import Source
from penstock.servers.mirror.state import OpenNode
from penstock.sys.atcalls import StatxTuple, statx
from penstock.sys.files import fallocate

__all__ = ["FileOperations"]

_KEPT_FLAGS: Final = (
    os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC | os.O_DIRECT | os.O_NOATIME | os.O_NONBLOCK
)
_RWF_APPEND: Final = 0x10
_RWF_NOAPPEND: Final = 0x20
_KILL: Final = int(WriteFlag.KILL_SUIDGID)
_CACHE: Final = int(WriteFlag.CACHE)
_KEEP_CACHE: Final = int(FOpen.KEEP_CACHE)
_NOFLUSH: Final = int(FOpen.NOFLUSH)
_SEEN: Final = 1 << 16
"""Files whose state at their last opening is kept, some 100 bytes each."""
_COPY_MOST: Final = 64 << 20
"""Bytes that one copy_file_range copies where nothing can be shared; the caller goes on."""

_FICLONERANGE: Final = 0x4020_940D
_CLONE: Final = struct.Struct("=qQQQ")
_NO_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})

_SET_ID: Final = stat.S_ISUID | stat.S_ISGID

_IOCTLS: Final = {
    0x8008_6601: 4,  # FS_IOC_GETFLAGS
    0x4008_6602: 4,  # FS_IOC_SETFLAGS
    0x8004_6601: 4,  # the same two, from 32-bit programs
    0x4004_6602: 4,
    0x8008_7601: 8,  # FS_IOC_GETVERSION
    0x801C_581F: 28,  # FS_IOC_FSGETXATTR
    0x401C_5820: 28,  # FS_IOC_FSSETXATTR
}
"""What is passed on, and its bytes. The kernel sends the flags' ioctls only after its own checks of
the caller; others could reach anything."""
_COMPAT: Final = {0x8004_6601: 0x8008_6601, 0x4004_6602: 0x4008_6602}


class FileOperations(AttributeOperations):
    """Operations on open files."""

    def __init__(self, source: Source, options: MirrorOptions, powers: Powers) -> None:
        super().__init__(source, options, powers)
        self._no_acls = not options.acl
        self._absent = self._split if options.cache == "immutable" else (0, 0)
        self._auto_cache = options.cache == "mirror"
        self._seen: dict[int, int] = {}
        self._no_clone = False
        self._per_call_append = _has_noappend(source.root)
        if not options.locks:
            self._open_flags |= _NOFLUSH

    # Opening

    def _flags(self, flags: int) -> int:
        flags &= _KEPT_FLAGS
        return flags if self._per_call_append else flags & ~os.O_APPEND

    def open(self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool) -> OpenReply:
        how = self._flags(flags) | os.O_CLOEXEC
        try:
            fd, found = self._source.opened(nodeid, how)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            fd = self._open_unlinked(nodeid, how)
            found = statx(fd)
        held = Held(fd)
        if not stat.S_ISREG(found[6]):
            raise FsError(errno.EISDIR if stat.S_ISDIR(found[6]) else errno.ESTALE)
        return self._reply(OpenNode(nodeid, flags, held), found)

    def _open_unlinked(self, nodeid: int, flags: int) -> int:
        """Another descriptor of what has no name any more, shared with one that is open."""
        wanted = flags & os.O_ACCMODE
        for node in self._open.get(nodeid, ()):
            held = node.held
            if held is None:
                continue
            has = fcntl.fcntl(held.fd, fcntl.F_GETFL)
            if not has & os.O_PATH and has & os.O_ACCMODE in {wanted, os.O_RDWR}:
                return os.dup(held.fd)
        raise FsError(errno.ESTALE, f"node {nodeid} has no name and is not open like this")

    def _reply(self, node: OpenNode, found: StatxTuple) -> OpenReply:
        held = node.held
        assert held is not None
        fd = held.fd
        if node.flags & os.O_DIRECT:
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        flags = self._open_flags
        if self._auto_cache and self._unchanged(node.nodeid, found):
            flags |= _KEEP_CACHE
        whole = None if found[6] & _SET_ID else WholeFile(Backing(fd), found[8])
        return OpenReply(self._opened(node), flags, 0, whole)

    def _unchanged(self, nodeid: int, found: StatxTuple) -> bool:
        now = hash((found[8], *found[15:19]))
        before = self._seen.pop(nodeid, None)
        self._seen[nodeid] = now
        if len(self._seen) > _SEEN:
            for oldest in islice(list(self._seen), _SEEN // 4):
                self._seen.pop(oldest, None)
        return before == now

    def carried(self, nodeid: NodeId, fh: FileHandle) -> None:
        # What has no name, or could not be opened again, keeps its descriptor.
        if not self._source.handles:
            return
        node = self._files.get(fh)
        if node is not None and self._nodes.has_name(nodeid):
            node.held = None

    def _hold(self, node: OpenNode) -> None:
        """Have a descriptor of an open file that is about to lose its name."""
        with node.lock:
            if node.held is not None:
                return
            for flags in (os.O_RDWR, node.flags & os.O_ACCMODE, os.O_RDONLY):
                with contextlib.suppress(OSError):
                    node.held = Held(self._source.open(node.nodeid, flags))
                    return

    def release(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        flags: int,
        release_flags: int,
        lock_owner: int,
    ) -> None:
        self._closed(fh)

    # Data

    def read(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        size: int,
        flags: int,
        lock_owner: int | None,
    ) -> Data:
        return Backing(self._fd(fh).fd)

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
        held = self._fd(fh)
        node = self._files[fh]
        self._act_as(ctx)
        if write_flags & _KILL:
            self._clear_set_id(held.fd)
        append = flags & os.O_APPEND and not write_flags & _CACHE
        has = self._per_call_append and node.flags & os.O_APPEND
        if append and not has:
            return os.pwritev(held.fd, [data], offset, _RWF_APPEND)
        if has and not append:
            return os.pwritev(held.fd, [data], offset, _RWF_NOAPPEND)
        return os.pwrite(held.fd, data, offset)

    def flush(self, ctx: Context, nodeid: NodeId, fh: FileHandle, lock_owner: int) -> None:
        self._file(fh)

    def fsync(self, ctx: Context, nodeid: NodeId, fh: FileHandle, datasync: bool) -> None:
        held = self._fd(fh)
        self._slow()
        if datasync:
            os.fdatasync(held.fd)
        else:
            os.fsync(held.fd)

    def fallocate(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, length: int, mode: int
    ) -> None:
        held = self._fd(fh)
        self._act_as(ctx)
        if ctx.uid:
            self._clear_set_id(held.fd)
        self._slow()
        fallocate(held.fd, mode, offset, length)

    def lseek(self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, whence: int) -> int:
        return os.lseek(self._fd(fh).fd, offset, whence)

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
        source, target = self._fd(fh_in), self._fd(fh_out)
        self._act_as(ctx)
        self._slow()
        if ctx.uid:
            self._clear_set_id(target.fd)
        if not self._no_clone:
            cloned = self._clone(source.fd, offset_in, target.fd, offset_out, length)
            if cloned:
                return cloned
        length = min(length, _COPY_MOST)
        return os.copy_file_range(source.fd, target.fd, length, offset_in, offset_out)

    def _clone(self, source: int, offset_in: int, target: int, offset_out: int, length: int) -> int:
        """Share whole extents; the bytes that are shared now, 0 where that is refused."""
        found = os.fstat(source)
        block = max(found.st_blksize, 512)
        length = min(length, found.st_size - offset_in)
        if length <= 0 or offset_in % block or offset_out % block:
            return 0
        if offset_in + length < found.st_size:
            length -= length % block
        if not length:
            return 0
        try:
            fcntl.ioctl(target, _FICLONERANGE, _CLONE.pack(source, offset_in, length, offset_out))
        except OSError as error:
            self._no_clone = error.errno in _NO_CLONE
            return 0
        return length

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
        size = _IOCTLS.get(cmd)
        if size is None:
            raise FsError(errno.ENOTTY, f"ioctl {cmd:#x} is not passed on")
        held = self._fd(fh)
        argument = bytearray(max(size, len(data), out_size))
        argument[: len(data)] = data
        self._act_as(ctx)
        result = fcntl.ioctl(held.fd, _COMPAT.get(cmd, cmd), argument, True)
        return IoctlReply(result, bytes(argument[:out_size]))


def _has_noappend(fd: int) -> bool:
    """Whether the kernel knows RWF_NOAPPEND: it looks at flags before the descriptor's rights."""
    try:
        os.pwritev(fd, [b""], 0, _RWF_NOAPPEND)
    except OSError as error:
        return error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}
    return True
