# SPDX-License-Identifier: Apache-2.0
"""/dev/fuse: opening, cloning, synchronous INIT, and who serves a connection."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Collection, Iterator
from typing import Final

from penstock.abi.fuse import DEV_IOC_CLONE, DEV_IOC_SYNC_INIT
from penstock.abi.process import FIRST_PID_NAMESPACE
from penstock.sys.tree import open_unchangeable

__all__ = [
    "DEVICE",
    "clone",
    "connection_of",
    "find_server",
    "open_device",
    "sync_init",
    "unserved",
]

DEVICE = "/dev/fuse"


_INIT: Final = "1"
"""Serves no filesystem. There are machines whose first process not even root may look at."""


def open_device(*, nonblock: bool = True) -> int:
    """Open /dev/fuse.

    Raises:
        OSError: ENOENT or ENODEV (no FUSE in this kernel), EACCES (the device's mode).
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_NONBLOCK if nonblock else 0)
    return os.open(DEVICE, flags)


def clone(fd: int) -> int:
    """Another descriptor of the same connection with a request table of its own, for a server:
    the device's node cannot be changed through it.

    Args:
        fd: a descriptor that has been mounted.

    Raises:
        OSError: EACCES where the caller may not open the device himself; EPERM, EINVAL.
    """
    new = open_unchangeable(DEVICE, os.O_RDWR | os.O_NONBLOCK)
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


def connection_of(fd: int) -> int | None:
    """The number of a descriptor's connection, before anything is attached; None if it has none
    yet, or the kernel does not say."""
    try:
        return next(iter(_connection(f"/proc/self/fdinfo/{fd}")))
    except OSError:
        return None


def find_server(connection: int) -> int | None:
    """The process that serves a connection, as far as the caller may see.

    Told by ``fuse_connection`` in /proc/PID/fdinfo, which kernels of old do not have.

    Args:
        connection: minor device number of the mount.
    """
    for pid in _processes():
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if connection in _connections(pid):
                return int(pid)
    return None


def unserved(connections: Collection[int]) -> set[int]:
    """Those of ``connections`` of which it is certain that no process serves them.

    That takes sight of all processes there are: root in the first pid namespace. To others, and on
    a kernel that does not say which connection a descriptor belongs to, nothing is certain.

    Args:
        connections: minor device numbers of mounts.
    """
    left = set(connections)
    if not left or not _sees_all_processes():
        return set()
    for pid in _processes():
        try:
            found = _connections(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            if pid == _INIT:
                continue
            return set()
        if None in found:
            return set()
        left -= found
    return left


def _processes() -> Iterator[str]:
    return filter(str.isdecimal, os.listdir("/proc"))


def _sees_all_processes() -> bool:
    try:
        return os.geteuid() == 0 and os.stat("/proc/self/ns/pid").st_ino == FIRST_PID_NAMESPACE
    except OSError:
        return False


def _connections(pid: str) -> set[int | None]:
    """The connections of a process's descriptors; None stands for one that does not say which.

    Raises:
        OSError: the process has ended, or is not the caller's to look at.
    """
    found: set[int | None] = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        # The path is as the caller sees it: a /dev of another mount namespace may lack its name.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # closed meanwhile
            if os.readlink(f"/proc/{pid}/fd/{fd}").endswith("/fuse"):
                found |= _connection(f"/proc/{pid}/fdinfo/{fd}")
    return found


def _connection(fdinfo: str) -> set[int | None]:
    with open(fdinfo, "rb") as file:
        lines = file.read(4096).split(b"\n")
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"fuse_connection":
            return {int(value)}
    return {None}
