# SPDX-License-Identifier: Apache-2.0
"""One row per opcode: how a decoded request calls the filesystem, how its answer is encoded.

A row is (method, call, encode). ``call`` takes the operations, the context, the node id and the
typed request; ``encode`` takes the answer and the request and gives the body: bytes, or a
:class:`FileBody`. Neither knows of errors, pending answers or statistics: that is the session's
(:mod:`penstock.session.session`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

from penstock.abi.fuse import (
    AttrOut,
    BmapOut,
    CopyFileRangeOut,
    Fattr,
    FileLock,
    FsyncFlag,
    GetattrFlag,
    GetxattrOut,
    IoctlOut,
    LkOut,
    LseekOut,
    Opcode,
    OpenFlag,
    OpenOut,
    PollOut,
    ReadFlag,
    Statx,
    StatxMask,
    StatxOut,
    SxTime,
    WriteFlag,
    WriteOut,
)
from penstock.abi.layout import pack, struct_of
from penstock.fs import (
    Attributes,
    Context,
    Creation,
    DirEntry,
    Entry,
    FileHandle,
    FsError,
    IoctlReply,
    Lock,
    NodeId,
    OpenReply,
    Operations,
    SetAttr,
    StatFs,
    StatxReply,
)
from penstock.fs.attributes import split_timeout
from penstock.wire import pack_dirent, pack_direntplus

__all__ = ["ENTRY_OPCODES", "ROWS", "Row"]

_NSEC: Final = 1_000_000_000
_ATTR_OUT: Final = struct_of(AttrOut).pack
_ENTRY: Final = struct_of(Entry.__bases__[0]).pack
_ENTRY_HEAD: Final = 6
_STATX_BASIC: Final = 0x7FF

# Flags as plain integers: an IntFlag's own operators are some ten times slower.
_STATX_BTIME: Final = int(StatxMask.BTIME)
_FDATASYNC: Final = int(FsyncFlag.FDATASYNC)
_OPEN_KILL_SUIDGID: Final = int(OpenFlag.KILL_SUIDGID)
_WRITE_LOCKOWNER: Final = int(WriteFlag.LOCKOWNER)
_READ_LOCKOWNER: Final = int(ReadFlag.LOCKOWNER)
_GETATTR_FH: Final = int(GetattrFlag.FH)
_KILL_SUIDGID: Final = int(Fattr.KILL_SUIDGID)
_FATTR_LOCKOWNER: Final = int(Fattr.LOCKOWNER)
_FATTR_FH: Final = int(Fattr.FH)
_MTIME: Final = int(Fattr.MTIME)
_ATIME: Final = int(Fattr.ATIME)
_MTIME_NOW: Final = int(Fattr.MTIME_NOW)
_ATIME_NOW: Final = int(Fattr.ATIME_NOW)
_SIZE: Final = int(Fattr.SIZE)
_GID: Final = int(Fattr.GID)
_UID: Final = int(Fattr.UID)
_MODE: Final = int(Fattr.MODE)
_CTIME: Final = int(Fattr.CTIME)


class Row(NamedTuple):
    """How one opcode is carried out."""

    method: str
    """The method of :class:`Operations`; not overridden = ENOSYS."""
    call: Callable[[Operations, Context, NodeId, Any], Any]
    encode: Callable[[Any, Any], Any]


def _fh(flag_set: int, fh: int) -> FileHandle | None:
    return FileHandle(fh) if flag_set else None


def _creation(request: Any, umask: int = 0) -> Creation:
    ext = request.ext
    return Creation(umask, ext.groups, ext.security)


# Encoders of answers


def _nothing(_answer: object, _request: object) -> bytes:
    return b""


def _encode_entry(entry: Entry, _request: object = None) -> bytes:
    return _ENTRY(*entry[:_ENTRY_HEAD], *entry[_ENTRY_HEAD])


def _encode_attr(answer: tuple[Attributes, float], _request: object) -> bytes:
    attr, timeout = answer
    return _ATTR_OUT(*split_timeout(timeout), 0, *attr)


def _encode_open(answer: OpenReply, _request: object = None) -> bytes:
    return pack(OpenOut(answer.fh, answer.flags, answer.backing_id))


def _encode_create(answer: tuple[Entry, OpenReply], _request: object) -> bytes:
    return _encode_entry(answer[0]) + _encode_open(answer[1])


def _encode_bytes(answer: bytes, _request: object) -> bytes:
    return answer


def _encode_write(answer: int, _request: object) -> bytes:
    return pack(WriteOut(answer, 0))


def _encode_statfs(answer: StatFs, _request: object) -> bytes:
    return _STATFS(*answer)


_STATFS: Final = struct_of(StatFs.__bases__[0]).pack


def _sx_time(ns: int) -> SxTime:
    seconds, nanoseconds = divmod(ns, _NSEC)
    return SxTime(seconds, nanoseconds, 0)


def _makedev_parts(rdev: int) -> tuple[int, int]:
    """Split the kernel's 32-bit device encoding (new_encode_dev) into major and minor."""
    return (rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00)


