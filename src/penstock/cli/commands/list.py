# SPDX-License-Identifier: Apache-2.0
"""``penstock list``: the mounts of this user, for root those of everybody."""

from __future__ import annotations

import argparse
import dataclasses
import time

from penstock.cli.errors import ExitCode
from penstock.cli.text import duration, json_text, print_table
from penstock.control import records

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print the mounts, oldest first."""
    found = records()
    if arguments.json:
        rows = [
            {**dataclasses.asdict(item.record), "state": item.state.value, "uid": item.uid}
            for item in found
        ]
        print(json_text(rows))
        return ExitCode.OK
    if not found:
        return ExitCode.OK
    now = time.time()
    print_table(
        ("MOUNTPOINT", "SOURCE", "TYPE", "STATE", "PID", "AGE"),
        [
            (
                item.record.mountpoint,
                item.record.source,
                item.record.type,
                item.state.value,
                str(item.record.pid),
                duration(max(0.0, now - item.record.started)),
            )
            for item in found
        ],
    )
    return ExitCode.OK
