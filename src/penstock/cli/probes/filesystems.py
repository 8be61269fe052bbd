# SPDX-License-Identifier: Apache-2.0
"""Features of other filesystems and of file handles, each tried on something that has no name or
exists only in a child's own mount namespace."""

from __future__ import annotations

import errno
import os
import signal
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from penstock.abi.capability import Capability
from penstock.abi.mount import MountAttr, MountFlag
from penstock.abi.process import CloneFlag
from penstock.cli.probes.base import (
    Finding,
    attempt,
    file_text,
    kernel_config,
)
from penstock.sys import mount as sysmount
from penstock.sys import namespaces, probe
from penstock.sys.capabilities import effective

__all__ = ["erofs_image", "filesystem_findings"]


def filesystem_findings() -> list[Finding]:
    """What concerns filesystems other than FUSE."""
    return [
        *_erofs(),
        _overlay(),
        _verity(),
        _idmapped(),
        _user_mounts(),
    ]


@contextmanager
def _nameless_file(directory: str) -> Iterator[int]:
    """A file without a name on the filesystem of a directory."""
    with tempfile.TemporaryFile(dir=directory) as file:
        yield file.fileno()


# EROFS

_EROFS_BLOCK: Final = 4096


def erofs_image() -> bytes:
    """The smallest EROFS image: a superblock, and an empty root directory in the second block.

    Layout: Linux's Documentation/filesystems/erofs.rst.
    """
    superblock = struct.pack(
        "<IIIBBHQQIIII16s16sI",
        0xE0F5_E1E2, 0, 0, 12, 0, 1, 1, 0, 0, 2, 1, 0, b"", b"", 0,
    )  # fmt: skip
    names = b"." + b".."
    entries = struct.pack("<QHBB", 1, 24, 2, 0) + struct.pack("<QHBB", 1, 25, 2, 0) + names
    # Compact inode, data inline behind it (layout 2), in slot 1 of 32 bytes.
    inode = struct.pack("<HHHHIIIIHHI", 2 << 1, 0, 0o40755, 2, len(entries), 0, 0, 1, 0, 0, 0)
    image = bytearray(2 * _EROFS_BLOCK)
    image[1024 : 1024 + len(superblock)] = superblock
    start = _EROFS_BLOCK + 32
    image[start : start + 32] = inode
    image[start + 32 : start + 32 + len(entries)] = entries
    return bytes(image)


def _erofs() -> list[Finding]:
    listed = "erofs" in (file_text("/proc/filesystems") or "").split()
    built = kernel_config("EROFS_FS")
    kernel = listed or built
    mount_it = "mount -t erofs as root" if kernel else "CONFIG_EROFS_FS"
    plain = Finding(
        "erofs", "EROFS", kernel, bool(kernel) and Capability.SYS_ADMIN in effective(),
        "in /proc/filesystems" if listed else "not in /proc/filesystems",
        "/proc/filesystems, the kernel's configuration", "" if kernel else mount_it,
    )  # fmt: skip
    return [plain, _erofs_on_file()]


def _erofs_on_file() -> Finding:
    title = "EROFS on a file (file-backed)"
    how = "an image of two blocks in a nameless file, made into a detached superblock"
    reasons = []
    refused = False
    for directory in dict.fromkeys(("/var/tmp", os.getcwd(), "/tmp")):  # noqa: S108
        found = attempt(lambda where=directory: _mount_erofs(where))  # type: ignore[misc]
        if not found.reason:
            return Finding("erofs-file", title, True, True, f"works in {directory}", how)
        refused = refused or found.errno == errno.EPERM
        reasons.append(f"{directory}: {found.reason}")
    if refused:
        kernel = kernel_config("EROFS_FS_BACKED_BY_FILE")
        detail = f"{reasons[0]}; CONFIG_EROFS_FS_BACKED_BY_FILE tells the rest"
        return Finding("erofs-file", title, kernel, False, detail, how, "CAP_SYS_ADMIN (root)")
    needs = "Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, and a directory that is not on tmpfs"
    return Finding("erofs-file", title, False, False, "; ".join(reasons), how, needs)


def _mount_erofs(directory: str) -> bool:
    with _nameless_file(directory) as fd:
        os.write(fd, erofs_image())
        context = sysmount.fsopen("erofs")
        sysmount.fsconfig_string(context, "source", f"/proc/self/fd/{fd}")
        sysmount.fsconfig_flag(context, "ro")
        sysmount.fsconfig_create(context)
    return True


