# SPDX-License-Identifier: Apache-2.0
"""What a server says of inodes, and which of it cannot be true."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NamedTuple

from penstock.abi.fuse import STATX_BASIC_STATS, Attr, EntryOut, Statx, SxTime

__all__ = [
    "Found",
    "Listing",
    "Node",
    "checked_attr",
    "checked_node",
    "listed_node",
    "statx_of",
    "without_enosys",
]

_TYPES: Final = {
    stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO,
    stat.S_IFSOCK,
}  # fmt: skip


class Node(NamedTuple):
    """An inode that a name led to. The client holds one lookup count of it for the caller."""

    nodeid: int
    attr: Attr

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.attr.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.attr.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.attr.mode)


class Listing(NamedTuple):
    """One name of a directory; ``node`` is None where only the name came."""

    name: bytes
    ino: int
    type: int
    node: Node | None


class Found(NamedTuple):
    """One file of a tree: its path below the tree's root, in components, and its inode."""

    path: tuple[bytes, ...]
    node: Node


def checked_attr(attr: Attr) -> Attr:
    """Refuse attributes that no inode has.

    Raises:
        OSError: EUCLEAN.
    """
    if stat.S_IFMT(attr.mode) not in _TYPES:
        raise OSError(errno.EUCLEAN, f"an inode of type {stat.S_IFMT(attr.mode):o}")
    if attr.size >= 1 << 63 or max(attr.atimensec, attr.mtimensec, attr.ctimensec) >= 10**9:
        raise OSError(errno.EUCLEAN, "an inode with an impossible size or time")
    return attr


def checked_node(entry: EntryOut) -> Node:
    """The inode of an answer to a lookup.

    Raises:
        OSError: ENOENT for a name that is not there, EUCLEAN for attributes that cannot be.
    """
    if entry.nodeid == 0:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return Node(entry.nodeid, checked_attr(entry.attr))


def listed_node(entry: EntryOut) -> Node | None:
    """The inode of a listed name; None where none came, or one that a lookup had better judge."""
    if entry.nodeid == 0:
        return None
    try:
        return checked_node(entry)
    except OSError:
        return None


def without_enosys(error: OSError) -> OSError:
    """To a server without extended attributes the kernel's answer is EOPNOTSUPP."""
    if error.errno != errno.ENOSYS:
        return error
    return OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def statx_of(attr: Attr) -> Statx:
    """What attributes say, as a Statx without birth time."""

    def time(seconds: int, nanoseconds: int) -> SxTime:
        return SxTime(seconds, nanoseconds, 0)

    return Statx(
        mask=STATX_BASIC_STATS,
        blksize=attr.blksize,
        attributes=0,
        nlink=attr.nlink,
        uid=attr.uid,
        gid=attr.gid,
        mode=attr.mode,
        spare0=0,
        ino=attr.ino,
        size=attr.size,
        blocks=attr.blocks,
        attributes_mask=0,
        atime=time(attr.atime, attr.atimensec),
        btime=time(0, 0),
        ctime=time(attr.ctime, attr.ctimensec),
        mtime=time(attr.mtime, attr.mtimensec),
        rdev_major=(attr.rdev >> 8) & 0xFFF,
        rdev_minor=(attr.rdev & 0xFF) | ((attr.rdev >> 12) & 0xFFF00),
        dev_major=0,
        dev_minor=0,
        spare2=bytes(112),
    )
