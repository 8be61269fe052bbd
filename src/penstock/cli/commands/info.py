# SPDX-License-Identifier: Apache-2.0
"""``penstock info``: what an image is and holds, without mounting it."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.images import open_filesystem, open_source, reading_words
from penstock.cli.logs import report
from penstock.cli.text import json_text, print_table, printable, size

if TYPE_CHECKING:
    from penstock.cli.options import Words
    from penstock.formats.source import FileSource

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print what is known of an image."""
    from penstock.cli.logs import configure_logging

    configure_logging()
    words = reading_words(arguments)
    fd = open_source(arguments.source)
    try:
        described = _describe(arguments.source, fd, arguments.type, words)
    finally:
        os.close(fd)
    if arguments.json:
        print(json_text(described))
    else:
        _show(described)
    if "error" in described:
        report(f"{arguments.source}: {described['error']}")
        return ExitCode.SYSTEM
    return ExitCode.OK


def _describe(path: str, fd: int, type: str | None, words: Words) -> dict[str, Any]:
    """Everything that can be known, as plain values; ``error`` is why it is not more."""
    from penstock.formats.detect import detect
    from penstock.formats.errors import FormatError
    from penstock.formats.source import FileSource

    source = FileSource(fd)
    found = detect(source)
    described: dict[str, Any] = {
        "source": os.path.realpath(path),
        "size": source.size,
        "type": found.type,
        "label": found.label,
        "uuid": found.uuid,
    }
    if found.type in {"gpt", "mbr"}:
        try:
            described["partitions"] = _partitions(source)
        except FormatError as error:
            described["error"] = explain(error)
            return described
        if "partition" not in words.server:
            return described
    elif found.type not in {"ext2", "ext3", "ext4"} and type is None and found.type is not None:
        return described
    try:
        server = open_filesystem(path, fd, type, words.server, ExitCode.SYSTEM)
    except Failure as failure:
        if failure.code == ExitCode.USAGE:
            raise
        described["error"] = str(failure).removeprefix(f"{path}: ")
        return described
    filesystem = {"type": server.type, **server.info, "warnings": list(server.warnings)}
    server.operations.destroy()
    if "partition" in words.server:
        described["partition"] = int(words.server["partition"])
    described["filesystem"] = filesystem
    return described


def _partitions(source: FileSource) -> list[dict[str, Any]]:
    from penstock.formats.detect import detect
    from penstock.formats.errors import CorruptImage
    from penstock.formats.partition import read_partitions
    from penstock.formats.source import FileSource

    table = read_partitions(source)
    if table is None:
        raise CorruptImage("the partition table cannot be read")
    rows = []
    for partition in table.partitions:
        length = max(0, min(partition.size, source.size - partition.start))
        inside = detect(FileSource(source.fd, partition.start, length)) if length else None
        rows.append(
            {
                "number": partition.number,
                "start": partition.start,
                "size": partition.size,
                "type": str(partition.type),
                "type_name": partition.type_name,
                "name": partition.name,
                "uuid": partition.uuid,
                "holds": inside.type if inside is not None else None,
                "label": inside.label if inside is not None else None,
            }
        )
    return rows


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
        print(f"{name:<{width}}  {printable(str(value))}")
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
