# SPDX-License-Identifier: Apache-2.0
"""Mappings beside everything else: other processes, truncating, writing, other mappings."""

from __future__ import annotations

import errno
import mmap
import os
import signal
from pathlib import Path

from penstock.testing.posix.calls import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    fallocate,
    forget,
    opened,
)
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails, holds

PAGE = mmap.PAGESIZE
READ = mmap.PROT_READ
BOTH = mmap.PROT_READ | mmap.PROT_WRITE
PRIVATE = mmap.MAP_PRIVATE


def _file(root: Path, pages: int = 4) -> Path:
    path = root / "file"
    path.write_bytes(b"." * pages * PAGE)
    return path


@case()
def two_processes_share_a_mapping(root: Path) -> None:
    """What one process stores into a shared mapping, another sees in its own."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        other = peer.call("open", path, os.O_RDWR)
        theirs = peer.call("map", other, 4 * PAGE, BOTH)
        for number in range(20):
            offset = number * 777
            view[offset : offset + 4] = b"ours"
            equal(peer.call("load", theirs, offset, 4), "ours")
            peer.call("store", theirs, offset, "them")
            equal(view[offset : offset + 4], b"them")


@case()
def mapping_and_writes_of_another_process(root: Path) -> None:
    """A process's write is in another's mapping, and its store in another's read, page after
    page."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        theirs = peer.call("map", other, 4 * PAGE, BOTH)
        for offset in (0, PAGE - 2, 3 * PAGE + 17):
            os.pwrite(fd, b"wrote", offset)
            equal(peer.call("load", theirs, offset, 5), "wrote")
            peer.call("store", theirs, offset, "store")
            equal(os.pread(fd, 5, offset), b"store")


@case()
def mapping_beyond_the_end_is_a_signal(root: Path) -> None:
    """A page of a mapping that lies wholly beyond the end of the file is SIGBUS; the rest of the
    last page is zeros."""
    path = root / "file"
    path.write_bytes(b"x" * (PAGE + 10))
    with Peer() as peer:
        fd = peer.call("open", path, os.O_RDWR)
        peer.call("os.ftruncate", fd, 4 * PAGE)
        view = peer.call("map", fd, 4 * PAGE, READ)
        peer.call("os.ftruncate", fd, PAGE + 10)
        equal(peer.call("dies", view, PAGE), 0)
        equal(peer.call("load", view, PAGE + 8, 4), "xx\0\0")
        equal(peer.call("dies", view, 2 * PAGE), signal.SIGBUS)


@case()
def truncating_under_a_mapping(root: Path) -> None:
    """After the file was cut under a mapping and extended again, the mapping shows zeros."""
    path = _file(root)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        equal(view[3 * PAGE : 3 * PAGE + 2], b"..")
        os.ftruncate(fd, PAGE + 5)
        os.ftruncate(fd, 4 * PAGE)
        equal(view[PAGE + 3 : PAGE + 8], b"..\0\0\0")
        equal(view[3 * PAGE : 3 * PAGE + 4], bytes(4))
        view[3 * PAGE] = 65
        equal(os.pread(fd, 2, 3 * PAGE), b"A\0")


@case()
def stored_pages_survive_extension(root: Path) -> None:
    """What is stored past the end of the file in its last page is not in the file when it grows."""
    path = root / "file"
    path.write_bytes(b"x" * 10)
    with opened(path, os.O_RDWR) as fd:
        with mmap.mmap(fd, 10) as view:
            view[0] = 65
        os.ftruncate(fd, 100)
        equal(os.pread(fd, 200, 0), b"A" + b"x" * 9 + bytes(90))


@case("holes")
def punching_under_a_mapping(root: Path) -> None:
    """A hole punched under a mapping shows zeros in it, and stores fill it again."""
    path = root / "file"
    path.write_bytes(b"." * 64 * PAGE)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        view[20 * PAGE] = 65
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 16 * PAGE, 16 * PAGE)
        equal(view[20 * PAGE : 20 * PAGE + 2], bytes(2))
        equal(view[16 * PAGE - 1 : 16 * PAGE + 1], b".\0")
        view[20 * PAGE + 1] = 66
        equal(os.pread(fd, 3, 20 * PAGE), b"\0B\0")


