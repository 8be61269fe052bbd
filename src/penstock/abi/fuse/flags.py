# SPDX-License-Identifier: Apache-2.0
"""Flags of FUSE messages.

Members have the kernel's names without the common prefix. A number behind a text is the minor
version of the protocol in which the flag appeared.
"""

from enum import IntEnum, IntFlag
from typing import Final


class InitFlag(IntFlag):
    """What kernel and server agree on: ``flags | flags2 << 32`` of InitIn and InitOut.

    "Offer" marks what the kernel merely tells about itself; it needs no bit in the reply.
    """

    ASYNC_READ = 1 << 0
    """Several READs of one file at a time, in any order (7.6)."""
    POSIX_LOCKS = 1 << 1
    """Send GETLK, SETLK, SETLKW; else the kernel keeps locks itself (7.7)."""
    FILE_OPS = 1 << 2
    """Never implemented (7.9)."""
    ATOMIC_O_TRUNC = 1 << 3
    """O_TRUNC is left in the flags of OPEN and CREATE, no SETATTR is sent (7.9)."""
    EXPORT_SUPPORT = 1 << 4
    """The server answers LOOKUP of "." and ".." (7.10)."""
    BIG_WRITES = 1 << 5
    """Buffered writes may exceed one page (7.9)."""
    DONT_MASK = 1 << 6
    """The kernel does not apply the umask, the server does (7.12)."""
    SPLICE_WRITE = 1 << 7
    """Offer: splice to the device (7.14)."""
    SPLICE_MOVE = 1 << 8
    """Offer: pages may be moved by a splice (7.14)."""
    SPLICE_READ = 1 << 9
    """Offer: splice from the device (7.14)."""
    FLOCK_LOCKS = 1 << 10
    """Send flock(2) as SETLK with LK_FLOCK (7.17)."""
    HAS_IOCTL_DIR = 1 << 11
    """Offer: ioctl on directories (7.18)."""
    AUTO_INVAL_DATA = 1 << 12
    """Drop cached data when mtime or size is seen to change (7.20)."""
    DO_READDIRPLUS = 1 << 13
    """Read directories with READDIRPLUS (7.21)."""
    READDIRPLUS_AUTO = 1 << 14
    """Choose between READDIR and READDIRPLUS by use; with DO_READDIRPLUS (7.21)."""
    ASYNC_DIO = 1 << 15
    """Direct I/O in several requests at a time (7.22)."""
    WRITEBACK_CACHE = 1 << 16
    """Written data stays in the kernel for a time; excludes PASSTHROUGH (7.23)."""
    NO_OPEN_SUPPORT = 1 << 17
    """Offer: ENOSYS to OPEN means that files need no opening (7.23)."""
    PARALLEL_DIROPS = 1 << 18
    """Lookups and reads of one directory at a time (7.25)."""
    HANDLE_KILLPRIV = 1 << 19
    """The server clears set-id bits and capabilities at write, truncate and chown (7.26)."""
    POSIX_ACL = 1 << 20
    """The kernel checks ACLs; implies ``default_permissions`` (7.26)."""
    ABORT_ERROR = 1 << 21
    """Reading the device fails with ECONNABORTED after an abort (7.27)."""
    MAX_PAGES = 1 << 22
    """``max_pages`` is valid (7.28)."""
    CACHE_SYMLINKS = 1 << 23
    """Cache targets of symbolic links (7.28)."""
    NO_OPENDIR_SUPPORT = 1 << 24
    """Offer: ENOSYS to OPENDIR means that directories need no opening (7.29)."""
    EXPLICIT_INVAL_DATA = 1 << 25
    """Drop cached data only when told to; AUTO_INVAL_DATA wins over it (7.30)."""
    MAP_ALIGNMENT = 1 << 26
    """``map_alignment`` is valid (7.31)."""
    SUBMOUNTS = 1 << 27
    """Offer: ATTR_SUBMOUNT is understood (7.32)."""
    HANDLE_KILLPRIV_V2 = 1 << 28
    """As HANDLE_KILLPRIV, at write, open and truncate only when a flag says so (7.33)."""
    SETXATTR_EXT = 1 << 29
    """SetxattrIn has all its 16 bytes (7.33)."""
    INIT_EXT = 1 << 30
    """``flags2`` is valid (7.36)."""
    INIT_RESERVED = 1 << 31
    """Not to be used (7.36)."""
    SECURITY_CTX = 1 << 32
    """Requests that make an inode carry security contexts (7.36)."""
    HAS_INODE_DAX = 1 << 33
    """DAX is chosen per inode, by ATTR_DAX (7.36)."""
    CREATE_SUPP_GROUP = 1 << 34
    """Requests that make an inode carry a supplementary group (7.38)."""
    HAS_EXPIRE_ONLY = 1 << 35
    """Offer: EXPIRE_ONLY of NOTIFY_INVAL_ENTRY works (7.38)."""
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    """Files opened with FOPEN_DIRECT_IO can be mapped shared (7.39)."""
    PASSTHROUGH = 1 << 37
    """Files can be served by a backing file; ``max_stack_depth`` is valid (7.40)."""
    NO_EXPORT_SUPPORT = 1 << 38
    """File handles (NFS export) are refused (7.40)."""
    HAS_RESEND = 1 << 39
    """Offer: NOTIFY_RESEND works, and UNIQUE_RESEND marks what it sent (7.40)."""
    ALLOW_IDMAP = 1 << 40
    """Idmapped mounts are allowed; needs ``default_permissions`` (7.41)."""
    OVER_IO_URING = 1 << 41
    """Requests can travel over an io_uring (7.42)."""
    REQUEST_TIMEOUT = 1 << 42
    """``request_timeout`` is valid (7.43)."""
    HAS_IO_URING_BUFPOOL = 1 << 43
    """Offer: buffer pools and zero copy on the ring (7.46)."""

    DIRECT_IO_RELAX = DIRECT_IO_ALLOW_MMAP


