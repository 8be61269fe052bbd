# SPDX-License-Identifier: Apache-2.0
"""A tree with all that can be asked of it, read by penstock or through a mount, to be compared."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from penstock.formats.ext4.reader import Ext4Reader

__all__ = ["Facts", "mounted_tree", "reader_tree"]


class Facts(NamedTuple):
    """Everything about one file but its name. Times in nanoseconds since 1970."""

    ino: int
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    blocks512: int
    rdev: int
    atime: int
    mtime: int
    ctime: int
    xattrs: dict[bytes, bytes]
    content: str
    """SHA-256 of a regular file, target of a symlink."""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reader_tree(reader: Ext4Reader) -> dict[bytes, Facts]:
    """The tree of an image by path; also checks that listing and lookup agree."""
    tree: dict[bytes, Facts] = {}
    pending = [(b"/", 2)]
    while pending:
        path, ino = pending.pop()
        inode = reader.inode(ino)
        content = ""
        if inode.is_symlink:
            content = os.fsdecode(reader.readlink(inode))
        elif stat.S_ISREG(inode.mode):
            content = _digest(reader.read(inode, 0, inode.size))
        elif inode.is_dir:
            for record in reader.readdir(inode):
                if record.name not in {b".", b".."}:
                    assert reader.lookup(inode, record.name) == record.ino, (path, record)
                    pending.append((path.rstrip(b"/") + b"/" + record.name, record.ino))
                    assert record.type in {0, reader.inode(record.ino).mode >> 12}, (path, record)
        major, minor = inode.rdev >> 8 & 0xFFF, (inode.rdev & 0xFF) | (inode.rdev >> 12 & ~0xFF)
        tree[path] = Facts(
            ino=ino,
            mode=inode.mode,
            links=inode.links,
            uid=inode.uid,
            gid=inode.gid,
            size=inode.size,
            blocks512=inode.blocks512,
            rdev=os.makedev(major, minor),
            atime=inode.atime * 10**9 + inode.atimensec,
            mtime=inode.mtime * 10**9 + inode.mtimensec,
            ctime=inode.ctime * 10**9 + inode.ctimensec,
            xattrs=reader.xattrs(inode),
            content=content,
        )
    return tree


def mounted_tree(top: Path) -> dict[bytes, Facts]:
    """The tree below a mount point by path (``/`` is the mount point)."""
    tree: dict[bytes, Facts] = {}
    pending = [b"/"]
    base = os.fsencode(top)
    while pending:
        path = pending.pop()
        full = base + path
        st = os.lstat(full)
        content = ""
        if stat.S_ISLNK(st.st_mode):
            content = os.fsdecode(os.readlink(full))
        elif stat.S_ISREG(st.st_mode):
            with open(full, "rb") as file:
                content = _digest(file.read())
        elif stat.S_ISDIR(st.st_mode):
            pending += [path.rstrip(b"/") + b"/" + name for name in os.listdir(full)]
        names = [os.fsencode(name) for name in os.listxattr(full, follow_symlinks=False)]
        tree[path] = Facts(
            ino=st.st_ino,
            mode=st.st_mode,
            links=st.st_nlink,
            uid=st.st_uid,
            gid=st.st_gid,
            size=st.st_size,
            blocks512=st.st_blocks,
            rdev=st.st_rdev,
            atime=st.st_atime_ns,
            mtime=st.st_mtime_ns,
            ctime=st.st_ctime_ns,
            xattrs={name: os.getxattr(full, name, follow_symlinks=False) for name in names},
            content=content,
        )
    return tree
