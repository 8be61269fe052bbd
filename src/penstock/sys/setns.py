# SPDX-License-Identifier: Apache-2.0
"""setns(2): going over into a namespace that exists."""

from __future__ import annotations

import os

from penstock.abi.process import CloneFlag
from penstock.sys.libc import call

__all__ = ["enter_mount_namespace"]


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