def _encode_statx(answer: tuple[StatxReply, float], _request: object) -> bytes:
    reply, timeout = answer
    attr = reply.attr
    born = reply.btime_ns is not None
    major, minor = _makedev_parts(attr.rdev)
    stat = Statx(
        mask=_STATX_BASIC | (_STATX_BTIME if born else 0),
        blksize=attr.blksize,
        attributes=reply.attributes,
        nlink=attr.nlink,
        uid=attr.uid,
        gid=attr.gid,
        mode=attr.mode,
        spare0=0,
        ino=attr.ino,
        size=attr.size,
        blocks=attr.blocks,
        attributes_mask=reply.attributes_mask,
        atime=SxTime(attr.atime, attr.atimensec, 0),
        btime=_sx_time(reply.btime_ns or 0),
        ctime=SxTime(attr.ctime, attr.ctimensec, 0),
        mtime=SxTime(attr.mtime, attr.mtimensec, 0),
        rdev_major=major,
        rdev_minor=minor,
        dev_major=0,
        dev_minor=0,
        spare2=bytes(112),
    )
    return pack(StatxOut(*split_timeout(timeout), 0, bytes(16), stat))


def _encode_sized(value: bytes, request: Any) -> bytes:
    """getxattr and listxattr: the size question, ERANGE, or the value."""
    size = request.arg.size
    if size == 0:
        return pack(GetxattrOut(len(value), 0))
    if len(value) > size:
        raise FsError(errno.ERANGE)
    return value


def _encode_names(names: Iterable[bytes], request: Any) -> bytes:
    return _encode_sized(b"".join(chain.from_iterable((name, b"\0") for name in names)), request)


def _encode_lock(lock: Lock, _request: object) -> bytes:
    return pack(LkOut(FileLock(*lock)))


def _encode_ioctl(answer: IoctlReply, request: Any) -> bytes:
    if len(answer.data) > request.arg.out_size:
        raise FsError(errno.EOVERFLOW, "the ioctl's answer is larger than the caller's buffer")
    return pack(IoctlOut(answer.result, 0, 0, 0)) + answer.data


def _encode_readdir(entries: Iterable[DirEntry], request: Any) -> bytes:
    """As many records as fit. An error after some of them is for the next request, which begins
    behind them: so nothing is lost of a directory that is bad further on."""
    size = request.arg.size
    parts: list[bytes] = []
    try:
        for name, ino, offset, kind in entries:
            record = pack_dirent(name, ino, offset, kind)
            size -= len(record)
            if size < 0:
                break
            parts.append(record)
    except Exception:
        if not parts:
            raise
    return b"".join(parts)


