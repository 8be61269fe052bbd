# SPDX-License-Identifier: Apache-2.0
"""Operations of the FUSE protocol, ``enum fuse_opcode``, and the numbers of the protocol itself.

"ENOSYS: ..." says what the kernel does after that answer; where it says "once" the kernel does
not ask again on this connection. A number behind a text is the protocol's minor version in which
the operation appeared.
"""

from enum import IntEnum
from typing import Final

KERNEL_VERSION: Final = 7
"""Major version of the protocol."""
KERNEL_MINOR: Final = 46
"""The newest minor version described here."""

ROOT_ID: Final = 1
"""Node id of the root."""

UNIQUE_RESEND: Final = 1 << 63
"""Set in the ``unique`` of a request sent again after NOTIFY_RESEND; the reply repeats it."""
UNIQUE_INTERRUPT: Final = 1
"""Set in the ``unique`` of an INTERRUPT, which else is that of the request it interrupts."""
INVALID_UIDGID: Final = 0xFFFF_FFFF
"""uid and gid of a request that makes no inode, with ALLOW_IDMAP."""

MIN_READ_BUFFER: Final = 8192
"""Bytes a buffer for requests must have at least; with WRITE ``max_write + 80``."""
MAX_PAGES_DEFAULT: Final = 32
"""Pages a request may carry without MAX_PAGES."""
NAME_MAX: Final = 4095
"""Bytes in the longest name the kernel can send or accept (1024 with a ``max_pages`` of 1)."""
SYMLINK_MAX: Final = 4095
"""Bytes in the longest target of a symbolic link."""
CUSE_INIT_INFO_MAX: Final = 4096
"""Bytes of information in the longest reply to CUSE_INIT."""

COMPAT_INIT_IN_SIZE: Final = 16
"""Bytes of InitIn before 7.36."""
COMPAT_INIT_OUT_SIZE: Final = 8
COMPAT_22_INIT_OUT_SIZE: Final = 24
COMPAT_SETXATTR_IN_SIZE: Final = 8
"""Bytes of SetxattrIn without SETXATTR_EXT."""


class Opcode(IntEnum):
    """What a request asks."""

    LOOKUP = 1
    """Find a name in a directory; the answer adds one to the lookup count of the inode."""
    FORGET = 2
    """Lower the lookup count of an inode. No reply."""
    GETATTR = 3
    SETATTR = 4
    """Change mode, owner, size or times."""
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    """Rename without flags."""
    LINK = 13
    """Make a hard link. ENOSYS: EPERM."""
    OPEN = 14
    """Open a file. ENOSYS, if NO_OPEN_SUPPORT was offered: files need no opening, once."""
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    """The last reference to an open file is gone. The reply's error is ignored."""
    FSYNC = 20
    """ENOSYS: success, once."""
    SETXATTR = 21
    """ENOSYS: EOPNOTSUPP, once."""
    GETXATTR = 22
    """ENOSYS: EOPNOTSUPP, once."""
    LISTXATTR = 23
    """ENOSYS: EOPNOTSUPP, once."""
    REMOVEXATTR = 24
    """ENOSYS: EOPNOTSUPP, once."""
    FLUSH = 25
    """A descriptor of an open file was closed. ENOSYS: success, once."""
    INIT = 26
    """Negotiate; first request on a connection."""
    OPENDIR = 27
    """ENOSYS, if NO_OPENDIR_SUPPORT was offered: directories need no opening, once."""
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    """ENOSYS: success, once."""
    GETLK = 31
    """Test a POSIX lock (7.7)."""
    SETLK = 32
    """Set a lock or fail (7.7)."""
    SETLKW = 33
    """Set a lock or wait for it (7.7)."""
    ACCESS = 34
    """Check permissions, without ``default_permissions``. ENOSYS: allowed, once (7.3)."""
    CREATE = 35
    """Make and open a file. ENOSYS: MKNOD and OPEN instead, once (7.3)."""
    INTERRUPT = 36
    """The caller of a request was interrupted. Reply is optional; ENOSYS: once (7.7)."""
    BMAP = 37
    """Block number of a file's block, on block devices. ENOSYS: 0, once (7.8)."""
    DESTROY = 38
    """The filesystem is unmounted; on block devices and virtiofs (7.8)."""
    IOCTL = 39
    """ENOSYS: ENOTTY (7.11)."""
    POLL = 40
    """ENOSYS: always ready, once (7.11)."""
    NOTIFY_REPLY = 41
    """Data asked for by NOTIFY_RETRIEVE. No reply (7.15)."""
    BATCH_FORGET = 42
    """Lower the lookup counts of several inodes. No reply (7.16)."""
    FALLOCATE = 43
    """ENOSYS: EOPNOTSUPP, once (7.19)."""
    READDIRPLUS = 44
    """Read a directory with attributes; each entry with a node id counts as a lookup (7.21)."""
    RENAME2 = 45
    """Rename with flags. ENOSYS: EINVAL, once (7.23)."""
    LSEEK = 46
    """Find data or a hole. ENOSYS: all is data, once (7.24)."""
    COPY_FILE_RANGE = 47
    """ENOSYS: copy through the page cache, once (7.28)."""
    SETUPMAPPING = 48
    """Map a range of a file into the DAX window (7.31)."""
    REMOVEMAPPING = 49
    """Unmap ranges of the DAX window (7.31)."""
    SYNCFS = 50
    """On block devices and virtiofs. ENOSYS: once (7.34)."""
    TMPFILE = 51
    """Make and open a file without a name. EOPNOTSUPP: once (7.37)."""
    STATX = 52
    """Attributes with birth time. ENOSYS: GETATTR, once (7.39)."""
    COPY_FILE_RANGE_64 = 53
    """Copy more than 4 GiB at once. ENOSYS: COPY_FILE_RANGE, once (7.45)."""

    CUSE_INIT = 4096
    """Negotiate, on /dev/cuse (7.12)."""

    CUSE_INIT_BSWAP_RESERVED = 0x0010_0000
    """CUSE_INIT of a host of the other endianness."""
    INIT_BSWAP_RESERVED = 0x1A00_0000
    """INIT of a host of the other endianness."""
