# SPDX-License-Identifier: Apache-2.0
"""The place to mount on: that it can be used, and by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.logs import warn
from penstock.cli.mounts import replace_stale
from penstock.control import find_record, runtime_directory
from penstock.control.directory import open_directory as open_records
from penstock.control.directory import remove_if_empty
from penstock.sys.beneath import open_directory
from penstock.sys.mountinfo import MountInfo, find_mount, resolve_parent

__all__ = ["Place", "claimed"]

_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where to mount."""

    path: str
    """Absolute, without symbolic links, as it was when it was looked at."""
    directory: int
    """An O_PATH descriptor of what was there: the path may lead elsewhere by now."""


@contextlib.contextmanager
def claimed(path: str) -> Iterator[Place]:
    """The place to mount on, for this user's process alone as long as the block runs: of two that
    mount there at the same time one is refused. The lock is a file in the user's own directory of
    records, so nobody else can hold it.

    Raises:
        Failure: as :func:`_mountpoint`, or another process is about to mount there.
    """
    target, covered = _mountpoint(path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(target))
        except BlockingIOError as error:
            raise Failure(f"{path}: another mount is being made there", ExitCode.MOUNT) from error
        except OSError as error:
            # There is no such directory, or it is not safe. That need not keep from mounting.
            _log.debug("%s: %s", target, error)
        target, covered = _mountpoint(path)  # again, for what came before the lock was there
        if covered is not None:
            what = f"{covered.fstype} ({covered.source})"
            warn(f"{path}: {what} is mounted there, and is covered now")
        with _held(path, target) as directory:
            yield Place(target, directory)


@contextlib.contextmanager
def _held(path: str, target: str) -> Iterator[int]:
    try:
        directory = open_directory(target)
    except OSError as error:
        raise Failure(f"{path}: {explain(error)}", ExitCode.MOUNT) from error
    try:
        yield directory
    finally:
        os.close(directory)


@contextlib.contextmanager
def _locked(target: str) -> Iterator[None]:
    """Hold the lock of a directory.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be made.
    """
    status = os.lstat(target)
    name = f"{status.st_dev:x}-{status.st_ino:x}.lock"
    records = runtime_directory()
    with contextlib.ExitStack() as stack:
        stack.callback(remove_if_empty, records)
        folder = stack.enter_context(open_records(records, os.geteuid(), create=True))
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(name, flags, 0o600, dir_fd=folder)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:  # else whoever had it has just taken it away
                break
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)


def _mountpoint(path: str) -> tuple[str, MountInfo | None]:
    """The absolute path to mount on, and the mount that will be covered.

    Raises:
        Failure: it is no directory, the root, or a mount of ours that must not be covered.
    """
    if not path or "\0" in path:
        raise Failure(f"{path!r}: is no path for a mount point", ExitCode.USAGE)
    try:
        target = resolve_parent(path)
    except OSError as error:  # a relative path in a directory that was deleted
        raise Failure(f"{path}: {explain(error)}", ExitCode.MOUNT) from error
    entry = _live_mount(path, target)
    if entry is None:
        target = os.path.realpath(target)
        entry = _live_mount(path, target)  # which a symlink may lead to
    if target == "/":
        text = "is the root directory; choose another mount point"
        raise Failure(f"{path}: {text}", ExitCode.MOUNT)
    if entry is None:
        if not os.path.lexists(target):
            raise Failure(f"{path}: the mount point does not exist", ExitCode.MOUNT)
        if not os.path.isdir(target):
            raise Failure(f"{path}: the mount point is not a directory", ExitCode.MOUNT)
        return target, None
    listed = find_record(entry)
    if listed is not None:
        raise Failure(f"{path}: {listed.record.source} is mounted there", ExitCode.MOUNT)
    return target, entry


def _live_mount(path: str, target: str) -> MountInfo | None:
    """The mount at ``target``; one of ours whose server has died is taken away first."""
    if find_mount(target) is None:
        return None
    try:
        if replace_stale(target):
            warn(f"{path}: a mount whose server had died was there, and has been taken away")
    except OSError as error:
        text = f"has a mount whose server has died, which cannot be taken away: {explain(error)}"
        raise Failure(f"{path}: {text}", ExitCode.MOUNT) from error
    return find_mount(target)
