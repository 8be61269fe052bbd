# SPDX-License-Identifier: Apache-2.0
"""The interface of a filesystem: one method per operation of the FUSE protocol.

Subclass :class:`Operations` and override what the filesystem has. What is not overridden answers
ENOSYS without being called; the docstrings say what the kernel does then ("once": it remembers
for the life of the mount and does not ask again).

Rules
    - Methods are called from several threads at once. Within one file the kernel serialises
      writes, and operations that change one directory; nothing else.
    - Raise :class:`FsError` (or any OSError) to answer an errno.
    - Return a :class:`Pending` where the answer has to wait; never block for another request.
    - Names are ``bytes`` without ``/`` and NUL. Times are integers in nanoseconds.
    - Never touch a path inside one's own mount from a method: that waits for itself.

Specification: ``include/uapi/linux/fuse.h`` (protocol 7.46) and ``fs/fuse/`` of the Linux kernel.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from penstock.fs.attributes import (
    Attributes,
    DirEntry,
    Entry,
    OpenReply,
    SetAttr,
    StatFs,
    StatxReply,
)
from penstock.fs.data import Data
from penstock.fs.errors import FsError
from penstock.fs.pending import Answer
from penstock.fs.types import Context, Creation, FileHandle, NodeId

__all__ = ["Connection", "IoctlReply", "Lock", "Operations"]


class Connection(NamedTuple):
    """What was negotiated with the kernel, given to :meth:`Operations.init`."""

    minor: int
    """Protocol minor in force (the lower of both sides')."""
    flags: int
    """INIT bits in force, all 64 (:class:`penstock.abi.fuse.InitFlag`)."""
    max_write: int
    """Largest write request, bytes."""
    max_pages: int
    """Largest data request in pages."""
    max_readahead: int
    """Bytes."""
    time_gran: int
    """Granularity of timestamps, nanoseconds."""


class Lock(NamedTuple):
    """``struct fuse_file_lock``: bytes ``start`` to ``end`` inclusive (end of file =
    0x7FFF_FFFF_FFFF_FFFF); ``type`` is F_RDLCK, F_WRLCK or F_UNLCK."""

    start: int
    end: int
    type: int
    pid: int


class IoctlReply(NamedTuple):
    """``result`` is ioctl(2)'s return value (an errno is raised instead); ``data`` goes to the
    caller's buffer."""

    result: int = 0
    data: bytes = b""


def _enosys() -> FsError:
    return FsError(errno.ENOSYS)


class Operations:
    """A filesystem. All methods answer ENOSYS until overridden."""

    want: int = 0
    """INIT bits to ask for beyond the session's own (:class:`InitFlag`), where offered."""

    refuse: int = 0
    """INIT bits that must not be negotiated for this filesystem."""

    forgettable: bool = True
    """Whether the session counts lookups and calls :meth:`forget`. False for a filesystem whose
    node ids cost nothing to keep (an immutable tree): forgets are then dropped unseen, and
    iterators of :meth:`readdirplus` are kept and used ahead of the requests for them."""

    devices: Sequence[int] = ()
    """Open descriptors that :class:`Mapping` names by ``device`` (``devices[device - 1]``).
    Fixed before the first request; owned by the filesystem until after :meth:`destroy`."""

    whole_files: str = ""
    """What :attr:`OpenReply.whole` will say: ``passthrough`` (the files are files elsewhere),
    ``lens`` (they lie in ``devices[0]``), empty (nothing). Known before the mount is negotiated."""

    block_size: int = 512
    """With ``lens``: a power of two that divides each border and each address of a mapping, but
    for the end of a file."""

    before_wait: Callable[[], None] | None = None
    """Set by whoever mounts the filesystem: to be called by a method that is about to wait for a
    slow medium, so that another worker takes requests meanwhile. None = there is no other."""

    def idle(self) -> bool:
        """Called while no request waits, by the worker that would carry the next one out: a moment
        of at most some 100 µs to prepare what will likely be asked. Whether there is more to do.
        Errors are for the request that comes; raise none."""
        return False

    def init(self, connection: Connection) -> None:
        """The handshake is done; called once, before any other request."""

    def destroy(self) -> None:
        """The mount has ended and no request will follow; called once. Release resources."""

    # Names

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Answer[Entry]:
        """The inode called ``name`` in ``parent``. With EXPORT_SUPPORT, ``.`` and ``..`` too.

        Raises ENOENT (not cached; return an entry with nodeid 0 and a timeout to have it cached),
        ENOTDIR, ESTALE.
        """
        raise _enosys()

    def forget(self, nodeid: NodeId) -> None:
        """The kernel knows this inode no more. Not called for the root; no answer, no errors."""

    def readlink(self, ctx: Context, nodeid: NodeId) -> Answer[bytes]:
        """The target of a symlink: 1 to 4095 bytes. EINVAL if it is none."""
        raise _enosys()

    def symlink(
        self, ctx: Context, parent: NodeId, name: bytes, target: bytes, new: Creation
    ) -> Answer[Entry]:
        """Make a symlink. EEXIST, ENOSPC, EROFS."""
        raise _enosys()

    def mknod(
        self, ctx: Context, parent: NodeId, name: bytes, mode: int, rdev: int, new: Creation
    ) -> Answer[Entry]:
        """Make a file, device, fifo or socket (``mode`` has the type). Also used for ordinary
        creation when :meth:`create` is ENOSYS."""
        raise _enosys()

    def mkdir(
        self, ctx: Context, parent: NodeId, name: bytes, mode: int, new: Creation
    ) -> Answer[Entry]:
        """Make a directory; ``mode`` has no type bits."""
        raise _enosys()

    def unlink(self, ctx: Context, parent: NodeId, name: bytes) -> Answer[None]:
        """Remove a name that is no directory. The inode lives on while open or known."""
        raise _enosys()

    def rmdir(self, ctx: Context, parent: NodeId, name: bytes) -> Answer[None]:
        """Remove an empty directory. ENOTEMPTY, ENOTDIR."""
        raise _enosys()

    def rename(
        self,
        ctx: Context,
        parent: NodeId,
        name: bytes,
        newparent: NodeId,
        newname: bytes,
        flags: int,
    ) -> Answer[None]:
        """Rename; ``flags``: RENAME_NOREPLACE 1, EXCHANGE 2, WHITEOUT 4 (EINVAL if unknown)."""
        raise _enosys()

    def link(
        self, ctx: Context, nodeid: NodeId, newparent: NodeId, newname: bytes
    ) -> Answer[Entry]:
        """Another name for an inode. EMLINK; ENOSYS becomes EPERM, once."""
        raise _enosys()

    # Attributes

    def getattr(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None
    ) -> Answer[tuple[Attributes, float]]:
        """Attributes and for how many seconds the kernel may keep them."""
        raise _enosys()

    def setattr(
        self, ctx: Context, nodeid: NodeId, changes: SetAttr
    ) -> Answer[tuple[Attributes, float]]:
        """Change what is not None in ``changes``; the new attributes and their timeout.

        A call that changes nothing (KILLPRIV asks for one) answers the attributes."""
        raise _enosys()

    def statx(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None, flags: int, mask: int
    ) -> Answer[tuple[StatxReply, float]]:
        """Attributes with birth time. ENOSYS: :meth:`getattr` instead, once."""
        raise _enosys()

    def access(self, ctx: Context, nodeid: NodeId, mask: int) -> Answer[None]:
        """Check access(2); only without default_permissions. ENOSYS: allowed, once."""
        raise _enosys()

    def statfs(self, ctx: Context, nodeid: NodeId) -> Answer[StatFs]:
        """Size and free space. Unless overridden: unknown, all zero."""
        return StatFs.make()

    # Files

    def open(
        self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool
    ) -> Answer[OpenReply]:
        """Open a regular file; ``flags`` are O_* without O_CREAT, O_EXCL, O_NOCTTY (and without
        O_TRUNC unless ATOMIC_O_TRUNC). ENOSYS: files need no open (NO_OPEN_SUPPORT), once."""
        raise _enosys()

    def create(
        self, ctx: Context, parent: NodeId, name: bytes, mode: int, flags: int, new: Creation
    ) -> Answer[tuple[Entry, OpenReply]]:
        """Make and open a regular file. ENOSYS: :meth:`mknod` and :meth:`open`, once."""
        raise _enosys()

    def tmpfile(
        self, ctx: Context, parent: NodeId, mode: int, flags: int, new: Creation
    ) -> Answer[tuple[Entry, OpenReply]]:
        """Make and open a file without a name (O_TMPFILE). ENOSYS: EOPNOTSUPP, once."""
        raise _enosys()

    def read(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        size: int,
        flags: int,
        lock_owner: int | None,
    ) -> Answer[Data]:
        """``size`` bytes from ``offset``, fewer only at end of file (b"" beyond it).

        Answer bytes, or say where they are (:class:`Mapped`, :class:`Backing`) and have the data
        path move them."""
        raise _enosys()

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
    ) -> Answer[int]:
        """Write; how many bytes were taken. ``data`` is valid only until the method returns:
        copy it before returning a Pending. ``write_flags``: WriteFlag."""
        raise _enosys()

    def carried(self, nodeid: NodeId, fh: FileHandle) -> None:
        """The kernel carries the data of this open file from now on: no READ and no WRITE will come
        for ``fh``, and what was opened for them may be closed. Called before the answer to ``open``
        or ``create`` is sent, and only where it gave :attr:`OpenReply.whole`."""

    def flush(self, ctx: Context, nodeid: NodeId, fh: FileHandle, lock_owner: int) -> Answer[None]:
        """A descriptor was closed (not the last one, maybe); release ``lock_owner``'s POSIX
        locks. An error is close(2)'s. ENOSYS: success, once."""
        raise _enosys()

    def release(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        flags: int,
        release_flags: int,
        lock_owner: int,
    ) -> Answer[None]:
        """The last descriptor of an open file description is gone; errors are ignored.
        ``release_flags`` FLOCK_UNLOCK: drop ``lock_owner``'s flock."""
        raise _enosys()

    def fsync(self, ctx: Context, nodeid: NodeId, fh: FileHandle, datasync: bool) -> Answer[None]:
        """Make the file durable. ENOSYS: success, once."""
        raise _enosys()

    def fallocate(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, length: int, mode: int
    ) -> Answer[None]:
        """FALLOC_FL_* in ``mode``. ENOSYS: EOPNOTSUPP, once."""
        raise _enosys()

    def lseek(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, whence: int
    ) -> Answer[int]:
        """SEEK_DATA 3 or SEEK_HOLE 4; ENXIO beyond the end. ENOSYS: all is data, once."""
        raise _enosys()

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
    ) -> Answer[int]:
        """Copy inside the filesystem; bytes copied. Serves both opcodes (32- and 64-bit result).
        ENOSYS: the kernel copies through its page cache, once."""
        raise _enosys()

    def bmap(self, ctx: Context, nodeid: NodeId, block: int, blocksize: int) -> Answer[int]:
        """FIBMAP; fuseblk mounts only."""
        raise _enosys()

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
    ) -> Answer[IoctlReply]:
        """ioctl(2) with ``data`` in and at most ``out_size`` bytes out. ENOSYS: ENOTTY."""
        raise _enosys()

    def poll(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, kh: int, flags: int, events: int
    ) -> Answer[int]:
        """Ready events (POLL*). With SCHEDULE_NOTIFY in ``flags``, notify ``kh`` when they
        change. ENOSYS: always ready, once."""
        raise _enosys()

    # Locks

    def getlk(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, owner: int, lock: Lock, flags: int
    ) -> Answer[Lock]:
        """The first lock in the way of ``lock``, or ``lock`` with type F_UNLCK."""
        raise _enosys()

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
        """Take or release a POSIX lock, or with LK_FLOCK in ``flags`` a flock. EAGAIN if it is
        held; with ``wait`` return a Pending instead."""
        raise _enosys()

    # Directories

    def opendir(self, ctx: Context, nodeid: NodeId, flags: int) -> Answer[OpenReply]:
        """Open a directory. ENOSYS: none needs opening, all may be cached, once."""
        raise _enosys()

    def readdir(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterable[DirEntry]:
        """The entries from cookie ``offset`` (0 = the start) on, ``.`` and ``..`` included.

        The session takes as many as fit and drops the rest of the iterable."""
        raise _enosys()

    def readdirplus(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterable[tuple[DirEntry, Entry | None]]:
        """As :meth:`readdir`, each with its inode; None where that is not known (and for ``.``
        and ``..``, which count no lookup). ENOSYS: never negotiated."""
        raise _enosys()

    def releasedir(self, ctx: Context, nodeid: NodeId, fh: FileHandle, flags: int) -> Answer[None]:
        """A directory was closed for good."""
        raise _enosys()

    def fsyncdir(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, datasync: bool
    ) -> Answer[None]:
        """Make a directory durable. ENOSYS: success, once."""
        raise _enosys()

    # Extended attributes

    def getxattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> Answer[bytes]:
        """The value; ENODATA if there is none. The session answers the size question and
        ERANGE. ENOSYS: EOPNOTSUPP, once."""
        raise _enosys()

    def listxattr(self, ctx: Context, nodeid: NodeId) -> Answer[Sequence[bytes]]:
        """All names, with their prefixes. ENOSYS as for getxattr."""
        raise _enosys()

    def setxattr(
        self,
        ctx: Context,
        nodeid: NodeId,
        name: bytes,
        value: bytes,
        flags: int,
        setxattr_flags: int,
    ) -> Answer[None]:
        """XATTR_CREATE 1 (EEXIST), XATTR_REPLACE 2 (ENODATA); ``setxattr_flags`` ACL_KILL_SGID."""
        raise _enosys()

    def removexattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> Answer[None]:
        """ENODATA if there is none."""
        raise _enosys()

    # The filesystem as a whole, virtiofs

    def syncfs(self, ctx: Context, nodeid: NodeId) -> Answer[None]:
        """Make everything durable; fuseblk and virtiofs only. ENOSYS: never again."""
        raise _enosys()

    def setupmapping(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        length: int,
        flags: int,
        moffset: int,
    ) -> Answer[None]:
        """Map a file range into the DAX window at ``moffset`` (virtiofs)."""
        raise _enosys()

    def removemapping(
        self, ctx: Context, nodeid: NodeId, ranges: Sequence[tuple[int, int]]
    ) -> Answer[None]:
        """Remove (moffset, length) ranges from the DAX window (virtiofs)."""
        raise _enosys()
