# SPDX-License-Identifier: Apache-2.0
"""``penstock info``: what an image is and holds, without mounting it."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from penstock.cli.errors import ExitCode, Failure
from penstock.cli.images import contained, inspect_here, open_source, reading_words
from penstock.cli.messages import report
from penstock.cli.text import json_text, print_table, printable, size

if TYPE_CHECKING:
    from penstock.cli.options import Words

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print what is known of an image."""
    words = reading_words(arguments)
    source = arguments.source
    fd = open_source(source)
    try:
        described, failure = _describe(source, fd, arguments.type, words)
    finally:
        os.close(fd)
    described = {"source": os.path.realpath(source), **described}
    if failure is not None:
        described["error"] = str(failure).removeprefix(f"{source}: ")
    if arguments.json:
        print(json_text(described))
    else:
        _show(described)
    if failure is None:
        return ExitCode.OK
    report(str(failure))
    return failure.code


def _describe(
    source: str, fd: int, type: str | None, words: Words
) -> tuple[dict[str, Any], Failure | None]:
    """Everything that can be known, as plain values, and why it is not more.

    Raises:
        Failure: the image cannot be read at all, or a word is wrong.
    """
    from penstock.broker.launch import launch

    here = words.generic.get("sandbox") == "no"
    launched = None if here else launch()  # it starts while the rest is imported
    from penstock.broker.outcome import ServerFailure
    from penstock.cli.failures import server_failure
    from penstock.contain.reading import describe

    try:
        if launched is None:
            described, failure = inspect_here(fd, type, words.server)
        else:
            described, failure = describe(contained(fd, type, words), launched)
    except ServerFailure as error:
        raise server_failure(source, error, words.server, ExitCode.SYSTEM) from error
    if failure is None:
        return described, None
    return described, server_failure(source, failure, words.server, ExitCode.SYSTEM)


def _show(described: dict[str, Any]) -> None:
    filesystem = described.get("filesystem")
    rows = [
        ("source", described["source"]),
        ("size", f"{size(described['size'])} ({described['size']} bytes)"),
        ("holds", described["type"] or (filesystem or {}).get("type") or "nothing known"),
    ]
    if filesystem is not None:
        if "partition" in described:
            rows += [("partition", f"{described['partition']}: {filesystem['type']}")]
        rows += _filesystem_rows(filesystem)
    else:
        rows += [(name, described[name]) for name in ("label", "uuid") if described[name]]
    if "error" in described:
        rows.append(("error", described["error"]))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{printable(name):<{width}}  {printable(str(value))}")
    if described.get("partitions"):
        print()
        _show_partitions(described["partitions"])


def _show_partitions(partitions: list[dict[str, Any]]) -> None:
    print_table(
        ("PARTITION", "START", "SIZE", "TYPE", "NAME", "HOLDS", "LABEL"),
        [
            (
                str(row["number"]),
                str(row["start"]),
                size(row["size"]),
                row["type_name"] or row["type"],
                row["name"] or "",
                row["holds"] or "",
                row["label"] or "",
            )
            for row in partitions
        ],
    )


def _filesystem_rows(filesystem: dict[str, Any]) -> list[tuple[str, str]]:
    """Two columns from whatever a server says of itself."""
    rows = []
    for name, value in filesystem.items():
        label = name.replace("_", " ")
        if name == "warnings":
            rows += [("warning", text) for text in value]
        elif name in {"size", "free_bytes"}:
            rows.append((label, f"{size(value)} ({value} bytes)"))
        elif isinstance(value, dict):
            words = [f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items()]
            rows.append((label, ", ".join(words)))
        elif name != "type":
            rows.append((label, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
