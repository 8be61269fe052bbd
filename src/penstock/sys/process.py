# SPDX-License-Identifier: Apache-2.0
"""Processes by number and start time, so that a recycled number is never taken for the old one.

Specification: proc_pid_stat(5), pidfd_open(2).
"""

from __future__ import annotations

import os
import select
from typing import Final

__all__ = [
    "process_name",
    "process_start_time",
    "process_state",
    "wait_pidfd",
]

_START_TIME: Final = 19
"""Index of field 22 (starttime) among the fields after the command name."""

_STATE: Final = 0
"""Index of field 3 (state) among the fields after the command name."""


def process_start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; None if there is no such process.

    A zombie counts as gone: it will never do anything again.
    """
    fields = _stat(pid)
    if fields is None or fields[_STATE] in {b"Z", b"X"}:
        return None
    return int(fields[_START_TIME])


def process_state(pid: int) -> str | None:
    """The state letter of a process (``R``, ``S``, ``T`` for stopped, …); None if it has gone."""
    fields = _stat(pid)
    return None if fields is None else fields[_STATE].decode("ascii")


def process_name(pid: int) -> str:
    """The command name of a process (at most 15 bytes), ``?`` if it cannot be told."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return os.fsdecode(file.read(64).rstrip(b"\n")) or "?"
    except OSError:
        return "?"


def wait_pidfd(pidfd: int, seconds: float) -> bool:
    """Whether the process behind a descriptor has ended, or does within so many seconds."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(max(0, int(seconds * 1000))))


def _stat(pid: int) -> list[bytes] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read(4096)
    except OSError:
        return None
    # The command name is in parentheses and may itself contain any byte.
    fields = text[text.rfind(b")") + 2 :].split()
    return fields if len(fields) > _START_TIME else None
