# SPDX-License-Identifier: Apache-2.0
"""Files of mounts that have gone: records, sockets, and records that were never finished.

Records are told dead as everywhere, by the number and start time of their process; what has no
record by the number in its name and by the socket, at which nobody must listen: the number may be
one of another pid namespace. Files that are not called as ours are not looked at.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from penstock.control.directory import (
    all_directories,
    is_served,
    open_directory,
    remove_if_empty,
)
from penstock.control.record import is_alive, listed_as, read_record
from penstock.sys.mountinfo import mounts
from penstock.sys.process import process_start_time

__all__ = ["Leftover", "find_leftovers", "remove_leftover"]

_NAME: Final = re.compile(r"\.?((\d{1,9})-\d{1,9})\.(json|sock|new)")
_LOCK: Final = re.compile(r"[\da-f]{1,32}-[\da-f]{1,32}\.lock")
"""Of a mount point, while something is being mounted there."""
_MAX_FILES: Final = 30_000


class Leftover(NamedTuple):
    """A file that nobody needs any more."""

    directory: str
    uid: int
    """Whose directory it is."""
    name: str
    mountpoint: str
    """Where it was mounted; empty if nothing says so."""

    @property
    def path(self) -> str:
        """Where it lies."""
        return f"{self.directory}/{self.name}"


def find_leftovers(directories: Iterable[tuple[str, int]] | None = None) -> list[Leftover]:
    """The files of mounts that have gone, as far as the caller may see.

    Args:
        directories: (path, owner's uid) pairs to look into; default: all that are visible.
    """
    found: list[Leftover] = []
    for directory, uid in all_directories() if directories is None else directories:
        with suppress(OSError), open_directory(directory, uid) as fd:
            found += _leftovers(fd, directory, uid)
    return found


def remove_leftover(leftover: Leftover) -> bool:
    """Remove a file; whether it was still there.

    Raises:
        OSError: the directory is not safe or not writable.
    """
    try:
        with open_directory(leftover.directory, leftover.uid) as fd:
            os.unlink(leftover.name, dir_fd=fd)
    except FileNotFoundError:
        return False
    remove_if_empty(leftover.directory)
    return True


def _leftovers(fd: int, directory: str, uid: int) -> Iterator[Leftover]:
    table = mounts()
    groups: dict[str, list[str]] = {}
    for name in sorted(os.listdir(fd))[:_MAX_FILES]:
        match = _NAME.fullmatch(name)
        if match is not None:
            groups.setdefault(match[1], []).append(name)
        elif _LOCK.fullmatch(name) and not _is_locked(fd, name):
            yield Leftover(directory, uid, name, "")
    for stem, names in groups.items():
        record = read_record(fd, f"{stem}.json", uid)
        if record is None:
            dead = process_start_time(int(stem.partition("-")[0])) is None
            dead = dead and not _has_listener(fd, f"{stem}.sock", uid)
        else:
            alive = is_alive(fd, record, uid)
            dead = alive is False and (
                listed_as(record, directory, uid, table, alive=alive) is None
            )
        if dead:
            mountpoint = "" if record is None else record.mountpoint
            yield from (Leftover(directory, uid, name, mountpoint) for name in names)


def _is_locked(fd: int, name: str) -> bool:
    """Whether somebody holds this lock; also if that cannot be told."""
    try:
        lock = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _has_listener(fd: int, name: str, uid: int) -> bool:
    try:
        return is_served(fd, name, uid)
    except PermissionError:
        return False  # it is no socket of ours
    except OSError:
        return True
