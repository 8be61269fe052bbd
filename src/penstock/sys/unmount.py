# SPDX-License-Identifier: Apache-2.0
"""Taking mounts away, and ending connections, without touching what is mounted.

A mount is given up by the path of its mount point, since the kernel has no other way; so what lies
there is compared with the mount table first, and the path itself is never looked up: whatever hangs
behind it cannot hold anybody here.
"""

from __future__ import annotations

import contextlib
import errno
import os

from penstock.abi.mount import MountAttr, UmountFlag
from penstock.sys import mount as sysmount
from penstock.sys.fusermount import fusermount_unmount
from penstock.sys.mountinfo import MountInfo, mounts, topmost

__all__ = ["abort_connection", "detach", "find_fuse_mount", "unmount"]

_CONNECTIONS = "/sys/fs/fuse/connections"


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Take away the topmost mount at a path: umount2(2), for ordinary users fusermount3.

    Args:
        mountpoint: its path, as the mount table has it.
        lazy: out of the tree now, though it may be in use.

    Raises:
        OSError: EBUSY, EINVAL (nothing is mounted there), EPERM.
    """
    flags = UmountFlag.NOFOLLOW | (UmountFlag.DETACH if lazy else UmountFlag(0))
    try:
        sysmount.umount(mountpoint, flags)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        fusermount_unmount(mountpoint, lazy=lazy)


def find_fuse_mount(mount_id: int, connection: int) -> MountInfo | None:
    """The FUSE mount with an id and a connection, wherever it is; None if it has gone.

    Args:
        mount_id: as in the mount table; 0: any. It is used again for later mounts, hence the
            connection.
        connection: minor device number.
    """
    for entry in mounts():
        if _is(entry, mount_id, connection):
            return entry
    return None


def detach(mount_id: int, connection: int, mountpoint: str) -> bool:
    """Unmount lazily if a mount is still what is topmost at its mount point; nothing else.

    Args:
        mount_id: as in the mount table; 0: any.
        connection: minor device number.
        mountpoint: where it must be.

    Returns:
        Whether it was unmounted. False: it has gone, was moved, or something covers it.

    Raises:
        OSError: EPERM, or what fusermount3 said.
    """
    entry = topmost(mounts(), mountpoint)
    if entry is None or not _is(entry, mount_id, connection):
        return False
    try:
        unmount(mountpoint, lazy=True)
    except OSError:
        if find_fuse_mount(mount_id, connection) is None:
            return False  # somebody else was faster
        raise
    return True


def abort_connection(connection: int) -> bool:
    """End a connection through fusectl: all its requests fail, also those that a server has read.

    Where fusectl is not mounted, root looks at it through a mount of its own that is attached
    nowhere.

    Returns:
        False where the caller may not, or there is no such connection.
    """
    with contextlib.suppress(OSError):
        _write_abort(f"{_CONNECTIONS}/{connection}/abort", None)
        return True
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        context = sysmount.fsopen("fusectl")
        stack.callback(os.close, context)
        sysmount.fsconfig_create(context)
        top = sysmount.fsmount(context, MountAttr(0))
        stack.callback(os.close, top)
        _write_abort(f"{connection}/abort", top)
        return True
    return False


def _write_abort(path: str, top: int | None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=top)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def _is(entry: MountInfo, mount_id: int, connection: int) -> bool:
    return (
        mount_id in {0, entry.mount_id}
        and (entry.major, entry.minor) == (0, connection)
        and entry.fstype.startswith("fuse")
    )
