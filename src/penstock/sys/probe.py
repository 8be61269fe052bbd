# SPDX-License-Identifier: Apache-2.0
"""System calls that find out what the kernel can do. None of them changes anything but the calling
process, and those that change it say so: they are for a child that ends soon.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
import sys
from typing import Final

from penstock.sys.libc import call, syscall

__all__ = [
    "AT_HANDLE_CONNECTABLE",
    "Namespace",
    "clone_file",
    "file_handle_size",
    "idmap_mount",
    "install_empty_filter",
    "io_uring_supported",
    "landlock_abi",
    "measure_verity",
    "mount_private",
    "seccomp_supported",
    "unshare",
]

_FICLONE: Final = 0x4004_9409
_FS_IOC_MEASURE_VERITY: Final = 0xC004_6686
_NR_IO_URING_SETUP: Final = 425
_NR_MOUNT_SETATTR: Final = 442
_NR_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_VERSION: Final = 1
_IORING_SETUP_SQE128: Final = 1 << 10
_IO_URING_PARAMS: Final = 120
_MOUNT_ATTR_IDMAP: Final = 0x0010_0000
_AT_EMPTY_PATH: Final = 0x1000
_AT_FDCWD: Final = -100
_PR_GET_SECCOMP: Final = 21
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_MS_REC_PRIVATE: Final = 0x4000 | 1 << 18
_MAX_HANDLE: Final = 128

AT_HANDLE_CONNECTABLE: Final = 0x2
"""name_to_handle_at(2): the handle also names the parent (Linux 6.13)."""


class Namespace(enum.IntFlag):
    """CLONE_NEW*: kinds of namespaces."""

    MOUNT = 0x0002_0000
    USER = 0x1000_0000


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


class _SockFilter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _SockProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_SockFilter)))


def unshare(namespaces: Namespace) -> None:
    """Give this process namespaces of its own; changes the process for good.

    With a user namespace, it is root in there (its own uid and gid mapped to 0).

    Raises:
        OSError: EPERM, ENOSPC where this is forbidden; EINVAL in a process with threads.
    """
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", int(namespaces))
    if namespaces & Namespace.USER:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def mount_private() -> None:
    """Cut this process's mount namespace off from others, so that no mount made here is seen
    elsewhere. For a process that has unshared it."""
    call("mount", b"none", b"/", None, _MS_REC_PRIVATE, None)


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
    os.close(syscall(_NR_IO_URING_SETUP, "io_uring_setup", 2, parameters))


def landlock_abi() -> int:
    """The version of Landlock.

    Raises:
        OSError: ENOSYS (not in the kernel), EOPNOTSUPP (not switched on at boot).
    """
    return syscall(
        _NR_LANDLOCK_CREATE_RULESET, "landlock_create_ruleset", None, 0, _LANDLOCK_VERSION
    )


def seccomp_supported() -> bool:
    """Whether the kernel has seccomp; the mode of this process is asked for."""
    try:
        call("prctl", _PR_GET_SECCOMP, 0, 0, 0, 0)
    except OSError:
        return False
    return True


def install_empty_filter() -> None:
    """Install a seccomp filter that allows everything; changes the process for good.

    Raises:
        OSError: EINVAL where the kernel has no filters.
    """
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    allow = _SockFilter(0x06, 0, 0, 0x7FFF_0000)
    program = _SockProgram(1, ctypes.pointer(allow))
    call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


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
        _NR_MOUNT_SETATTR, "mount_setattr", mount_fd, b"", _AT_EMPTY_PATH,
        ctypes.byref(attributes), ctypes.sizeof(attributes),
    )  # fmt: skip
