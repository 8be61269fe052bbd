# SPDX-License-Identifier: Apache-2.0
"""Files to measure with: generated, the same each time."""

from __future__ import annotations

import os
import random
from pathlib import Path

__all__ = ["CACHE", "numbered", "random_file", "read_all"]

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "bench"


def numbered(folder: Path, count: int, per_folder: int, content: bytes) -> None:
    """Many small files, their number in name and content."""
    for start in range(0, count, per_folder):
        below = folder / f"{start // per_folder:04}"
        below.mkdir(parents=True)
        for number in range(start, min(start + per_folder, count)):
            fd = os.open(below / f"file-{number:06}.dat", os.O_WRONLY | os.O_CREAT, 0o644)
            if content:
                os.write(fd, b"%08d" % number + content[8:])
            os.close(fd)


def random_file(path: Path, size: int, noise: random.Random) -> None:
    """A file whose content cannot be packed; ``size`` is in whole MiB."""
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(noise.randbytes(1 << 20))


def read_all(path: Path) -> None:
    """Read a whole file, so that it is in the page cache."""
    buffers = [bytearray(1 << 20)]
    fd = os.open(path, os.O_RDONLY)
    while os.readv(fd, buffers):
        pass
    os.close(fd)
