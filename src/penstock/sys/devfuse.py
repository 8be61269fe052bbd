# SPDX-License-Identifier: Apache-2.0
"""/dev/fuse: opening, cloning, synchronous INIT, and who serves a connection."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from penstock.abi.fuse import DEV_IOC_CLONE, DEV_IOC_SYNC_INIT

__all__ = ["DEVICE", "clone", "find_server", "open_device", "sync_init"]

DEVICE = "/dev/fuse"


def open_device(*, nonblock: bool = True) -> int:
    """Open /dev/fuse.

    Raises:
        OSError: ENOENT or ENODEV (no FUSE in this kernel), EACCES (the device's mode).
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_NONBLOCK if nonblock else 0)
    return os.open(DEVICE, flags)


def clone(fd: int) -> int:
    """Another descriptor of the same connection with a request table of its own.

    Args:
        fd: a descriptor that has been mounted.

    Raises:
        OSError: EACCES where the caller may not open the device himself; EPERM, EINVAL.
    """
    new = open_device()
    try:
        fcntl.ioctl(new, DEV_IOC_CLONE, struct.pack("=I", fd))
    except OSError:
        os.close(new)
        raise
    return new


def sync_init(fd: int) -> bool:
    """Ask that mounting waits until INIT is answered (Linux 6.18).

    Then another thread must read the descriptor while this one makes the superblock. Returns
    False where the kernel has no such thing.
    """
    try:
        fcntl.ioctl(fd, DEV_IOC_SYNC_INIT)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return False
        raise
    return True


def find_server(connection: int) -> int | None:
    """The process that serves a connection, as far as the caller may see.

    Told by ``fuse_connection`` in /proc/PID/fdinfo, which kernels of old do not have.

    Args:
        connection: minor device number of the mount.
    """
    wanted = b"fuse_connection:\t%d\n" % connection
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if _is_served(f"/proc/{pid}", fd, wanted):
                    return int(pid)
    return None


def _is_served(process: str, fd: str, wanted: bytes) -> bool:
    try:
        if os.readlink(f"{process}/fd/{fd}") != DEVICE:
            return False
        with open(f"{process}/fdinfo/{fd}", "rb") as file:
            return wanted in file.read(4096)
    except OSError:
        return False
