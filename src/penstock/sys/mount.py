# SPDX-License-Identifier: Apache-2.0
"""Mounting: the new interface (fsopen, fsconfig, fsmount, move_mount) and the old (mount).

One small function per system call; each raises OSError with the call's name.
"""

from __future__ import annotations

import contextlib
import os

from penstock.abi.mount import (
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    FsconfigCommand,
    MountAttr,
    MountFlag,
    UmountFlag,
)
from penstock.sys.libc import call, syscall

__all__ = [
    "fsconfig_create",
    "fsconfig_flag",
    "fsconfig_string",
    "fsmount",
    "fsopen",
    "fsopen_log",
    "mount",
    "move_mount",
    "umount",
]

AT_FDCWD = -100


def fsopen(fstype: str) -> int:
    """A configuration context for a new superblock (fsopen(2)). The caller closes it."""
    return syscall("fsopen", fstype.encode(), FSOPEN_CLOEXEC)


def fsconfig_flag(fd: int, key: str) -> None:
    """Set a parameter without a value."""
    syscall("fsconfig", fd, FsconfigCommand.SET_FLAG, key.encode(), None, 0)


def fsconfig_string(fd: int, key: str, value: str) -> None:
    """Set a parameter to a string."""
    syscall("fsconfig", fd, FsconfigCommand.SET_STRING,
        key.encode(), os.fsencode(value), 0,
    )  # fmt: skip


def fsconfig_create(fd: int) -> None:
    """Make the superblock."""
    syscall("fsconfig", fd, FsconfigCommand.CMD_CREATE, None, None, 0)


def fsmount(fd: int, attributes: MountAttr) -> int:
    """A detached mount of the superblock; an O_PATH descriptor of its root."""
    return syscall("fsmount", fd, FSMOUNT_CLOEXEC, attributes)


def fsopen_log(fd: int) -> str:
    """The kernel's words about the last failure on a context, joined; empty if it has none."""
    lines = []
    with contextlib.suppress(OSError):
        while line := os.read(fd, 1024):
            lines.append(line.decode(errors="replace").partition(" ")[2].strip())
    return "; ".join(lines)


def move_mount(mount_fd: int, target: int | str) -> None:
    """Attach a detached mount at ``target``, a path or an O_PATH descriptor."""
    if isinstance(target, int):
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        syscall("move_mount", mount_fd, b"", target, b"", flags)
    else:
        syscall("move_mount", mount_fd, b"", AT_FDCWD, os.fsencode(target),
            MOVE_MOUNT_F_EMPTY_PATH, path=target,
        )  # fmt: skip


def mount(source: str, target: str, fstype: str, flags: MountFlag, options: str) -> None:
    """mount(2), for kernels without the new interface."""
    call(
        "mount", os.fsencode(source), os.fsencode(target), fstype.encode(), int(flags),
        os.fsencode(options), path=target,
    )  # fmt: skip


def umount(target: str, flags: UmountFlag = UmountFlag.NOFOLLOW) -> None:
    """umount2(2).

    Raises:
        OSError: EBUSY, EINVAL (not a mount point), EPERM.
    """
    call("umount2", os.fsencode(target), int(flags), path=target)