def encode_readdirplus(
    entries: Iterable[tuple[DirEntry, Entry | None]], size: int
) -> tuple[bytes, tuple[int, ...]]:
    """As many records as fit into ``size`` bytes, and the nodes that they count.

    An error after some of them is for the next request.
    """
    parts: list[bytes] = []
    nodes: list[int] = []
    try:
        for (name, ino, offset, kind), entry in entries:
            record = pack_direntplus(name, ino, offset, kind, entry)
            size -= len(record)
            if size < 0:
                break
            parts.append(record)
            if entry is not None and entry[0]:
                nodes.append(entry[0])
    except Exception:
        if not parts:
            raise
    return b"".join(parts), tuple(nodes)


# Callers of operations that need more than their arguments in order


def _setattr(ops: Operations, ctx: Context, node: NodeId, r: Any) -> Any:
    a = r.arg
    valid = a.valid

    def time_of(seconds: int, nanoseconds: int, flag: int, now: int) -> int | str | None:
        if valid & now:
            return "now"
        return seconds * _NSEC + nanoseconds if valid & flag else None

    ctime = time_of(a.ctime, a.ctimensec, _CTIME, 0)
    return ops.setattr(
        ctx,
        node,
        SetAttr(
            mode=a.mode if valid & _MODE else None,
            uid=a.uid if valid & _UID else None,
            gid=a.gid if valid & _GID else None,
            size=a.size if valid & _SIZE else None,
            atime_ns=time_of(a.atime, a.atimensec, _ATIME, _ATIME_NOW),
            mtime_ns=time_of(a.mtime, a.mtimensec, _MTIME, _MTIME_NOW),
            ctime_ns=ctime if isinstance(ctime, int) else None,
            fh=_fh(valid & _FATTR_FH, a.fh),
            lock_owner=a.lock_owner if valid & _FATTR_LOCKOWNER else None,
            kill_suidgid=bool(valid & _KILL_SUIDGID),
        ),
    )


def _read(ops: Operations, ctx: Context, node: NodeId, r: Any) -> Any:
    a = r.arg
    owner = a.lock_owner if a.read_flags & _READ_LOCKOWNER else None
    return ops.read(ctx, node, a.fh, a.offset, a.size, a.flags, owner)


def _write(ops: Operations, ctx: Context, node: NodeId, r: Any) -> Any:
    a = r.arg
    owner = a.lock_owner if a.write_flags & _WRITE_LOCKOWNER else None
    return ops.write(ctx, node, a.fh, a.offset, r.data, a.flags, a.write_flags, owner)


def _setlk(ops: Operations, ctx: Context, node: NodeId, r: Any, wait: bool) -> Any:
    a = r.arg
    return ops.setlk(ctx, node, a.fh, a.owner, Lock(*a.lk), a.lk_flags, wait)


def _copy(ops: Operations, ctx: Context, node: NodeId, r: Any) -> Any:
    a = r.arg
    return ops.copy_file_range(
        ctx, node, a.fh_in, a.off_in, NodeId(a.nodeid_out), a.fh_out, a.off_out, a.len, a.flags
    )


def _ioctl(ops: Operations, ctx: Context, node: NodeId, r: Any) -> Any:
    a = r.arg
    return ops.ioctl(ctx, node, a.fh, a.cmd, a.arg, r.data, a.out_size, a.flags)


def _release(ops: Operations, ctx: Context, node: NodeId, r: Any) -> Any:
    a = r.arg
    return ops.release(ctx, node, a.fh, a.flags, a.release_flags, a.lock_owner)


_O = Opcode

