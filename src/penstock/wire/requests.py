# SPDX-License-Identifier: Apache-2.0
"""Requests: one tuple per operation, whose annotations are its shape (:mod:`penstock.wire.shapes`).

``arg`` is the fixed structure of the kernel's header, the other fields follow it in the message:
``request.arg.offset`` of a READ, ``request.name`` of a LOOKUP. Who asks and about which inode is
in the header. The classes have the operations' names, so this module is best imported whole.

Annotations are evaluated at import, see :mod:`penstock.abi.fuse.structs`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

from penstock.abi.fuse.connection import CuseInitIn, InitIn, InterruptIn
from penstock.abi.fuse.notify import NotifyRetrieveIn
from penstock.abi.fuse.opcodes import Opcode
from penstock.abi.fuse.structs import (
    AccessIn,
    BatchForgetIn,
    BmapIn,
    CopyFileRangeIn,
    CreateIn,
    FallocateIn,
    FlushIn,
    ForgetIn,
    ForgetOne,
    FsyncIn,
    GetattrIn,
    GetxattrIn,
    IoctlIn,
    LinkIn,
    LkIn,
    LseekIn,
    MkdirIn,
    MknodIn,
    OpenIn,
    PollIn,
    ReadIn,
    ReleaseIn,
    RemovemappingIn,
    RemovemappingOne,
    Rename2In,
    RenameIn,
    SetattrIn,
    SetupmappingIn,
    SetxattrIn,
    StatxIn,
    SyncfsIn,
    WriteIn,
)
from penstock.wire.extensions import NO_EXTENSIONS, Extensions
from penstock.wire.shapes import Name, Payload, String


class Lookup(NamedTuple):
    name: Name


class Forget(NamedTuple):
    arg: ForgetIn


class Getattr(NamedTuple):
    arg: GetattrIn


class Setattr(NamedTuple):
    arg: SetattrIn


class Readlink(NamedTuple):
    pass


class Symlink(NamedTuple):
    name: Name
    target: String
    ext: Extensions = NO_EXTENSIONS


class Mknod(NamedTuple):
    arg: MknodIn
    name: Name
    ext: Extensions = NO_EXTENSIONS


class Mkdir(NamedTuple):
    arg: MkdirIn
    name: Name
    ext: Extensions = NO_EXTENSIONS


class Unlink(NamedTuple):
    name: Name


class Rmdir(NamedTuple):
    name: Name


class Rename(NamedTuple):
    arg: RenameIn
    name: Name
    newname: Name


class Link(NamedTuple):
    """The header names the new parent, ``arg`` the inode."""

    arg: LinkIn
    newname: Name


class Open(NamedTuple):
    arg: OpenIn


class Read(NamedTuple):
    arg: ReadIn


class Write(NamedTuple):
    arg: WriteIn
    data: Annotated[Payload, "size"]


class Statfs(NamedTuple):
    pass


class Release(NamedTuple):
    arg: ReleaseIn


class Fsync(NamedTuple):
    arg: FsyncIn


class Setxattr(NamedTuple):
    arg: SetxattrIn
    name: String
    value: Annotated[Payload, "size"]


class Getxattr(NamedTuple):
    arg: GetxattrIn
    name: String


class Listxattr(NamedTuple):
    arg: GetxattrIn


class Removexattr(NamedTuple):
    name: String


class Flush(NamedTuple):
    arg: FlushIn


class Init(NamedTuple):
    """``arg`` has zeros for what an older kernel does not send."""

    arg: InitIn


class Opendir(NamedTuple):
    arg: OpenIn


class Readdir(NamedTuple):
    arg: ReadIn


class Releasedir(NamedTuple):
    arg: ReleaseIn


class Fsyncdir(NamedTuple):
    arg: FsyncIn


class Getlk(NamedTuple):
    arg: LkIn


class Setlk(NamedTuple):
    arg: LkIn


class Setlkw(NamedTuple):
    arg: LkIn


class Access(NamedTuple):
    arg: AccessIn


class Create(NamedTuple):
    arg: CreateIn
    name: Name
    ext: Extensions = NO_EXTENSIONS


class Interrupt(NamedTuple):
    arg: InterruptIn


class Bmap(NamedTuple):
    arg: BmapIn


class Destroy(NamedTuple):
    pass


class Ioctl(NamedTuple):
    arg: IoctlIn
    data: Annotated[Payload, "in_size"]


class Poll(NamedTuple):
    arg: PollIn


class NotifyReply(NamedTuple):
    """Data of a NOTIFY_RETRIEVE, whose ``notify_unique`` is the header's ``unique``."""

    arg: NotifyRetrieveIn
    data: Annotated[Payload, "size"]


