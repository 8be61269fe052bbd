# SPDX-License-Identifier: Apache-2.0
"""The timed program: the same plain loops for every contender, in a process of their own.

Reads one JSON object from standard input, ``{"root": MOUNTPOINT, "steps": [[NAME, ARGUMENTS]]}``,
does the steps one after the other, and writes ``{"samples": [SECONDS, …], "counts": [N, …]}``.
Imports nothing but the standard library; run with ``python -I``. Nothing else is done while the
clock runs: no output, no garbage collection, buffers and lists are made before.
"""

import gc
import json
import os
import random
import sys
import time
from typing import Any

CHUNK = 1 << 20


class Client:
    """The steps, and what one of them leaves for the next: the list of files that a walk found."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.files: list[str] = []

    def walk(self, folder: str) -> tuple[float, int]:
        """List every directory below ``folder`` and lstat every entry."""
        files: list[str] = []
        folders = [os.path.join(self.root, folder)]
        entries = 0
        begin = time.perf_counter()
        while folders:
            with os.scandir(folders.pop()) as listing:
                for entry in listing:
                    os.lstat(entry.path)
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        files.append(entry.path)
        seconds = time.perf_counter() - begin
        self.files = files
        return seconds, entries

    def stat(self) -> tuple[float, int]:
        """Lstat every file that the walk found."""
        begin = time.perf_counter()
        for path in self.files:
            os.lstat(path)
        return time.perf_counter() - begin, len(self.files)

    def small(self, length: int) -> tuple[float, int]:
        """Open, read once, close every file that the walk found."""
        begin = time.perf_counter()
        for path in self.files:
            fd = os.open(path, os.O_RDONLY)
            data = os.read(fd, 4096)
            os.close(fd)
            if len(data) != length:
                raise SystemExit(f"{path}: {len(data)} bytes read, {length} expected")
        return time.perf_counter() - begin, len(self.files)

    def sequential(self, name: str) -> tuple[float, int]:
        """Read a file from begin to end, 1 MiB at a time."""
        fd = os.open(os.path.join(self.root, name), os.O_RDONLY)
        size = os.fstat(fd).st_size
        buffers = [bytearray(CHUNK)]
        done = 0
        begin = time.perf_counter()
        while count := os.readv(fd, buffers):
            done += count
        seconds = time.perf_counter() - begin
        os.close(fd)
        if done != size:
            raise SystemExit(f"{name}: {done} bytes read, {size} expected")
        return seconds, done

    def random(self, name: str, count: int, seed: int) -> tuple[float, int]:
        """Read ``count`` different blocks of 4 KiB of a file, in random order."""
        fd = os.open(os.path.join(self.root, name), os.O_RDONLY)
        blocks = random.Random(seed).sample(range(os.fstat(fd).st_size // 4096), count)
        begin = time.perf_counter()
        for block in blocks:
            os.pread(fd, 4096, block * 4096)
        seconds = time.perf_counter() - begin
        os.close(fd)
        return seconds, count


def main() -> None:
    """Do what standard input says."""
    order: dict[str, Any] = json.load(sys.stdin)
    client = Client(order["root"])
    gc.collect()
    gc.disable()
    results = [getattr(client, name)(*arguments) for name, arguments in order["steps"]]
    json.dump({"samples": [r[0] for r in results], "counts": [r[1] for r in results]}, sys.stdout)


if __name__ == "__main__":
    main()
