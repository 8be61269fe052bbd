# SPDX-License-Identifier: Apache-2.0
"""The timed program: the same plain loops for every contender, in a process of their own.

Reads one JSON object from standard input, ``{"root": MOUNTPOINT, "steps": [[NAME, ARGUMENTS]]}``,
does the steps one after the other, and writes ``{"samples": [SECONDS, …], "counts": [N, …]}``.
Imports nothing but the standard library; run with ``python -I``. Nothing else is done while the
clock runs: no output, no garbage collection, buffers and lists are made before.
"""

import gc
import json
import mmap
import os
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

CHUNK = 1 << 20
PAGE = 4096

Sample = tuple[float, int]


class Reading:
    """Steps that change nothing, and what one leaves for the next: the files that a walk found."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.files: list[str] = []

    def at(self, name: str) -> str:
        """A path below the mount point."""
        return os.path.join(self.root, name)

    def walk(self, folder: str) -> Sample:
        """List every directory below ``folder`` and lstat every entry."""
        files: list[str] = []
        folders = [self.at(folder)]
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

    def stat(self) -> Sample:
        """Lstat every file that the walk found."""
        begin = time.perf_counter()
        for path in self.files:
            os.lstat(path)
        return time.perf_counter() - begin, len(self.files)

    def small(self, length: int) -> Sample:
        """Open, read once, close every file that the walk found."""
        begin = time.perf_counter()
        read_whole(self.files, length)
        return time.perf_counter() - begin, len(self.files)

    def small_parallel(self, length: int, readers: int) -> Sample:
        """The same by several processes, each with its part of the files."""
        parts = [self.files[number::readers] for number in range(readers)]
        seconds = together([partial(read_whole, part, length) for part in parts])
        return seconds, len(self.files)

    def open(self) -> Sample:
        """Open every file that the walk found; they are closed when the clock has stopped."""
        opened = []
        begin = time.perf_counter()
        for path in self.files:
            opened.append(os.open(path, os.O_RDONLY))  # noqa: PERF401 (the same loop as elsewhere)
        seconds = time.perf_counter() - begin
        for fd in opened:
            os.close(fd)
        return seconds, len(opened)

    def sequential(self, name: str) -> Sample:
        """Read a file from begin to end, 1 MiB at a time."""
        with opened(self.at(name), os.O_RDONLY) as fd:
            size = os.fstat(fd).st_size
            buffer = bytearray(CHUNK)
            begin = time.perf_counter()
            read_range(fd, 0, size, buffer)
            return time.perf_counter() - begin, size

    def parallel(self, name: str, readers: int) -> Sample:
        """Read a file by several processes at once, each its own part, 1 MiB at a time."""
        path = self.at(name)
        size = os.stat(path).st_size
        part = size // readers
        buffer = bytearray(CHUNK)

        def reader(start: int) -> None:
            with opened(path, os.O_RDONLY) as fd:
                read_range(fd, start, part, buffer)

        seconds = together([partial(reader, number * part) for number in range(readers)])
        return seconds, part * readers

    def random(self, name: str, count: int, seed: int) -> Sample:
        """Read ``count`` different blocks of 4 KiB of a file, in random order."""
        with opened(self.at(name), os.O_RDONLY) as fd:
            blocks = random.Random(seed).sample(range(os.fstat(fd).st_size // PAGE), count)
            begin = time.perf_counter()
            for block in blocks:
                os.pread(fd, PAGE, block * PAGE)
            return time.perf_counter() - begin, count

    def mapped(self, name: str, size: int) -> Sample:
        """Map the first ``size`` bytes of a file and copy them out, 1 MiB at a time."""
        target = memoryview(bytearray(CHUNK))
        with opened(self.at(name), os.O_RDONLY) as fd:
            begin = time.perf_counter()
            with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
                view = memoryview(mapping)
                for start in range(0, size, CHUNK):
                    target[:] = view[start : start + CHUNK]
                view.release()
            return time.perf_counter() - begin, size

    def touch(self, name: str, count: int, seed: int) -> Sample:
        """Map a file and look at one byte of ``count`` different pages, in random order."""
        with opened(self.at(name), os.O_RDONLY) as fd:
            size = os.fstat(fd).st_size
            offsets = [PAGE * n for n in random.Random(seed).sample(range(size // PAGE), count)]
            with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
                begin = time.perf_counter()
                for offset in offsets:
                    mapping[offset]
                return time.perf_counter() - begin, count

    def status(self, folder: str) -> Sample:
        """What git says of a clean work tree, per file in it; its index stays as it is."""
        git = ["git", "--no-optional-locks", "-C", self.at(folder)]
        begin = time.perf_counter()
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True)
        seconds = time.perf_counter() - begin
        if changes.stdout:
            raise SystemExit(f"{folder}: git sees changes: {changes.stdout[:80]!r}")
        files = subprocess.run([*git, "ls-files", "-z"], capture_output=True, check=True)
        return seconds, files.stdout.count(b"\0")


class Client(Reading):
    """All steps."""

    def create(self, folder: str, count: int) -> Sample:
        """Make new empty files in one directory."""
        self.files = [self.at(f"{folder}/file-{number:06}") for number in range(count)]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        begin = time.perf_counter()
        for path in self.files:
            os.close(os.open(path, flags, 0o644))
        return time.perf_counter() - begin, count

    def rename(self) -> Sample:
        """Give each of them another name in the same directory."""
        names = [(path, f"{path}.new") for path in self.files]
        begin = time.perf_counter()
        for old, new in names:
            os.rename(old, new)
        seconds = time.perf_counter() - begin
        self.files = [new for _old, new in names]
        return seconds, len(names)

    def unlink(self) -> Sample:
        """Remove them."""
        begin = time.perf_counter()
        for path in self.files:
            os.unlink(path)
        return time.perf_counter() - begin, len(self.files)

    def write(self, name: str, size: int) -> Sample:
        """Write a file from begin to end, new or over the old, 1 MiB at a time; closing counts."""
        buffer = random.Random(1).randbytes(CHUNK)
        fd = os.open(self.at(name), os.O_WRONLY | os.O_CREAT, 0o644)
        begin = time.perf_counter()
        for _ in range(size // CHUNK):
            if os.write(fd, buffer) != CHUNK:
                raise SystemExit(f"{name}: a short write")
        os.close(fd)
        return time.perf_counter() - begin, size

    def scatter(self, name: str, count: int, seed: int) -> Sample:
        """Overwrite ``count`` different blocks of 4 KiB of a file, in random order."""
        buffer = random.Random(2).randbytes(PAGE)
        with opened(self.at(name), os.O_WRONLY) as fd:
            blocks = random.Random(seed).sample(range(os.fstat(fd).st_size // PAGE), count)
            begin = time.perf_counter()
            for block in blocks:
                os.pwrite(fd, buffer, block * PAGE)
            return time.perf_counter() - begin, count

    def map_write(self, name: str, size: int) -> Sample:
        """Overwrite the first ``size`` bytes of a file through a mapping, until it is closed."""
        source = memoryview(random.Random(3).randbytes(CHUNK))
        fd = os.open(self.at(name), os.O_RDWR)
        begin = time.perf_counter()
        with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
            view = memoryview(mapping)
            for start in range(0, size, CHUNK):
                view[start : start + CHUNK] = source
            view.release()
        os.close(fd)
        return time.perf_counter() - begin, size

    def sync(self, name: str, count: int) -> Sample:
        """Append 4 KiB and fsync, again and again."""
        buffer = random.Random(4).randbytes(PAGE)
        with opened(self.at(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND) as fd:
            begin = time.perf_counter()
            for _ in range(count):
                os.write(fd, buffer)
                os.fsync(fd)
            return time.perf_counter() - begin, count

    def untar(self, archive: str, folder: str) -> Sample:
        """Let tar unpack an archive, per entry of it."""
        with tarfile.open(archive) as content:
            entries = len(content.getmembers())
        target = self.at(folder)
        os.mkdir(target)
        begin = time.perf_counter()
        subprocess.run(["tar", "-xf", archive, "-C", target], check=True)
        return time.perf_counter() - begin, entries


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """A file, closed at the end."""
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def read_whole(paths: list[str], length: int) -> None:
    """Open, read once, close each of some small files."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        data = os.read(fd, PAGE)
        os.close(fd)
        if len(data) != length:
            raise SystemExit(f"{path}: {len(data)} bytes read, {length} expected")


def read_range(fd: int, start: int, size: int, buffer: bytearray) -> None:
    """Read a part of a file, as much at a time as the buffer holds."""
    done = 0
    while done < size:
        count = os.preadv(fd, [buffer], start + done)
        if not count:
            raise SystemExit(f"{done} bytes read, {size} expected")
        done += count


def together(tasks: list[Callable[[], None]]) -> float:
    """Seconds that some tasks take when they begin at the same moment, each in its own process."""
    gate, opener = os.pipe()
    children = []
    for task in tasks:
        child = os.fork()
        if child == 0:
            os.close(opener)
            os.read(gate, 1)  # returns when the last writer has gone
            try:
                task()
            except BaseException as error:  # noqa: BLE001 (a forked child must not return)
                os.write(2, f"{error}\n".encode())
                os._exit(1)
            os._exit(0)
        children.append(child)
    begin = time.perf_counter()
    os.close(opener)
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    seconds = time.perf_counter() - begin
    os.close(gate)
    if failed:
        raise SystemExit("a reader failed")
    return seconds


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
