# SPDX-License-Identifier: Apache-2.0
"""What ``penstock stats --json`` says, made from a mount's snapshots. Runs in the server.

Counts are of what reached the server: a read that the kernel answered from its page cache is in
none of them.
"""

from __future__ import annotations

import os
from typing import Any

from penstock.abi.fuse import InitFlag
from penstock.control import Record
from penstock.serve import MountStatistics

__all__ = ["statistics_of"]


def statistics_of(snapshot: MountStatistics, record: Record) -> dict[str, Any]:
    """Plain values, ready for JSON.

    Args:
        snapshot: of the mount.
        record: what the mount is.
    """
    session = snapshot.session
    paths = snapshot.datapath
    opened = session.requests.get("OPEN")
    opens = opened.count - opened.errors if opened is not None else 0
    return {
        "source": record.source,
        "type": record.type,
        "mountpoint": record.mountpoint,
        "pid": record.pid,
        "connection": record.connection,
        "mounted_by": snapshot.how,
        "uptime_seconds": round(snapshot.uptime_seconds, 3),
        "datapath": paths.datapath,
        "datapath_reasons": dict(paths.reasons),
        "opens": {paths.datapath: opens},
        "reads": {
            name: {"reads": row.reads, "bytes": row.bytes} for name, row in paths.reads.items()
        },
        "backing_files": 0,
        "requests": {
            name: {
                "count": row.count,
                "errors": row.errors,
                "microseconds": round(row.microseconds, 1),
            }
            for name, row in session.requests.items()
        },
        "pending": session.pending,
        "nodes": session.nodes,
        "malformed": session.malformed,
        "protocol": {"minor": session.minor, "flags": _flag_names(session.flags)},
        "sandbox": {"active": False},
        "memory": _memory(),
    }


def _flag_names(flags: int) -> list[str]:
    names = []
    for bit in range(64):
        if flags >> bit & 1:
            try:
                names.append(str(InitFlag(1 << bit).name))
            except ValueError:
                names.append(f"bit {bit}")
    return names


def _memory() -> dict[str, int]:
    """Resident bytes of this process."""
    with open("/proc/self/statm", "rb") as file:
        resident = int(file.read().split()[1])
    return {"resident": resident * os.sysconf("SC_PAGE_SIZE")}
