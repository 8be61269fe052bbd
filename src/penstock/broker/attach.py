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
    - Whoever owns a directory on the way to the mount point may exchange it at any time. So root
      attaches to a directory that is held open, and asks the mount table afterwards where that is.
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
from penstock.sys.devfuse import connection_of, open_device, sync_init
from penstock.sys.fusermount import fusermount
from penstock.sys.mountinfo import MountInfo, find_mount, mount_id_of, mounts
from penstock.sys.unmount import detach, find_fuse_mount, take_away

__all__ = [
    "Attachment",
    "detach_newer",
    "find_attached",
    "max_pages",
    "open_connection",
    "set_readahead",
    "undo_attachment",
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
    attach: Callable[[], int]
    """The id of the mount; 0 where it is not known."""
    abandon: Callable[[], None]
    """Undo what was done so far; the descriptor is closed by its owner."""


def open_connection(
    mountpoint: str, options: MountOptions, directory: int | None = None
) -> Attachment:
    """Begin a mount in the best way the caller may.

    Args:
        mountpoint: the path of a directory.
        options: how to mount.
        directory: the directory itself, which counts then; it stays the caller's, who keeps it
            open until the mount is attached. fusermount3 is given the path all the same: it
            mounts where that leads the user himself.

    Raises:
        OSError: the mount point is no directory, or the caller can mount in no way.
    """
    _check_mountpoint(mountpoint, directory)
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
            target = mountpoint if directory is None else f"/proc/self/fd/{directory}"
            return _by_mount(fd, target, options)
        os.close(fd)
        if error.errno == errno.EPERM:
            return _by_fusermount(mountpoint, options)
        raise
    return _by_fsmount(fd, context, mountpoint if directory is None else directory, options)


def _check_mountpoint(mountpoint: str, directory: int | None) -> None:
    try:
        mode = os.stat(mountpoint if directory is None else directory).st_mode
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


def _by_fsmount(fd: int, context: int, target: int | str, options: MountOptions) -> Attachment:
    waits = sync_init(fd)
    made: list[int] = []

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
            made.append(sysmount.fsmount(context, _attributes(options)))
        except OSError as error:
            said = sysmount.fsopen_log(context)
            if said:
                raise OSError(error.errno, f"{error.strerror} ({said})") from error
            raise
        finally:
            os.close(context)

    def attach() -> int:
        sysmount.move_mount(made[0], target)
        mount_id = mount_id_of(made[0])
        abandon()
        return mount_id

    def abandon() -> None:
        while made:
            os.close(made.pop())

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


def _by_mount(fd: int, target: str, options: MountOptions) -> Attachment:
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
        sysmount.mount(options.source, target, fstype, flags, ",".join(words))
        answer_init()

    return Attachment(fd, "mount", create, _attached, _nothing)


def _by_fusermount(mountpoint: str, options: MountOptions) -> Attachment:
    if not options.symfollow:
        raise OSError(errno.EPERM, "nosymfollow cannot be had through fusermount3")
    words = [key if value is None else f"{key}={value}" for key, value in _common(options)]
    words += [f"fsname={options.source}", f"subtype={options.subtype}"]
    words += options.flags()
    fd = fusermount(mountpoint, words)
    return Attachment(fd, "fusermount3", lambda answer_init: answer_init(), _attached, _nothing)


def _attached() -> int:
    """It has been attached all the time."""
    return 0


def _nothing() -> None:
    pass


def max_pages(options: MountOptions) -> int:
    """Pages of the largest request: 255 and a header fill a pipe of 1 MiB; only root gets a larger
    one."""
    if options.datapath == "copy" or os.geteuid() == 0:
        return _MAX_PAGES
    return _PIPE_PAGES


def find_attached(device: int, mount_id: int, mountpoint: str) -> MountInfo | None:
    """A mount that was just attached, as the kernel lists it.

    Args:
        device: descriptor of its connection.
        mount_id: what :attr:`Attachment.attach` gave.
        mountpoint: where it should be, for kernels that tell by no number which one it is.
    """
    number = connection_of(device)
    if number is not None:
        return find_fuse_mount(mount_id, number)
    if mount_id:
        return next((entry for entry in mounts() if entry.mount_id == mount_id), None)
    return find_mount(mountpoint)


def undo_attachment(device: int, mountpoint: str, before: MountInfo | None) -> None:
    """Take away the mount of a connection, wherever it is.

    Args:
        device: descriptor of the connection; -1: none came to be known.
        mountpoint: where it should be, if the number of the connection is not known.
        before: what was mounted there before; that stays.
    """
    number = connection_of(device) if device >= 0 else None
    if number is None:
        detach_newer(mountpoint, before)
    elif (entry := find_fuse_mount(0, number)) is not None:
        with contextlib.suppress(OSError):
            detach(entry.mount_id, number, entry.mountpoint)


def detach_newer(mountpoint: str, before: MountInfo | None) -> None:
    """Take away a mount that was not there ``before``; that one stays."""
    now = find_mount(mountpoint)
    if now is None or not now.fstype.startswith("fuse"):
        return
    if before is None or now.mount_id != before.mount_id:
        with contextlib.suppress(OSError):
            take_away(now, lazy=True)


def set_readahead(connection: int, size: int) -> None:
    """Have the kernel read ahead further than its default of 128 KiB, where we may say so."""
    with (
        contextlib.suppress(OSError),
        open(f"/sys/class/bdi/0:{connection}/read_ahead_kb", "w", encoding="ascii") as setting,
    ):
        setting.write(str(size >> 10))
