# SPDX-License-Identifier: Apache-2.0
"""Starting a program in new namespaces: clone(2) and execve(2), with nothing in between.

Python's own ways cannot say which namespaces the child gets, and a process that has to be the first
one of a pid namespace must be made by clone: unshare(2) only does that to children made later.

Facts about clone by hand
    - Without CLONE_VM it is a fork: the child has a copy of this memory until it calls execve. The
      C library is not told, so it works only from a process with one thread, and the child must do
      nothing but what is done here.
    - The argument order of x86-64 and aarch64 differs only in the last two, which are 0 here.
    - A child in a new user namespace has no identity until its maps are written, which takes the
      parent where more ids than the caller's own are to be mapped. The child waits for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, NoReturn

from penstock.abi.process import CloneFlag
from penstock.sys.capabilities import set_parent_death_signal
from penstock.sys.libc import syscall

__all__ = ["IdMap", "Spawned", "spawn"]

_CLONE_PIDFD: Final = 0x0000_1000
_NOT_STARTED: Final = 127
_NONE: Final = CloneFlag(0)


class IdMap(NamedTuple):
    """One line of uid_map: ``length`` ids from ``inside`` on are those from ``outside`` on."""

    inside: int
    outside: int
    length: int = 1


class Spawned(NamedTuple):
    """A started process."""

    pid: int
    pidfd: int
    """Owned by whoever got this; readable once the process has ended."""


class _Go(enum.IntEnum):
    """What the parent tells the child."""

    RUN = 1


def spawn(
    argv: Sequence[str],
    *,
    fds: Sequence[int],
    environment: Mapping[str, str] = {},
    namespaces: CloneFlag = _NONE,
    users: Sequence[IdMap] = (),
    groups: Sequence[IdMap] = (),
) -> Spawned:
    """Start a program; it is killed when the calling thread ends.

    It is in a session of its own and ignores SIGINT: what somebody types on the caller's terminal
    is for the caller.

    Args:
        argv: absolute path of the program and its arguments.
        fds: descriptors that become 0, 1, 2, …; all others are closed in the program.
        environment: the whole environment.
        namespaces: the new ones; with NEWUSER, ``users`` and ``groups`` are its maps. Where those
            map more than the caller's own ids, the caller must have the rights to.
        users: user ids.
        groups: group ids.

    Raises:
        OSError: EPERM, ENOSPC (namespaces are forbidden, or too many), EAGAIN, ENOMEM.
        RuntimeError: the caller has threads.
    """
    if threading.active_count() > 1:
        raise RuntimeError("only a process with one thread can spawn")
    go_read, go_write = os.pipe()
    arguments = [os.fsencode(word) for word in argv]
    variables = {os.fsencode(k): os.fsencode(v) for k, v in environment.items()}
    pidfd = ctypes.c_int(-1)
    flags = int(namespaces) | _CLONE_PIDFD | signal.SIGCHLD
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = syscall("clone", flags, None, ctypes.byref(pidfd), None, None)
        if pid == 0:
            _child(arguments, variables, fds, go_read, go_write)
    except OSError:
        os.close(go_write)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(go_read)
    os.set_inheritable(pidfd.value, False)
    try:
        if namespaces & CloneFlag.NEWUSER:
            _write_maps(pid, users, groups)
        os.write(go_write, bytes([_Go.RUN]))
    except OSError:
        signal.pidfd_send_signal(pidfd.value, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd.value)
        raise
    finally:
        os.close(go_write)
    return Spawned(pid, pidfd.value)


def _child(
    argv: list[bytes],
    environment: dict[bytes, bytes],
    fds: Sequence[int],
    go_read: int,
    go_write: int,
) -> NoReturn:
    """Between clone and execve. Never returns, never raises."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        os.close(go_write)
        if os.read(go_read, 1) != bytes([_Go.RUN]):
            os._exit(_NOT_STARTED)
        os.setsid()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):
                ignored = number == signal.SIGINT  # of which Python would make an exception
                signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
        _place(fds)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(argv[0], argv, environment)  # noqa: S606 - that is what it is for
    finally:
        os._exit(_NOT_STARTED)


def _place(fds: Sequence[int]) -> None:
    """Have ``fds`` as 0, 1, 2, … and nothing else."""
    count = len(fds)
    high = [os.dup(fd) for fd in fds]
    while any(fd < count for fd in high):  # out of the way of where they go
        high = [fd if fd >= count else os.dup(fd) for fd in high]
    for place, fd in enumerate(high):
        os.dup2(fd, place, inheritable=True)
    os.closerange(count, 1 << 16)


def _write_maps(pid: int, users: Sequence[IdMap], groups: Sequence[IdMap]) -> None:
    if len(groups) == 1 and groups[0].length == 1 and os.geteuid() != 0:
        # Whoever has no rights over groups must give setgroups(2) up first.
        _write(f"/proc/{pid}/setgroups", "deny")
    for name, rows in (("uid_map", users), ("gid_map", groups)):
        _write(f"/proc/{pid}/{name}", "".join(f"{i} {o} {n}\n" for i, o, n in rows))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
