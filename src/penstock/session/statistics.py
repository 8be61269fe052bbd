# SPDX-License-Identifier: Apache-2.0
"""What a session counts: requests by opcode, errors, time; and a snapshot of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from penstock.abi.fuse import Opcode

__all__ = ["RequestCounts", "RequestStatistics", "SessionStatistics"]


@dataclass(frozen=True, slots=True)
class RequestStatistics:
    """Requests of one opcode."""

    count: int
    errors: int
    microseconds: float
    """Time from the request's arrival to its answer, summed; late answers included."""


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """A snapshot of one session."""

    requests: dict[str, RequestStatistics]
    """By opcode name; an unknown opcode is ``opcode N``."""
    pending: int
    """Requests whose answer comes later and has not come yet."""
    nodes: int
    """Inodes that the kernel knows, where the session counts them."""
    malformed: int
    """Messages that could not be decoded."""
    minor: int
    """Protocol minor in force; 0 before INIT."""
    flags: int
    """INIT bits in force."""


def opcode_name(opcode: int) -> str:
    """``LOOKUP``, or ``opcode 4711``."""
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode {opcode}"


class RequestCounts:
    """Counts by opcode. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[int, list[int]] = {}

    def add(self, opcode: int, nanoseconds: int, *, error: bool) -> None:
        """Count one answered request."""
        with self._lock:
            row = self._rows.get(opcode)
            if row is None:
                row = self._rows[opcode] = [0, 0, 0]
            row[0] += 1
            row[1] += error
            row[2] += nanoseconds

    def snapshot(self) -> dict[str, RequestStatistics]:
        """By opcode name, in order of opcode."""
        with self._lock:
            rows = sorted((opcode, *row) for opcode, row in self._rows.items())
        return {
            opcode_name(opcode): RequestStatistics(count, errors, nanoseconds / 1000)
            for opcode, count, errors, nanoseconds in rows
        }
