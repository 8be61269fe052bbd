# SPDX-License-Identifier: Apache-2.0
"""What exists: attributes of inodes, directory entries, statistics of a filesystem.

These are the kernel's own structures (``struct fuse_attr``, ``fuse_entry_out``, …) as tuples, so
that a reply is packed without a conversion; the constructors take friendlier units.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from penstock.abi.fuse import Attr, EntryOut, Kstatfs
from penstock.fs.data import WholeFile
from penstock.fs.types import FileHandle

__all__ = [
    "ENDLESS",
    "Attributes",
    "DirEntry",
    "Entry",
    "OpenReply",
    "SetAttr",
    "StatFs",
    "StatxReply",
    "split_timeout",
]

ENDLESS: Final = float(0xFFFF_FFFF)
"""A timeout in seconds that never comes: for what cannot change while mounted."""

_NSEC: Final = 1_000_000_000


def split_timeout(seconds: float) -> tuple[int, int]:
    """A timeout as the (seconds, nanoseconds) of the wire."""
    whole = int(seconds)
    return whole, int((seconds - whole) * _NSEC)


class Attributes(Attr):
    """``struct fuse_attr``: sizes in bytes, ``blocks`` in 512-byte units, times split in seconds
    (signed) and nanoseconds. ``mode`` includes the file type (``stat.S_IFREG`` …)."""

    __slots__ = ()

    @classmethod
    def make(
        cls,
        ino: int,
        mode: int,
        *,
        size: int = 0,
        blocks: int | None = None,
        nlink: int = 1,
        uid: int = 0,
        gid: int = 0,
        rdev: int = 0,
        blksize: int = 4096,
        atime_ns: int = 0,
        mtime_ns: int = 0,
        ctime_ns: int = 0,
        flags: int = 0,
    ) -> Attributes:
        """Build from nanosecond times; ``blocks`` defaults to what ``size`` needs.

        ``rdev`` is in the kernel's encoding (``os.makedev`` gives it for small numbers).
        """
        atime, atimensec = divmod(atime_ns, _NSEC)
        mtime, mtimensec = divmod(mtime_ns, _NSEC)
        ctime, ctimensec = divmod(ctime_ns, _NSEC)
        if blocks is None:
            blocks = (size + 511) // 512
        return cls(
            ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
            mode, nlink, uid, gid, rdev, blksize, flags,
        )  # fmt: skip

    @property
    def atime_ns(self) -> int:
        return self.atime * _NSEC + self.atimensec

    @property
    def mtime_ns(self) -> int:
        return self.mtime * _NSEC + self.mtimensec

    @property
    def ctime_ns(self) -> int:
        return self.ctime * _NSEC + self.ctimensec


class Entry(EntryOut):
    """``struct fuse_entry_out``: an inode found or made under a name.

    Each one that reaches the kernel adds one to the kernel's lookup count of ``nodeid``; the
    session keeps the count and calls ``forget`` when it ends. ``nodeid`` 0 with an entry timeout
    is a cached "no such name".
    """

    __slots__ = ()

    @classmethod
    def make(
        cls,
        nodeid: int,
        attr: Attributes,
        *,
        generation: int = 0,
        entry_timeout: float = 1.0,
        attr_timeout: float = 1.0,
    ) -> Entry:
        """Build from timeouts in seconds."""
        entry, entry_nsec = split_timeout(entry_timeout)
        valid, valid_nsec = split_timeout(attr_timeout)
        return cls(nodeid, generation, entry, valid, entry_nsec, valid_nsec, attr)


class DirEntry(NamedTuple):
    """One name in a directory."""

    name: bytes
    ino: int
    """The ``d_ino`` shown by READDIR. (READDIRPLUS shows the entry's.)"""
    offset: int
    """Cookie of the position *after* this entry: where a later ``readdir`` goes on. Must stay
    valid while the directory is open, whatever is created or removed; never 0."""
    type: int
    """DT_* (``(mode >> 12) & 15``)."""


class StatFs(Kstatfs):
    """``struct fuse_kstatfs``: counts in units of ``frsize`` bytes."""

    __slots__ = ()

    @classmethod
    def make(
        cls,
        *,
        blocks: int = 0,
        bfree: int = 0,
        bavail: int = 0,
        files: int = 0,
        ffree: int = 0,
        bsize: int = 4096,
        namelen: int = 255,
        frsize: int = 0,
    ) -> StatFs:
        return cls(
            blocks, bfree, bavail, files, ffree, bsize, namelen, frsize or bsize, 0, bytes(24)
        )


class OpenReply(NamedTuple):
    """Answer to open, create, opendir, tmpfile."""

    fh: FileHandle
    flags: int = 0
    """FOPEN_* (:class:`penstock.abi.fuse.FOpen`); for when READ and WRITE will come."""
    backing_id: int = 0
    whole: WholeFile | None = None
    """Where the file lies, if the kernel may carry its data; the session decides, and fills in
    ``flags`` and ``backing_id`` then."""


class SetAttr(NamedTuple):
    """What a setattr changes: None = leave. Times in nanoseconds; the string ``"now"`` means the
    server's present time."""

    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    atime_ns: int | str | None
    mtime_ns: int | str | None
    ctime_ns: int | None
    fh: FileHandle | None
    lock_owner: int | None
    kill_suidgid: bool


class StatxReply(NamedTuple):
    """What statx adds to attributes."""

    attr: Attributes
    btime_ns: int | None = None
    """Birth time, None = not known."""
    attributes: int = 0
    """STATX_ATTR_* bits that are set …"""
    attributes_mask: int = 0
    """… of these that the filesystem knows."""
