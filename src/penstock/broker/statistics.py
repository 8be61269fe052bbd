# SPDX-License-Identifier: Apache-2.0
"""What a broker knows of its mount, as a snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from penstock.broker.backings import BackingsStatistics
from penstock.broker.protocol import Layer, Statistics
from penstock.fs import Connection

__all__ = ["BrokerStatistics", "ServerStatistics"]


class ServerStatistics(NamedTuple):
    """One server."""

    pid: int
    layers: tuple[Layer, ...]
    counters: Statistics | None
    """None if it did not answer in time."""
    dropped_lines: int


@dataclass(frozen=True, slots=True)
class BrokerStatistics:
    """A snapshot of one mount."""

    mountpoint: str
    how: str
    connection: Connection
    servers: tuple[ServerStatistics, ...]
    uptime_seconds: float
    backings: BackingsStatistics | None = None
    """None where whole files are carried by nobody."""
