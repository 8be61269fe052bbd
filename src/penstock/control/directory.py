# SPDX-License-Identifier: Apache-2.0
"""Where the sockets and records of mounts lie, and that it is safe to use.

``/run/penstock`` for root where that can be written (the root of a user namespace cannot), else
``$XDG_RUNTIME_DIR/penstock``, else ``/tmp/penstock-UID``. The directory is a real directory (no
symlink), owned by its user and closed to everybody else; anything else is refused, since whoever
can write there could answer in a server's name.

Everything below is reached through a descriptor of the directory, never by its path again. Whoever
owns a directory decides what lies there, so a socket is connected to only if it is one, no link
to one, and both it and who listens there are the owner's: root must not be led elsewhere.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from penstock.abi.socket import UCRED

__all__ = [
    "all_directories",
    "connect",
    "is_served",
    "open_directory",
    "peer_uid",
    "remove_if_empty",
    "runtime_directory",
]


def runtime_directory(uid: int | None = None) -> str:
    """The path for the mounts of a user (default: the effective user of this process)."""
    me = os.geteuid()
    if uid is None:
        uid = me
    if uid == 0 and (me != 0 or _is_writable("/run/penstock")):
        return "/run/penstock"
    base = os.environ.get("XDG_RUNTIME_DIR", "") if uid == me else f"/run/user/{uid}"
    if os.path.isabs(base) and _owner(base) == uid:
        return os.path.join(base, "penstock")
    return f"/tmp/penstock-{uid}"  # noqa: S108  the directory is owner-checked before use


def all_directories() -> list[tuple[str, int]]:
    """Every directory whose records the caller may see, with the uid that must own it.

    For root these are the directories of all users, else the caller's own.
    """
    me = os.geteuid()
    found = [(os.path.normpath(runtime_directory()), me)]
    if me != 0:
        return found
    for parent, prefix, suffix in (("/run/user", "", "/penstock"), ("/tmp", "penstock-", "")):  # noqa: S108
        for name in _names(parent):
            number = name.removeprefix(prefix)
            if name.startswith(prefix) and number.isascii() and number.isdigit():
                found.append((f"{parent}/{name}{suffix}", int(number)))
    return list(dict.fromkeys(found))  # root's own may be among the others


@contextmanager
def open_directory(path: str, uid: int, *, create: bool = False) -> Iterator[int]:
    """Open a directory of records and check it.

    Args:
        path: where it lies.
        uid: who must own it.
        create: make it when it is missing.

    Yields:
        Its descriptor, closed at the end.

    Raises:
        FileNotFoundError: it is missing and ``create`` is false.
        PermissionError: it is not a directory of that user closed to others.
    """
    if create:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise PermissionError(errno.EPERM, "is not a directory", path) from error
        raise
    try:
        info = os.fstat(fd)
        if info.st_uid != uid:
            raise PermissionError(errno.EPERM, f"belongs to uid {info.st_uid}, not {uid}", path)
        if stat.S_IMODE(info.st_mode) & 0o077:
            raise PermissionError(errno.EPERM, "is open to other users (want mode 0700)", path)
        yield fd
    finally:
        os.close(fd)


def connect(sock: socket.socket, fd: int, name: str, uid: int) -> None:
    """Connect to a socket in the directory ``fd`` of user ``uid``.

    Raises:
        FileNotFoundError: it is missing.
        ConnectionRefusedError: nobody listens there any more.
        PermissionError: it is no socket, or another user's, or another user listens there.
        OSError: as connect(2).
    """
    path = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        info = os.fstat(path)
        if not stat.S_ISSOCK(info.st_mode):
            raise PermissionError(errno.EPERM, "is not a socket", name)
        if info.st_uid != uid:
            raise PermissionError(errno.EPERM, f"belongs to uid {info.st_uid}, not {uid}", name)
        sock.connect(f"/proc/self/fd/{path}")
    finally:
        os.close(path)
    listener = peer_uid(sock)
    if listener != uid:
        raise PermissionError(errno.EPERM, f"uid {listener} listens there, not {uid}", name)


def is_served(fd: int, name: str, uid: int) -> bool:
    """Whether somebody listens at a socket in the directory ``fd``; he need not answer.

    Raises:
        PermissionError: as :func:`connect`.
        OSError: it cannot be told.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            connect(sock, fd, name, uid)
        except BlockingIOError:  # too many wait there already
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a connected socket."""
    _, uid, _ = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    return int(uid)


def remove_if_empty(path: str) -> None:
    """Remove a directory of records in /tmp that holds none any more; others stay."""
    if path.startswith("/tmp/penstock-") and path.count("/") == 2:  # noqa: S108  compared alone
        with suppress(OSError):
            os.rmdir(path)


def _is_writable(path: str) -> bool:
    """Whether the caller may write into a directory, or make it where it is missing."""
    return os.access(path if os.path.lexists(path) else os.path.dirname(path), os.W_OK)


def _owner(path: str) -> int | None:
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_uid if stat.S_ISDIR(info.st_mode) else None


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
