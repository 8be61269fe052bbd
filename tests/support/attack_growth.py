# SPDX-License-Identifier: Apache-2.0
"""Attempts to use more and more of something, and to raise what limits it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading

from tests.support.attacks import Held, Stopped, address, call, section

__all__: list[str] = []

attempt = section("Growth")

_GIB = 1 << 30
_MUCH = 16 * _GIB
_MANY = 1000
_NORESERVE = 0x4000
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
_MREMAP_MAYMOVE = 1


def _map(size: int) -> int:
    return address(
        "mmap", None, ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_WRITE, _FLAGS, -1,
        ctypes.c_long(0),
    )  # fmt: skip


@attempt("mmap", by="limits")
def map_much_memory(held: Held) -> None:
    """Maps 16 GiB, one at a time."""
    for _ in range(_MUCH // _GIB):
        _map(_GIB)


@attempt("brk", by="limits")
def grow_the_heap(held: Held) -> None:
    """Moves the end of its heap up by 4 GiB."""
    for _ in range(4 * _GIB >> 24):
        address("sbrk", ctypes.c_ssize_t(1 << 24))


@attempt("mremap", by="limits")
def stretch_a_mapping(held: Held) -> None:
    """Makes a mapping of one page 16 GiB long."""
    where = ctypes.c_void_p(_map(mmap.PAGESIZE))
    sizes = ctypes.c_size_t(mmap.PAGESIZE), ctypes.c_size_t(_MUCH)
    address("mremap", where, *sizes, _MREMAP_MAYMOVE)


@attempt("mmap", by="limits")
def fill_much_memory(held: Held) -> None:
    """Writes to 1280 MiB of memory."""
    for _ in range(1280 >> 6):
        where = _map(1 << 26)
        ctypes.memset(where, 1, 1 << 26)


@attempt("dup", by="limits seccomp")
def duplicate_descriptors(held: Held) -> None:
    """Makes 1000 copies of a held descriptor."""
    for _ in range(_MANY):
        os.dup(held.image)


@attempt("fcntl", by="limits seccomp")
def duplicate_descriptors_by_fcntl(held: Held) -> None:
    """Makes 1000 copies of a held descriptor through fcntl, which servers do call."""
    for _ in range(_MANY):
        fcntl.fcntl(held.image, fcntl.F_DUPFD_CLOEXEC, 0)


@attempt("epoll_create1", by="limits seccomp")
def make_many_epolls(held: Held) -> None:
    """Makes 1000 descriptors to wait with."""
    for _ in range(_MANY):
        call("epoll_create1", 0)


@attempt("pipe2", by="limits seccomp")
def make_many_pipes(held: Held) -> None:
    """Makes 500 pipes, each with 64 KiB of kernel memory for the asking."""
    for _ in range(_MANY // 2):
        os.pipe()


@attempt("eventfd2", by="limits seccomp")
def make_many_counters(held: Held) -> None:
    """Makes 1000 event descriptors."""
    for _ in range(_MANY):
        call("eventfd", 0, 0)


@attempt("memfd_create ftruncate", by="limits seccomp")
def keep_much_in_an_anonymous_file(held: Held) -> None:
    """Makes a file of 1 GiB in memory, which no limit on mappings counts."""
    fd = os.memfd_create("attack")
    os.ftruncate(fd, _GIB)
    os.close(fd)


@attempt("clone", by="limits")
def start_many_threads(held: Held) -> None:
    """Starts 1000 threads."""
    gate = threading.Event()
    try:
        for _ in range(1000):
            threading.Thread(target=gate.wait, daemon=True).start()
    except (RuntimeError, MemoryError) as error:
        raise Stopped(errno.EAGAIN, str(error)) from error
    finally:
        gate.set()


@attempt("clone", by="", later=True)
def start_one_more_thread(held: Held) -> None:
    """Starts a thread, once all threads that serve run."""
    try:
        threading.Thread(target=bool).start()
    except RuntimeError as error:
        raise Stopped(errno.EAGAIN, str(error)) from error


@attempt("madvise", by="seccomp")
def merge_its_memory_with_that_of_others(held: Held) -> None:
    """Has its pages compared and merged with those of other processes, which tells contents."""
    where = _map(mmap.PAGESIZE)
    call("madvise", ctypes.c_void_p(where), ctypes.c_size_t(mmap.PAGESIZE), 12)
