# SPDX-License-Identifier: Apache-2.0
"""Files whose data lies in every way that ext4 knows, and the ways in which programs read them."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

from penstock.sys.files import fallocate
from tests.support.images import MIB

__all__ = ["WAYS", "digests", "fill", "random_bytes"]

_KEEP_SIZE, _PUNCH = 1, 2
_SIZES: Final = (
    0, 1, 59, 60, 61, 150, 160, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 3000, 4095, 4096,
    4097, 8191, 8192, 12_289, 16_384, 20_000, 32_767, 65_535, 65_536, 65_537, 131_071, 131_072,
    131_073, 200_001, 262_144, 300_001, 524_287, 524_289, 1_000_000, 1_048_575, 1_048_577,
    1_500_001, 2_097_151, 2_097_152,
)  # fmt: skip
_PIECES: Final = 700
"""More than fit into one block of the extent tree."""


def random_bytes(seed: int | str, length: int) -> bytes:
    """The same for the same seed."""
    return random.Random(seed).randbytes(length)


def fill(top: Path, *, big: int = 64 * MIB) -> None:
    """Make the files.

    Args:
        top: a directory on ext4, XFS or btrfs.
        big: bytes of the largest file; 0: without it.
    """
    for size in _SIZES:
        (top / f"size{size}").write_bytes(random_bytes(size, size))
    _holes(top)
    _unwritten(top)
    _pieces(top / "pieces", _PIECES)
    _pieces(top / "few-pieces", 9)
    if big:
        (top / "big").write_bytes(random_bytes("big", big))


def _holes(top: Path) -> None:
    with (top / "islands").open("wb") as file:
        for offset in (0, 65_536, MIB + 1, 5 * MIB, 9 * MIB + 4095):
            file.seek(offset)
            file.write(random_bytes(offset, 5000))
        file.truncate(10 * MIB + 3)
    (top / "all-hole").write_bytes(b"")
    os.truncate(top / "all-hole", 3 * MIB + 77)
    with (top / "data-last").open("wb") as file:
        file.seek(2 * MIB - 1)
        file.write(b"!")
    with (top / "hole-last").open("wb") as file:
        file.write(random_bytes("hole-last", 10_000))
        file.truncate(MIB + 1)


def _unwritten(top: Path) -> None:
    with (top / "unwritten").open("wb") as file:
        fallocate(file.fileno(), 0, 0, MIB)
        os.pwrite(file.fileno(), random_bytes("unwritten", 40_000), 300_001)
    with (top / "all-unwritten").open("wb") as file:
        fallocate(file.fileno(), 0, 0, 200_001)
    with (top / "beyond-the-end").open("wb") as file:
        file.write(random_bytes("beyond", 70_001))
        file.flush()
        fallocate(file.fileno(), _KEEP_SIZE, 0, MIB)
    with (top / "unwritten-tail").open("wb") as file:
        file.write(random_bytes("tail", 8192))
        file.flush()
        fallocate(file.fileno(), 0, 8192, 5000)


def _pieces(path: Path, count: int) -> None:
    """A file in so many extents, with a hole behind each."""
    with path.open("wb") as file:
        unit = max(1024, os.fstatvfs(file.fileno()).f_bsize)
        file.write(random_bytes(path.name, 2 * count * unit))
        file.flush()
        os.fsync(file.fileno())
        for index in range(count):
            mode = _PUNCH | _KEEP_SIZE
            fallocate(file.fileno(), mode, (2 * index + 1) * unit, unit)


def _read(fd: int, size: int) -> bytes:
    """By read(2), in pieces of many sizes."""
    lengths = (512, 4096, 100, 65_536, 1_000_003, 131_072)
    parts = []
    index = 0
    while part := os.read(fd, lengths[index % len(lengths)]):
        parts.append(part)
        index += 1
    return b"".join(parts)


def _mapped(fd: int, size: int) -> bytes:
    """By a mapping. What cannot be had is EFAULT to the kernel, and no SIGBUS to us."""
    if not size:
        return b""
    copy = os.memfd_create("copy")
    try:
        with (
            mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as memory,
            memoryview(memory) as view,
        ):
            done = 0
            while done < size:
                with view[done : done + MIB] as part:
                    done += os.pwrite(copy, part, done)
        return os.pread(copy, size, 0)
    finally:
        os.close(copy)


def _sent(fd: int, size: int) -> bytes:
    """By sendfile(2)."""
    copy = os.memfd_create("copy")
    try:
        done = 0
        while count := os.sendfile(copy, fd, done, 10 * MIB):
            done += count
        return os.pread(copy, done, 0)
    finally:
        os.close(copy)


def _backwards(fd: int, size: int) -> bytes:
    """By pread(2), the last bytes first, not aligned."""
    step = 70_001
    starts = range(size // step * step, -1, -step)
    return b"".join(reversed([os.pread(fd, step, start) for start in starts]))


def _direct(fd: int, size: int) -> bytes:
    """By direct reads."""
    parts = []
    done = 0
    with mmap.mmap(-1, MIB) as buffer:
        while count := os.preadv(fd, [buffer], done):
            parts.append(buffer[:count])
            done += count
            if count % 4096:
                break
    return b"".join(parts)


WAYS: Final[dict[str, tuple[Callable[[int, int], bytes], int]]] = {
    "read": (_read, 0),
    "mmap": (_mapped, 0),
    "sendfile": (_sent, 0),
    "backwards": (_backwards, 0),
    "direct": (_direct, os.O_DIRECT),
}
"""Name → how a file is read, and with which flags it is opened."""


def digests(top: Path, way: str) -> dict[str, str]:
    """SHA-256 of each file below a directory, read in one of :data:`WAYS`; the pages that the
    kernel keeps of it are dropped before. A file that cannot be opened directly is "EINVAL"."""
    read, flags = WAYS[way]
    found: dict[str, str] = {}
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(top))] = _digest(path, read, flags)
    return found


def _digest(path: Path, read: Callable[[int, int], bytes], flags: int) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        if flags and error.errno == errno.EINVAL:
            return "EINVAL"
        raise
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.sha256(read(fd, os.fstat(fd).st_size)).hexdigest()
    finally:
        os.close(fd)
