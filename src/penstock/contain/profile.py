# SPDX-License-Identifier: Apache-2.0
"""What a kind of server is left with: its limits and its system calls."""

from __future__ import annotations

from typing import Final, NamedTuple

from penstock.contain.filter import ALLOWED, KILLED, LATER, REFUSED, Entry

__all__ = ["IMAGE_SERVER", "Profile"]

_MIB: Final = 1 << 20


class Profile(NamedTuple):
    """Limits are those of setrlimit(2), soft and hard alike."""

    name: str
    memory: int = 1024 * _MIB
    """RLIMIT_DATA, bytes: what it can write to that is its own, stacks of threads included."""
    address_space: int = 4096 * _MIB
    """RLIMIT_AS, bytes: more than memory, since the C library reserves what it may never use."""
    arenas: int = 4
    """Pools of malloc, 64 MiB of addresses each. Python hardly ever allocates from two threads at
    once."""
    stack: int = 8 * _MIB
    """RLIMIT_STACK, bytes: the first thread's."""
    thread_stack: int = 2 * _MIB
    """Bytes of each other thread's stack. All of it counts as memory from the thread's start."""
    descriptors: int = 256
    """RLIMIT_NOFILE."""
    threads: int = 96
    """RLIMIT_NPROC. It counts per user and user namespace, so it can only be set for a server that
    has a user namespace of its own; in any other, servers would take each other's threads."""
    signals: int = 32
    """RLIMIT_SIGPENDING: queued signals."""
    calls: tuple[Entry, ...] = ()
    """System calls, from the closing of the sandbox on."""
    calls_later: tuple[Entry, ...] = ()
    """What is taken away once all threads run."""


IMAGE_SERVER: Final = Profile(
    "image server", calls=(*ALLOWED, *REFUSED, *KILLED), calls_later=LATER
)
"""Parses an image that it is given a descriptor of, and answers /dev/fuse or a socket."""
