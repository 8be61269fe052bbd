# SPDX-License-Identifier: Apache-2.0
"""Files put in place below a directory, though others may be able to write there.

Directories are opened one after the other, each from the one above it, and everything is done in
the directory that is open: a name is used once, and never for what was found under it before. A
symbolic link is followed by hand and cannot lead out of the tree. A directory in which others than
root and this user can write is refused, unless that was meant.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from penstock.cli.errors import Failure
from penstock.cli.installed import Item
from penstock.cli.trust import fault

__all__ = ["Found", "Tree"]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE: Final = 0o755
_MAX_LINKS: Final = 40


class Found(NamedTuple):
    """What is at a path."""

    content: str
    """A file's text, a link's target; empty for anything else."""
    mode: int
    """With its type, as in stat(2)."""


class Tree:
    """Where to install.

    Args:
        root: a directory, which stands for ``/``; empty: the system's own.
        force: take directories in which others can write.
    """

    def __init__(self, root: str, *, force: bool) -> None:
        self._root = root
        self._users = frozenset() if force else frozenset({0, os.geteuid()})

    def shown(self, path: str) -> str:
        """A path in the tree, for people."""
        return self._root + path

    def find(self, path: str) -> Found | None:
        """What is there; None for nothing.

        Raises:
            Failure: others can write where it is.
            OSError: it cannot be looked at.
        """
        try:
            with self._beside(path) as (directory, name):
                info = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISLNK(info.st_mode):
                    return Found(os.readlink(name, dir_fd=directory), info.st_mode)
                if not stat.S_ISREG(info.st_mode):
                    return Found("", info.st_mode)
                fd = os.open(name, _READ, dir_fd=directory)
                with open(fd, encoding="utf-8", errors="replace") as file:
                    return Found(file.read(), os.fstat(fd).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, item: Item) -> None:
        """Make a file or link under another name, then put it in place, so that nobody sees half.

        Raises:
            Failure: others can write there.
            OSError: it cannot be made.
        """
        with self._beside(item.path, make=True) as (directory, name):
            temporary = f".{name}.{secrets.token_hex(8)}"
            try:
                if item.link:
                    os.symlink(item.content, temporary, dir_fd=directory)
                else:
                    fd = os.open(temporary, _NEW, 0o600, dir_fd=directory)
                    with open(fd, "w", encoding="utf-8") as file:
                        file.write(item.content)
                        os.fchmod(fd, item.mode)
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=directory)
                raise

    def remove(self, path: str) -> None:
        """Remove a file or link."""
        with self._beside(path) as (directory, name):
            os.unlink(name, dir_fd=directory)

    def remove_directory(self, path: str) -> bool:
        """Remove a directory if it is empty; whether it was there and is gone."""
        try:
            with self._beside(path) as (directory, name):
                os.rmdir(name, dir_fd=directory)
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def _beside(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The directory of a path, open, and the name in it. What goes wrong names the path."""
        above, name = os.path.split(path)
        try:
            fd = self._open(above, make=make)
            try:
                yield fd, name
            finally:
                os.close(fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.shown(path)) from error

    def _open(self, path: str, *, make: bool) -> int:
        """Walk down to a directory; its descriptor."""
        if make and self._root:
            _make_directories(self._root)
        way = [(self._root or "/", os.open(self._root or "/", _DIRECTORY & ~os.O_NOFOLLOW))]
        try:
            self._check(*way[0])
            names = path.split("/")[::-1]
            links = 0
            while names:
                name = names.pop()
                if name == ".." and len(way) > 1:
                    os.close(way.pop()[1])
                if name in {"", ".", ".."}:
                    continue
                above, directory = way[-1]
                target = _link(name, directory)
                if target is not None:
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    while target.startswith("/") and len(way) > 1:
                        os.close(way.pop()[1])
                    names += target.split("/")[::-1]
                    continue
                shown = f"{above.rstrip('/')}/{name}"
                way.append((shown, _open_directory(name, directory, make=make)))
                self._check(*way[-1])
            return way.pop()[1]
        finally:
            for _, fd in way:
                os.close(fd)

    def _check(self, shown: str, fd: int) -> None:
        why = fault(os.fstat(fd), self._users) if self._users else None
        if why is not None:
            raise Failure(
                f"{shown} {why}, so that others could change what is put there (--force does it "
                "all the same)"
            )


def _link(name: str, directory: int) -> str | None:
    """The target, if it is a link."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT}:
            return None
        raise


def _open_directory(name: str, directory: int, *, make: bool) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        if not make:
            raise
    os.mkdir(name, _MODE, dir_fd=directory)
    fd = os.open(name, _DIRECTORY, dir_fd=directory)
    os.fchmod(fd, _MODE)  # whatever the umask takes away
    return fd


def _make_directories(path: str) -> None:
    """The tree's own directory and those above it, as far as they are missing."""
    if os.path.isdir(path):
        return
    above, name = os.path.split(path)
    _make_directories(above)
    directory = os.open(above, _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        os.close(_open_directory(name, directory, make=True))
    finally:
        os.close(directory)
