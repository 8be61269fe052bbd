# SPDX-License-Identifier: Apache-2.0
"""INIT: what the kernel offers, what we take, and why not the rest.

Two tables hold every bit of the protocol: :data:`SUPPORTED` says when a bit is taken,
:data:`REFUSED` why it never is. A test checks that together they name each bit exactly once.

Facts about INIT (fs/fuse/inode.c, process_init_reply)
    - Bits 32 to 63 of the answer count only together with INIT_EXT.
    - The kernel does not check that a bit was offered; answering others is undefined. So the
      answer is always a subset of the offer.
    - ``max_pages`` counts only together with MAX_PAGES, ``request_timeout`` with REQUEST_TIMEOUT.
    - A minor below ours is the kernel's own, and is answered as it came.
"""

from __future__ import annotations

import enum
import errno
from typing import Final, NamedTuple

from penstock.abi.fuse import KERNEL_MINOR, KERNEL_VERSION, InitFlag, InitIn, InitOut
from penstock.fs import Connection, FsError

__all__ = ["MINIMUM_MINOR", "REFUSED", "SUPPORTED", "Limits", "Profile", "When", "negotiate"]

MINIMUM_MINOR: Final = 31
"""Linux 5.4. Older messages have other layouts (short read_in, mknod_in, …)."""


class When(enum.Enum):
    """Under which condition an offered bit is taken."""

    ALWAYS = "always"
    WANTED = "if the filesystem wants it"
    READDIRPLUS = "if the filesystem has readdirplus"
    LOCKS = "if the filesystem has locks"
    TIMEOUT = "if a request timeout was asked for"
    PASSTHROUGH = "if there is somebody to register backing files"


SUPPORTED: Final[dict[InitFlag, When]] = {
    InitFlag.ASYNC_READ: When.ALWAYS,
    InitFlag.POSIX_LOCKS: When.LOCKS,
    InitFlag.ATOMIC_O_TRUNC: When.WANTED,
    InitFlag.EXPORT_SUPPORT: When.WANTED,
    InitFlag.BIG_WRITES: When.ALWAYS,
    InitFlag.DONT_MASK: When.WANTED,
    InitFlag.SPLICE_WRITE: When.ALWAYS,
    InitFlag.SPLICE_MOVE: When.ALWAYS,
    InitFlag.SPLICE_READ: When.ALWAYS,
    InitFlag.FLOCK_LOCKS: When.LOCKS,
    InitFlag.HAS_IOCTL_DIR: When.ALWAYS,
    InitFlag.AUTO_INVAL_DATA: When.WANTED,
    InitFlag.DO_READDIRPLUS: When.READDIRPLUS,
    InitFlag.READDIRPLUS_AUTO: When.WANTED,
    InitFlag.ASYNC_DIO: When.ALWAYS,
    InitFlag.WRITEBACK_CACHE: When.WANTED,
    InitFlag.NO_OPEN_SUPPORT: When.ALWAYS,
    InitFlag.PARALLEL_DIROPS: When.ALWAYS,
    InitFlag.HANDLE_KILLPRIV: When.WANTED,
    InitFlag.POSIX_ACL: When.WANTED,
    InitFlag.ABORT_ERROR: When.ALWAYS,
    InitFlag.MAX_PAGES: When.ALWAYS,
    InitFlag.CACHE_SYMLINKS: When.WANTED,
    InitFlag.NO_OPENDIR_SUPPORT: When.ALWAYS,
    InitFlag.EXPLICIT_INVAL_DATA: When.WANTED,
    InitFlag.HANDLE_KILLPRIV_V2: When.WANTED,
    InitFlag.SETXATTR_EXT: When.ALWAYS,
    InitFlag.INIT_EXT: When.ALWAYS,
    InitFlag.SECURITY_CTX: When.WANTED,
    InitFlag.CREATE_SUPP_GROUP: When.WANTED,
    InitFlag.HAS_EXPIRE_ONLY: When.ALWAYS,
    InitFlag.DIRECT_IO_ALLOW_MMAP: When.WANTED,
    InitFlag.NO_EXPORT_SUPPORT: When.WANTED,
    InitFlag.HAS_RESEND: When.ALWAYS,
    InitFlag.ALLOW_IDMAP: When.WANTED,
    InitFlag.REQUEST_TIMEOUT: When.TIMEOUT,
    InitFlag.PASSTHROUGH: When.PASSTHROUGH,
}

