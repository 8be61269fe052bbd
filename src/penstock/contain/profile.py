# SPDX-License-Identifier: Apache-2.0
"""What a kind of server is left with: its layers, its limits and its system calls.

``python -m penstock.contain.profile image`` prints the table of system calls of docs/security.md;
with ``mirror`` and ``user-mirror`` what is different from the one before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from penstock.abi.capability import Capability
from penstock.contain.filter import LATER, Entry, markdown
from penstock.contain.imagecalls import IMAGE_CALLS

__all__ = ["IMAGE_SERVER", "NAMESPACES", "Profile", "different"]

_MIB: Final = 1 << 20
NAMESPACES: Final = frozenset({"user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"})
"""As /proc/self/ns names them."""


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
    """RLIMIT_NOFILE; where the caller may have fewer, those."""
    threads: int = 96
    """RLIMIT_NPROC. It counts per user and user namespace, so it can only be set for a server that
    has a user namespace of its own; in any other, servers would take each other's threads."""
    signals: int = 32
    """RLIMIT_SIGPENDING: queued signals."""
    file_size: int | None = 0
    """RLIMIT_FSIZE, bytes; None: the caller's."""
    calls: tuple[Entry, ...] = ()
    """System calls, from the closing of the sandbox on."""
    calls_later: tuple[Entry, ...] = ()
    """What is taken away once all threads run."""
    namespaces: frozenset[str] = NAMESPACES
    """Those of its own."""
    capabilities: frozenset[Capability] = frozenset()
    """Those that it keeps, as far as it has them."""
    without: Mapping[str, str] = {}
    """Layers that are no part of this profile, and why not."""


IMAGE_SERVER: Final = Profile("image server", calls=IMAGE_CALLS, calls_later=LATER)
"""Parses an image that it is given a descriptor of, and answers /dev/fuse or a socket."""


def different(calls: Iterable[Entry], base: Iterable[Entry]) -> list[Entry]:
    """The entries of a table that another has not, or not so."""
    known = set(base)
    return [entry for entry in calls if entry not in known]


def _main() -> None:
    from penstock.contain.mirrorprofile import MIRROR_OF_A_USER, MIRROR_SERVER  # noqa: PLC0415

    tables = {
        "image": IMAGE_SERVER.calls,
        "mirror": different(MIRROR_SERVER.calls, IMAGE_SERVER.calls),
        "user-mirror": different(MIRROR_OF_A_USER.calls, MIRROR_SERVER.calls),
    }
    sys.stdout.writelines(markdown(tables[sys.argv[1]]))


if __name__ == "__main__":
    _main()
