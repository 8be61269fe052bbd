# SPDX-License-Identifier: Apache-2.0
"""``penstock stats``: what a mount has done, asked of its server over the control socket."""

from __future__ import annotations

import argparse
from typing import Any, Final

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.mounts import our_mount
from penstock.cli.text import duration, json_text, print_table, printable, size
from penstock.control import STATS, ControlClient, ControlError, ProtocolError, State
from penstock.sys.devfuse import find_server
from penstock.sys.process import process_name

__all__ = ["run"]

_SECONDS: Final = 1.0

_SHAPE: Final[dict[str, Any]] = {
    "source": str,
    "type": str,
    "mountpoint": str,
    "pid": int,
    "servers": [{"pid": int, "answers": bool}],
    "mounted_by": str,
    "uptime_seconds": float,
    "datapath": str,
    "datapath_reasons": {None: str},
    "reads": {None: {"reads": int, "bytes": int}},
    "opens": {None: int},
    "requests": {None: {"count": int, "errors": int, "microseconds": float}},
    "protocol": {"minor": int},
    "sandbox": {"layers": {None: {"in_force": bool, "detail": str}}},
    "memory": {"resident": int},
}
"""What is shown of an answer; None stands for any name. An answer may hold more."""


def run(arguments: argparse.Namespace) -> int:
    """Print the statistics of one mount."""
    statistics = _ask(arguments.mountpoint)
    if arguments.json:
        print(json_text(statistics))
    else:
        _show(statistics)
    return ExitCode.OK


def _ask(path: str) -> dict[str, Any]:
    entry, listed = our_mount(path, ExitCode.SYSTEM)
    if listed is None:
        pid = find_server(entry.minor)
        program = f" by {process_name(pid)} (process {pid})" if pid is not None else ""
        raise Failure(f"{path}: a filesystem mounted{program} that keeps no statistics here")
    if listed.state is State.STALE:
        raise Failure(f"{path}: its server has died; run: penstock umount {path}")
    try:
        answer = ControlClient(listed).call(STATS, timeout=_SECONDS)
    except TimeoutError as error:
        raise Failure(
            f"{path}: its server (process {listed.record.pid}) does not answer within "
            f"{_SECONDS:.0f} s"
        ) from error
    except (OSError, ControlError, ProtocolError) as error:
        raise Failure(f"{path}: its server cannot be asked: {explain(error)}") from error
    statistics = answer.get("statistics")
    if not isinstance(statistics, dict) or not _fits(statistics, _SHAPE):
        raise Failure(f"{path}: its server answered no statistics")
    return statistics


def _fits(value: object, shape: Any) -> bool:
    """Whether what a server, that is perhaps another user's, has answered is of a shape."""
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if None in shape:
            return all(_fits(item, shape[None]) for item in value.values())
        return all(name in value and _fits(value[name], item) for name, item in shape.items())
    if shape in {str, bool}:
        return isinstance(value, shape)
    if isinstance(value, bool) or not isinstance(value, (int, shape)):
        return False
    return 0 <= value < 1 << 63  # no NaN either


def _processes(statistics: dict[str, Any]) -> list[tuple[str, str]]:
    """Who serves the mount, and how much memory that takes."""
    servers = statistics["servers"]
    numbers = ", ".join(str(server["pid"]) for server in servers)
    word = "processes" if len(servers) > 1 else "process"
    rows = [("server", f"{word} {numbers}, {size(statistics['memory']['resident'])}")]
    silent = [str(server["pid"]) for server in servers if not server["answers"]]
    if silent:
        rows.append(("", f"does not answer: {', '.join(silent)}"))
    broker = statistics["memory"].get("broker")
    if _fits(broker, int):
        memory = size(broker)
        rows.append(("broker", f"process {statistics['pid']}, {memory}"))
    return rows


def _sandbox(sandbox: dict[str, Any]) -> list[tuple[str, str]]:
    """The layers around the server."""
    layers = sandbox["layers"]
    if not layers:
        return [("sandbox", "none")]
    there = [name for name, layer in layers.items() if layer["in_force"]]
    missing = [(f"  not {n}", layer["detail"]) for n, layer in layers.items() if n not in there]
    return [("sandbox", ", ".join(there) or "none"), *missing]


def _show(statistics: dict[str, Any]) -> None:
    rows = [
        ("source", statistics["source"]),
        ("type", statistics["type"]),
        ("mounted on", f"{statistics['mountpoint']} (by {statistics['mounted_by']})"),
        *_processes(statistics),
        *_sandbox(statistics["sandbox"]),
        ("up", duration(statistics["uptime_seconds"])),
        ("data path", statistics["datapath"]),
        *(
            (f"  {name}", f"{row['reads']} reads, {size(row['bytes'])}")
            for name, row in statistics["reads"].items()
        ),
        *((f"  {name}", f"{count} files opened") for name, count in statistics["opens"].items()),
        *((f"  not {name}", reason) for name, reason in statistics["datapath_reasons"].items()),
        ("protocol", f"7.{statistics['protocol']['minor']}"),
    ]
    shown = [(printable(name), printable(str(value))) for name, value in rows]
    width = max(len(name) for name, _ in shown)
    for name, text in shown:
        print(f"{name:<{width}}  {text}")
    requests = statistics["requests"]
    if not requests:
        return
    print()
    print_table(
        ("REQUEST", "COUNT", "ERRORS", "MICROSECONDS EACH"),
        [
            (
                name,
                str(row["count"]),
                str(row["errors"]),
                f"{row['microseconds'] / max(1, row['count']):.1f}",
            )
            for name, row in requests.items()
        ],
    )
