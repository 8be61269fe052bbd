# SPDX-License-Identifier: Apache-2.0
"""Namespaces of one's own, others', and an empty root directory.

All of this changes the calling process for good, and the kernel refuses most of it to a process
with threads.

Facts about namespaces
    - unshare(2) of a time or pid namespace is for children made later. A process with one thread
      may enter its new time namespace by setns(2); a pid namespace it can only be born in.
    - A process's root directory, as others see it in /proc/PID/root, is a path in its own mount
      namespace. It is "/" even after pivot_root(2); only chroot(2) below that changes it.
    - pivot_root(2) fails where the root is the kernel's first one (initramfs).
"""

from __future__ import annotations

import os
from typing import Final

from penstock.abi.mount import MountFlag, UmountFlag
from penstock.abi.process import CloneFlag
from penstock.sys.libc import call
from penstock.sys.mount import mount, umount

__all__ = [
    "EMPTY_ROOT",
    "enter_mount_namespace",
    "enter_time_namespace",
    "make_mounts_private",
    "namespace_ids",
    "pivot_to_empty_root",
    "unshare",
]

EMPTY_ROOT: Final = "/sealed"
"""Where the root directory of a process is in its own mount namespace, after
:func:`pivot_to_empty_root`."""

_MS_REMOUNT: Final = 32
_MS_REC_PRIVATE: Final = 0x4000 | 1 << 18
_PLACE: Final = "/proc"
"""A directory that is there wherever this program runs; a tmpfs covers it for a moment."""


def unshare(namespaces: CloneFlag) -> None:
    """Give this process namespaces of its own (with NEWPID and NEWTIME, its children).

    With a user namespace it is root in there: its own uid and gid are mapped to 0.

    Raises:
        OSError: EPERM, ENOSPC where this is forbidden; EINVAL in a process with threads, or for a
            namespace that this kernel does not have.
    """
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", int(namespaces))
    if namespaces & CloneFlag.NEWUSER:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def enter_time_namespace() -> None:
    """Make a time namespace and enter it.

    Raises:
        OSError: EPERM; EINVAL or ENOENT where the kernel has none; EUSERS in a process with
            threads.
    """
    call("unshare", int(CloneFlag.NEWTIME))
    fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        call("setns", fd, int(CloneFlag.NEWTIME))
    finally:
        os.close(fd)


def enter_mount_namespace(path: str) -> None:
    """Have this process see the mounts of another namespace, and its root as working directory.

    For a process with one thread. What was imported stays; what is imported later comes from there.

    Args:
        path: ``/proc/PID/ns/mnt``, or a file on which one is mounted.

    Raises:
        OSError: there is none at ``path``; EPERM (CAP_SYS_ADMIN and CAP_SYS_CHROOT are needed).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        call("setns", fd, int(CloneFlag.NEWNS), path=path)
    finally:
        os.close(fd)


def namespace_ids() -> dict[str, int]:
    """The inode number of each namespace of this process, by its name in /proc/self/ns.

    Two processes are in the same namespace exactly if they see the same number.
    """
    names = [name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children")]
    return {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in names}


def make_mounts_private() -> None:
    """Cut this process's mount namespace off from others, so that no mount made here is seen
    elsewhere, or the other way round. For a process that has unshared it."""
    call("mount", b"none", b"/", None, _MS_REC_PRIVATE, None)


def pivot_to_empty_root() -> None:
    """Leave this process no file at all: its root and working directory become one empty directory
    that cannot be written to, and all that was mounted goes away.

    For a process in a mount namespace of its own.

    Raises:
        OSError: EPERM; EINVAL where the root cannot be exchanged. The process may then be left
            with /proc covered.
    """
    make_mounts_private()
    safe = MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC
    mount("none", _PLACE, "tmpfs", safe, "size=4k,nr_inodes=2,mode=0")
    os.chdir(_PLACE)
    os.mkdir(EMPTY_ROOT[1:], 0)
    call("pivot_root", b".", b".")  # the old root now covers the new one, and is taken off it
    umount(".", UmountFlag.DETACH)
    flags = int(safe | MountFlag.RDONLY) | _MS_REMOUNT
    call("mount", None, b"/", None, flags, None)
    os.chroot(EMPTY_ROOT)
    os.chdir("/")
