# SPDX-License-Identifier: Apache-2.0
"""Making the kernel's half of a mount: by the new mount interface, the old one, or fusermount3.

Facts about mounting FUSE
    - With fsopen the mount exists before it is attached anywhere: the handshake is done and the
      workers run before a path leads to it, so no one ever sees a mount that does not answer.
    - With synchronous INIT (Linux 6.18) making the superblock waits for the answer to INIT, so
      the superblock is made by a second thread while this one answers.
    - The descriptor of fsmount must be closed after attaching: as long as it is open,
      ``umount`` answers EBUSY.
    - mount(2) and fusermount3 attach first and shake hands afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from typing import NamedTuple

from penstock.abi.mount import MountAttr, MountFlag
from penstock.broker.options import MountOptions
from penstock.sys import mount as sysmount
from penstock.sys.devfuse import open_device, sync_init
from penstock.sys.fusermount import fusermount
from penstock.sys.mountinfo import MountInfo, find_mount
from penstock.sys.unmount import unmount

__all__ = [
    "Attachment",
    "detach_newer",
    "max_pages",
    "open_connection",
    "set_readahead",
]

_ROOT_MODE = f"{stat.S_IFDIR:o}"
_PIPE_PAGES = 255
_MAX_PAGES = 256


class Attachment(NamedTuple):
    """A connection, not shaken hands with yet, and how to finish it.

    The steps are called in order: ``create`` with the function that answers INIT, then
    ``attach`` once the workers run.
    """

    fd: int
    """/dev/fuse; owned by whoever got this."""
    how: str
    """``fsmount``, ``mount`` or ``fusermount3``."""
    create: Callable[[Callable[[], None]], None]
    attach: Callable[[], None]
    abandon: Callable[[], None]
    """Undo what was done so far; the descriptor is closed by its owner."""


def open_connection(mountpoint: str, options: MountOptions) -> Attachment:
    """Begin a mount in the best way the caller may.

    Raises:
        OSError: the mount point is no directory, or the caller can mount in no way.
    """
    _check_mountpoint(mountpoint)
    try:
        fd = open_device()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT):
            raise
        return _by_fusermount(mountpoint, options)
    try:
        context = sysmount.fsopen("fuse")
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return _by_mount(fd, mountpoint, options)
        os.close(fd)
        if error.errno == errno.EPERM:
            return _by_fusermount(mountpoint, options)
        raise
    return _by_fsmount(fd, context, mountpoint, options)


def _check_mountpoint(mountpoint: str) -> None:
    try:
        mode = os.stat(mountpoint).st_mode
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise OSError(
                errno.ENOTCONN, f"{mountpoint} is a mount whose server has died; unmount it first"
            ) from error
        raise
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), mountpoint)


def _common(options: MountOptions) -> list[tuple[str, str | None]]:
    words: list[tuple[str, str | None]] = []
    if options.default_permissions or options.allow_other:
        words.append(("default_permissions", None))
    if options.allow_other:
        words.append(("allow_other", None))
    if options.max_read:
        words.append(("max_read", str(options.max_read)))
    return words


def _parameters(fd: int, options: MountOptions) -> list[tuple[str, str | None]]:
    return [
        ("fd", str(fd)),
        ("rootmode", _ROOT_MODE),
        ("user_id", str(os.geteuid())),
        ("group_id", str(os.getegid())),
        *_common(options),
    ]


def _by_fsmount(fd: int, context: int, mountpoint: str, options: MountOptions) -> Attachment:
    waits = sync_init(fd)
    mounts: list[int] = []

    def create(answer_init: Callable[[], None]) -> None:
        try:
            sysmount.fsconfig_string(context, "source", options.source)
            sysmount.fsconfig_string(context, "subtype", options.subtype)
            if options.read_only:
                sysmount.fsconfig_flag(context, "ro")
            for key, value in _parameters(fd, options):
                if value is None:
                    sysmount.fsconfig_flag(context, key)
                else:
                    sysmount.fsconfig_string(context, key, value)
            if waits:
                _create_while(context, answer_init)
            else:
                sysmount.fsconfig_create(context)
                answer_init()
            mounts.append(sysmount.fsmount(context, _attributes(options)))
        except OSError as error:
            said = sysmount.fsopen_log(context)
            if said:
                raise OSError(error.errno, f"{error.strerror} ({said})") from error
            raise
        finally:
            os.close(context)

    def attach() -> None:
        sysmount.move_mount(mounts[0], mountpoint)
        abandon()

    def abandon() -> None:
        while mounts:
            os.close(mounts.pop())

    return Attachment(fd, "fsmount", create, attach, abandon)


def _create_while(context: int, answer_init: Callable[[], None]) -> None:
    """Make the superblock in another thread while this one answers INIT."""
    failure: list[OSError] = []

    def make() -> None:
        try:
            sysmount.fsconfig_create(context)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=make, name="penstock-superblock", daemon=True)
    thread.start()
    try:
        answer_init()
    except OSError:
        thread.join(timeout=1.0)
        if failure:  # the kernel refused the superblock and so never asked
            raise failure[0] from None
        raise
    thread.join()
    if failure:
        raise failure[0]


def _attributes(options: MountOptions) -> MountAttr:
    words = options.flags()
    table = {
        "ro": MountAttr.RDONLY,
        "nosuid": MountAttr.NOSUID,
        "nodev": MountAttr.NODEV,
        "noexec": MountAttr.NOEXEC,
        "nosymfollow": MountAttr.NOSYMFOLLOW,
    }
    return MountAttr(sum(table.get(word, 0) for word in words))


def _by_mount(fd: int, mountpoint: str, options: MountOptions) -> Attachment:
    table = {
        "ro": MountFlag.RDONLY,
        "nosuid": MountFlag.NOSUID,
        "nodev": MountFlag.NODEV,
        "noexec": MountFlag.NOEXEC,
        "nosymfollow": MountFlag.NOSYMFOLLOW,
    }

    def create(answer_init: Callable[[], None]) -> None:
        words = [
            key if value is None else f"{key}={value}" for key, value in _parameters(fd, options)
        ]
        flags = MountFlag(sum(table.get(word, 0) for word in options.flags()))
        fstype = f"fuse.{options.subtype}"
        sysmount.mount(options.source, mountpoint, fstype, flags, ",".join(words))
        answer_init()

    return Attachment(fd, "mount", create, _nothing, _nothing)


def _by_fusermount(mountpoint: str, options: MountOptions) -> Attachment:
    words = [key if value is None else f"{key}={value}" for key, value in _common(options)]
    words += [f"fsname={options.source}", f"subtype={options.subtype}"]
    words += [word for word in options.flags() if word != "nosymfollow"]
    fd = fusermount(mountpoint, words)
    return Attachment(fd, "fusermount3", lambda answer_init: answer_init(), _nothing, _nothing)


def _nothing() -> None:
    pass


def max_pages(options: MountOptions) -> int:
    """Pages of the largest request: 255 and a header fill a pipe of 1 MiB; only root gets a larger
    one."""
    if options.datapath == "copy" or os.geteuid() == 0:
        return _MAX_PAGES
    return _PIPE_PAGES


def detach_newer(mountpoint: str, before: MountInfo | None) -> None:
    """Take away a mount that was not there ``before``; that one stays."""
    now = find_mount(mountpoint)
    if now is None or not now.fstype.startswith("fuse"):
        return
    if before is None or now.mount_id != before.mount_id:
        with contextlib.suppress(OSError):
            unmount(mountpoint, lazy=True)


def set_readahead(connection: int, size: int) -> None:
    """Have the kernel read ahead further than its default of 128 KiB, where we may say so."""
    with (
        contextlib.suppress(OSError),
        open(f"/sys/class/bdi/0:{connection}/read_ahead_kb", "w", encoding="ascii") as setting,
    ):
        setting.write(str(size >> 10))
