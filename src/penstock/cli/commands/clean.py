# SPDX-License-Identifier: Apache-2.0
"""``penstock clean``: take away what died and was left.

Where a server was killed together with whoever would have unmounted for it, its mount stays in the
tree and its record and socket in the runtime directory. This removes them, and nothing that lives.
"""

from __future__ import annotations

import argparse

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.logs import report
from penstock.cli.mounts import Stale, remove_stale, resolved_mount, stale_mounts
from penstock.cli.text import printable
from penstock.control import Leftover, find_leftovers, records, remove_leftover

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Clean up; each thing that was done, or would be, is one line."""
    stale = stale_mounts(records(tidy=False))
    files = find_leftovers()
    if arguments.mountpoint:
        stale, files = _chosen(arguments.mountpoint, stale, files)
    good = [_unmount(item, dry=arguments.dry_run) for item in stale]
    good += [_remove(file, dry=arguments.dry_run) for file in files]
    return ExitCode.OK if all(good) else ExitCode.MOUNT


def _chosen(
    paths: list[str], stale: list[Stale], files: list[Leftover]
) -> tuple[list[Stale], list[Leftover]]:
    """What belongs to the mount points that were named.

    Raises:
        Failure: one of them is not stale.
    """
    mounts: list[Stale] = []
    for path in paths:
        entry = resolved_mount(path, ExitCode.MOUNT)
        same = [item for item in stale if item.mount.mount_id == entry.mount_id]
        if not same:
            raise Failure(
                f"{path}: is not known to be stale (penstock umount --abort ends a live mount)",
                ExitCode.MOUNT,
            )
        mounts += same
    places = {item.mount.mountpoint for item in mounts}
    return mounts, [file for file in files if file.mountpoint in places]


def _unmount(stale: Stale, *, dry: bool) -> bool:
    what = f"{stale.mount.mountpoint} ({stale.mount.source})"
    if dry:
        print(printable(f"would unmount {what}"))
        return True
    try:
        if not remove_stale(stale):
            report(f"{stale.mount.mountpoint}: is covered by another mount, and was left")
            return False
    except OSError as error:
        report(f"{stale.mount.mountpoint}: {explain(error)}")
        return False
    print(printable(f"unmounted {what}"))
    return True


def _remove(file: Leftover, *, dry: bool) -> bool:
    if dry:
        print(printable(f"would remove {file.path}"))
        return True
    try:
        if remove_leftover(file):
            print(printable(f"removed {file.path}"))
    except OSError as error:
        report(f"{file.path}: {explain(error)}")
        return False
    return True
