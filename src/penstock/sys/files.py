# SPDX-License-Identifier: Apache-2.0
"""System calls on files that Python's ``os`` lacks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from penstock.sys.libc import call

__all__ = [
    "IMAGE_FLAGS",
    "Dirent",
    "birth_time_ns",
    "fallocate",
    "getdents",
    "kind_and_mount",
    "large_pipe",
    "link_descriptor",
    "opened_again",
    "rename2",
]

_AT_FDCWD: Final = -100
_AT_SYMLINK_FOLLOW: Final = 0x400
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_TYPE: Final = 0x1
_STATX_BTIME: Final = 0x800
_STATX_SIZE: Final = 256
_STATX_MNT_ID: Final = 0x1000
_KIND_AND_MOUNT: Final = struct.Struct("<I24xH114xQ")
_STATX_BTIME_OFFSET: Final = 80
_DIRENT: Final = struct.Struct("<QqHB")
_PIPE_SIZES: Final = (2 << 20, 1 << 20)

IMAGE_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""How an image is opened: whatever has been put in its place, that does not wait or take over."""


def rename2(old: str | os.PathLike[str], new: str | os.PathLike[str], flags: int) -> None:
    """renameat2(2): RENAME_NOREPLACE 1, EXCHANGE 2, WHITEOUT 4."""
    source, target = os.fsencode(old), os.fsencode(new)
    call("renameat2", _AT_FDCWD, source, _AT_FDCWD, target, flags, path=target)


def link_descriptor(fd: int, new: str | os.PathLike[str]) -> None:
    """linkat(2) of an open file, by its link in /proc. (os.link does not follow it.)"""
    source = f"/proc/self/fd/{fd}".encode()
    target = os.fsencode(new)
    call("linkat", _AT_FDCWD, source, _AT_FDCWD, target, _AT_SYMLINK_FOLLOW, path=target)


@contextlib.contextmanager
def opened_again(fd: int, flags: int) -> Iterator[int]:
    """The same file, opened for somebody else: position and flags belong to what was opened, and
    what one does to them is not to concern another. The same descriptor where that is refused."""
    try:
        again = os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        yield fd
        return
    try:
        yield again
    finally:
        os.close(again)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2): FALLOC_FL_* in ``mode``, offset and length in bytes."""
    call("fallocate", fd, mode, ctypes.c_long(offset), ctypes.c_long(length))


def kind_and_mount(fd: int) -> tuple[int, int]:
    """What an open file is (S_IFREG and its like), and the number of the mount that it was found
    in (0 before Linux 5.8), without asking whoever keeps it: where fstat(2) would send a request to
    a server, this tells what was known last.

    Raises:
        OSError: EINVAL where it is not known.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    call("statx", fd, b"", flags, _STATX_TYPE | _STATX_MNT_ID, buffer)
    mask, mode, mount = _KIND_AND_MOUNT.unpack_from(buffer)
    if not mask & _STATX_TYPE:
        raise OSError(errno.EINVAL, "statx: the file's kind is not known")
    return stat.S_IFMT(mode), mount if mask & _STATX_MNT_ID else 0


def birth_time_ns(path: str | os.PathLike[str]) -> int | None:
    """The time of birth by statx(2), nanoseconds; None if the filesystem does not say."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    where = os.fsencode(path)
    call("statx", _AT_FDCWD, where, 0, _STATX_BTIME, buffer, path=where)
    (mask,) = struct.unpack_from("<I", buffer)
    seconds, nanoseconds = struct.unpack_from("<qI", buffer, _STATX_BTIME_OFFSET)
    return int(seconds) * 1_000_000_000 + int(nanoseconds) if mask & _STATX_BTIME else None


def large_pipe() -> tuple[int, int]:
    """The read and the write end of a pipe of 2 MiB that does not block.

    Above ``/proc/sys/fs/pipe-max-size`` (1 MiB) this needs CAP_SYS_RESOURCE; without it the pipe
    has 1 MiB, or the usual size where the user has too many already.
    """
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    for size in _PIPE_SIZES:
        with contextlib.suppress(OSError):
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, size)
            break
    return ends


class Dirent(NamedTuple):
    """One record of getdents64(2)."""

    name: bytes
    ino: int
    next: int
    """Position after this entry, for lseek(2)."""
    type: int


def getdents(fd: int, size: int = 4096) -> list[Dirent]:
    """getdents64(2): the next entries of an open directory, as many as fit into ``size`` bytes."""
    buffer = ctypes.create_string_buffer(size)
    filled = call("getdents64", fd, buffer, ctypes.c_size_t(size))
    entries: list[Dirent] = []
    offset = 0
    while offset < filled:
        ino, following, length, kind = _DIRENT.unpack_from(buffer, offset)
        name = buffer.raw[offset + _DIRENT.size : offset + length].split(b"\0", 1)[0]
        entries.append(Dirent(name, ino, following, kind))
        offset += length
    return entries
