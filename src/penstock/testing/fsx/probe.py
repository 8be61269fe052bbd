# SPDX-License-Identifier: Apache-2.0
"""What the filesystem has: each feature is tried once, and the reason kept where it is refused."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from typing import Final

from penstock.sys.files import fallocate, rename2
from penstock.testing.fsx.allocating import COLLAPSE, INSERT, KEEP_SIZE, PUNCH, ZERO
from penstock.testing.fsx.model import PAGE
from penstock.testing.fsx.names import EXCHANGE, NOREPLACE
from penstock.testing.fsx.syncing import sync_range
from penstock.testing.fsx.writing import clone_range

__all__ = ["FEATURES", "probe", "unit_of"]

_LENGTH: Final = 1 << 20


def _mmap(fd: int, _path: str) -> None:
    with mmap.mmap(fd, PAGE, mmap.MAP_SHARED) as memory:
        memory[0] = 1
        memory.flush()


def _direct(_fd: int, path: str) -> None:
    again = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, PAGE) as memory:
            os.pwritev(again, [memory], PAGE)
            os.preadv(again, [memory], PAGE)
    finally:
        os.close(again)


def _splice(fd: int, _path: str) -> None:
    ends = os.pipe()
    try:
        os.splice(fd, ends[1], PAGE, offset_src=0)
        os.splice(ends[0], fd, PAGE, offset_dst=0)
    finally:
        os.close(ends[0])
        os.close(ends[1])


def _sendfile(fd: int, _path: str) -> None:
    target = os.memfd_create("fsx-probe")
    try:
        os.sendfile(target, fd, 0, PAGE)
    finally:
        os.close(target)


def _rwf_append(fd: int, _path: str) -> None:
    os.pwritev(fd, [b"x"], 0, getattr(os, "RWF_APPEND", 0x10))


def _copy(fd: int, _path: str) -> None:
    os.copy_file_range(fd, fd, PAGE, 0, 8 * PAGE)


def _clone(fd: int, _path: str) -> None:
    unit = unit_of(fd)
    clone_range(fd, fd, 0, unit, 2 * unit)


def _seek(fd: int, _path: str) -> None:
    os.lseek(fd, 0, os.SEEK_DATA)


def _seek_sees_stores(_fd: int, path: str) -> None:
    """Tried with a file that was read first too: who serves it may serve that another way."""
    os.mknod(f"{path}.sparse", stat.S_IFREG | 0o600)
    first = os.open(f"{path}.sparse", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _try_seek(path, os.O_RDWR)
    finally:
        os.close(first)
    _try_seek(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def _try_seek(path: str, flags: int) -> None:
    again = os.open(f"{path}.sparse", flags | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(again, 64 * PAGE)
        with mmap.mmap(again, 64 * PAGE, mmap.MAP_SHARED) as memory:
            memory[40 * PAGE] = 1
            if os.lseek(again, 0, os.SEEK_DATA) > 40 * PAGE:
                raise OSError(0, "data that was stored into a mapping is passed over until fsync")
    finally:
        os.close(again)
        os.unlink(f"{path}.sparse")


def _rename(flags: int) -> Callable[[int, str], None]:
    def try_it(_fd: int, path: str) -> None:
        other = f"{path}.other"
        if flags == EXCHANGE:
            os.close(os.open(other, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        rename2(path, other, flags)
        os.rename(other, path)

    return try_it


def _link(_fd: int, path: str) -> None:
    os.link(path, f"{path}.link")
    os.unlink(f"{path}.link")


def _fallocate(mode: int) -> Callable[[int, str], None]:
    def try_it(fd: int, _path: str) -> None:
        unit = unit_of(fd)
        fallocate(fd, mode, unit, unit)

    return try_it


FEATURES: Final[dict[str, Callable[[int, str], None]]] = {
    "allocate": _fallocate(0),
    "allocate-keep": _fallocate(KEEP_SIZE),
    "punch": _fallocate(PUNCH | KEEP_SIZE),
    "zero": _fallocate(ZERO),
    "zero-keep": _fallocate(ZERO | KEEP_SIZE),
    "collapse": _fallocate(COLLAPSE),
    "insert": _fallocate(INSERT),
    "mmap": _mmap,
    "direct": _direct,
    "splice": _splice,
    "sendfile": _sendfile,
    "rwf-append": _rwf_append,
    "copy_file_range": _copy,
    "clone": _clone,
    "seek": _seek,
    "seek-sees-stores": _seek_sees_stores,
    "sync_file_range": lambda fd, path: sync_range(fd, 0, PAGE),
    "link": _link,
    "noreplace": _rename(NOREPLACE),
    "exchange": _rename(EXCHANGE),
}
"""Each feature and how it is tried, on a descriptor and the path of a file of 1 MiB."""


def unit_of(fd: int) -> int:
    """Bytes to whose multiples ranges must be aligned to be moved or shared."""
    return max(PAGE, os.fstatvfs(fd).f_bsize if os.fstatvfs(fd).f_bsize <= 1 << 16 else 0)


def probe(place: str, without: frozenset[str] = frozenset()) -> dict[str, str | None]:
    """Each feature, with None if it is there, else with the reason why not.

    Args:
        place: a directory to make a file in for a moment.
        without: features not to use, though they may be there.

    Raises:
        OSError: not even a file can be made and written.
    """
    answers: dict[str, str | None] = {}
    for name, try_it in FEATURES.items():
        if name in without:
            answers[name] = "not asked for"
            continue
        path = f"{place}/probe"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, bytes(_LENGTH), 0)
            try_it(fd, path)
        except OSError as error:
            answers[name] = error.strerror or str(error)
        else:
            answers[name] = None
        finally:
            os.close(fd)
            os.unlink(path)
            for suffix in (".other", ".link"):
                if os.path.lexists(path + suffix):
                    os.unlink(path + suffix)
    return answers
