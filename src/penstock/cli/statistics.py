# SPDX-License-Identifier: Apache-2.0
"""What ``penstock stats --json`` says, made from a mount's snapshots. Runs in the process that
answers for the mount: the broker, or with ``sandbox=no`` the server.

Counts are of what reached the server: a read that the kernel answered from its page cache is in
none of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.abi.fuse import InitFlag, Opcode
from penstock.control import Record

if TYPE_CHECKING:
    from penstock.broker.statistics import BrokerStatistics, ServerStatistics
    from penstock.serve import MountStatistics

__all__ = ["contained_statistics", "statistics_of"]


def statistics_of(snapshot: MountStatistics, record: Record) -> dict[str, Any]:
    """Plain values, ready for JSON.

    Args:
        snapshot: of the mount.
        record: what the mount is.
    """
    session = snapshot.session
    paths = snapshot.datapath
    return {
        "source": record.source,
        "type": record.type,
        "mountpoint": record.mountpoint,
        "pid": record.pid,
        "servers": [{"pid": record.pid, "answers": True, "dropped_lines": 0}],
        "connection": record.connection,
        "mounted_by": snapshot.how,
        "uptime_seconds": round(snapshot.uptime_seconds, 3),
        "datapath": paths.datapath,
        "datapath_reasons": dict(paths.reasons),
        "opens": dict(paths.opens),
        "reads": {
            name: {"reads": row.reads, "bytes": row.bytes} for name, row in paths.reads.items()
        },
        "backing_files": snapshot.backing_files,
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
        "sandbox": {"mode": "no", "active": False, "layers": {}},
        "memory": {"resident": _resident(os.getpid())},
    }


def contained_statistics(
    snapshot: BrokerStatistics, record: Record, *, strict: bool, without: Mapping[str, str] = {}
) -> dict[str, Any]:
    """The same of a mount whose servers are contained; what those say is added up.

    Args:
        snapshot: of the mount.
        record: what the mount is.
        strict: whether it was mounted with ``sandbox=strict``.
        without: layers that servers of this kind do without, and why.
    """
    servers = snapshot.servers
    said = [server.counters for server in servers if server.counters is not None]
    requests: dict[str, dict[str, Any]] = {}
    reads: dict[str, dict[str, int]] = {}
    for counters in said:
        for row in counters.requests:
            sums = requests.setdefault(
                _opcode_name(row.opcode), {"count": 0, "errors": 0, "microseconds": 0.0}
            )
            sums["count"] += row.done
            sums["errors"] += row.errors
            sums["microseconds"] = round(sums["microseconds"] + row.nanoseconds / 1000, 1)
        for path in counters.reads:
            read = reads.setdefault(path.datapath, {"reads": 0, "bytes": 0})
            read["reads"] += path.reads
            read["bytes"] += path.bytes
    datapath = said[0].datapath if said else ""
    opens: dict[str, int] = {}
    for opened in (row for counters in said for row in counters.opens):
        opens[opened.datapath] = opens.get(opened.datapath, 0) + opened.opens
    return {
        "source": record.source,
        "type": record.type,
        "mountpoint": record.mountpoint,
        "pid": record.pid,
        "keeper": record.keeper,
        "servers": [_server(server) for server in servers],
        "connection": record.connection,
        "mounted_by": snapshot.how,
        "uptime_seconds": round(snapshot.uptime_seconds, 3),
        "datapath": datapath,
        "datapath_reasons": {row.datapath: row.text for row in said[0].reasons} if said else {},
        "opens": opens,
        "reads": reads,
        "backing_files": snapshot.backings.registered if snapshot.backings is not None else 0,
        "requests": requests,
        "pending": sum(counters.pending for counters in said),
        "nodes": sum(counters.nodes for counters in said),
        "malformed": sum(counters.malformed for counters in said),
        "protocol": {
            "minor": snapshot.connection.minor,
            "flags": _flag_names(snapshot.connection.flags),
        },
        "sandbox": {
            "mode": "strict" if strict else "yes",
            "active": all(layer.in_force for s in servers for layer in s.layers),
            "layers": {
                **{
                    layer.name: {
                        "in_force": bool(layer.in_force),
                        "wanted": True,
                        "detail": layer.detail,
                    }
                    for layer in servers[0].layers
                },
                **{
                    name: {"in_force": False, "wanted": False, "detail": why}
                    for name, why in without.items()
                },
            },
        },
        "memory": {
            "resident": sum(_resident(server.pid) for server in servers),
            "broker": _resident(os.getpid()),
        },
    }


def _server(server: ServerStatistics) -> dict[str, Any]:
    return {
        "pid": server.pid,
        "answers": server.counters is not None,
        "dropped_lines": server.dropped_lines,
    }


def _opcode_name(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode {opcode}"


def _flag_names(flags: int) -> list[str]:
    names = []
    for bit in range(64):
        if flags >> bit & 1:
            try:
                names.append(str(InitFlag(1 << bit).name))
            except ValueError:
                names.append(f"bit {bit}")
    return names


def _resident(pid: int) -> int:
    """Resident bytes of a process; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
