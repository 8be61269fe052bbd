# SPDX-License-Identifier: Apache-2.0
"""Finding the mount that a user means, and mounts whose server has died, without touching any."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from penstock.abi.process import FIRST_PID_NAMESPACE
from penstock.cli.errors import ExitCode, Failure, explain
from penstock.control import (
    Listed,
    Record,
    State,
    find_record,
    pid_namespace,
    records,
    remove_record,
)
from penstock.sys.devfuse import find_server, unserved
from penstock.sys.mountinfo import MountInfo, find_mount, mounts, resolve_parent
from penstock.sys.unmount import detach, find_fuse_mount

__all__ = [
    "Stale",
    "our_mount",
    "remove_stale",
    "replace_stale",
    "resolved_mount",
    "stale_mounts",
    "user_name",
]


class Stale(NamedTuple):
    """A mount whose server has died: whoever uses it gets ENOTCONN."""

    mount: MountInfo
    listed: Listed | None
    """None: it has no record."""


def our_mount(path: str, code: ExitCode) -> tuple[MountInfo, Listed | None]:
    """The topmost mount on ``path`` and its record.

    The record is missing when the server could not write one, or when the mount is another user's.

    Raises:
        Failure: with ``code``: nothing is mounted there, or something that is not penstock's.
    """
    entry = resolved_mount(path, code)
    listed = find_record(entry)
    if listed is None and not _looks_like_ours(entry):
        raise Failure(f"{path}: is mounted, but not by penstock ({entry.fstype})", code)
    owner = entry.user_id
    if listed is None and owner is not None and os.geteuid() not in {0, owner}:
        raise Failure(f"{path}: {user_name(owner)} mounted it; ask them or use sudo", code)
    return entry, listed


def resolved_mount(path: str, code: ExitCode) -> MountInfo:
    """The topmost mount on ``path``, or where a symbolic link there leads.

    Raises:
        Failure: with ``code``: nothing is mounted there.
    """
    if not path or "\0" in path:
        raise Failure(f"{path!r}: is no path", ExitCode.USAGE)
    try:
        entry = find_mount(path) or _behind_symlink(path)
    except OSError as error:  # a relative path in a directory that was deleted
        raise Failure(f"{path}: {explain(error)}", code) from error
    if entry is None:
        where = "is not mounted" if _exists(path) else "no such mount point"
        raise Failure(f"{path}: {where} (penstock list shows what is)", code)
    return entry


def stale_mounts(listed: Iterable[Listed]) -> list[Stale]:
    """The mounts of the caller whose server has died, for root those of everybody.

    One with a record of a process that has ended counts unless a process is seen that serves it:
    it may have got the numbers of the recorded one, and have no record yet. Where that cannot be
    seen, as outside the first pid namespace, the record must at least be of this namespace. One
    without a record counts only where it is certain that nobody serves it, which root alone can
    tell (see :func:`penstock.sys.devfuse.unserved`).

    Args:
        listed: what :func:`penstock.control.records` gave.
    """
    known = list(listed)
    found = [
        Stale(item.mount, item)
        for item in known
        if item.state is State.STALE and item.mount is not None
        if _has_died(item.record, item.mount)
    ]
    with_record = {item.mount.mount_id for item in known if item.mount is not None}
    alive = {item.record.connection for item in known if item.state is not State.STALE}
    others = [
        entry
        for entry in mounts()
        if _looks_like_ours(entry) and entry.mount_id not in with_record
        if entry.minor not in alive
    ]
    dead = unserved({entry.minor for entry in others})
    return found + [Stale(entry, None) for entry in others if entry.minor in dead]


def _has_died(record: Record, entry: MountInfo) -> bool:
    """Whether a mount is without a server, given that the recorded process has ended."""
    trusted = {FIRST_PID_NAMESPACE, record.pid_namespace} - {0}
    return pid_namespace() in trusted and find_server(entry.minor) is None


def remove_stale(stale: Stale) -> bool:
    """Take a stale mount out of the tree, with its record.

    Returns:
        False if it was left: something is mounted on top of it, or above it.

    Raises:
        OSError: the caller may not unmount it.
    """
    entry = stale.mount
    detach(entry.mount_id, entry.minor, entry.mountpoint)
    if find_fuse_mount(entry.mount_id, entry.minor) is not None:
        return False
    if stale.listed is not None:
        with suppress(OSError):
            remove_record(stale.listed)
    return True


def replace_stale(target: str) -> bool:
    """Take away a stale mount of the caller's own at a mount point, so that it can be used again.

    Args:
        target: the absolute path of the mount point, as the mount table has it.

    Returns:
        Whether there was one and it has gone.

    Raises:
        OSError: it cannot be taken away.
    """
    replaced = False
    while (entry := find_mount(target)) is not None and entry.fstype.startswith("fuse"):
        if os.geteuid() not in {0, entry.user_id}:
            break
        same = (s for s in stale_mounts(records()) if s.mount.mount_id == entry.mount_id)
        stale = next(same, None)
        if stale is None or not remove_stale(stale):
            break
        replaced = True
    return replaced


def _behind_symlink(path: str) -> MountInfo | None:
    """The mount that a symlink at ``path`` leads to. ``path`` is no mount point, so it may be
    read."""
    try:
        link = os.readlink(resolve_parent(path))
    except OSError:
        return None
    return find_mount(os.path.join(os.path.dirname(resolve_parent(path)), link))


def _exists(path: str) -> bool:
    # Of what is no mount point, so nobody can be kept waiting by it.
    return os.path.lexists(resolve_parent(path))


def _looks_like_ours(entry: MountInfo) -> bool:
    return entry.fstype == "fuse.penstock"


def user_name(uid: int) -> str:
    """What a user is called."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
