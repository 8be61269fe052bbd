# SPDX-License-Identifier: Apache-2.0
"""ext4 behind :class:`Operations`: an immutable tree.

Nothing in the image can change while it is mounted, so everything the kernel learns it may keep
for ever: entries, attributes, listings, symlinks, pages. Directories need no open (``opendir`` and
``flush`` are not overridden, so they answer ENOSYS once and the kernel asks no more), and nor do
files, unless the kernel can be made to carry them whole, which is said when they are opened. Reads
after the first cost what the kernel's own page cache costs.

Node ids are inode numbers, the root's (2) aside, which FUSE calls 1. So nothing has to be kept for
an inode that the kernel knows: memory does not grow with the number of files seen.
"""

from __future__ import annotations

import contextlib
import errno
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

from penstock.abi.fuse import INVALID_UIDGID, FOpen, InitFlag
from penstock.datapath import MOST_MAPPINGS
from penstock.formats.errors import CorruptImage
from penstock.formats.ext4.format import NAME_MAX, XATTR_PREFIXES, InodeFlag
from penstock.formats.ext4.inode import Inode
from penstock.formats.ext4.mapping import Extent, ExtentKind
from penstock.formats.ext4.reader import Ext4Reader
from penstock.formats.source import FileSource
from penstock.fs import (
    ENDLESS,
    ROOT,
    Attributes,
    Connection,
    Context,
    Data,
    DirEntry,
    Entry,
    FileHandle,
    FsError,
    IoctlReply,
    Mapped,
    Mapping,
    MappingType,
    NodeId,
    OpenReply,
    Operations,
    StatFs,
    StatxReply,
    WholeFile,
)
from penstock.negotiate import image_profile
from penstock.servers.base import Server
from penstock.servers.ext4.describe import describe
from penstock.servers.ext4.options import Ext4Options

__all__ = ["Ext4Server", "open_ext4"]

_ROOT_INO: Final = 2
_ENDLESS: Final = int(ENDLESS)
_NO_ATTRIBUTES: Final = Attributes(*([0] * 16))
_ABSENT: Final = Entry(0, 0, _ENDLESS, _ENDLESS, 0, 0, _NO_ATTRIBUTES)
_SEEK_DATA: Final = 3
_MAY_LIST_TRUSTED: Final = frozenset({0, INVALID_UIDGID})
_SEEK_HOLE: Final = 4
_NAMESPACES: Final = tuple(XATTR_PREFIXES.values())
_OPEN_FLAGS: Final = int(FOpen.KEEP_CACHE | FOpen.NOFLUSH)
_KEPT_FILES: Final = 1024
_KEPT_MAPPINGS: Final = 64

_FS_IOC_GETFLAGS: Final = 0x8008_6601
_FS_IOC_GETVERSION: Final = 0x8008_7601
_FS_IOC_FSGETXATTR: Final = 0x801C_581F
_USER_VISIBLE_FLAGS: Final = 0x725B_DFFF

_STATX_ATTRIBUTES: Final = {
    InodeFlag.COMPR: 0x4,
    InodeFlag.IMMUTABLE: 0x10,
    InodeFlag.APPEND: 0x20,
    InodeFlag.NODUMP: 0x40,
    InodeFlag.ENCRYPT: 0x800,
    InodeFlag.VERITY: 0x10_0000,
}
_XFLAGS: Final = {
    InodeFlag.IMMUTABLE: 0x8,
    InodeFlag.APPEND: 0x10,
    InodeFlag.SYNC: 0x20,
    InodeFlag.NOATIME: 0x40,
    InodeFlag.NODUMP: 0x80,
    InodeFlag.PROJINHERIT: 0x200,
}

_MAPPED: Final = MappingType.MAPPED
_TYPES: Final = {
    ExtentKind.HOLE: MappingType.HOLE,
    ExtentKind.UNWRITTEN: MappingType.UNWRITTEN,
    ExtentKind.MAPPED: _MAPPED,
}
_new: Final = tuple.__new__


