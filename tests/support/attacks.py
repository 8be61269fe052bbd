# SPDX-License-Identifier: Apache-2.0
"""What a taken-over server would try: the table of attempts, and what each of them has in hand.

An attempt is a function that gets a :class:`Held` and returns when the attack has succeeded; it
raises OSError (or dies of a signal) when it was stopped. Its docstring says what it does. Beside it
stand the system calls that carry it, and the layers of the sandbox of which each *alone* must stop
it; what stands there is a promise that tests/root/test_containment.py holds every layer to.

Everything that succeeds is harmless: it happens in namespaces, files, processes and devices that
belong to the test (``attackhost.py``). ``attackprogram.py`` is the program that carries one out.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from penstock.sys.libc import libc, syscall
from penstock.sys.process import wait_pidfd

__all__ = [
    "ATTEMPTS", "STRANGER", "Attempt", "Facts", "Held", "Stopped", "address", "call", "dies",
    "expect", "load", "raw", "section",
]  # fmt: skip

STRANGER: Final = 12345
"""A user and group that is neither root nor nobody."""

_MODULES: Final = ("paths", "network", "processes", "privileges", "kernel", "held", "growth")


class Facts(NamedTuple):
    """What the attacker knows of the host: names, numbers, addresses."""

    nonce: int
    """Another one each time, 1 to 20000."""
    folder: str
    """Holds all files below; 0755, root's."""
    shared: str
    """A folder that everybody may write to."""
    tools: str
    """Programs, see :meth:`tool`."""
    broker: int
    """The process that started the attacker."""
    broker_text: int
    """Address in the broker's memory: 16 bytes "broker's secret\\0"."""
    broker_scratch: int
    """Address in the broker's memory: a writable u64."""
    broker_fd: int
    """A descriptor of the broker: a file that only it has."""
    victim: int
    """A process of whoever mounts."""
    stranger: int
    """A process of another user."""
    tcp: int
    """The broker's listening port on 127.0.0.1."""
    udp: int
    """Its datagram port."""
    abstract: str
    """Name of the broker's listening socket in the abstract namespace, without the NUL."""
    shm: int
    """Key of the broker's shared memory segment."""
    queue: str
    """The broker's message queue."""
    handle_type: int
    handle: str
    """File handle (hex) of ``secret``."""
    listener: str
    """A listening unix socket of the broker that everybody may connect to."""
    loop: str
    """The device node behind ``Held.device``."""

    @property
    def public(self) -> str:
        """A file that everybody may read and write."""
        return f"{self.folder}/public"

    @property
    def secret(self) -> str:
        """A file of whoever mounts, that no one else may open."""
        return f"{self.folder}/secret"

    @property
    def foreign(self) -> str:
        """A file of :data:`STRANGER` that no one else may open."""
        return f"{self.folder}/foreign"

    def tool(self, name: str) -> str:
        """A program: true, set-uid, set-gid, set-uid-stranger, file-capability,
        script, cat; and the file "secret", of root."""
        return f"{self.tools}/{name}"


class Held(NamedTuple):
    """What a server has after its sandbox has closed, and what its attacker knows."""

    broker: int
    """The socket to the broker."""
    image: int
    """The image: read-only where the broker handed it over."""
    fuse: int
    """A mounted descriptor of /dev/fuse; -1 unless the attempt needs it."""
    device: int
    """A read-only descriptor of a loop device; -1 unless the attempt needs it."""
    pipe: tuple[int, int]
    """The reading and the writing end of a pipe, as data paths use it."""
    facts: Facts


class Stopped(OSError):
    """The attack did not go through, though no system call said so."""


Confirm = Callable[[Facts], bool]


@dataclass(frozen=True)
class Attempt:
    """One row of the matrices.

    Attributes:
        name: the function's.
        section: heading it stands under.
        what: one sentence.
        calls: system calls that it takes.
        stopped_by: layers of which each must stop it alone.
        needs: what the host must provide: ``victims``, ``fuse``, ``loop``, ``mount``.
        run: carries it out.
        confirm: asked of the host after an alleged success: is the effect there?
        absent: errnos that, with no layer, mean that this kernel does not have the thing at all.
        landlock: version of Landlock from which on that layer stops it.
        later: it is what servers do themselves, and stopped once all their threads run.
    """

    name: str
    section: str
    what: str
    calls: tuple[str, ...]
    stopped_by: tuple[str, ...]
    run: Callable[[Held], None]
    needs: frozenset[str] = frozenset()
    confirm: Confirm | None = None
    absent: frozenset[int] = field(default_factory=frozenset)
    landlock: int = 1
    later: bool = False

    @property
    def title(self) -> str:
        """The name as words."""
        return self.name.replace("_", " ")


ATTEMPTS: dict[str, Attempt] = {}
"""All attempts by name; filled by :func:`load`."""


def load() -> dict[str, Attempt]:
    """The whole table, in the order of the modules."""
    names = [f"tests.support.attack_{name}" for name in _MODULES]
    for name in names:
        importlib.import_module(name)
    rows = sorted(ATTEMPTS.values(), key=lambda row: names.index(row.run.__module__))
    return {row.name: row for row in rows}


Function = Callable[[Held], None]


def section(title: str) -> Callable[..., Callable[[Function], Function]]:
    """A decorator maker for the attempts of one heading."""

    def attempt(
        calls: str, by: str, *, needs: str = "", confirm: Confirm | None = None,
        absent: tuple[int, ...] = (), landlock: int = 1, later: bool = False,
    ) -> Callable[[Function], Function]:  # fmt: skip
        """Enter a function into the table; words are separated by spaces."""

        def enter(function: Function) -> Function:
            text = (function.__doc__ or "").strip()
            name = function.__name__
            assert text, f"{name} does not say what it does"
            assert name not in ATTEMPTS, f"two attempts are called {name}"
            ATTEMPTS[name] = Attempt(
                name, title, text, tuple(calls.split()), tuple(by.split()), function,
                frozenset(needs.split()), confirm, frozenset(absent), landlock, later,
            )  # fmt: skip
            return function

        return enter

    return attempt


def expect(condition: object, words: str) -> None:
    """The attack has gone through only if ``condition`` holds."""
    if not condition:
        raise Stopped(errno.EPERM, words)


def dies(who: str) -> Confirm:
    """The process ``who`` of the facts must end, if it has not yet."""

    def ended(facts: Facts) -> bool:
        try:
            pidfd = os.pidfd_open(getattr(facts, who))
        except ProcessLookupError:
            return True
        try:
            return wait_pidfd(pidfd, 1.0)
        finally:
            os.close(pidfd)

    return ended


def raw(name: str, *arguments: Any) -> int:
    """A system call by number. Raises OSError."""
    return syscall(name, *arguments)


def address(name: str, *arguments: Any) -> int:
    """A function of the C library that answers an address, or -1 and errno. Raises OSError."""
    function = getattr(libc, name)
    function.restype = ctypes.c_void_p
    result: int = function(*arguments) or 0
    if result == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def call(name: str, *arguments: Any) -> int:
    """A function of the C library that answers -1 and errno. Raises OSError."""
    result: int = getattr(libc, name)(*arguments)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result
