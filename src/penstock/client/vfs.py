# SPDX-License-Identifier: Apache-2.0
"""The kernel's half of a mount, in user space: names, paths, attributes, files, trees.

Nothing that a server says is believed further than it can be checked: names are checked before they
are handed on, sizes are bounded, a listing that does not advance or has no end is refused, symlinks
are followed inside the tree only and at most :data:`MAX_LINKS` times, and a directory that is met a
second time in a tree is not entered again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, Self

from penstock.abi.fuse import (
    STATX_BASIC_STATS,
    Attr,
    GetattrIn,
    GetxattrIn,
    InitFlag,
    Kstatfs,
    Opcode,
    ReadIn,
    Statx,
    StatxIn,
    StatxMask,
)
from penstock.client.channel import Channel, Transport
from penstock.client.files import File, open_node, release_node
from penstock.client.names import PATH_MAX, TARGET_MAX, check_name, split_path
from penstock.client.nodes import (
    Found,
    Listing,
    Node,
    checked_attr,
    checked_node,
    listed_node,
    statx_of,
    without_enosys,
)
from penstock.client.stream import ServerLost
from penstock.wire import WireError, decode_direntplus, decode_dirents, requests

__all__ = ["MAX_ENTRIES", "MAX_LINKS", "Client"]

MAX_LINKS: Final = 40
"""Symlinks followed in one path, as in the kernel."""

MAX_ENTRIES: Final = 1 << 24
"""Entries of one directory."""

_XATTR_MAX: Final = 64 * 1024
_STATX_MASK: Final = STATX_BASIC_STATS | StatxMask.BTIME
OnError = Callable[[bytes, OSError], None]
"""Told of what cannot be read, with its path; the walk goes on, unless the server is lost."""


class Client:
    """A filesystem seen through its protocol. A context manager.

    Args:
        transport: carries the messages; stays the caller's.
        uid: who asks, as the server sees it; default: this process's user.
        gid: the same for the group.
        reason: asked for the reason of each error that is answered, where the protocol has but a
            number; empty if it is not known.

    Raises:
        OSError: the handshake failed.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        uid: int | None = None,
        gid: int | None = None,
        reason: Callable[[], str] | None = None,
    ) -> None:
        self._channel = Channel(
            transport,
            uid=os.geteuid() if uid is None else uid,
            gid=os.getegid() if gid is None else gid,
            reason=reason,
        )
        self._plus = bool(self._channel.flags & InitFlag.DO_READDIRPLUS)
        self._statx = True
        self._open = True
        self.root = Node(1, self.getattr(1))
        """The root directory."""

    def close(self) -> None:
        """Say goodbye (DESTROY). Idempotent; the transport stays open."""
        if self._open:
            self._open = False
            with contextlib.suppress(OSError):  # it is over either way
                self._channel.request(Opcode.DESTROY, 0, requests.Destroy())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # Inodes

    def lookup(self, parent: Node | int, name: bytes) -> Node:
        """The inode called ``name`` in a directory.

        Raises:
            OSError: ENOENT, or what the server answers.
        """
        body = requests.Lookup(name)
        return checked_node(self._channel.request(Opcode.LOOKUP, _id(parent), body).entry)

    def forget(self, *nodes: Node) -> None:
        """Give nodes back that are not needed any more: their ids may then be used for others."""
        self._channel.forget([(node.nodeid, 1) for node in nodes if node.nodeid != 1])

    def getattr(self, node: Node | int) -> Attr:
        """The attributes of an inode, as they are now."""
        body = requests.Getattr(GetattrIn(0, 0, 0))
        reply: Any = self._channel.request(Opcode.GETATTR, _id(node), body)
        return checked_attr(reply.arg.attr)

    def statx(self, node: Node | int) -> Statx:
        """The extended attributes of stat (birth time, inode flags); what ``getattr`` knows where
        the server has no more than that."""
        if self._statx:
            body = requests.Statx(StatxIn(0, 0, 0, 0, _STATX_MASK))
            try:
                reply: Statx = self._channel.request(Opcode.STATX, _id(node), body).arg.stat
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                self._statx = False
            else:
                return reply
        return statx_of(self.getattr(node))

    def readlink(self, node: Node | int) -> bytes:
        """The target of a symbolic link: 1 to 4095 bytes without NUL."""
        reply: Any = self._channel.request(Opcode.READLINK, _id(node), requests.Readlink())
        target = bytes(reply.data)
        if not 0 < len(target) <= TARGET_MAX or b"\0" in target:
            raise OSError(errno.EUCLEAN, "a symbolic link has no proper target")
        return target

    def open(self, node: Node) -> File:
        """Open a regular file for reading.

        Raises:
            OSError: EISDIR, EINVAL for other kinds, or what the server answers.
        """
        if node.is_dir:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not node.is_file:
            raise OSError(errno.EINVAL, "is not a regular file")
        return File(self._channel, node.nodeid, node.attr.size)

    def read(self, node: Node, offset: int = 0, length: int | None = None) -> bytes:
        """Open, read and close in one go; up to the end of the file if ``length`` is None."""
        with self.open(node) as file:
            return file.read(offset, file.size if length is None else length)

    def getxattr(self, node: Node | int, name: bytes) -> bytes:
        """The value of an extended attribute. ENODATA if there is none."""
        body = requests.Getxattr(GetxattrIn(_XATTR_MAX, 0), name)
        try:
            reply: Any = self._channel.request(Opcode.GETXATTR, _id(node), body)
        except OSError as error:
            raise without_enosys(error) from error
        if len(reply.data) > _XATTR_MAX:
            raise OSError(errno.EIO, "an attribute is larger than was asked for")
        return bytes(reply.data)

    def listxattr(self, node: Node | int) -> list[bytes]:
        """The names of all extended attributes, with their prefixes."""
        body = requests.Listxattr(GetxattrIn(_XATTR_MAX, 0))
        try:
            reply: Any = self._channel.request(Opcode.LISTXATTR, _id(node), body)
        except OSError as error:
            raise without_enosys(error) from error
        names = bytes(reply.data).split(b"\0")
        if len(reply.data) > _XATTR_MAX or names.pop() or any(len(n) > 255 for n in names):
            raise OSError(errno.EIO, "a list of attributes makes no sense")
        return [name for name in names if name]

    def statfs(self, node: Node | int = 1) -> Kstatfs:
        """Statistics of the filesystem."""
        reply: Any = self._channel.request(Opcode.STATFS, _id(node), requests.Statfs())
        return reply.arg  # type: ignore[no-any-return]

    # Directories

    def readdir(self, node: Node | int, on_error: OnError | None = None) -> Iterator[Listing]:
        """What a directory holds, without ``.`` and ``..``, in the server's order.

        Args:
            node: the directory.
            on_error: told of names that are refused; without it they are raised.

        Raises:
            OSError: what the server answers; EUCLEAN for names that cannot be, or a listing that
                does not advance or has no end.
        """
        nodeid = _id(node)
        handle = open_node(self._channel, nodeid, Opcode.OPENDIR, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for listing in self._entries(nodeid, handle or 0):
                try:
                    check_name(listing.name)
                except OSError as error:
                    if on_error is None:
                        raise
                    on_error(listing.name, error)
                else:
                    yield listing
        finally:
            release_node(self._channel, nodeid, Opcode.RELEASEDIR, handle, os.O_DIRECTORY)

    def _entries(self, nodeid: int, handle: int) -> Iterator[Listing]:
        position = 0
        count = 0
        seen = {0}
        while True:
            before = count
            for offset, listing in self._page(nodeid, handle, position):
                position = offset
                count += 1
                if listing.name not in {b".", b".."}:
                    yield listing
            if count == before:
                return
            if position in seen or count > MAX_ENTRIES:
                raise OSError(errno.EUCLEAN, "a directory has no end")
            seen.add(position)

    def _page(self, nodeid: int, handle: int, position: int) -> Iterator[tuple[int, Listing]]:
        """One reply's worth of entries, each with the position behind it."""
        size = min(self._channel.max_data, 128 * 1024)
        arg = ReadIn(handle, position, size, 0, 0, os.O_RDONLY, 0)
        try:
            if self._plus:
                body: Any = requests.Readdirplus(arg)
                data = self._channel.request(Opcode.READDIRPLUS, nodeid, body).data
                for (name, ino, offset, type), entry in decode_direntplus(data):
                    yield offset, Listing(name, ino, type, listed_node(entry))
            else:
                body = requests.Readdir(arg)
                data = self._channel.request(Opcode.READDIR, nodeid, body).data
                for name, ino, offset, type in decode_dirents(data):
                    yield offset, Listing(name, ino, type, None)
        except WireError as error:
            raise OSError(errno.EUCLEAN, f"a directory listing is damaged: {error}") from error

    # Paths and trees

    def resolve(self, path: bytes, *, follow: bool = True) -> Node:
        """The inode that a path leads to. The root of every path is this filesystem's.

        Args:
            path: with or without a leading slash, which means the same.
            follow: whether a symlink as last component is followed.

        Raises:
            OSError: ENOENT, ENOTDIR, ELOOP, …
        """
        trail = [self.root]
        todo = split_path(path)[::-1]
        must_be_dir = path.endswith((b"/", b"/."))
        links = 0
        while todo:
            name = todo.pop()
            if not trail[-1].is_dir:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if name == b"..":
                trail = trail[: max(1, len(trail) - 1)]
                continue
            node = self.lookup(trail[-1], name)
            if not node.is_link or not (todo or follow or must_be_dir):
                trail.append(node)
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = self.readlink(node)
            self.forget(node)
            if target.startswith(b"/"):
                trail = trail[:1]
            must_be_dir = must_be_dir or (not todo and target.endswith(b"/"))
            todo += split_path(target)[::-1]
        if must_be_dir and not trail[-1].is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return trail[-1]

    def tree(self, top: Node, on_error: OnError | None = None) -> Generator[Found, None, None]:
        """Everything below a directory, each directory before what it holds.

        Nodes are given back when the walk goes on, but for directories and files of several
        links: those keep their ids until the end, so that an id seen twice is the same file.

        Args:
            top: where to begin; not itself among what is found.
            on_error: told of what cannot be read; without it the first error is raised.
        """
        kept: list[Node] = []
        entered = {top.nodeid}
        stack = [self._children((), top, on_error)]
        try:
            while stack:
                found = next(stack[-1], None)
                if found is None:
                    stack.pop()
                    continue
                yield found
                node = found.node
                if node.is_dir or node.attr.nlink > 1:
                    kept.append(node)
                else:
                    self.forget(node)
                if node.is_dir:
                    reason = _no_descent(found, entered)
                    if reason is None:
                        entered.add(node.nodeid)
                        stack.append(self._children(found.path, node, on_error))
                    else:
                        _tell(on_error, found.path, reason)
        finally:
            while stack:
                stack.pop().close()
            self.forget(*kept)

    def _children(
        self, path: tuple[bytes, ...], directory: Node, on_error: OnError | None
    ) -> Generator[Found, None, None]:
        """What one directory holds, with inodes; what cannot be had is told."""

        def refused(name: bytes, error: OSError) -> None:
            _tell(on_error, (*path, name), error)

        try:
            for listing in self.readdir(directory, refused):
                try:
                    node = listing.node or self.lookup(directory, listing.name)
                except OSError as error:
                    _tell(on_error, (*path, listing.name), error)
                else:
                    yield Found((*path, listing.name), node)
        except OSError as error:
            _tell(on_error, path, error)


def _tell(on_error: OnError | None, path: tuple[bytes, ...], error: OSError) -> None:
    if on_error is None or isinstance(error, ServerLost):
        raise error
    on_error(b"/".join(path), error)


def _no_descent(found: Found, entered: set[int]) -> OSError | None:
    """Why a directory must not be entered: a corrupt tree can be a circle, or grow for ever."""
    if found.node.nodeid in entered:
        return OSError(errno.EUCLEAN, "this directory has been met elsewhere in the tree")
    if sum(map(len, found.path)) + len(found.path) >= PATH_MAX:
        return OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return None


def _id(node: Node | int) -> int:
    return node if isinstance(node, int) else node.nodeid
