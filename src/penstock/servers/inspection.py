# SPDX-License-Identifier: Apache-2.0
"""What an image is and holds, as plain values that JSON can carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from penstock.formats.detect import detect
from penstock.formats.errors import CorruptImage, FormatError
from penstock.formats.partition import read_partitions
from penstock.formats.source import FileSource
from penstock.servers.base import UnknownImage
from penstock.servers.images import open_image

__all__ = ["Inspection", "inspect_image"]

_TABLES: Final = frozenset({"gpt", "mbr"})
_SERVED: Final = frozenset({"ext2", "ext3", "ext4", None})


class Inspection(NamedTuple):
    """All that can be known of an image."""

    description: dict[str, Any]
    error: Exception | None
    """Why it is not more: a :class:`FormatError`, :class:`UnknownImage` or OSError."""


def inspect_image(
    fd: int, type: str | None = None, options: Mapping[str, str] = {}, *, size: int | None = None
) -> Inspection:
    """Look at an image and, where it is a filesystem that is served, into it.

    Args:
        fd: the image, open for reading.
        type: what to take it for; None = found out.
        options: the server's ``-o`` words.
        size: bytes of the image; None = asked of the descriptor.

    Raises:
        ValueError: an option is wrong.
        OSError: the image cannot be read at all.
    """
    source = FileSource(fd, 0, size)
    found = detect(source)
    description: dict[str, Any] = {
        "size": source.size,
        "type": found.type,
        "label": found.label,
        "uuid": found.uuid,
    }
    if found.type in _TABLES:
        try:
            description["partitions"] = _partitions(source)
        except FormatError as error:
            return Inspection(description, error)
        if "partition" not in options:
            return Inspection(description, None)
    elif found.type not in _SERVED and type is None:
        return Inspection(description, None)
    try:
        server = open_image(fd, type, options, size=source.size)
    except (FormatError, UnknownImage, OSError) as error:
        return Inspection(description, error)
    server.operations.destroy()
    if "partition" in options:
        description["partition"] = int(options["partition"])
    warnings = list(server.warnings)
    description["filesystem"] = {"type": server.type, **server.info, "warnings": warnings}
    return Inspection(description, None)


def _partitions(source: FileSource) -> list[dict[str, Any]]:
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
