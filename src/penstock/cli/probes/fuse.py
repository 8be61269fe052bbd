# SPDX-License-Identifier: Apache-2.0
"""Features of FUSE: most are in what the kernel offers in INIT, some can be tried out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from typing import Any, Final

from penstock.abi.fuse import InitFlag
from penstock.cli.errors import explain
from penstock.cli.probes.base import (
    Attempt,
    Finding,
    attempt,
    file_text,
    kernel_symbol,
)
from penstock.cli.probes.connection import sync_init_supported
from penstock.sys import mount as sysmount
from penstock.sys.devfuse import DEVICE
from penstock.sys.fusermount import find_fusermount
from penstock.sys.probe import io_uring_supported

__all__ = ["fuse_findings"]

_ENABLE_URING: Final = "/sys/module/fuse/parameters/enable_uring"
_MAX_PAGES: Final = "/proc/sys/fs/fuse/max_pages_limit"


_BITS: Final = (
    ("request-timeout", "request timeouts", InitFlag.REQUEST_TIMEOUT, "6.14"),
    ("resend", "resending requests", InitFlag.HAS_RESEND, "6.9"),
    ("fuse-idmap", "idmapped FUSE mounts", InitFlag.ALLOW_IDMAP, "6.12"),
)
"""Features that a bit in INIT tells all about: name, title, bit, Linux version."""


def fuse_findings(connection: Attempt, offer: Mapping[str, Any], how: str) -> list[Finding]:
    """What concerns FUSE itself, but for its data paths.

    Args:
        connection: how the trial of a connection ended.
        offer: what the kernel offered on it; empty if nothing is known.
        how: by which means that was found out.
    """
    return [
        _device(),
        _fusermount(),
        _fsopen(),
        _protocol(connection, offer, how),
        _clone(offer, how),
        _uring_transport(offer, how),
        _uring(),
        _sync_init(),
        _max_pages(),
        *(_offered(offer, how, *row) for row in _BITS),
        _remap(),
    ]


def _device() -> Finding:
    how = f"open({DEVICE})"
    try:
        info = os.stat(DEVICE)
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        kernel = "fuse" in (file_text("/proc/filesystems") or "").split()
        return Finding(
            "fuse-device", "FUSE device", kernel, False, f"{DEVICE}: {explain(error)}", how,
            "as root: modprobe fuse; chmod 666 /dev/fuse (fusermount3 needs it too)",
        )  # fmt: skip
    mode = f"opened; mode {stat.S_IMODE(info.st_mode):04o}"
    return Finding("fuse-device", "FUSE device", True, True, mode, how)


def _fusermount() -> Finding:
    helper = find_fusermount()
    how = "looked for in PATH; its mode; /etc/fuse.conf"
    if helper is None:
        return Finding(
            "fusermount3", "mounting for users", None, False, "not installed", how,
            "install fuse3",
        )  # fmt: skip
    info = os.stat(helper)
    works = info.st_uid == 0 and bool(info.st_mode & stat.S_ISUID)
    words = [line.strip() for line in (file_text("/etc/fuse.conf") or "").splitlines()]
    others = "user_allow_other" in words
    detail = f"{helper}, {'set-user-ID root' if works else 'not set-user-ID root'}; "
    detail += f"user_allow_other is {'set' if others else 'not set'}"
    missing = [] if works else [f"chown root {helper} && chmod u+s {helper}"]
    if not others:
        missing.append("for -o allow_other: user_allow_other in /etc/fuse.conf")
    user = works or os.geteuid() == 0
    if user and os.geteuid() != 0:
        try:  # the helper opens it as the user who calls it
            os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            user = False
            detail += f"; {DEVICE}: {explain(error)}"
            missing.insert(0, f"as root: chmod 666 {DEVICE}")
    return Finding("fusermount3", "mounting for users", None, user, detail, how, "; ".join(missing))


def _fsopen() -> Finding:
    how = 'fsopen("fuse")'
    try:
        os.close(sysmount.fsopen("fuse"))
    except OSError as error:
        kernel = error.errno != errno.ENOSYS
        needs = "Linux 5.2" if not kernel else "CAP_SYS_ADMIN (root, or a user namespace)"
        return Finding(
            "mount-api", "mount API of fsopen", kernel, False, explain(error), how, needs
        )
    return Finding("mount-api", "mount API of fsopen", True, True, "works", how)


def _protocol(connection: Attempt, offer: Mapping[str, Any], how: str) -> Finding:
    title = "FUSE protocol"
    if not offer:
        return Finding(
            "fuse-protocol", title, None, False, connection.reason, how,
            "the right to mount: root, or fusermount3",
        )  # fmt: skip
    detail = f"7.{offer['minor']}, flags {offer['flags']:#x}"
    return Finding("fuse-protocol", title, True, True, detail, how)


def _clone(offer: Mapping[str, Any], how: str) -> Finding:
    title = "a descriptor per worker"
    if not offer:
        return _untold("clone", title)
    detail = "FUSE_DEV_IOC_CLONE works" if offer["clone"] else "FUSE_DEV_IOC_CLONE is refused"
    works = bool(offer["clone"])
    enable = "" if works else "the right to open /dev/fuse"
    return Finding("clone", title, works or None, works, detail, f"tried; {how}", enable)


def _untold(name: str, title: str) -> Finding:
    return Finding(name, title, None, None, "needs a connection to be told", "not tried")


def _offered(
    offer: Mapping[str, Any], how: str, name: str, title: str, flag: InitFlag, since: str
) -> Finding:
    if not offer:
        return _untold(name, title)
    has = bool(offer["flags"] & flag)
    detail = f"{flag.name} is {'offered' if has else 'not offered'}"
    return Finding(name, title, has, has, detail, how, "" if has else f"Linux {since}")


def _uring_transport(offer: Mapping[str, Any], how: str) -> Finding:
    title = "FUSE over io_uring"
    switch = file_text(_ENABLE_URING)
    said = f"{_ENABLE_URING} is {switch}" if switch is not None else f"no {_ENABLE_URING}"
    how = f"{how}; {_ENABLE_URING}"
    if offer and offer["flags"] & InitFlag.OVER_IO_URING:
        return Finding("uring-transport", title, True, True, f"offered; {said}", how)
    kernel = switch is not None
    enable = f"as root: echo Y > {_ENABLE_URING}" if kernel else (
        "Linux 6.14 built with CONFIG_FUSE_IO_URING"
    )  # fmt: skip
    detail = f"not offered; {said}" if offer else said
    return Finding("uring-transport", title, kernel, False, detail, how, enable)


def _uring() -> Finding:
    found = attempt(io_uring_supported)
    title, how = "io_uring", "io_uring_setup with 128-byte entries"
    if not found.reason:
        return Finding("io-uring", title, True, True, "a ring was made", how)
    sysctl = file_text("/proc/sys/kernel/io_uring_disabled")
    kernel = sysctl is not None or found.errno not in {errno.ENOSYS, errno.EINVAL}
    detail = f"{found.reason}; kernel.io_uring_disabled is {sysctl}"
    enable = (
        "as root: sysctl kernel.io_uring_disabled=0"
        if kernel
        else "Linux 5.19 with CONFIG_IO_URING"
    )
    return Finding("io-uring", title, kernel, False, detail, how, enable)


def _sync_init() -> Finding:
    title, how = "mounting that waits for INIT", "ioctl FUSE_DEV_IOC_SYNC_INIT on /dev/fuse"
    found = attempt(sync_init_supported)
    if found.value is None:
        return Finding("sync-init", title, None, False, found.reason, how, "access to /dev/fuse")
    has = bool(found.value)
    detail = "accepted" if has else "the device does not know it"
    return Finding("sync-init", title, has, has, detail, how, "" if has else "Linux 6.18")


def _max_pages() -> Finding:
    title = "largest request"
    text = file_text(_MAX_PAGES)
    page = os.sysconf("SC_PAGE_SIZE")
    if text is None or not text.isdigit():
        detail = f"256 pages, {256 * page >> 10} KiB (fixed before Linux 6.13)"
        return Finding(
            "max-pages-limit", title, False, False, detail, f"no {_MAX_PAGES}", "Linux 6.13"
        )
    detail = f"{text} pages, {int(text) * page >> 10} KiB"
    return Finding(
        "max-pages-limit", title, True, True, detail, f"read {_MAX_PAGES}",
        f"for larger ones, as root: echo N > {_MAX_PAGES}",
    )  # fmt: skip


def _remap() -> Finding:
    title = "FUSE remap (reflink) extension"
    how = "fuse_remap_file_range looked for in /proc/kallsyms; INIT does not tell"
    has = kernel_symbol("fuse_remap_file_range")
    if has is None:
        return Finding("remap", title, None, None, "the kernel shows no symbols", how)
    detail = "the kernel has the function" if has else "the kernel has no such function"
    needs = "" if has else "a kernel with the FUSE_REMAP_FILE_RANGE patch"
    return Finding("remap", title, has, has, detail, how, needs)
