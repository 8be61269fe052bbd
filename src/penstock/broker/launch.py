# SPDX-License-Identifier: Apache-2.0
"""Starting a server: a fresh interpreter in namespaces of its own, with one socket.

The server is executed, never forked from this process's memory. It gets an empty environment, and
of descriptors the null device as standard streams, its socket as number 3 and perhaps that of the
opener as number 4. It finds the modules
of penstock where this process found them.

As root it is started with two ids in its user namespace: root's, which reads the interpreter's
modules wherever they lie, and nobody's, to which it changes before it sees an image. Outside, that
is an id that nobody else has: one that others share could be used to signal the server. Anybody but
root has but one id to give.

The server of a directory has no user namespace: there the files would belong to nobody. Root's has
a pid namespace all the same, an ordinary user's has none.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import os
import socket
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Final, NamedTuple

from penstock.abi.process import NOBODY, CloneFlag
from penstock.sys.capabilities import io_flusher
from penstock.sys.namespaces import namespace_ids
from penstock.sys.spawn import IdMap, Spawned, spawn
from penstock.sys.tree import open_unchangeable

if TYPE_CHECKING:
    from penstock.broker.channel import Channel

__all__ = ["Launched", "ServerKind", "launch", "opens_by_handle", "stay_in_memory"]

_NEW: Final = CloneFlag.NEWUSER | CloneFlag.NEWPID
_FORBIDDEN: Final = frozenset({errno.EPERM, errno.ENOSPC, errno.EINVAL, errno.EACCES, errno.EUSERS})
_SOCKET_BYTES: Final = 256 * 1024
_OOM_SCORE: Final = -500
_UNUSED_IDS: Final = 1_900_000_000
"""No system gives ids from here to 2^31 to anybody (systemd.io, "Users, Groups, UIDs and GIDs")."""
_SERVERS: Final = 16
"""So many servers of one broker have ids of their own."""
_count: Final = itertools.count()


class ServerKind(enum.Enum):
    """What a server is for."""

    IMAGE = "image"
    MIRROR = "mirror"
    """A directory."""
    TRUSTED_MIRROR = "mirror-trusted"
    """A directory, with the attributes that only CAP_SYS_ADMIN may see: the server of root keeps
    this capability, so it must be said before it closes its sandbox."""

    @property
    def is_mirror(self) -> bool:
        """Whether it serves a directory."""
        return self is not ServerKind.IMAGE


class Launched(NamedTuple):
    """A server that has been started."""

    pid: int
    pidfd: int
    """Owned by whoever got this; readable once the process has ended."""
    channel: Channel
    """This side's end; does not block."""
    handles: socket.socket | None = None
    """Where a mirror's server of root asks for files by handle: the end for the opener."""


def stay_in_memory() -> None:
    """Have this process, and what it starts, get memory even when the machine has little of it, and
    be among the last to be killed then. As far as the caller may (CAP_SYS_RESOURCE).

    Somebody may be waiting for an answer of theirs: if they waited for memory that is only freed by
    that answer, nobody would ever go on (prctl(2), PR_SET_IO_FLUSHER).
    """
    with contextlib.suppress(OSError):
        io_flusher(True)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as setting:
        setting.write(str(_OOM_SCORE))


def launch(kind: ServerKind = ServerKind.IMAGE, *, max_fds: int = 0) -> Launched:
    """Start a server. The calling process must have one thread.

    Args:
        kind: what for.
        max_fds: descriptors that one of its messages may bring.

    Raises:
        OSError: it cannot be started.
    """
    pair = socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
    ours, theirs = socket.socketpair(*pair)
    handles, asking = socket.socketpair(*pair) if opens_by_handle(kind) else (None, None)
    null = open_unchangeable(os.devnull, os.O_RDWR)
    try:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        # Now, so that no message can come without its sender.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sockets = [sock.fileno() for sock in (theirs, asking) if sock is not None]
        started = _start([null, null, null, *sockets], kind)
    except BaseException:
        ours.close()
        if handles is not None:
            handles.close()
        raise
    finally:
        theirs.close()
        if asking is not None:
            asking.close()
        os.close(null)
    # Only now: the server is importing the same at this very moment.
    from penstock.broker.channel import Channel  # noqa: PLC0415

    ours.setblocking(False)
    return Launched(*started, Channel(ours, sender=started.pid, max_fds=max_fds), handles)


def opens_by_handle(kind: ServerKind) -> bool:
    """Whether such a server, started by this user, has files opened by handle for it; it then has
    the socket for that as number 4."""
    return kind.is_mirror and os.geteuid() == 0


def _start(fds: list[int], kind: ServerKind) -> Spawned:
    """In the best namespaces that the caller may make."""
    program = _program(kind)
    if kind.is_mirror:
        return _start_mirror(program, fds)
    for users, groups in _maps():
        try:
            return spawn(program, fds=fds, namespaces=_NEW, users=users, groups=groups)
        except OSError as error:
            if error.errno not in _FORBIDDEN:
                raise
    return _spawn_without_users(program, fds)


def _start_mirror(program: list[str], fds: list[int]) -> Spawned:
    return spawn(program, fds=fds) if os.geteuid() else _spawn_without_users(program, fds)


def _spawn_without_users(program: list[str], fds: list[int]) -> Spawned:
    """Without a user namespace of its own."""
    try:
        return spawn(program, fds=fds, namespaces=CloneFlag.NEWPID)
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise
    return spawn(program, fds=fds)


def _maps() -> list[tuple[list[IdMap], list[IdMap]]]:
    """The id maps to try, best first."""
    uid, gid = os.geteuid(), os.getegid()
    own = ([IdMap(0, uid)], [IdMap(0, gid)])
    if uid != 0:
        return [own]
    unused = _UNUSED_IDS + os.getpid() * _SERVERS + next(_count) % _SERVERS
    pairs = [[IdMap(0, 0), IdMap(NOBODY, outside)] for outside in (unused, NOBODY)]
    return [*((pair, pair) for pair in pairs), own]


def _program(kind: ServerKind) -> list[str]:
    """The command line of a server. It is told this process's namespaces: others are its own."""
    outside = ",".join(f"{name}={number}" for name, number in namespace_ids().items())
    folder = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    needed = _folder("crc32c") if kind is ServerKind.IMAGE else None
    modules = dict.fromkeys(path for path in (folder, needed) if path)
    program = f"{folder}/penstock/contain/__main__.py"
    return [sys.executable, "-I", "-S", "-B", program, kind.value, outside, *modules]


def _folder(package: str) -> str | None:
    """Where a package lies, without importing it."""
    found = PathFinder.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return os.path.dirname(found.submodule_search_locations[0])
