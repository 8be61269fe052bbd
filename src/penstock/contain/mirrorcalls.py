# SPDX-License-Identifier: Apache-2.0
"""The system calls of the server of a directory: which it may make, and why.

It is the table of servers of images (:mod:`penstock.contain.imagecalls`), and besides what works on
files beneath a directory. A filter sees no paths: that they lead nowhere else is for Landlock and,
as root, for the empty root directory. What works on a descriptor works on any that it holds, so it
is given none whose node could be changed (:mod:`penstock.sys.tree`).

An ordinary user's server never changes its identity. None opens anything by handle: with the
capability that this takes every file of the filesystem can be opened, past Landlock too
(:mod:`penstock.broker.opener` says how, and does it instead).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from penstock.contain.filter import Argument, Entry, each
from penstock.contain.imagecalls import ALLOWED, KILLED, REFUSED

__all__ = ["MIRROR_CALLS", "OF_A_USER_CALLS"]

_F_GETFD, _F_GETFL, _F_SETFL, _F_GETPIPE_SZ, _F_DUPFD_CLOEXEC = 1, 3, 4, 1032, 1030
_F_OFD_LOCKS: Final = (36, 37, 38)
_O_ASYNC: Final = 0x2000
_FICLONE, _FICLONERANGE = 0x4004_9409, 0x4020_940D
_GETFLAGS, _SETFLAGS, _GETVERSION = 0x8008_6601, 0x4008_6602, 0x8008_7601
_FSGETXATTR, _FSSETXATTR = 0x801C_581F, 0x401C_5820
_IOCTLS: Final = (
    _FICLONE, _FICLONERANGE, _GETFLAGS, _SETFLAGS, _GETVERSION, _FSGETXATTR, _FSSETXATTR,
)  # fmt: skip

_FILES: Final = (
    Entry("openat", "files of the directory, by handle's parent and name"),
    Entry("openat2", "files of the directory, with the kernel's word that no name leads out of it"),
    *each("newfstatat statx fstat", "attributes"),
    *each("getdents64", "names in a directory"),
    *each("readlinkat", "where a symbolic link leads, for the caller to follow"),
    *each("fstatfs", "how large and how full the filesystem is"),
    *each("mkdirat mknodat symlinkat linkat", "new names"),
    *each("unlinkat renameat renameat2", "names that go, or change"),
    *each("fchmod fchmodat2 fchownat utimensat", "mode, owner and times"),
    *each("ftruncate fallocate", "size, space and holes"),
    *each("pwrite64 pwritev2 copy_file_range", "content"),
    *each("getrlimit", "how many descriptors there are"),
    Entry(
        "prlimit64",
        "the same; none is changed",
        ((Argument(0, (0,), "its own"), Argument(2, (0,), "no new limit", wide=True)),),
    ),
    *each("fsync fdatasync syncfs", "what must not be lost"),
    *each(
        "fgetxattr fsetxattr flistxattr fremovexattr getxattrat setxattrat listxattrat "
        "removexattrat",
        "extended attributes and ACLs",
    ),
    *each("flock", "locks of whole files, on behalf of their owners"),
    *each("capget", "which rights it has, so what it can promise"),
    *each(
        "name_to_handle_at",
        "what tells an inode from another; it opens nothing: that the opener does, beneath the "
        "directory (open_by_handle_at is killed: it would open any file of the filesystem)",
    ),
    *each("umask", "modes of new files come from the kernel as they are to be"),
    Entry(
        "ioctl",
        "shared extents, inode flags and project ids; no device is ever opened",
        ((Argument(1, _IOCTLS, "command: FICLONE, FICLONERANGE, FS_IOC_GETFLAGS, SETFLAGS, "
                   "GETVERSION, FSGETXATTR, FSSETXATTR"),),),
    ),
    Entry(
        "fcntl",
        "how a descriptor is open; a copy of one; locks of ranges, on behalf of their owners",
        (
            (
                Argument(
                    1,
                    (_F_GETFD, _F_GETFL, _F_GETPIPE_SZ, _F_DUPFD_CLOEXEC, *_F_OFD_LOCKS),
                    "command: GETFD, GETFL, GETPIPE_SZ, DUPFD_CLOEXEC, OFD_GETLK, OFD_SETLK, "
                    "OFD_SETLKW",
                ),
            ),
            (
                Argument(1, (_F_SETFL,), "command: SETFL"),
                Argument(2, (0,), "flags: not ASYNC", mask=_O_ASYNC),
            ),
        ),
    ),
)  # fmt: skip

_FOR_OTHERS: Final = (
    *each(
        "setfsuid setfsgid setgroups capset",
        "what a caller makes is made as that caller; no capability comes back but a permitted one",
    ),
)


def _table(added: Iterable[Entry]) -> tuple[Entry, ...]:
    """The table of servers of images, with these in the place of what is said of them there."""
    new = tuple(added)
    named = {entry.name for entry in new}

    def others(entries: Iterable[Entry]) -> Iterable[Entry]:
        return (entry for entry in entries if entry.name not in named)

    return (*others(ALLOWED), *new, *others(REFUSED), *others(KILLED))


MIRROR_CALLS: Final = _table((*_FILES, *_FOR_OTHERS))
"""As root, for many users."""
OF_A_USER_CALLS: Final = _table(_FILES)
"""As an ordinary user, with that user's rights."""