class Ext4Server(Operations):
    """Serves one image.

    Args:
        reader: the opened image.
        fd: its descriptor, which mappings name as device 1.
        offset: where the filesystem begins in it, bytes.
        options: ownership to show.
    """

    forgettable = False
    whole_files = "lens"

    def __init__(
        self,
        reader: Ext4Reader,
        source: FileSource,
        options: Ext4Options = Ext4Options(),
    ) -> None:
        self.devices = (source.fd,)
        self._reader = reader
        self._source = source
        self._offset = source.offset
        self.want = image_profile(acl=options.acl, idmap=options.idmap).want
        self._uid = options.uid
        self._gid = options.gid
        self._block_size = reader.block_size
        common = reader.block_size | source.offset
        self.block_size = common & -common
        self._opens = False
        """Whether opening a file has to be answered each time."""
        self._likely = NodeId(0)
        """The inode that will likely be read next, 0 = none: programs that read many small files
        mostly read them in the order in which they were made."""
        self._files: dict[int, tuple[Inode, tuple[Mapping, ...] | None]] = {}

    @property
    def before_wait(self) -> Callable[[], None] | None:
        return self._source.before_wait

    @before_wait.setter
    def before_wait(self, value: Callable[[], None] | None) -> None:
        self._source.before_wait = value

    # Inodes

    def _inode(self, nodeid: int) -> Inode:
        return self._reader.inode(_ROOT_INO if nodeid == ROOT else nodeid)

    def _attributes(self, inode: Inode) -> Attributes:
        return _new(
            Attributes,
            (
                inode.ino, inode.size, inode.blocks512,
                inode.atime, inode.mtime, inode.ctime,
                inode.atimensec, inode.mtimensec, inode.ctimensec,
                inode.mode, inode.links,
                inode.uid if self._uid is None else self._uid,
                inode.gid if self._gid is None else self._gid,
                inode.rdev, self._block_size, 0,
            ),
        )  # fmt: skip

    def _entry(self, ino: int) -> Entry:
        inode = self._reader.inode(ino)
        nodeid = ROOT if ino == _ROOT_INO else ino
        attributes = self._attributes(inode)
        return _new(Entry, (nodeid, inode.generation, _ENDLESS, _ENDLESS, 0, 0, attributes))

    # Names

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Entry:
        directory = self._inode(parent)
        if name == b".":  # how the kernel finds the inode of a file handle, of whatever type
            return self._entry(directory.ino)
        if not stat.S_ISDIR(directory.mode):
            raise FsError(errno.ENOTDIR)
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        ino = self._reader.lookup(directory, name)
        return _ABSENT if ino is None else self._entry(ino)

    def readlink(self, ctx: Context, nodeid: NodeId) -> bytes:
        inode = self._inode(nodeid)
        if not stat.S_ISLNK(inode.mode):
            raise FsError(errno.EINVAL)
        return self._reader.readlink(inode)

    def readdir(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterator[DirEntry]:
        for name, ino, kind, cookie in self._reader.readdir(self._inode(nodeid), offset):
            yield DirEntry(name, ino, cookie, kind)

    def readdirplus(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterator[tuple[DirEntry, Entry | None]]:
        entry_of = self._entry
        for name, ino, kind, cookie in self._reader.readdir(self._inode(nodeid), offset):
            entry = None
            if name not in {b".", b".."}:
                try:
                    entry = entry_of(ino)
                except (OSError, ValueError):
                    entry = None  # listed without attributes; looking it up says what is wrong
            yield _new(DirEntry, (name, ino, cookie, kind)), entry

    # Attributes

    def getattr(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None
    ) -> tuple[Attributes, float]:
        return self._attributes(self._inode(nodeid)), ENDLESS

    def statx(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None, flags: int, mask: int
    ) -> tuple[StatxReply, float]:
        inode = self._inode(nodeid)
        born = None
        if inode.crtime is not None:
            born = inode.crtime * 1_000_000_000 + inode.crtimensec
        reply = StatxReply(
            self._attributes(inode),
            born,
            _translate(inode.flags, _STATX_ATTRIBUTES),
            sum(_STATX_ATTRIBUTES.values()),
        )
        return reply, ENDLESS

    def statfs(self, ctx: Context, nodeid: NodeId) -> StatFs:
        counts = self._reader.statfs()
        return StatFs.make(
            blocks=counts.blocks,
            bfree=counts.free,
            bavail=counts.available,
            files=counts.files,
            ffree=counts.free_files,
            bsize=counts.block_size,
            namelen=counts.name_max,
        )

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
        if cmd & 0xFFFF == _FS_IOC_GETFLAGS & 0xFFFF:
            visible = self._inode(nodeid).flags & _USER_VISIBLE_FLAGS
            return IoctlReply(0, struct.pack("<I", visible))
        if cmd & 0xFFFF == _FS_IOC_GETVERSION & 0xFFFF:
            return IoctlReply(0, struct.pack("<I", self._inode(nodeid).generation))
        if cmd == _FS_IOC_FSGETXATTR:
            inode = self._inode(nodeid)
            xflags = _translate(inode.flags, _XFLAGS)
            return IoctlReply(0, struct.pack("<5I8x", xflags, 0, 0, inode.projid, 0))
        raise FsError(errno.ENOTTY)

    # Extended attributes

    def getxattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> bytes:
        value = self._reader.getxattr(self._inode(nodeid), name)
        if value is None:
            raise FsError(errno.ENODATA if name.startswith(_NAMESPACES) else errno.EOPNOTSUPP)
        return value

    def listxattr(self, ctx: Context, nodeid: NodeId) -> Sequence[bytes]:
        names = self._reader.listxattr(self._inode(nodeid))
        # With ALLOW_IDMAP the kernel tells no uid here. Then all names are listed: the values of
        # trusted.* it gives to CAP_SYS_ADMIN alone, whatever a listing says.
        if ctx.uid in _MAY_LIST_TRUSTED:
            return names
        return [name for name in names if not name.startswith(b"trusted.")]

    # Data

    def init(self, connection: Connection) -> None:
        self._opens = bool(connection.flags & InitFlag.PASSTHROUGH)

    def open(self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool) -> OpenReply:
        if not self._opens:
            raise FsError(errno.ENOSYS)
        whole = WholeFile(partial(self._whole, nodeid), self._inode(nodeid).size)
        return OpenReply(FileHandle(0), _OPEN_FLAGS, 0, whole)

    def release(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        flags: int,
        release_flags: int,
        lock_owner: int,
    ) -> None:
        """Nothing is kept for an open file."""

    def _whole(self, nodeid: NodeId) -> Mapped | None:
        """All of a file, unless some of it lies in another form than blocks, or it lies in more
        pieces than any file does that was not made to."""
        inode, mappings = self._files.get(nodeid) or self._open(nodeid)
        if mappings is None:
            extents = list(islice(self._reader.extents(inode), MOST_MAPPINGS + 1))
            if len(extents) > MOST_MAPPINGS:
                return None
            mappings = self._mappings(extents)
        return None if mappings is None else Mapped(mappings, inode.size)

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
        inode, mappings = self._files.get(nodeid) or self._open(nodeid)
        if offset == 0:
            self._likely = NodeId(nodeid + 1)
        length = min(size, inode.size - offset)
        if length <= 0:
            return b""
        if mappings is None:
            extents = tuple(self._reader.extents(inode, offset, offset + length))
            mappings = self._mappings(extents)
            if mappings is None:
                return self._reader.read(inode, offset, length)
        return Mapped(mappings, length)

    def _open(self, nodeid: NodeId) -> tuple[Inode, tuple[Mapping, ...] | None]:
        """The inode and, for a file of few extents, all its mappings; kept for later reads."""
        inode = self._inode(nodeid)
        if not stat.S_ISREG(inode.mode):
            raise FsError(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL)
        extents: list[Extent] = []
        for extent in self._reader.extents(inode):
            extents.append(extent)
            if len(extents) > _KEPT_MAPPINGS:
                break
        mappings = None
        if len(extents) <= _KEPT_MAPPINGS:
            mappings = self._mappings(extents)
        if len(self._files) >= _KEPT_FILES:
            self._files.clear()
        kept = self._files[nodeid] = (inode, mappings)
        return kept

    def idle(self) -> bool:
        nodeid, self._likely = self._likely, NodeId(0)
        if nodeid and nodeid not in self._files:
            with contextlib.suppress(OSError, ValueError):
                self._open(nodeid)
        return False

    def _mappings(self, extents: Sequence[Extent]) -> tuple[Mapping, ...] | None:
        """The extents as mappings of device 1; None if some bytes lie there in another form."""
        mappings = []
        for offset, length, form, address in extents:
            kind = _TYPES.get(form)
            if kind is _MAPPED:
                where = address + self._offset
                mappings.append(_new(Mapping, (offset, length, _MAPPED, where, 1, 0)))
            elif kind is not None:
                mappings.append(Mapping(offset, length, kind))
            else:
                return None
        return tuple(mappings)

    def lseek(self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, whence: int) -> int:
        inode = self._inode(nodeid)
        if offset >= inode.size:
            raise FsError(errno.ENXIO)
        if whence not in (_SEEK_DATA, _SEEK_HOLE):
            raise FsError(errno.EINVAL)
        found = self._reader.seek(inode, offset, data=whence == _SEEK_DATA)
        if found is None:
            raise FsError(errno.ENXIO)
        return found


def _translate(flags: int, table: dict[InodeFlag, int]) -> int:
    return sum(value for flag, value in table.items() if flags & flag)


def open_ext4(source: FileSource, options: Ext4Options) -> Server:
    """Open the ext4 filesystem in a window of an image.

    Raises:
        FormatError: the image is damaged or needs a feature that is not there.
        OSError: the image cannot be read.
    """
    reader = Ext4Reader(source, replay=options.recovery, verify=options.verify)
    if not reader.inode(_ROOT_INO).is_dir:
        raise CorruptImage(f"the root (inode {_ROOT_INO}) is not a directory")
    operations = Ext4Server(reader, source, options)
    info: dict[str, Any] = describe(reader)
    return Server(
        type="ext4",
        operations=operations,
        read_only=True,
        offset=source.offset,
        length=source.size,
        block_size=reader.block_size,
        info=info,
        warnings=tuple(reader.warnings),
    )
