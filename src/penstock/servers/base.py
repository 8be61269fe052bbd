# SPDX-License-Identifier: Apache-2.0
"""What all servers have in common: how they are described and opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from penstock.fs import Operations

__all__ = ["Server", "ServerOption", "UnknownImage"]


class UnknownImage(ValueError):
    """No server is there for what this image is. The message says what it is."""


class ServerOption(NamedTuple):
    """One ``-o`` word of a server."""

    name: str
    metavar: str
    """How its value is written; empty for a word without value."""
    help: str


@dataclass(frozen=True, slots=True)
class Server:
    """An opened filesystem, ready to be mounted or read."""

    type: str
    operations: Operations
    read_only: bool
    offset: int
    """Where the filesystem begins in the image, bytes; of a directory 0, as the length."""
    length: int
    """Bytes of the image, from ``offset`` on, that belong to it."""
    block_size: int
    """Bytes of its blocks."""
    info: dict[str, Any]
    """What ``penstock info --json`` shows of the filesystem."""
    warnings: tuple[str, ...] = field(default=())
    """One line each, for the user."""
