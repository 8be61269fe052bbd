# SPDX-License-Identifier: Apache-2.0
"""``penstock umount``: unmount, then wait until the server has ended.

The mount point is never touched: the mount is found in mountinfo and taken away with
UMOUNT_NOFOLLOW, so a server that does not answer cannot hold this up.

``--abort`` asks whoever answers for the mount to end it. If that gets no answer, the connection is
ended through fusectl where the caller may, and the process is killed: with its descriptors the
connection ends in any case. No process is signalled but one of the mount's owner.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import time
from typing import Final

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.mounts import our_mount
from penstock.control import (
    ABORT,
    ControlClient,
    ControlError,
    Listed,
    ProtocolError,
    State,
    open_recorded_process,
    remove_record,
)
from penstock.sys.mountinfo import MountInfo
from penstock.sys.process import process_name
from penstock.sys.unmount import abort_connection, detach, find_fuse_mount, take_away

__all__ = ["run"]

_EXIT_SECONDS: Final = 10.0
_LAZY_SECONDS: Final = 1.0
_ABORT_SECONDS: Final = 0.5
_SEARCH_SECONDS: Final = 1.0
_SHOWN: Final = 5


def run(arguments: argparse.Namespace) -> int:
    """Unmount each; stops at the first that fails."""
    for path in arguments.mountpoint:
        entry, listed = our_mount(path, ExitCode.MOUNT)
        if arguments.abort:
            _abort(path, entry, listed)
        else:
            _unmount(path, entry, listed, lazy=arguments.lazy)
    return ExitCode.OK


def _unmount(path: str, entry: MountInfo, listed: Listed | None, *, lazy: bool) -> None:
    try:
        take_away(entry, lazy=lazy)
    except OSError as error:
        raise Failure(_reason(path, entry, error), ExitCode.MOUNT) from error
    if listed is None:
        return
    if listed.state is State.STALE:
        _forget(listed)
    else:
        _wait(path, listed, lazy=lazy)


def _wait(path: str, listed: Listed, *, lazy: bool) -> None:
    """Wait for the end of the server; a lazily detached one may live on while it is in use."""
    seconds = _LAZY_SECONDS if lazy else _EXIT_SECONDS
    with open_recorded_process(listed) as process:
        if process is None:
            return
        # One that was stopped cannot end. Its mount is gone, so nothing is lost by letting it run.
        if process.is_stopped:
            with contextlib.suppress(OSError):
                process.send(signal.SIGCONT)
        if not process.wait(seconds) and not lazy:
            raise Failure(
                f"{path}: unmounted, but its server (process {listed.record.pid}) still runs after "
                f"{seconds:.0f} s",
                ExitCode.SYSTEM,
            )


def _abort(path: str, entry: MountInfo, listed: Listed | None) -> None:
    """End a mount whatever state its server is in."""
    ended = (listed is not None and _asked_to_end(listed)) or abort_connection(entry.minor)
    try:
        detach(entry.mount_id, entry.minor, entry.mountpoint)
    except OSError as error:
        raise Failure(f"{path}: {explain(error)}", ExitCode.MOUNT) from error
    if listed is not None:
        ended = _end_process(listed) or ended
        if listed.record.is_local or listed.state is State.STALE:
            _forget(listed)
    if find_fuse_mount(entry.mount_id, entry.minor) is not None:
        raise Failure(f"{path}: is covered by another mount, and was left", ExitCode.MOUNT)
    if not ended:
        raise Failure(
            f"{path}: unmounted, but its connection cannot be ended: whoever uses it still waits",
            ExitCode.SYSTEM,
        )


def _asked_to_end(listed: Listed) -> bool:
    """Whether the process that answers for a mount has agreed to end it."""
    if listed.state is State.STALE or _is_stopped(listed):
        return False
    try:
        ControlClient(listed).call(ABORT, timeout=_ABORT_SECONDS)
    except (OSError, ControlError, ProtocolError):
        return False
    return True


def _end_process(listed: Listed) -> bool:
    """Wait for the end of a process whose mount has gone, and kill it if that takes long.

    Returns:
        False if it still runs, or is of another pid namespace, from where it cannot be told.
    """
    with contextlib.suppress(OSError), open_recorded_process(listed) as process:
        if process is None:
            return listed.record.is_local
        if process.wait(0.0 if process.is_stopped else _ABORT_SECONDS):
            return True
        process.send(signal.SIGKILL)
        return process.wait(_ABORT_SECONDS)
    return False


def _is_stopped(listed: Listed) -> bool:
    with contextlib.suppress(OSError), open_recorded_process(listed) as process:
        return process is not None and process.is_stopped
    return False


def _forget(listed: Listed) -> None:
    with contextlib.suppress(OSError):
        remove_record(listed)


def _reason(path: str, entry: MountInfo, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        users = _users_of(entry.mountpoint)
        who = f": in use by {', '.join(users)}" if users else ""
        return f"{path}: is busy{who} (--lazy detaches it all the same, --abort ends it)"
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
