# SPDX-License-Identifier: Apache-2.0
"""The other userspace filesystems that the mirror is measured against: which, where, or why not.

``build_peers`` (``make bench-peers``) puts them into .cache/peers at the versions below and leaves
a note there of what came of each. They are programs of their own: fetched and run, never part of
this repository.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "LIBFUSE",
    "LOOPBACK",
    "MFUSEPY",
    "NOTE",
    "PASSTHROUGHFS",
    "PLACE",
    "PREFIX",
    "PYFUSE3",
    "PYTHON",
    "SOURCES",
    "Peer",
    "absence",
    "example",
]

PLACE = Path(__file__).resolve().parent.parent / ".cache" / "peers"
NOTE = PLACE / "peers.json"


@dataclass(frozen=True)
class Peer:
    """A release to fetch.

    Attributes:
        version: as its makers call it.
        sha256: of the archive with its sources, wherever it is fetched from.
    """

    name: str
    version: str
    sha256: str


LIBFUSE = Peer(
    "libfuse", "3.18.3", "bcd19582c5e30f7fe45dd86a5540e998590aa01903afc7ebcbeea6c8ac5421ee"
)
PYFUSE3 = Peer(
    "pyfuse3", "3.5.0", "88399a9494b88603230bba300f4ba9ad63fece5ed514ca3633d555a0c6a42b24"
)
MFUSEPY = Peer(
    "mfusepy", "3.1.1", "338ece54513d7d1a5e9492837679a0c7432ecf96a03490a2683a1ce1d19570e1"
)

SOURCES = PLACE / f"fuse-{LIBFUSE.version}"
PREFIX = PLACE / "libfuse"
PYTHON = PLACE / "venv" / "bin" / "python"
PASSTHROUGHFS = PLACE / f"pyfuse3-{PYFUSE3.version}" / "examples" / "passthroughfs.py"
LOOPBACK = Path(__file__).with_name("loopback.py")


def example(name: str) -> Path:
    """Where libfuse's example program of that name is built."""
    return SOURCES / "build" / "example" / name


def absence(peer: str, *needed: Path) -> str | None:
    """Why a peer cannot take part; None when it can.

    Args:
        needed: files that must be there.
    """
    try:
        note: dict[str, Any] = json.loads(NOTE.read_text(encoding="utf-8"))[peer]
    except (OSError, ValueError, KeyError):
        return "peer absent: not built (make bench-peers)"
    reason: str | None = note["absent"]
    if reason is None and not all(path.exists() for path in needed):
        reason = "built without this program"
    return None if reason is None else f"peer absent: {reason}"