# overlayfs, mounts by users


def _namespaces() -> CloneFlag:
    mount = CloneFlag.NEWNS
    return mount if Capability.SYS_ADMIN in effective() else mount | CloneFlag.NEWUSER


def _tmpfs_over_tmp() -> None:
    """In namespaces of its own: an empty tmpfs on /tmp."""
    namespaces.unshare(_namespaces())
    namespaces.make_mounts_private()
    sysmount.mount("none", "/tmp", "tmpfs", MountFlag(0), "size=1m")  # noqa: S108


def _overlay() -> Finding:
    title = "overlayfs"
    how = "mounted on a tmpfs, in a mount namespace of its own"

    def trial() -> bool:
        _tmpfs_over_tmp()
        for name in "lower", "upper", "work", "merged":
            os.mkdir(f"/tmp/{name}")  # noqa: S108
        options = "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work,userxattr"
        sysmount.mount("none", "/tmp/merged", "overlay", MountFlag(0), options)  # noqa: S108
        return True

    found = attempt(trial)
    if not found.reason:
        return Finding("overlayfs", title, True, True, "works", how)
    listed = "overlay" in (file_text("/proc/filesystems") or "").split()
    kernel = True if listed else kernel_config("OVERLAY_FS")
    return Finding(
        "overlayfs",
        title,
        kernel,
        False,
        found.reason,
        how,
        "modprobe overlay; root or user namespaces",
    )


def _user_mounts() -> Finding:
    title = "mounts by ordinary users"
    how = "a tmpfs mounted in a user and mount namespace of its own"

    def trial() -> bool:
        namespaces.unshare(CloneFlag.NEWNS | CloneFlag.NEWUSER)
        namespaces.make_mounts_private()
        sysmount.mount("none", "/tmp", "tmpfs", MountFlag(0), "size=1m")  # noqa: S108
        return True

    found = attempt(trial)
    if not found.reason:
        return Finding("user-mounts", title, True, True, "works", how)
    kernel = kernel_config("USER_NS")
    return Finding(
        "user-mounts", title, kernel, False, found.reason, how, "user namespaces, see there"
    )


def _verity() -> Finding:
    title, place = "fs-verity in the current directory", os.getcwd()
    how = "ioctl FS_IOC_MEASURE_VERITY on a nameless file"

    def trial() -> None:
        with _nameless_file(place) as fd:
            probe.measure_verity(fd)

    found = attempt(trial)
    if not found.reason:
        return Finding("fs-verity", title, True, True, f"known in {place}", how)
    kernel = kernel_config("FS_VERITY")
    needs = "a kernel with CONFIG_FS_VERITY" if kernel is False else (
        "a filesystem with fs-verity (ext4: tune2fs -O verity; Btrfs; F2FS)"
    )  # fmt: skip
    return Finding("fs-verity", title, kernel, False, f"{place}: {found.reason}", how, needs)


def _idmapped() -> Finding:
    title = "idmapped mounts"
    how = "a detached tmpfs given a user namespace's ids with mount_setattr"

    def trial() -> bool:
        if Capability.SYS_ADMIN not in effective():
            namespaces.unshare(CloneFlag.NEWUSER | CloneFlag.NEWNS)
        context = sysmount.fsopen("tmpfs")
        sysmount.fsconfig_create(context)
        mount_fd = sysmount.fsmount(context, MountAttr(0))
        probe.idmap_mount(mount_fd, _other_user_namespace())
        return True

    found = attempt(trial)
    if not found.reason:
        return Finding("idmapped-mounts", title, True, True, "works on tmpfs", how)
    kernel = None if found.errno == errno.EPERM else False
    return Finding(
        "idmapped-mounts", title, kernel, False, found.reason, how, "Linux 6.3 and CAP_SYS_ADMIN"
    )


def _other_user_namespace() -> int:
    """A descriptor of a new user namespace with a mapping."""
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.unshare(CloneFlag.NEWUSER)
            os.write(ready_write, b"x")
            signal.pause()
        finally:
            os._exit(0)
    os.close(ready_write)
    if not os.read(ready_read, 1):
        raise OSError(errno.EPERM, "no user namespace could be made")
    try:
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