ROWS: Final[Mapping[int, Row]] = {
    _O.LOOKUP: Row("lookup", lambda o, c, n, r: o.lookup(c, n, r.name), _encode_entry),
    _O.GETATTR: Row(
        "getattr",
        lambda o, c, n, r: o.getattr(c, n, _fh(r.arg.getattr_flags & _GETATTR_FH, r.arg.fh)),
        _encode_attr,
    ),
    _O.SETATTR: Row("setattr", _setattr, _encode_attr),
    _O.READLINK: Row("readlink", lambda o, c, n, r: o.readlink(c, n), _encode_bytes),
    _O.SYMLINK: Row(
        "symlink", lambda o, c, n, r: o.symlink(c, n, r.name, r.target, _creation(r)), _encode_entry
    ),
    _O.MKNOD: Row(
        "mknod",
        lambda o, c, n, r: o.mknod(c, n, r.name, r.arg.mode, r.arg.rdev, _creation(r, r.arg.umask)),
        _encode_entry,
    ),
    _O.MKDIR: Row(
        "mkdir",
        lambda o, c, n, r: o.mkdir(c, n, r.name, r.arg.mode, _creation(r, r.arg.umask)),
        _encode_entry,
    ),
    _O.UNLINK: Row("unlink", lambda o, c, n, r: o.unlink(c, n, r.name), _nothing),
    _O.RMDIR: Row("rmdir", lambda o, c, n, r: o.rmdir(c, n, r.name), _nothing),
    _O.RENAME: Row(
        "rename",
        lambda o, c, n, r: o.rename(c, n, r.name, NodeId(r.arg.newdir), r.newname, 0),
        _nothing,
    ),
    _O.RENAME2: Row(
        "rename",
        lambda o, c, n, r: o.rename(c, n, r.name, NodeId(r.arg.newdir), r.newname, r.arg.flags),
        _nothing,
    ),
    _O.LINK: Row(
        "link", lambda o, c, n, r: o.link(c, NodeId(r.arg.oldnodeid), n, r.newname), _encode_entry
    ),
    _O.OPEN: Row(
        "open",
        lambda o, c, n, r: o.open(c, n, r.arg.flags, bool(r.arg.open_flags & _OPEN_KILL_SUIDGID)),
        _encode_open,
    ),
    _O.READ: Row("read", _read, _encode_bytes),
    _O.WRITE: Row("write", _write, _encode_write),
    _O.STATFS: Row("statfs", lambda o, c, n, r: o.statfs(c, n), _encode_statfs),
    _O.RELEASE: Row("release", _release, _nothing),
    _O.FSYNC: Row(
        "fsync",
        lambda o, c, n, r: o.fsync(c, n, r.arg.fh, bool(r.arg.fsync_flags & _FDATASYNC)),
        _nothing,
    ),
    _O.SETXATTR: Row(
        "setxattr",
        lambda o, c, n, r: o.setxattr(
            c, n, r.name, bytes(r.value), r.arg.flags, r.arg.setxattr_flags
        ),
        _nothing,
    ),
    _O.GETXATTR: Row("getxattr", lambda o, c, n, r: o.getxattr(c, n, r.name), _encode_sized),
    _O.LISTXATTR: Row("listxattr", lambda o, c, n, r: o.listxattr(c, n), _encode_names),
    _O.REMOVEXATTR: Row("removexattr", lambda o, c, n, r: o.removexattr(c, n, r.name), _nothing),
    _O.FLUSH: Row("flush", lambda o, c, n, r: o.flush(c, n, r.arg.fh, r.arg.lock_owner), _nothing),
    _O.OPENDIR: Row("opendir", lambda o, c, n, r: o.opendir(c, n, r.arg.flags), _encode_open),
    _O.READDIR: Row(
        "readdir", lambda o, c, n, r: o.readdir(c, n, r.arg.fh, r.arg.offset), _encode_readdir
    ),
    _O.READDIRPLUS: Row(
        "readdirplus",
        lambda o, c, n, r: o.readdirplus(c, n, r.arg.fh, r.arg.offset),
        lambda answer, r: encode_readdirplus(answer, r.arg.size),
    ),
    _O.RELEASEDIR: Row(
        "releasedir", lambda o, c, n, r: o.releasedir(c, n, r.arg.fh, r.arg.flags), _nothing
    ),
    _O.FSYNCDIR: Row(
        "fsyncdir",
        lambda o, c, n, r: o.fsyncdir(c, n, r.arg.fh, bool(r.arg.fsync_flags & _FDATASYNC)),
        _nothing,
    ),
    _O.GETLK: Row(
        "getlk",
        lambda o, c, n, r: o.getlk(c, n, r.arg.fh, r.arg.owner, Lock(*r.arg.lk), r.arg.lk_flags),
        _encode_lock,
    ),
    _O.SETLK: Row("setlk", lambda o, c, n, r: _setlk(o, c, n, r, wait=False), _nothing),
    _O.SETLKW: Row("setlk", lambda o, c, n, r: _setlk(o, c, n, r, wait=True), _nothing),
    _O.ACCESS: Row("access", lambda o, c, n, r: o.access(c, n, r.arg.mask), _nothing),
    _O.CREATE: Row(
        "create",
        lambda o, c, n, r: o.create(
            c, n, r.name, r.arg.mode, r.arg.flags, _creation(r, r.arg.umask)
        ),
        _encode_create,
    ),
    _O.TMPFILE: Row(
        "tmpfile",
        lambda o, c, n, r: o.tmpfile(c, n, r.arg.mode, r.arg.flags, _creation(r, r.arg.umask)),
        _encode_create,
    ),
    _O.BMAP: Row(
        "bmap",
        lambda o, c, n, r: o.bmap(c, n, r.arg.block, r.arg.blocksize),
        lambda answer, r: pack(BmapOut(answer)),
    ),
    _O.IOCTL: Row("ioctl", _ioctl, _encode_ioctl),
    _O.POLL: Row(
        "poll",
        lambda o, c, n, r: o.poll(c, n, r.arg.fh, r.arg.kh, r.arg.flags, r.arg.events),
        lambda answer, r: pack(PollOut(answer, 0)),
    ),
    _O.FALLOCATE: Row(
        "fallocate",
        lambda o, c, n, r: o.fallocate(c, n, r.arg.fh, r.arg.offset, r.arg.length, r.arg.mode),
        _nothing,
    ),
    _O.LSEEK: Row(
        "lseek",
        lambda o, c, n, r: o.lseek(c, n, r.arg.fh, r.arg.offset, r.arg.whence),
        lambda answer, r: pack(LseekOut(answer)),
    ),
    _O.COPY_FILE_RANGE: Row("copy_file_range", _copy, _encode_write),
    _O.COPY_FILE_RANGE_64: Row(
        "copy_file_range", _copy, lambda answer, r: pack(CopyFileRangeOut(answer))
    ),
    _O.SETUPMAPPING: Row(
        "setupmapping",
        lambda o, c, n, r: o.setupmapping(
            c, n, r.arg.fh, r.arg.foffset, r.arg.len, r.arg.flags, r.arg.moffset
        ),
        _nothing,
    ),
    _O.REMOVEMAPPING: Row(
        "removemapping",
        lambda o, c, n, r: o.removemapping(c, n, [(i.moffset, i.len) for i in r.items]),
        _nothing,
    ),
    _O.SYNCFS: Row("syncfs", lambda o, c, n, r: o.syncfs(c, n), _nothing),
    _O.STATX: Row(
        "statx",
        lambda o, c, n, r: o.statx(
            c,
            n,
            _fh(r.arg.getattr_flags & _GETATTR_FH, r.arg.fh),
            r.arg.sx_flags,
            r.arg.sx_mask,
        ),
        _encode_statx,
    ),
}
"""Opcode → row, for every opcode that is a method of :class:`Operations`."""

ENTRY_OPCODES: Final = frozenset(
    int(opcode)
    for opcode in (
        _O.LOOKUP,
        _O.SYMLINK,
        _O.MKNOD,
        _O.MKDIR,
        _O.LINK,
        _O.CREATE,
        _O.TMPFILE,
        _O.READDIRPLUS,
    )
)
"""Opcodes whose answers raise lookup counts."""