@case()
def flushed_stores_are_durable(root: Path) -> None:
    """msync succeeds for the whole and for a part, and what was stored is read by others."""
    path = _file(root)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        view[PAGE : PAGE + 5] = b"store"
        view.flush(PAGE, PAGE)
        view.flush()
        os.fsync(fd)
    with opened(path) as fd:
        forget(fd)
    with Peer() as peer:
        other = peer.call("open", path, os.O_RDONLY)
        equal(peer.call("read", other, 5, PAGE), "store")


@case()
def stores_are_written_when_unmapped(root: Path) -> None:
    """What was stored and neither flushed nor synced is read after the mapping has gone, through
    a descriptor opened later."""
    path = _file(root)
    with opened(path, os.O_RDWR) as fd:
        view = mmap.mmap(fd, 0)
    view[2 * PAGE : 2 * PAGE + 4] = b"late"
    view.close()
    with opened(path) as fd:
        forget(fd)
        equal(os.pread(fd, 6, 2 * PAGE - 1), b".late.")


@case()
def private_mapping_keeps_its_pages(root: Path) -> None:
    """A page of a private mapping that was stored into no longer follows the file."""
    path = _file(root)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0, PRIVATE, BOTH) as view:
        view[0] = 65
        os.pwrite(fd, b"zz", 0)
        equal(view[:2], b"A.")
        equal(os.pread(fd, 2, 0), b"zz")


@case()
def mapping_needs_the_access_mode(root: Path) -> None:
    """A shared writable mapping needs a descriptor open for both; a private one only for reading;
    none can be made of one for writing alone: EACCES."""
    path = _file(root)
    with opened(path) as fd:
        fails(errno.EACCES, mmap.mmap, fd, PAGE, mmap.MAP_SHARED, BOTH)
        mmap.mmap(fd, PAGE, PRIVATE, BOTH).close()
    with opened(path, os.O_WRONLY) as fd:
        fails(errno.EACCES, mmap.mmap, fd, PAGE, mmap.MAP_SHARED, mmap.PROT_WRITE)
        fails(errno.EACCES, mmap.mmap, fd, PAGE, mmap.MAP_SHARED, READ)


@case()
def directories_are_not_mapped(root: Path) -> None:
    """mmap of a directory is ENODEV."""
    with opened(root, os.O_DIRECTORY) as fd:
        fails((errno.ENODEV, errno.EACCES), mmap.mmap, fd, PAGE, mmap.MAP_SHARED, READ)


@case()
def mapping_into_its_own_file(root: Path) -> None:
    """write whose data lies in a mapping of the same file, and read into one, work."""
    path = _file(root, 8)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        view[:4] = b"head"
        with memoryview(view) as data:
            equal(os.pwrite(fd, data[: 2 * PAGE], 4 * PAGE), 2 * PAGE)
            equal(os.preadv(fd, [data[6 * PAGE : 7 * PAGE]], 4 * PAGE), PAGE)
        equal(view[4 * PAGE : 4 * PAGE + 5], b"head.")
        equal(view[6 * PAGE : 6 * PAGE + 5], b"head.")


@case()
def stores_into_two_mappings(root: Path) -> None:
    """Two mappings of a file at different offsets show the same bytes."""
    path = _file(root)
    with (
        opened(path, os.O_RDWR) as fd,
        mmap.mmap(fd, 4 * PAGE) as whole,
        mmap.mmap(fd, PAGE, offset=2 * PAGE) as part,
    ):
        part[7] = 65
        whole[2 * PAGE + 8] = 66
        equal(whole[2 * PAGE + 7 : 2 * PAGE + 9], b"AB")
        equal(part[7:9], b"AB")


@case()
def large_mapping_is_whole(root: Path) -> None:
    """Every byte of a file of 6 MiB is right through a mapping, read backwards."""
    data = b"".join(number.to_bytes(4, "little") for number in range(6 << 18))
    path = root / "file"
    path.write_bytes(data)
    with opened(path) as fd, mmap.mmap(fd, 0, mmap.MAP_SHARED, READ) as view:
        step = 1 << 16
        for offset in range(len(data) - step, -1, -step):
            holds(view[offset : offset + step] == data[offset : offset + step], f"at {offset}")
