# SPDX-License-Identifier: Apache-2.0
"""Writing files out of an image, below one directory and nowhere else.

The image may have been made to do harm: a name ``../x``, a symlink ``a -> /etc`` beside a directory
``a``, a file that is both. So every path is resolved below the target's descriptor and without
following links (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), files are only ever created
(O_EXCL, never opened for writing when they exist), and what a tree holds is its own: device nodes
and set-ID bits are left out unless root asks for all.

Directories are made for the owner alone; they get their mode and times when all below is there.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from penstock.client import Client, Node, ServerLost
from penstock.client.names import check_name
from penstock.sys.beneath import open_beneath

__all__ = ["Extractor", "Preserve", "Skipped"]

_MODE: Final = 0o1777
_SET_ID: Final = 0o6000
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY
_NOT_KEPT: Final = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL})
"""What a filesystem or a lack of privilege answers to attributes that it will not take."""

Path = tuple[bytes, ...]


class Preserve(enum.Enum):
    """How much of a file is kept beside its content and its links."""

    DEFAULT = "default"
    ALL = "all"
    NONE = "none"


class Skipped(Exception):
    """This kind of file is not copied; the message says which."""


class Extractor:
    """Creates files below a directory.

    Args:
        client: where they come from.
        root: descriptor of the directory; the caller's.
        preserve: what is kept.
        advance: called with the number of bytes done, holes included.
    """

    def __init__(
        self,
        client: Client,
        root: int,
        preserve: Preserve = Preserve.DEFAULT,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._root = root
        self._preserve = preserve
        self._privileged = preserve is Preserve.ALL and os.geteuid() == 0
        self._advance = advance
        self._links: dict[int, Path] = {}
        self._made: list[tuple[Path, Node]] = []
        self._parent: tuple[Path, int] | None = None
        self._umask = os.umask(0)
        os.umask(self._umask)
        self.attributes_lost = 0
        """Files of which some attribute could not be kept."""

    def close(self) -> None:
        """Give directories their modes and times, and close what is open.

        Raises:
            OSError: the first directory whose attributes could not be set.
        """
        failures: list[OSError] = []
        for path, node in reversed(self._made):
            try:
                self._finish(self._directory(path), node)
            except OSError as error:
                failures.append(error)
        self._made.clear()
        self._forget_parent()
        if failures:
            raise failures[0]

    def extract(self, path: Path, node: Node) -> None:
        """Create one file, link or directory; its parent must be there.

        Args:
            path: components below the root of the extraction.
            node: what it is in the image.

        Raises:
            Skipped: its kind is not copied.
            OSError: it cannot be read or created; EEXIST if something has its name.
        """
        for name in path:
            check_name(name)
        if node.is_dir:
            self._make_directory(path, node)
        elif node.attr.nlink > 1 and node.nodeid in self._links:
            self._make_hard_link(path, self._links[node.nodeid])
            self._advance(node.attr.size if node.is_file else 0)
        else:
            self._make_file(self._directory(path[:-1]), path[-1], node)
            if node.attr.nlink > 1:
                self._links[node.nodeid] = path

    # Kinds

    def _make_file(self, parent: int, name: bytes, node: Node) -> None:
        mode = node.attr.mode
        if node.is_file:
            self._make_regular(parent, name, node)
        elif node.is_link:
            os.symlink(self._client.readlink(node), name, dir_fd=parent)
            self._finish_at(parent, name, node)
        elif stat.S_ISFIFO(mode):
            os.mkfifo(name, mode & 0o777, dir_fd=parent)
            self._finish_at(parent, name, node)
        elif stat.S_ISSOCK(mode):
            raise Skipped("a socket")
        elif self._privileged:
            os.mknod(name, stat.S_IFMT(mode) | 0o600, _device(node.attr.rdev), dir_fd=parent)
            self._finish_at(parent, name, node)
        else:
            raise Skipped("a device node (root can copy it with --preserve=all)")

    def _make_regular(self, parent: int, name: bytes, node: Node) -> None:
        fd = open_beneath(parent, (name,), _CREATE, 0o600)
        try:
            with contextlib.closing(self._client.open(node)) as file:
                position = 0
                for offset, data in file.chunks():
                    _write_all(fd, data, offset)
                    self._advance(offset + len(data) - position)
                    position = offset + len(data)
                os.ftruncate(fd, file.size)
                self._advance(file.size - position)
            self._finish(fd, node)
        except BaseException:
            with contextlib.suppress(OSError):  # half a file is worse than none
                os.unlink(name, dir_fd=parent)
            raise
        finally:
            os.close(fd)

    def _make_directory(self, path: Path, node: Node) -> None:
        try:
            os.mkdir(path[-1], 0o700, dir_fd=self._directory(path[:-1]))
        except FileExistsError:
            # One that was there before is added to and keeps its attributes. This fails if it is
            # no directory but a link to one.
            self._directory(path)
        else:
            self._made.append((path, node))

    def _make_hard_link(self, path: Path, first: Path) -> None:
        source = open_beneath(self._root, first[:-1], _DIRECTORY)
        try:
            parent = self._directory(path[:-1])
            os.link(
                first[-1], path[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False
            )
        finally:
            os.close(source)

    # Attributes

    def _finish(self, fd: int, node: Node) -> None:
        """Owner, attributes, mode and times of an open file or directory, in this order: changing
        the owner clears set-ID bits and writing attributes may need the right to write."""
        attr = node.attr
        if self._preserve is Preserve.NONE:
            os.fchmod(fd, (0o777 if node.is_dir or attr.mode & 0o111 else 0o666) & ~self._umask)
            return
        if self._privileged:
            os.fchown(fd, attr.uid, attr.gid)
        kept = self._copy_attributes(fd, node)
        os.fchmod(fd, attr.mode & (_MODE | _SET_ID if self._privileged else _MODE))
        kept = _set_times(fd, node) and kept
        self.attributes_lost += not kept

    def _finish_at(self, parent: int, name: bytes, node: Node) -> None:
        """What can be set on a name that must not be opened or followed."""
        if self._preserve is Preserve.NONE:
            return
        attr = node.attr
        if self._privileged:
            os.chown(name, attr.uid, attr.gid, dir_fd=parent, follow_symlinks=False)
        with contextlib.suppress(OverflowError, OSError):
            os.utime(name, ns=_times(node), dir_fd=parent, follow_symlinks=False)

    def _copy_attributes(self, fd: int, node: Node) -> bool:
        try:
            names = self._client.listxattr(node)
        except ServerLost:
            raise
        except OSError as error:
            return error.errno == errno.EOPNOTSUPP
        kept = True
        for name in names:
            if self._preserve is not Preserve.ALL and not name.startswith(b"user."):
                continue
            try:
                os.setxattr(fd, name, self._client.getxattr(node, name))
            except OSError as error:
                if error.errno not in _NOT_KEPT:
                    raise
                kept = False
        return kept

    # Directories of the target

    def _directory(self, path: Path) -> int:
        """A descriptor of a directory below the root; valid until the next call. The last one is
        kept, since a tree comes directory by directory."""
        if self._parent is None or self._parent[0] != path:
            fd = open_beneath(self._root, path, _DIRECTORY)
            self._forget_parent()
            self._parent = (path, fd)
        return self._parent[1]

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _times(node: Node) -> tuple[int, int]:
    attr = node.attr
    return (
        attr.atime * 1_000_000_000 + attr.atimensec,
        attr.mtime * 1_000_000_000 + attr.mtimensec,
    )


def _set_times(fd: int, node: Node) -> bool:
    try:
        os.utime(fd, ns=_times(node))
    except OverflowError:
        return False
    return True


def _device(rdev: int) -> int:
    """From the kernel's encoding on the wire to the C library's."""
    return os.makedev((rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00))