class CuseFlag(IntFlag):
    """``CuseInitIn.flags``, ``CuseInitOut.flags``."""

    UNRESTRICTED_IOCTL = 1 << 0


class FOpen(IntFlag):
    """``OpenOut.open_flags``: how the kernel treats an open file."""

    DIRECT_IO = 1 << 0
    """No page cache."""
    KEEP_CACHE = 1 << 1
    """Cached data stays valid."""
    NONSEEKABLE = 1 << 2
    """(7.10)"""
    CACHE_DIR = 1 << 3
    """Cache what READDIR returns (7.28)."""
    STREAM = 1 << 4
    """The file has no position (7.31)."""
    NOFLUSH = 1 << 5
    """No FLUSH at close, unless with a writeback cache (7.35)."""
    PARALLEL_DIRECT_WRITES = 1 << 6
    """Several direct writes at a time, where they do not extend the file (7.38)."""
    PASSTHROUGH = 1 << 7
    """Data is served by the backing file ``backing_id`` (7.40)."""
    IO_URING_ZERO_COPY = 1 << 8
    """Data may travel without a copy on zero-copy queues (7.46)."""


class Fattr(IntFlag):
    """``SetattrIn.valid``: what SETATTR sets."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    """``fh`` is valid."""
    ATIME_NOW = 1 << 7
    """With ATIME: to the present time."""
    MTIME_NOW = 1 << 8
    """With MTIME: to the present time."""
    LOCKOWNER = 1 << 9
    """``lock_owner`` is valid."""
    CTIME = 1 << 10
    """With a writeback cache (7.23)."""
    KILL_SUIDGID = 1 << 11
    """Clear set-id bits; with HANDLE_KILLPRIV_V2 (7.33)."""


class AttrFlag(IntFlag):
    """``Attr.flags``."""

    SUBMOUNT = 1 << 0
    """The inode is the root of another filesystem (7.32)."""
    DAX = 1 << 1
    """The file is to be mapped with DAX (7.36)."""


class GetattrFlag(IntFlag):
    """``GetattrIn.getattr_flags``, ``StatxIn.getattr_flags``."""

    FH = 1 << 0
    """``fh`` is valid."""


class OpenFlag(IntFlag):
    """``OpenIn.open_flags``, ``CreateIn.open_flags``."""

    KILL_SUIDGID = 1 << 0
    """Clear set-id bits of a file that is truncated (7.33)."""


class ReadFlag(IntFlag):
    """``ReadIn.read_flags``."""

    LOCKOWNER = 1 << 1
    """``lock_owner`` is valid."""


class WriteFlag(IntFlag):
    """``WriteIn.write_flags``."""

    CACHE = 1 << 0
    """From the page cache: ``fh`` may be any open handle of the file."""
    LOCKOWNER = 1 << 1
    """``lock_owner`` is valid."""
    KILL_SUIDGID = 1 << 2
    """Clear set-id bits (7.33; as KILL_PRIV since 7.31)."""


class ReleaseFlag(IntFlag):
    """``ReleaseIn.release_flags``."""

    FLUSH = 1 << 0
    """Do what FLUSH does."""
    FLOCK_UNLOCK = 1 << 1
    """Drop the flock(2) of ``lock_owner`` (7.17)."""


class FsyncFlag(IntFlag):
    """``FsyncIn.fsync_flags``."""

    FDATASYNC = 1 << 0
    """Data alone."""


class LkFlag(IntFlag):
    """``LkIn.lk_flags``."""

    FLOCK = 1 << 0
    """flock(2), not fcntl(2)."""


class PollFlag(IntFlag):
    """``PollIn.flags``."""

    SCHEDULE_NOTIFY = 1 << 0
    """Send NOTIFY_POLL when events change."""


class SetxattrFlag(IntFlag):
    """``SetxattrIn.setxattr_flags``."""

    ACL_KILL_SGID = 1 << 0
    """Clear the set-group-id bit when system.posix_acl_access is set (7.33)."""


class XattrFlag(IntFlag):
    """``SetxattrIn.flags``, as for setxattr(2)."""

    CREATE = 1 << 0
    """Fail if it exists."""
    REPLACE = 1 << 1
    """Fail if it does not exist."""


class RenameFlag(IntFlag):
    """``Rename2In.flags``, as for renameat2(2)."""

    NOREPLACE = 1 << 0
    EXCHANGE = 1 << 1
    WHITEOUT = 1 << 2


class FallocMode(IntFlag):
    """``FallocateIn.mode``, as for fallocate(2); the kernel passes on only these."""

    KEEP_SIZE = 0x01
    PUNCH_HOLE = 0x02
    ZERO_RANGE = 0x10


class AccessMode(IntFlag):
    """``AccessIn.mask``, as for access(2); 0 asks for existence."""

    X_OK = 1
    W_OK = 2
    R_OK = 4


class IoctlFlag(IntFlag):
    """``IoctlIn.flags``, ``IoctlOut.flags``."""

    COMPAT = 1 << 0
    """A 32-bit call on a 64-bit machine."""
    UNRESTRICTED = 1 << 1
    """The server may answer RETRY."""
    RETRY = 1 << 2
    """Call again with the ranges of memory that follow (IoctlIovec)."""
    IOCTL_32BIT = 1 << 3
    """(7.16)"""
    DIR = 1 << 4
    """On a directory (7.18)."""
    COMPAT_X32 = 1 << 5
    """A call of the x32 ABI (7.30)."""


IOCTL_MAX_IOV: Final = 256
"""Ranges of memory in the longest RETRY."""


class SetupmappingFlag(IntFlag):
    """``SetupmappingIn.flags``."""

    WRITE = 1 << 0
    READ = 1 << 1


class StatxMask(IntFlag):
    """``StatxIn.sx_mask``, ``Statx.mask``: fields asked for, fields given."""

    TYPE = 0x001
    MODE = 0x002
    NLINK = 0x004
    UID = 0x008
    GID = 0x010
    ATIME = 0x020
    MTIME = 0x040
    CTIME = 0x080
    INO = 0x100
    SIZE = 0x200
    BLOCKS = 0x400
    BTIME = 0x800


STATX_BASIC_STATS: Final = 0x7FF
"""All but BTIME: what the kernel wants before it caches attributes."""


class ExtType(IntEnum):
    """``ExtHeader.type``: kind of an extension (7.38)."""

    GROUPS = 32
    """:class:`SuppGroups`."""


MAX_NR_SECCTX: Final = 31
"""Security contexts in the longest list; below the first :class:`ExtType`, to tell them apart."""
