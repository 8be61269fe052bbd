# SPDX-License-Identifier: Apache-2.0
"""What a mirror's server that was taken over would try: the table of attempts.

As in :mod:`tests.support.attacks`, an attempt returns when it has succeeded and raises OSError (or
dies of a signal) when it was stopped; beside it stand the layers of which each alone must stop it.
``broker`` is no layer but what the broker hands out: the directory through a mount of its own, and
devices whose nodes cannot be changed. What attempts reach belongs to the test
(:mod:`tests.support.mirrorattacking`).
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["ATTEMPTS", "STRANGER", "Attempt", "Target", "attempt", "expect", "load"]

STRANGER: Final = 12345


class Target(NamedTuple):
    """What the attacker holds and knows."""

    tree: int
    """The directory that it serves."""
    device: int
    """A device that it was given, of which the node is ``null`` of :attr:`devices`."""
    fuse: int
    """A descriptor of /dev/fuse."""
    pipe: tuple[int, int]
    channel: int
    """A socket to the broker."""
    outside: str
    """A directory beside the one it serves, with ``secret`` (0600), ``public`` and ``folder``."""
    devices: str
    """A directory with device nodes."""
    plain: bytes
    """The handle (u32 bytes, s32 type, bytes) of ``secret`` without its parent."""
    connectable: bytes
    """The same with its parent."""
    folder: bytes
    """The handle of ``outside``."""
    victim: int
    """A process of the same user."""
    abstract: str
    """Name of an abstract socket that somebody listens on."""
    port: int
    """TCP, on 127.0.0.1."""


class Attempt(NamedTuple):
    """One row."""

    name: str
    run: Callable[[Target], None]
    by: frozenset[str]
    cold: bool
    """Nothing of the filesystem is cached when it begins."""
    later: bool
    """It is stopped once all threads run."""
    kernel: bool
    """The kernel refuses it by itself, with no layer at all."""


ATTEMPTS: dict[str, Attempt] = {}


def attempt(
    by: str, *, cold: bool = False, later: bool = False, kernel: bool = False
) -> Callable[[Callable[[Target], None]], Callable[[Target], None]]:
    """Enter a function into the table."""

    def enter(function: Callable[[Target], None]) -> Callable[[Target], None]:
        name = function.__name__
        assert function.__doc__
        assert name not in ATTEMPTS
        ATTEMPTS[name] = Attempt(name, function, frozenset(by.split()), cold, later, kernel)
        return function

    return enter


def expect(good: object) -> None:
    """The attack has gone through only if this is so."""
    if not good:
        raise OSError(errno.EPERM, "it had no effect")


def load() -> dict[str, Attempt]:
    """All attempts by name."""
    for name in ("paths", "rights"):
        importlib.import_module(f"tests.support.mirrorattack_{name}")
    return ATTEMPTS
