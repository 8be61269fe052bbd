# SPDX-License-Identifier: Apache-2.0
"""Finding the mount that a user means, without touching it."""

from __future__ import annotations

import os

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.control import Listed, find_record
from penstock.sys.mountinfo import MountInfo, find_mount, resolve_parent

__all__ = ["our_mount"]


def our_mount(path: str, code: ExitCode) -> tuple[MountInfo, Listed | None]:
    """The topmost mount on ``path`` and its record.

    The record is missing when the server could not write one, or when the mount is another user's.

    Raises:
        Failure: with ``code``: nothing is mounted there, or something that is not penstock's.
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
    listed = find_record(entry)
    if listed is None and not _looks_like_ours(entry):
        raise Failure(f"{path}: is mounted, but not by penstock ({entry.fstype})", code)
    owner = _owner(entry)
    if listed is None and owner is not None and os.geteuid() not in {0, owner}:
        raise Failure(f"{path}: {_user_name(owner)} mounted it; ask them or use sudo", code)
    return entry, listed


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


def _owner(entry: MountInfo) -> int | None:
    """The user who mounted it, as the kernel shows it."""
    for word in entry.super_options.split(","):
        name, _, value = word.partition("=")
        if name == "user_id" and value.isdecimal():
            return int(value)
    return None


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
