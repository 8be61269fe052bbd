# SPDX-License-Identifier: Apache-2.0
"""System calls of the cases, their flags, and a short way to open files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from penstock.sys.files import (
    Dirent,
    birth_time_ns,
    fallocate,
    getdents,
    link_descriptor,
    rename2,
)

__all__ = [
    "EXCHANGE",
    "FALLOC_KEEP_SIZE",
    "FALLOC_PUNCH_HOLE",
    "NOREPLACE",
    "WHITEOUT",
    "Dirent",
    "birth_time_ns",
    "fallocate",
    "getdents",
    "link_descriptor",
    "opened",
    "rename2",
]

NOREPLACE: Final = 1
EXCHANGE: Final = 2
WHITEOUT: Final = 4
FALLOC_KEEP_SIZE: Final = 1
FALLOC_PUNCH_HOLE: Final = 2


@contextlib.contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """An open descriptor, closed at the end."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)
