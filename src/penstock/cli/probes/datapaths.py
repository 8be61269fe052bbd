# SPDX-License-Identifier: Apache-2.0
"""The ways in which file data can go, each tried with real files (docs/datapaths.md)."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from penstock.abi.capability import Capability
from penstock.abi.fuse import InitFlag
from penstock.cli.probes.base import (
    FIRST_NAMESPACE,
    SECONDS,
    Finding,
    attempt,
    file_text,
    is_initial_user_namespace,
    kernel_config,
    kernel_symbol,
)
from penstock.cli.probes.lens import lens_trial
from penstock.cli.probes.trialmount import SMALL, WHOLE, TrialMount, try_mount
from penstock.sys import probe
from penstock.sys.capabilities import effective
from penstock.sys.mountinfo import mount_id_of, mounts

__all__ = ["datapath_findings"]

_ENABLE_IOMAP: Final = "/sys/module/fuse/parameters/enable_iomap"
_PIPE_MAX: Final = "/proc/sys/fs/pipe-max-size"
_LARGEST: Final = 1 << 20
_TO_MOUNT: Final = "the right to mount: root, or fusermount3 and a /dev/fuse that you can open"
_NO_PASSTHROUGH: Final = "Linux 6.9 built with CONFIG_FUSE_PASSTHROUGH"
_ON_FILES: Final = "Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, and a /var/tmp on a disk"
_PLACE: Final = "/var/tmp"  # noqa: S108 - files have no names there
_WORDS: Final = {"read": "reading", "register": "registering a file"}


def datapath_findings(offer: Mapping[str, Any], how: str) -> list[Finding]:
    """What concerns the data paths.

    Args:
        offer: what the kernel offered in INIT; empty if that is not known.
        how: by which means that was found out.
    """
    trial = try_mount()
    passthrough = _passthrough(offer, trial)
    return [
        _copy(trial),
        _splice(trial),
        passthrough,
        _lens(passthrough),
        _reflink(),
        _iomap(offer, how),
    ]


def _is_first_root() -> bool:
    return Capability.SYS_ADMIN in effective() and is_initial_user_namespace()


# Carried by a mount


def _copy(trial: TrialMount) -> Finding:
    title = "data path copy"
    if trial.reason:
        kernel = True if trial.failures else None
        return Finding("copy", title, kernel, False, trial.reason, trial.how, _TO_MOUNT)
    failure = trial.failures["copy"]
    if failure:
        return Finding("copy", title, True, False, failure, trial.how, _TO_MOUNT)
    return Finding("copy", title, True, True, f"{SMALL >> 10} KiB came so", trial.how)


def _splice(trial: TrialMount) -> Finding:
    title = "data path splice"
    if trial.reason:
        kernel = True if trial.failures else None
        return Finding("splice", title, kernel, False, trial.reason, trial.how, _TO_MOUNT)
    failure = trial.failures["splice"]
    largest = file_text(_PIPE_MAX) or ""
    more = f"as root: echo {_LARGEST} > {_PIPE_MAX}"
    if failure:
        return Finding("splice", title, True, False, failure, trial.how, more)
    short = largest.isdigit() and int(largest) < _LARGEST
    detail = f"{WHOLE >> 10} KiB came so; {_PIPE_MAX} is {largest or 'not there'}"
    needs = f"for larger reads, {more}" if short else ""
    return Finding("splice", title, True, True, detail, trial.how, needs)


def _passthrough(offer: Mapping[str, Any], trial: TrialMount) -> Finding:
    title, name = "data path passthrough", "passthrough"
    how = trial.how
    offered = bool(offer["flags"] & InitFlag.PASSTHROUGH) if offer else None
    failures = trial.failures or {name: "there was no mount to try it with"}
    failure = failures[name]
    if not failure:
        depth = 1 if not offer or offer["backing"] in {0, None} else 2
        detail = (
            f"{WHOLE >> 10} KiB read and written without the server, in a file in {trial.place};"
            f" stack depth {depth}"
        )
        return Finding(name, title, True, True, detail, how)
    if offered is False:
        return Finding(name, title, False, False, "not offered", how, _NO_PASSTHROUGH)
    if not _is_first_root():
        needs = FIRST_NAMESPACE
    elif trial.reason:
        needs = _TO_MOUNT
    else:
        needs = "files on a filesystem that is not itself stacked on others"
    return Finding(name, title, offered, False, failure, how, needs)


# Carried by EROFS


class _Cause(NamedTuple):
    """Why there is no lens."""

    kernel: bool | None
    detail: str
    enable: str


def _lens(passthrough: Finding) -> Finding:
    title, name = "data path lens", "lens"
    how = (
        "an EROFS instance on an image in a nameless file, a file of it read, mapped and"
        " registered as backing file"
    )
    found = attempt(lens_trial, SECONDS)
    said = found.value or {}
    if said and not said["stage"]:
        on = "loop devices" if said["loop"] else "files, without loop devices"
        detail = f"works for images in {said['place']}, on {on}; stack depth {said['depth']}"
        needs = ""
        if said["loop"]:
            needs = f"without loop devices: {_ON_FILES}"
        return Finding(name, title, True, True, detail, how, needs)
    if said:
        detail = f"{_WORDS[said['stage']]} fails: {said['reason']}"
        needs = passthrough.enable or "a kernel whose FUSE takes files of EROFS as backing files"
        return Finding(name, title, passthrough.kernel, False, detail, how, needs)
    cause = _no_lens(found.errno, found.reason, passthrough.kernel)
    return Finding(name, title, cause.kernel, False, cause.detail, how, cause.enable)


def _no_lens(number: int, reason: str, passthrough: bool | None) -> _Cause:
    """Why the instance could not be made.

    Args:
        number: the errno.
        reason: in words.
        passthrough: whether the kernel has what it takes besides EROFS.
    """
    erofs = _has_erofs()
    kernel = passthrough if erofs else erofs
    if number == errno.ENODEV:
        return _Cause(False, f"no EROFS: {reason}", "modprobe erofs, or CONFIG_EROFS_FS")
    if number in {errno.EPERM, errno.EACCES} and not _is_first_root():
        return _Cause(kernel, reason, FIRST_NAMESPACE)
    if number == errno.ENOTBLK:
        reason = f"neither on files nor on loop devices: {reason}"
    return _Cause(kernel, reason, f"{_ON_FILES}; or loop devices (modprobe loop)")


def _has_erofs() -> bool | None:
    listed = "erofs" in (file_text("/proc/filesystems") or "").split()
    return True if listed else kernel_config("EROFS_FS")


# Carried by the filesystem below


def _reflink() -> Finding:
    title = "sharing blocks (reflink)"
    how = "ioctl FICLONERANGE between two nameless files"
    said, works, told = [], False, False
    for place in dict.fromkeys((_PLACE, os.getcwd())):
        found = attempt(lambda where=place: _clone(where), SECONDS)  # type: ignore[misc]
        fstype, number, reason = found.value or ("", found.errno, found.reason)
        where = f"{place} ({fstype})" if fstype else place
        said.append(f"{where}: {reason or 'works'}")
        works = works or not reason
        told = told or number not in {errno.EACCES, errno.EPERM, errno.EROFS}
    detail = "; ".join(said)
    if works:
        return Finding("reflink", title, True, True, detail, how)
    if not told:
        needs = "a directory that you may write to"
        return Finding("reflink", title, None, None, detail, how, needs)
    needs = "files on XFS, Btrfs or another filesystem with reflink"
    return Finding("reflink", title, True, False, detail, how, needs)


def _clone(place: str) -> tuple[str, int, str]:
    """The type of a directory's filesystem; the errno of sharing blocks there, and in words."""
    with tempfile.TemporaryFile(dir=place) as one, tempfile.TemporaryFile(dir=place) as two:
        number = mount_id_of(one.fileno())
        fstype = next((entry.fstype for entry in mounts() if entry.mount_id == number), "")
        one.write(b"x" * 65536)
        one.flush()
        try:
            probe.clone_range(one.fileno(), two.fileno(), 65536)
        except OSError as error:
            return fstype, error.errno or errno.EIO, error.strerror or str(error)
    return fstype, 0, ""


# Carried by a kernel that is told


def _iomap(offer: Mapping[str, Any], how: str) -> Finding:
    """The bit in INIT has another meaning from 7.46 on, so the module's own switch decides."""
    title = "FUSE iomap extension"
    switch = file_text(_ENABLE_IOMAP)
    symbol = kernel_symbol("fuse_iomap_config") or kernel_symbol("fuse_iomap_enabled")
    how = f"{_ENABLE_IOMAP}; functions in /proc/kallsyms; {how}"
    if switch is None and not symbol:
        needs = "a kernel with the FUSE iomap patches"
        return Finding("iomap", title, False, False, f"no {_ENABLE_IOMAP}", how, needs)
    offered = bool(offer and offer["flags"] >> 43 & 1)
    detail = f"enable_iomap is {switch}; {'offered' if offered else 'not offered'}"
    needs = "" if offered else f"as root: echo Y > {_ENABLE_IOMAP}; CAP_SYS_RAWIO"
    return Finding("iomap", title, True, offered, detail, how, needs)
