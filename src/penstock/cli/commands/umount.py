# SPDX-License-Identifier: Apache-2.0
"""``penstock umount``: unmount, then wait until the server has ended.

The mount point is never touched: the mount is found in mountinfo and taken away with
UMOUNT_NOFOLLOW, so a server that does not answer cannot hold this up.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import time
from typing import Final

from penstock.abi.mount import UmountFlag
from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.mounts import our_mount
from penstock.control import Listed, State, remove_record
from penstock.sys.fusermount import fusermount_unmount
from penstock.sys.mount import umount
from penstock.sys.mountinfo import MountInfo
from penstock.sys.process import (
    process_name,
    process_start_time,
    process_state,
    wait_process_exit,
)

__all__ = ["run"]

_EXIT_SECONDS: Final = 10.0
_LAZY_SECONDS: Final = 1.0
_SEARCH_SECONDS: Final = 1.0
_SHOWN: Final = 5


def run(arguments: argparse.Namespace) -> int:
    """Unmount each; stops at the first that fails."""
    for path in arguments.mountpoint:
        _unmount(path, lazy=arguments.lazy)
    return ExitCode.OK


def _unmount(path: str, *, lazy: bool) -> None:
    entry, listed = our_mount(path, ExitCode.MOUNT)
    try:
        _take_away(entry, lazy=lazy)
    except OSError as error:
        raise Failure(_reason(path, entry, error), ExitCode.MOUNT) from error
    if listed is None:
        return
    if listed.state is State.STALE:
        with contextlib.suppress(OSError):
            remove_record(listed)
        return
    _wait(path, listed, lazy=lazy)


def _take_away(entry: MountInfo, *, lazy: bool) -> None:
    flags = UmountFlag.NOFOLLOW | (UmountFlag.DETACH if lazy else UmountFlag(0))
    try:
        umount(entry.mountpoint, flags)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        fusermount_unmount(entry.mountpoint, lazy=lazy)


def _wait(path: str, listed: Listed, *, lazy: bool) -> None:
    """Wait for the end of the server; a lazily detached one may live on while it is in use."""
    record = listed.record
    # One that was stopped cannot end. Its mount is gone, so nothing is lost by letting it run.
    if process_state(record.pid) == "T" and process_start_time(record.pid) == record.start_time:
        with contextlib.suppress(OSError):
            os.kill(record.pid, signal.SIGCONT)
    seconds = _LAZY_SECONDS if lazy else _EXIT_SECONDS
    if not wait_process_exit(record.pid, record.start_time, seconds) and not lazy:
        raise Failure(
            f"{path}: unmounted, but its server (process {record.pid}) still runs after "
            f"{seconds:.0f} s",
            ExitCode.SYSTEM,
        )


def _reason(path: str, entry: MountInfo, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        users = _users_of(entry.mountpoint)
        who = f": in use by {', '.join(users)}" if users else ""
        return f"{path}: is busy{who} (--lazy detaches it all the same)"
    return f"{path}: {explain(error)}"


def _users_of(mountpoint: str) -> list[str]:
    """Processes that use a mount, as far as the caller may see: best effort, by the paths of what
    they have open, which procfs shows without asking the filesystem."""
    deadline = time.monotonic() + _SEARCH_SECONDS
    found: list[str] = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or time.monotonic() > deadline:
            continue
        if any(_is_below(path, mountpoint) for path in _open_paths(name)):
            found.append(f"{process_name(int(name))} ({name})")
            if len(found) == _SHOWN:
                return [*found, "…"]
    return found


def _open_paths(pid: str) -> list[str]:
    links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", f"/proc/{pid}/exe"]
    with contextlib.suppress(OSError):
        links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")[:4096]]
    paths = []
    for link in links:
        with contextlib.suppress(OSError):
            paths.append(os.readlink(link))
    return paths


def _is_below(path: str, mountpoint: str) -> bool:
    return path == mountpoint or path.startswith(mountpoint.rstrip("/") + "/")
