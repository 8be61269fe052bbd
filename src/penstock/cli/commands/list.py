# SPDX-License-Identifier: Apache-2.0
"""``penstock list``: the mounts of this user, for root those of everybody."""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

from penstock.cli.errors import ExitCode
from penstock.cli.mounts import Stale, stale_mounts
from penstock.cli.text import duration, json_text, print_table
from penstock.control import Listed, State, records

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print the mounts, oldest first; after them those without a record."""
    found = records()
    unrecorded = [stale for stale in stale_mounts(found) if stale.listed is None]
    if arguments.stale:
        found = [item for item in found if item.state is State.STALE]
    rows = [_described(item) for item in found] + [_described_unrecorded(s) for s in unrecorded]
    if arguments.json:
        print(json_text(rows))
    elif rows:
        now = time.time()
        print_table(
            ("MOUNTPOINT", "SOURCE", "TYPE", "STATE", "PID", "AGE"),
            [_cells(row, now) for row in rows],
        )
    return ExitCode.OK


def _described(item: Listed) -> dict[str, Any]:
    return {**dataclasses.asdict(item.record), "state": item.state.value, "uid": item.uid}


def _described_unrecorded(stale: Stale) -> dict[str, Any]:
    """The same fields; null where nobody knows."""
    entry = stale.mount
    return {
        "pid": None,
        "start_time": None,
        "mount_id": entry.mount_id,
        "connection": entry.minor,
        "mountpoint": entry.mountpoint,
        "source": entry.source,
        "type": None,
        "started": None,
        "keeper": None,
        "state": State.STALE.value,
        "uid": entry.user_id,
    }


def _cells(row: dict[str, Any], now: float) -> list[str]:
    age = "-" if row["started"] is None else duration(max(0.0, now - row["started"]))
    words = [row["mountpoint"], row["source"], row["type"], row["state"], row["pid"]]
    return [*("-" if word is None else str(word) for word in words), age]
