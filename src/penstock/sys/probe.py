# SPDX-License-Identifier: Apache-2.0
"""System calls that find out what the kernel can do. None of them changes anything."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from typing import Final

from penstock.sys.libc import call, syscall

__all__ = [
    "AT_HANDLE_CONNECTABLE",
    "clone_file",
    "file_handle_size",
    "idmap_mount",
    "io_uring_supported",
    "measure_verity",
]

_FICLONE: Final = 0x4004_9409
_FS_IOC_MEASURE_VERITY: Final = 0xC004_6686
_IORING_SETUP_SQE128: Final = 1 << 10
_IO_URING_PARAMS: Final = 120
_MOUNT_ATTR_IDMAP: Final = 0x0010_0000
_AT_EMPTY_PATH: Final = 0x1000
_AT_FDCWD: Final = -100
_MAX_HANDLE: Final = 128

AT_HANDLE_CONNECTABLE: Final = 0x2
"""name_to_handle_at(2): the handle also names the parent (Linux 6.13)."""


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("data", ctypes.c_ubyte * _MAX_HANDLE),
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def clone_file(source: int, target: int) -> None:
    """Make an empty file share all blocks of another (FICLONE).

    Raises:
        OSError: EOPNOTSUPP, EINVAL, EXDEV, ENOTTY where the filesystem cannot.
    """
    fcntl.ioctl(target, _FICLONE, source)


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


def file_handle_size(path: str, flags: int = 0) -> int:
    """Bytes of the handle of a file (name_to_handle_at).

    Args:
        path: a file.
        flags: 0 or :data:`AT_HANDLE_CONNECTABLE`.

    Raises:
        OSError: EOPNOTSUPP (the filesystem has no handles), EINVAL (unknown flag).
    """
    handle = _FileHandle(_MAX_HANDLE, 0)
    mount_id = ctypes.c_int()
    call(
        "name_to_handle_at", _AT_FDCWD, os.fsencode(path), ctypes.byref(handle),
        ctypes.byref(mount_id), flags, path=path,
    )  # fmt: skip
    return int(handle.bytes)


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
