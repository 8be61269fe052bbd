# SPDX-License-Identifier: Apache-2.0
"""Taking mounts away, and ending connections, without touching what is mounted.

A mount is known by its id; where it is now, the mount table tells. The kernel takes it away by the
name of its mount point alone, and whoever owns a directory further up may put another, or a
symbolic link, in its place at any time. So the directory of the mount point is opened without
following any link, what is mounted on the name in it is compared with the id, and only then is the
name given up, in that same directory. A name on which something is mounted stays what it is.

The mount itself is never asked: O_PATH sends no request, so whatever hangs behind it cannot hold
anybody here.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from penstock.abi.mount import MountAttr, UmountFlag
from penstock.sys import mount as sysmount
from penstock.sys.beneath import open_directory
from penstock.sys.fusermount import fusermount_unmount
from penstock.sys.mountinfo import MountInfo, mount_id_of, mounts, topmost

__all__ = [
    "abort_connection",
    "detach",
    "find_fuse_mount",
    "take_away",
    "unmount",
]

_ATTEMPTS: Final = 100
"""How often a mount is looked for whose directory is moved meanwhile."""
_MOVED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_CONNECTIONS = "/sys/fs/fuse/connections"


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Take away the mount that is topmost at a path now. Whoever knows which one it must be calls
    :func:`take_away`.

    Args:
        mountpoint: its path, as the mount table has it.
        lazy: out of the tree now, though it may be in use.

    Raises:
        OSError: EBUSY, EINVAL (nothing is mounted there), EPERM.
    """
    entry = topmost(mounts(), mountpoint)
    if entry is None:
        raise OSError(errno.EINVAL, "is not mounted", mountpoint)
    take_away(entry, lazy=lazy)


def take_away(mount: MountInfo, *, lazy: bool = False) -> None:
    """Take away this mount and no other, wherever it is by now: umount2(2), for ordinary users
    fusermount3.

    Args:
        mount: as it was in the mount table; its id and its device count.
        lazy: out of the tree now, though it may be in use.

    Raises:
        OSError: EBUSY (also: another mount covers it), EINVAL (it has gone), EPERM.
    """
    flags = UmountFlag.NOFOLLOW | (UmountFlag.DETACH if lazy else UmountFlag(0))
    for _ in range(_ATTEMPTS):
        table = mounts()
        now = next((entry for entry in table if _same(entry, mount)), None)
        if now is None:
            raise OSError(errno.EINVAL, "is not mounted", mount.mountpoint)
        if any(_covers(entry, now) for entry in table):
            raise OSError(errno.EBUSY, "is covered by another mount", now.mountpoint)
        try:
            if _umount(now, flags):
                return
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            fusermount_unmount(now.mountpoint, lazy=lazy)
            return
    raise OSError(errno.EBUSY, "no path leads to the mount", mount.mountpoint)


def _umount(mount: MountInfo, flags: UmountFlag) -> bool:
    """umount2(2); False where another mount, or none, is what its path leads to."""
    head, name = os.path.split(mount.mountpoint)
    if not name:  # nobody puts anything in the place of the root directory
        sysmount.umount("/", flags)
        return True
    try:
        with contextlib.ExitStack() as stack:
            parent = open_directory(head)
            stack.callback(os.close, parent)
            if _mount_id_at(parent, name) != mount.mount_id:
                return False
            sysmount.umount(f"/proc/self/fd/{parent}/{name}", flags)
    except OSError as error:
        if error.errno in _MOVED:
            return False
        raise OSError(error.errno, error.strerror, mount.mountpoint) from None
    return True


def _mount_id_at(parent: int, name: str) -> int:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        return mount_id_of(fd)
    finally:
        os.close(fd)  # a mount is in use as long as it is open


def _same(entry: MountInfo, other: MountInfo) -> bool:
    ids = (entry.mount_id, entry.major, entry.minor)
    return ids == (other.mount_id, other.major, other.minor)


def _covers(entry: MountInfo, below: MountInfo) -> bool:
    return (
        entry.parent_id == below.mount_id
        and entry.mountpoint == below.mountpoint
        and entry.mount_id != below.mount_id
    )


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
    """Unmount a FUSE mount lazily, wherever it is by now; nothing else.

    Args:
        mount_id: as in the mount table; 0: any at the mount point.
        connection: minor device number.
        mountpoint: where it must be, if its id is 0.

    Returns:
        Whether it was unmounted. False: it has gone, or something covers it.

    Raises:
        OSError: EPERM, or what fusermount3 said.
    """
    entry = find_fuse_mount(mount_id, connection) if mount_id else topmost(mounts(), mountpoint)
    if entry is None or not _is(entry, mount_id, connection):
        return False
    try:
        take_away(entry, lazy=True)
    except OSError as error:
        if error.errno == errno.EBUSY or find_fuse_mount(entry.mount_id, connection) is None:
            return False  # it is covered, or somebody else was faster
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
