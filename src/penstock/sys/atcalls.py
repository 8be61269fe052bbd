# SPDX-License-Identifier: Apache-2.0
"""System calls on (directory, name) pairs and on O_PATH descriptors, made for a server's hot path.

``os`` lacks some of these, and where it has them its results cost more than the call. Names are
bytes; an empty name means the descriptor itself, whatever it was opened for.

Facts
    - statx(2) tells with STATX_ATTR_MOUNT_ROOT whether something is mounted on what it found.
    - fchownat(2), utimensat(2) (Linux 5.8), fchmodat2(2) (Linux 6.6) and readlinkat(2) take an
      O_PATH descriptor with an empty name. Nothing that needs an open file does.
    - linkat(2) with an empty name takes CAP_DAC_READ_SEARCH, or since Linux 6.10 a descriptor that
      was opened with the caller's present credentials. It links a file made by O_TMPFILE too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Final, TypeAlias

from penstock.sys.rawcalls import failed, get_errno, prototype, raw

__all__ = [
    "MOUNT_ROOT",
    "NOW",
    "OMIT",
    "STATX_BTIME",
    "StatxTuple",
    "chmod_fd",
    "chown_fd",
    "link_fd",
    "look",
    "openat_beneath",
    "renameat2",
    "statx",
    "syncfs",
    "utimens_fd",
]

StatxTuple: TypeAlias = tuple[
    int, int, int, int, int, int, int, int, int, int, int,
    int, int, int, int, int, int, int, int, int, int, int,
]  # fmt: skip
"""mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask, then
seconds and nanoseconds of atime, btime, ctime, mtime, then rdev_major, rdev_minor, and the device
of the filesystem as one number."""

STATX_BTIME: Final = 0x800
MOUNT_ROOT: Final = 0x2000
"""STATX_ATTR_MOUNT_ROOT in ``attributes``."""
NOW: Final = (1 << 30) - 1
"""UTIME_NOW, as nanoseconds."""
OMIT: Final = (1 << 30) - 2
"""UTIME_OMIT."""

_WANTED: Final = 0x7FF | STATX_BTIME
_STATX: Final = struct.Struct("<IIQIIIHxxQQQQqI4xqI4xqI4xqI4xIIQ").unpack_from
_STATX_SIZE: Final = 256
_TIMES: Final = struct.Struct("=qqqq")
_OPEN_HOW: Final = struct.Struct("=QQQ")
_RESOLVE: Final = 0x01 | 0x02 | 0x04 | 0x08
"""RESOLVE_NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH."""

_NOFOLLOW: Final = 0x100
_EMPTY_PATH: Final = 0x1000
_NO_AUTOMOUNT: Final = 0x800
_AS_NAMED: Final = _NOFOLLOW | _NO_AUTOMOUNT
_ITSELF: Final = _EMPTY_PATH | _NO_AUTOMOUNT

_statx: Final = prototype("statx", c_int, c_char_p, c_int, c_uint, c_void_p)
_renameat2: Final = prototype("renameat2", c_int, c_char_p, c_int, c_char_p, c_uint)
_linkat: Final = prototype("linkat", c_int, c_char_p, c_int, c_char_p, c_int)
_fchownat: Final = prototype("fchownat", c_int, c_char_p, c_uint, c_uint, c_int)
_utimensat: Final = prototype("utimensat", c_int, c_char_p, c_char_p, c_int)
_openat2: Final = raw("openat2", c_int, c_char_p, c_char_p, c_size_t)
_fchmodat2: Final = raw("fchmodat2", c_int, c_char_p, c_uint, c_uint)
_syncfs: Final = prototype("syncfs", c_int)


class _Buffer(threading.local):
    """Room for one ``struct statx``, a thread each."""

    def __init__(self) -> None:
        self.statx = ctypes.create_string_buffer(_STATX_SIZE)


_buffer: Final = _Buffer()


def statx(fd: int, name: bytes = b"") -> StatxTuple:
    """statx(2) of what ``name`` is in the directory ``fd``, never of what a symlink means.

    Raises:
        OSError: what the kernel answers.
    """
    buffer = _buffer.statx
    if _statx(fd, name, _AS_NAMED if name else _ITSELF, _WANTED, buffer):
        raise failed("statx", name)
    return _STATX(buffer)


def look(fd: int, name: bytes) -> StatxTuple | None:
    """As :func:`statx`; None if there is no such name."""
    buffer = _buffer.statx
    if _statx(fd, name, _AS_NAMED, _WANTED, buffer):
        if get_errno() == errno.ENOENT:
            return None
        raise failed("statx", name)
    return _STATX(buffer)


def openat_beneath(fd: int, name: bytes, flags: int, mode: int = 0) -> int:
    """openat2(2) of what lies in or below ``fd``: no symlink is followed, no mount entered.

    Where the kernel lacks the call (before 5.6), openat(2) of the one name, not followed.

    Raises:
        OSError: EXDEV where it would lead into another mount, ELOOP, and open(2)'s.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    opened = _openat2(fd, name, _OPEN_HOW.pack(flags, mode, _RESOLVE), _OPEN_HOW.size)
    if opened >= 0:
        return opened
    if get_errno() != errno.ENOSYS or b"/" in name or name == b"..":
        raise failed("openat2", name)
    return os.open(name, flags, mode, dir_fd=fd)


def renameat2(old: int, name: bytes, new: int, newname: bytes, flags: int) -> None:
    """renameat2(2): RENAME_NOREPLACE 1, EXCHANGE 2, WHITEOUT 4."""
    if _renameat2(old, name, new, newname, flags):
        raise failed("renameat2", newname)


def link_fd(fd: int, new: int, newname: bytes) -> None:
    """Give an open file a name, be it its first."""
    if _linkat(fd, b"", new, newname, _EMPTY_PATH):
        code = get_errno()
        if code != errno.ENOENT:
            raise failed("linkat", newname)
        # No right to link a descriptor as such. Where /proc is to be seen, its links do.
        if _linkat(-100, b"/proc/self/fd/%d" % fd, new, newname, 0x400):
            raise failed("linkat", newname)


def chown_fd(fd: int, user: int, group: int) -> None:
    """fchownat(2) of the file itself; -1 leaves an id."""
    if _fchownat(fd, b"", user & 0xFFFF_FFFF, group & 0xFFFF_FFFF, _EMPTY_PATH):
        raise failed("fchownat")


def chmod_fd(fd: int, mode: int) -> None:
    """Change the mode of an open file, or of what an O_PATH descriptor is.

    Raises:
        OSError: EOPNOTSUPP for a symlink; ENOSYS for O_PATH before Linux 6.6.
    """
    if _fchmodat2(fd, b"", mode, _EMPTY_PATH):
        if get_errno() != errno.ENOSYS:
            raise failed("fchmodat2")
        try:
            os.fchmod(fd, mode)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            raise OSError(errno.ENOSYS, "fchmodat2: a kernel before Linux 6.6") from None


def utimens_fd(fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) of the file itself: (seconds, nanoseconds, or NOW or OMIT) each."""
    if _utimensat(fd, b"", _TIMES.pack(*atime, *mtime), _EMPTY_PATH):
        raise failed("utimensat")


def syncfs(fd: int) -> None:
    """syncfs(2): make durable all of the filesystem that an open file lies in."""
    if _syncfs(fd):
        raise failed("syncfs")
