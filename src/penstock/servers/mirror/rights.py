# SPDX-License-Identifier: Apache-2.0
"""What a mirror needs to be allowed, right by right, and what it makes of those it has.

A file server that acts for many users needs more than a program that reads an image. This is the
whole of it; the sandbox keeps these capabilities and no others, and lets these system calls pass
beside those that every server makes.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from penstock.abi.capability import Capability
from penstock.servers.mirror.options import MirrorOptions
from penstock.sys.capabilities import effective

__all__ = ["RIGHTS", "SYSTEM_CALLS", "Powers", "Right", "capabilities", "powers"]


class Right(NamedTuple):
    """One capability."""

    capability: Capability
    use: str
    """What it is for."""
    without: str
    """What fails without it."""


RIGHTS: Final = (
    Right(
        Capability.DAC_READ_SEARCH,
        "giving a file made by O_TMPFILE its name; without a sandbox also opening inodes by "
        "handle, which a process of its own does otherwise (penstock.broker.opener)",
        "a file made by O_TMPFILE cannot be given a name",
    ),
    Right(
        Capability.DAC_OVERRIDE,
        "doing what the kernel has found permitted to the caller by groups and ACLs that the "
        "server does not have",
        "callers are refused what their supplementary groups allow",
    ),
    Right(
        Capability.CHOWN,
        "chown by root and by members of the new group",
        "chown fails with EPERM",
    ),
    Right(
        Capability.FOWNER,
        "chmod, times, ACLs and flags by a file's owner, who is not the server's user",
        "they fail with EPERM for files that are not the server's",
    ),
    Right(
        Capability.FSETID,
        "keeping set-group-ID bits that the caller may set; the server clears those that a "
        "write has to clear itself, when the kernel says so",
        "chmod g+s is quietly ignored",
    ),
    Right(Capability.SETUID, "making and writing files as the caller", "all is the server's own"),
    Right(Capability.SETGID, "the same for groups", "files get the server's group"),
    Right(Capability.MKNOD, "device nodes, made by root, and whiteouts", "mknod fails with EPERM"),
    Right(
        Capability.SETFCAP,
        "security.capability, set by a caller who has this capability himself",
        "setcap fails with EPERM",
    ),
    Right(
        Capability.LINUX_IMMUTABLE,
        "chattr +i and +a, by a caller who has this capability himself",
        "chattr +i fails with EPERM",
    ),
)
"""What is kept in any case. What is not: CAP_SYS_RESOURCE, so that quotas and a filesystem's
reserve hold; CAP_MAC_ADMIN, CAP_SYS_CHROOT and all the rest, which no operation needs."""

TRUSTED: Final = Right(
    Capability.SYS_ADMIN,
    "trusted.* and security.* attributes other than security.capability; the kernel asks for this "
    "capability of whoever calls, and has no smaller one",
    "they are not listed, read as absent, and setting them fails with EOPNOTSUPP",
)
"""Kept only where it was asked for (``trusted``): it allows far more than attributes, if not in
a mount namespace that holds nothing else."""

SYSTEM_CALLS: Final = (
    "capset", "copy_file_range", "fallocate", "fchmod", "fchmodat2", "fchownat", "fcntl",
    "fdatasync", "fgetxattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstatfs",
    "fsync", "ftruncate", "getdents64", "getxattrat", "ioctl", "linkat", "listxattrat", "lseek",
    "mkdirat", "mknodat", "name_to_handle_at", "newfstatat", "openat",
    "openat2", "pwrite64", "pwritev2", "readlinkat", "removexattrat", "renameat", "renameat2",
    "setfsgid", "setfsuid", "setgroups", "setxattrat", "statx", "symlinkat", "syncfs",
    "umask", "unlinkat", "utimensat",
)  # fmt: skip
"""What the mirror's operations call, beside memory, threads and the transport's own. Where nobody
else does that for it (in no sandbox): open_by_handle_at too."""


def capabilities(options: MirrorOptions) -> tuple[Capability, ...]:
    """What a server run by root is to keep."""
    kept = tuple(right.capability for right in RIGHTS)
    return (*kept, TRUSTED.capability) if options.trusted else kept


class Powers(NamedTuple):
    """What the process may do."""

    capabilities: frozenset[int]
    """In effect now, to be kept by threads that act as a caller."""

    @property
    def can_become(self) -> bool:
        """Whether files are made as the caller: without all of these it would be half done."""
        needed = (Capability.SETUID, Capability.SETGID, Capability.DAC_OVERRIDE, Capability.FOWNER)
        return os.geteuid() == 0 and all(each in self.capabilities for each in needed)

    @property
    def keeps_set_id(self) -> bool:
        """Whether the kernel leaves set-ID bits alone when this process writes."""
        return Capability.FSETID in self.capabilities

    @property
    def administers(self) -> bool:
        """Whether trusted.* and security.* attributes can be set."""
        return Capability.SYS_ADMIN in self.capabilities


def powers() -> Powers:
    """Ask the kernel."""
    return Powers(effective())
