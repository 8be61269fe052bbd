# SPDX-License-Identifier: Apache-2.0
"""O_DIRECT: reading and writing past the page cache, and beside it."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.testing.posix.calls import opened
from penstock.testing.posix.registry import case, equal, holds

DIRECT = os.O_RDWR | os.O_CREAT | os.O_DIRECT
BLOCK = 65536
"""A multiple of what any device asks offsets, lengths and memory to be aligned to."""


def _data(size: int) -> bytes:
    return hashlib.shake_128(b"direct").digest(size)


@contextmanager
def _aligned(data: bytes) -> Iterator[mmap.mmap]:
    """Memory as O_DIRECT wants it."""
    with mmap.mmap(-1, max(len(data), mmap.PAGESIZE)) as memory:
        memory[: len(data)] = data
        yield memory


@case("direct")
def direct_write_is_read(root: Path) -> None:
    """What is written directly is read, directly and through the cache."""
    data = _data(4 * BLOCK)
    with opened(root / "file", DIRECT) as fd, _aligned(data) as memory:
        equal(os.pwritev(fd, [memory], 0), len(data))
        equal(os.fstat(fd).st_size, len(data))
        memory[:] = bytes(len(data))
        equal(os.preadv(fd, [memory], 0), len(data))
        holds(memory[:] == data, "the same bytes, directly")
    holds((root / "file").read_bytes() == data, "the same bytes, from the cache")


@case("direct")
def direct_read_sees_cached_writes(root: Path) -> None:
    """A direct read sees what was written through the cache and not stored yet."""
    path = root / "file"
    path.write_bytes(bytes(2 * BLOCK))
    with (
        opened(path, os.O_RDWR) as cached,
        opened(path, DIRECT) as fd,
        _aligned(bytes(BLOCK)) as memory,
    ):
        os.pwrite(cached, b"fresh", BLOCK + 5)
        equal(os.preadv(fd, [memory], BLOCK), BLOCK)
        equal(memory[:12], bytes(5) + b"fresh" + bytes(2))


@case("direct")
def cached_read_sees_direct_writes(root: Path) -> None:
    """What lies in the cache is no longer read after a direct write."""
    path = root / "file"
    path.write_bytes(b"o" * 2 * BLOCK)
    with (
        opened(path, os.O_RDWR) as cached,
        opened(path, DIRECT) as fd,
        _aligned(b"n" * BLOCK) as memory,
    ):
        equal(os.pread(cached, 3, BLOCK), b"ooo")
        equal(os.pwritev(fd, [memory], BLOCK), BLOCK)
        equal(os.pread(cached, 4, BLOCK - 2), b"oonn")


@case("direct")
def direct_read_at_the_end(root: Path) -> None:
    """A direct read across the end gives what is left; at the end nothing."""
    path = root / "file"
    path.write_bytes(b"e" * (BLOCK + 100))
    with opened(path, DIRECT) as fd, _aligned(bytes(BLOCK)) as memory:
        equal(os.preadv(fd, [memory], BLOCK), 100)
        equal(memory[:101], b"e" * 100 + b"\0")
        equal(os.preadv(fd, [memory], 2 * BLOCK), 0)


@case("direct")
def direct_write_extends(root: Path) -> None:
    """A direct write beyond the end leaves a gap of zeros."""
    with opened(root / "file", DIRECT) as fd, _aligned(b"x" * BLOCK) as memory:
        equal(os.pwritev(fd, [memory], 3 * BLOCK), BLOCK)
        equal(os.fstat(fd).st_size, 4 * BLOCK)
    holds((root / "file").read_bytes() == bytes(3 * BLOCK) + b"x" * BLOCK, "zeros before it")


@case("direct")
def direct_append(root: Path) -> None:
    """O_DIRECT with O_APPEND writes at the end."""
    path = root / "file"
    path.write_bytes(b"a" * BLOCK)
    with opened(path, DIRECT | os.O_APPEND) as fd, _aligned(b"b" * BLOCK) as memory:
        equal(os.writev(fd, [memory]), BLOCK)
        equal(os.writev(fd, [memory]), BLOCK)
    holds(path.read_bytes() == b"a" * BLOCK + b"b" * 2 * BLOCK, "both at the end")


@case("direct")
def direct_beside_a_mapping(root: Path) -> None:
    """A direct read sees what was stored into a mapping, and the mapping a direct write."""
    path = root / "file"
    path.write_bytes(b"." * BLOCK)
    with (
        opened(path, DIRECT) as fd,
        opened(path, os.O_RDWR) as plain,
        mmap.mmap(plain, BLOCK) as view,
        _aligned(bytes(BLOCK)) as memory,
    ):
        view[:4] = b"view"
        equal(os.preadv(fd, [memory], 0), BLOCK)
        equal(memory[:6], b"view..")
        memory[:6] = b"direct"
        equal(os.pwritev(fd, [memory], 0), BLOCK)
        equal(view[:8], b"direct..")


@case("direct")
def direct_in_a_hole(root: Path) -> None:
    """A direct read of a hole is zeros; a direct write into it fills it."""
    with opened(root / "file", DIRECT) as fd, _aligned(b"x" * BLOCK) as memory:
        os.ftruncate(fd, 4 * BLOCK)
        equal(os.preadv(fd, [memory], BLOCK), BLOCK)
        holds(memory[:] == bytes(BLOCK), "zeros")
        memory[:] = b"y" * BLOCK
        equal(os.pwritev(fd, [memory], 2 * BLOCK), BLOCK)
    data = (root / "file").read_bytes()
    holds(data == bytes(2 * BLOCK) + b"y" * BLOCK + bytes(BLOCK), "filled, and zeros around it")
