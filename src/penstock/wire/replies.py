# SPDX-License-Identifier: Apache-2.0
"""Replies: one tuple per shape of answer, declared like requests.

A reply that is an error has no body and no class: see :func:`penstock.wire.encode_error`.

Annotations are evaluated at import, see :mod:`penstock.abi.fuse.structs`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

from penstock.abi.fuse.connection import CuseInitOut, InitOut
from penstock.abi.fuse.opcodes import Opcode
from penstock.abi.fuse.structs import (
    AttrOut,
    BmapOut,
    CopyFileRangeOut,
    EntryOut,
    GetxattrOut,
    IoctlIovec,
    IoctlOut,
    Kstatfs,
    LkOut,
    LseekOut,
    OpenOut,
    PollOut,
    StatxOut,
    WriteOut,
)
from penstock.wire.shapes import Payload


class EmptyReply(NamedTuple):
    """Done; there is nothing to say."""


class EntryReply(NamedTuple):
    entry: EntryOut


class AttrReply(NamedTuple):
    arg: AttrOut


class StatxReply(NamedTuple):
    arg: StatxOut


class OpenReply(NamedTuple):
    arg: OpenOut


class CreateReply(NamedTuple):
    entry: EntryOut
    open: OpenOut


class DataReply(NamedTuple):
    """Bytes: of a file, a symbolic link, a directory (:mod:`penstock.wire.dirents`), an extended
    attribute or their names."""

    data: Payload


class WriteReply(NamedTuple):
    arg: WriteOut


class StatfsReply(NamedTuple):
    arg: Kstatfs


class GetxattrReply(NamedTuple):
    """Answer to a GETXATTR or LISTXATTR of size 0: how much room it takes."""

    arg: GetxattrOut


class InitReply(NamedTuple):
    """Sent whole; decoded, ``arg`` has zeros for what an older server does not send."""

    arg: InitOut


class LkReply(NamedTuple):
    arg: LkOut


class BmapReply(NamedTuple):
    arg: BmapOut


class IoctlReply(NamedTuple):
    arg: IoctlOut
    data: Payload


class IoctlRetryReply(NamedTuple):
    """Ask again with these ranges of the caller's memory: first those to read, then those to
    write, as many as ``arg.in_iovs`` and ``arg.out_iovs`` say. Only for CUSE."""

    arg: IoctlOut
    iovecs: Annotated[tuple[IoctlIovec, ...], "in_iovs", "out_iovs"]


class PollReply(NamedTuple):
    arg: PollOut


class LseekReply(NamedTuple):
    arg: LseekOut


class CopyFileRangeReply(NamedTuple):
    arg: CopyFileRangeOut


class CuseInitReply(NamedTuple):
    """``info`` is ``KEY=VALUE`` strings, each with a NUL."""

    arg: CuseInitOut
    info: Payload


Reply: TypeAlias = tuple[Any, ...]
"""An instance of one of the classes above."""

REPLIES: Final[Mapping[int, type[Reply] | None]] = {
    Opcode.LOOKUP: EntryReply,
    Opcode.FORGET: None,
    Opcode.GETATTR: AttrReply,
    Opcode.SETATTR: AttrReply,
    Opcode.READLINK: DataReply,
    Opcode.SYMLINK: EntryReply,
    Opcode.MKNOD: EntryReply,
    Opcode.MKDIR: EntryReply,
    Opcode.UNLINK: EmptyReply,
    Opcode.RMDIR: EmptyReply,
    Opcode.RENAME: EmptyReply,
    Opcode.LINK: EntryReply,
    Opcode.OPEN: OpenReply,
    Opcode.READ: DataReply,
    Opcode.WRITE: WriteReply,
    Opcode.STATFS: StatfsReply,
    Opcode.RELEASE: EmptyReply,
    Opcode.FSYNC: EmptyReply,
    Opcode.SETXATTR: EmptyReply,
    Opcode.GETXATTR: DataReply,
    Opcode.LISTXATTR: DataReply,
    Opcode.REMOVEXATTR: EmptyReply,
    Opcode.FLUSH: EmptyReply,
    Opcode.INIT: InitReply,
    Opcode.OPENDIR: OpenReply,
    Opcode.READDIR: DataReply,
    Opcode.RELEASEDIR: EmptyReply,
    Opcode.FSYNCDIR: EmptyReply,
    Opcode.GETLK: LkReply,
    Opcode.SETLK: EmptyReply,
    Opcode.SETLKW: EmptyReply,
    Opcode.ACCESS: EmptyReply,
    Opcode.CREATE: CreateReply,
    Opcode.INTERRUPT: EmptyReply,
    Opcode.BMAP: BmapReply,
    Opcode.DESTROY: EmptyReply,
    Opcode.IOCTL: IoctlReply,
    Opcode.POLL: PollReply,
    Opcode.NOTIFY_REPLY: None,
    Opcode.BATCH_FORGET: None,
    Opcode.FALLOCATE: EmptyReply,
    Opcode.READDIRPLUS: DataReply,
    Opcode.RENAME2: EmptyReply,
    Opcode.LSEEK: LseekReply,
    Opcode.COPY_FILE_RANGE: WriteReply,
    Opcode.SETUPMAPPING: EmptyReply,
    Opcode.REMOVEMAPPING: EmptyReply,
    Opcode.SYNCFS: EmptyReply,
    Opcode.TMPFILE: CreateReply,
    Opcode.STATX: StatxReply,
    Opcode.COPY_FILE_RANGE_64: CopyFileRangeReply,
    Opcode.CUSE_INIT: CuseInitReply,
}
"""Opcode to reply; None: there is none. An INTERRUPT may be left without.

GETXATTR and LISTXATTR are also answered with :class:`GetxattrReply`, IOCTL with
:class:`IoctlRetryReply`."""