class BatchForget(NamedTuple):
    arg: BatchForgetIn
    items: tuple[ForgetOne, ...]


class Fallocate(NamedTuple):
    arg: FallocateIn


class Readdirplus(NamedTuple):
    arg: ReadIn


class Rename2(NamedTuple):
    arg: Rename2In
    name: Name
    newname: Name


class Lseek(NamedTuple):
    arg: LseekIn


class CopyFileRange(NamedTuple):
    arg: CopyFileRangeIn


class Setupmapping(NamedTuple):
    arg: SetupmappingIn


class Removemapping(NamedTuple):
    arg: RemovemappingIn
    items: tuple[RemovemappingOne, ...]


class Syncfs(NamedTuple):
    arg: SyncfsIn


class Tmpfile(NamedTuple):
    """``name`` is "/" and means nothing."""

    arg: CreateIn
    name: String
    ext: Extensions = NO_EXTENSIONS


class Statx(NamedTuple):
    arg: StatxIn


class CopyFileRange64(NamedTuple):
    arg: CopyFileRangeIn


class CuseInit(NamedTuple):
    arg: CuseInitIn


class Unknown(NamedTuple):
    """An operation that is not known here; the answer to it is ENOSYS."""

    opcode: int
    data: Payload


Request: TypeAlias = tuple[Any, ...]
"""An instance of one of the classes above."""

REQUESTS: Final[Mapping[int, type[Request]]] = {
    Opcode.LOOKUP: Lookup,
    Opcode.FORGET: Forget,
    Opcode.GETATTR: Getattr,
    Opcode.SETATTR: Setattr,
    Opcode.READLINK: Readlink,
    Opcode.SYMLINK: Symlink,
    Opcode.MKNOD: Mknod,
    Opcode.MKDIR: Mkdir,
    Opcode.UNLINK: Unlink,
    Opcode.RMDIR: Rmdir,
    Opcode.RENAME: Rename,
    Opcode.LINK: Link,
    Opcode.OPEN: Open,
    Opcode.READ: Read,
    Opcode.WRITE: Write,
    Opcode.STATFS: Statfs,
    Opcode.RELEASE: Release,
    Opcode.FSYNC: Fsync,
    Opcode.SETXATTR: Setxattr,
    Opcode.GETXATTR: Getxattr,
    Opcode.LISTXATTR: Listxattr,
    Opcode.REMOVEXATTR: Removexattr,
    Opcode.FLUSH: Flush,
    Opcode.INIT: Init,
    Opcode.OPENDIR: Opendir,
    Opcode.READDIR: Readdir,
    Opcode.RELEASEDIR: Releasedir,
    Opcode.FSYNCDIR: Fsyncdir,
    Opcode.GETLK: Getlk,
    Opcode.SETLK: Setlk,
    Opcode.SETLKW: Setlkw,
    Opcode.ACCESS: Access,
    Opcode.CREATE: Create,
    Opcode.INTERRUPT: Interrupt,
    Opcode.BMAP: Bmap,
    Opcode.DESTROY: Destroy,
    Opcode.IOCTL: Ioctl,
    Opcode.POLL: Poll,
    Opcode.NOTIFY_REPLY: NotifyReply,
    Opcode.BATCH_FORGET: BatchForget,
    Opcode.FALLOCATE: Fallocate,
    Opcode.READDIRPLUS: Readdirplus,
    Opcode.RENAME2: Rename2,
    Opcode.LSEEK: Lseek,
    Opcode.COPY_FILE_RANGE: CopyFileRange,
    Opcode.SETUPMAPPING: Setupmapping,
    Opcode.REMOVEMAPPING: Removemapping,
    Opcode.SYNCFS: Syncfs,
    Opcode.TMPFILE: Tmpfile,
    Opcode.STATX: Statx,
    Opcode.COPY_FILE_RANGE_64: CopyFileRange64,
    Opcode.CUSE_INIT: CuseInit,
}
"""Opcode to request, for every operation of the protocol."""
