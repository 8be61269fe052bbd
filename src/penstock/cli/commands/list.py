# SPDX-License-Identifier: Apache-2.0
"""``penstock list``: the mounts of this user, for root those of everybody."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from typing import Any, Final

from penstock.cli.errors import ExitCode
from penstock.cli.mounts import Stale, stale_mounts, user_name
from penstock.cli.text import duration, json_text, print_table, printable
from penstock.control import Listed, State, records

__all__ = ["run"]

_WIDEST: Final = 120
"""Characters of a cell. Texts come from records, that is from any user; --json has all of them."""


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
        all_users = os.geteuid() == 0
        headings = ["MOUNTPOINT", "SOURCE", "TYPE", "STATE", "PID", "AGE"]
        print_table(
            [*headings, "USER"] if all_users else headings,
            [_cells(row, now, all_users=all_users) for row in rows],
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
        "pid_namespace": None,
        "state": State.STALE.value,
        "uid": entry.user_id,
    }


def _cells(row: dict[str, Any], now: float, *, all_users: bool) -> list[str]:
    age = "-" if row["started"] is None else duration(max(0.0, now - row["started"]))
    words = [row["mountpoint"], row["source"], row["type"], row["state"], row["pid"], age]
    if all_users:
        words.append(None if row["uid"] is None else user_name(row["uid"]))
    return ["-" if word is None else _cut(str(word)) for word in words]


def _cut(text: str) -> str:
    shown = printable(text[: _WIDEST + 1])
    return shown if len(shown) <= _WIDEST else f"{shown[: _WIDEST - 1]}…"
