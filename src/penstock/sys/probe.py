# SPDX-License-Identifier: Apache-2.0
"""System calls that find out what the kernel can do. None of them changes anything."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
from typing import Final

from penstock.sys.libc import call, syscall

__all__ = [
    "clone_range",
    "idmap_mount",
    "io_uring_supported",
    "measure_verity",
    "watch_filesystem",
]

_FICLONERANGE: Final = 0x4020_940D
_CLONE: Final = struct.Struct("=qQQQ")
_FS_IOC_MEASURE_VERITY: Final = 0xC004_6686
_IORING_SETUP_SQE128: Final = 1 << 10
_IO_URING_PARAMS: Final = 120
_MOUNT_ATTR_IDMAP: Final = 0x0010_0000
_AT_EMPTY_PATH: Final = 0x1000
_AT_FDCWD: Final = -100
_FAN_INIT: Final = 0x1 | 0x2 | 0x200 | 0x400 | 0x800
"""FAN_CLOEXEC, FAN_NONBLOCK, FAN_REPORT_FID, FAN_REPORT_DIR_FID, FAN_REPORT_NAME."""
_FAN_EVENTS: Final = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200
"""FAN_MODIFY, FAN_ATTRIB, FAN_MOVED_FROM, FAN_MOVED_TO, FAN_CREATE, FAN_DELETE."""
_FAN_MARK_ADD: Final = 0x1
_FAN_MARK_FILESYSTEM: Final = 0x100


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def clone_range(source: int, target: int, length: int) -> None:
    """Make the beginning of a file share the blocks of another's (FICLONERANGE).

    Args:
        source: open for reading.
        target: open for writing.
        length: bytes, whole blocks.

    Raises:
        OSError: EOPNOTSUPP, EINVAL, EXDEV, ENOTTY where the filesystem cannot.
    """
    fcntl.ioctl(target, _FICLONERANGE, _CLONE.pack(source, 0, length, 0))


def measure_verity(fd: int) -> bool:
    """Whether the file has fs-verity switched on.

    Raises:
        OSError: ENOTTY or EOPNOTSUPP where kernel or filesystem have no fs-verity.
    """
    try:
        fcntl.ioctl(fd, _FS_IOC_MEASURE_VERITY, bytes(2) + (64).to_bytes(2, "little") + bytes(64))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return False
        raise
    return True


def io_uring_supported() -> None:
    """Make a small ring of the kind that FUSE needs, and drop it.

    Raises:
        OSError: ENOSYS (not in the kernel), EPERM (switched off), EINVAL (too old).
    """
    flags = _IORING_SETUP_SQE128.to_bytes(4, sys.byteorder)
    parameters = ctypes.create_string_buffer(bytes(8) + flags, _IO_URING_PARAMS)
    os.close(syscall("io_uring_setup", 2, parameters))


def idmap_mount(mount_fd: int, user_namespace_fd: int) -> None:
    """Map the ids of a detached mount as a user namespace does (mount_setattr).

    Raises:
        OSError: ENOSYS, EINVAL (the filesystem cannot), EPERM.
    """
    attributes = _MountAttr(_MOUNT_ATTR_IDMAP, 0, 0, user_namespace_fd)
    syscall(
        "mount_setattr", mount_fd, b"", _AT_EMPTY_PATH,
        ctypes.byref(attributes), ctypes.sizeof(attributes),
    )  # fmt: skip


def watch_filesystem(path: str, *, whole: bool) -> None:
    """Ask to be told of changes with the names of what has changed (fanotify), and end that.

    Args:
        path: a directory.
        whole: of all of its filesystem, not of the directory alone.

    Raises:
        OSError: ENOSYS, EINVAL (before Linux 5.9), EPERM, ENODEV and EXDEV (a filesystem that
            cannot be watched so).
    """
    fd = call("fanotify_init", _FAN_INIT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = _FAN_MARK_ADD | (_FAN_MARK_FILESYSTEM if whole else 0)
        events = ctypes.c_uint64(_FAN_EVENTS)
        call("fanotify_mark", fd, flags, events, _AT_FDCWD, os.fsencode(path), path=path)
    finally:
        os.close(fd)