REFUSED: Final[dict[InitFlag, str]] = {
    InitFlag.FILE_OPS: "reserved by the protocol, never implemented by any kernel",
    InitFlag.MAP_ALIGNMENT: "the DAX window exists on virtiofs only",
    InitFlag.SUBMOUNTS: "virtiofs only",
    InitFlag.INIT_RESERVED: "must never be set",
    InitFlag.HAS_INODE_DAX: "the DAX window exists on virtiofs only",
    InitFlag.OVER_IO_URING: "the transport is /dev/fuse",
    InitFlag.HAS_IO_URING_BUFPOOL: "the transport is /dev/fuse",
}


class Profile(NamedTuple):
    """The filesystem's side of INIT."""

    want: int
    """Bits (:class:`InitFlag`) asked for."""
    refuse: int = 0
    """Bits that must not be taken."""
    has: frozenset[When] = frozenset()
    """Conditions that hold, besides ALWAYS and WANTED."""


class Limits(NamedTuple):
    """What the server's side proposes; the kernel lowers what it has to."""

    max_write: int = 1 << 20
    """Bytes of one WRITE; the size of the read buffers follows from it."""
    max_pages: int = 256
    """Pages of one READ, READDIR or WRITE."""
    max_readahead: int = 1 << 30
    max_background: int = 64
    congestion_threshold: int = 48
    time_gran: int = 1
    request_timeout: int = 0
    """Seconds after which the kernel gives the whole connection up; 0 = never, 15 at least."""
    max_stack_depth: int = 1
    """How deep backing files may be stacked themselves; counts with PASSTHROUGH only."""


def _taken(offered: int, profile: Profile, limits: Limits) -> int:
    taken = 0
    has = profile.has | {When.ALWAYS}
    if limits.request_timeout > 0:
        has |= {When.TIMEOUT}
    for flag, when in SUPPORTED.items():
        if not offered & flag or profile.refuse & flag:
            continue
        if profile.want & flag if when is When.WANTED else when in has:
            taken |= flag
    if taken & InitFlag.PASSTHROUGH:  # fs/fuse/inode.c: they exclude each other
        taken &= ~InitFlag.WRITEBACK_CACHE
    return taken


def negotiate(request: InitIn, limits: Limits, profile: Profile) -> tuple[InitOut, Connection]:
    """Answer INIT.

    Args:
        request: the kernel's offer.
        limits: sizes to ask for.
        profile: what the filesystem asks for.

    Raises:
        FsError: EPROTO if the kernel's protocol cannot be spoken.
    """
    if request.major != KERNEL_VERSION or request.minor < MINIMUM_MINOR:
        raise FsError(
            errno.EPROTO,
            f"the kernel speaks FUSE {request.major}.{request.minor}; "
            f"penstock needs {KERNEL_VERSION}.{MINIMUM_MINOR} or later (Linux 5.4)",
        )
    offered = request.flags | request.flags2 << 32
    taken = _taken(offered, profile, limits)
    if not taken & InitFlag.INIT_EXT:
        taken &= 0xFFFF_FFFF
    minor = min(request.minor, KERNEL_MINOR)
    max_pages = limits.max_pages if taken & InitFlag.MAX_PAGES else 32
    max_readahead = min(limits.max_readahead, request.max_readahead)
    reply = InitOut(
        major=KERNEL_VERSION,
        minor=minor,
        max_readahead=max_readahead,
        flags=taken & 0xFFFF_FFFF,
        max_background=limits.max_background,
        congestion_threshold=limits.congestion_threshold,
        max_write=limits.max_write,
        time_gran=limits.time_gran,
        max_pages=max_pages,
        map_alignment=0,
        flags2=taken >> 32,
        max_stack_depth=limits.max_stack_depth if taken & InitFlag.PASSTHROUGH else 0,
        request_timeout=limits.request_timeout if taken & InitFlag.REQUEST_TIMEOUT else 0,
        unused=bytes(22),
    )
    connection = Connection(
        minor, taken, limits.max_write, max_pages, max_readahead, limits.time_gran
    )
    return reply, connection
