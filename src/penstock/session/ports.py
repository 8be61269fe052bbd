# SPDX-License-Identifier: Apache-2.0
"""What a session needs of the world, as protocols. Whoever builds a mount fills them.

The session does no I/O: it gives back replies, and hands what it starts by itself (late answers,
notifications) to a :class:`Sink`. Where file data lies it asks a :class:`DataPaths` to put into
file ranges; a transport carries those out.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from penstock.abi.fuse import NotifyCode, NotifyStoreOut, OutHeader
from penstock.abi.layout import pack, size_of
from penstock.fs import Backing, Mapped, Mapping, OpenReply
from penstock.wire import encode_error

__all__ = ["ZEROS", "Backings", "DataPaths", "FileBody", "FileRange", "Origin", "Reply", "Sink"]

Origin = object
"""Where a request came from, opaque to the session. A reply must go back the same way: a cloned
/dev/fuse descriptor has a table of requests of its own."""

ZEROS: Final = -1
"""The descriptor of a :class:`FileRange` that reads as zeros."""


_STORE_HEAD: Final = size_of(OutHeader) + size_of(NotifyStoreOut)


class FileRange(NamedTuple):
    """``length`` bytes of an open file from ``offset``; zeros if ``fd`` is :data:`ZEROS`."""

    fd: int
    offset: int
    length: int


class FileBody(NamedTuple):
    """The body of a reply as it lies in files."""

    ranges: tuple[FileRange, ...]
    length: int
    """Sum of the ranges' lengths, bytes."""
    splice: bool
    """Whether to move it through a pipe rather than through memory."""
    exact: bool
    """Whether fewer bytes than ``length`` are an error (EIO) rather than end of file."""


class Reply(NamedTuple):
    """One message for the kernel: ``head`` is the out header and any fixed part."""

    unique: int
    head: bytes
    body: bytes | bytearray | memoryview | FileBody = b""
    nodes: tuple[int, ...] = ()
    """Nodes whose lookup count this reply raises, to be taken back if it is not delivered."""
    opened: tuple[int, int, int] | None = None
    """Opcode, node and file handle of what this reply opens, to be closed if it is not
    delivered: the kernel sends no RELEASE then."""
    store: FileBody | bytes | None = None
    """The content of the file that is opened, for the kernel's cache, to be sent before the reply.
    It saves the READ; where it fails nothing is lost."""

    def store_head(self, length: int) -> bytes:
        """What comes before :attr:`store` in its message (NOTIFY_STORE)."""
        assert self.opened is not None
        return pack(OutHeader(_STORE_HEAD + length, NotifyCode.STORE, 0)) + pack(
            NotifyStoreOut(self.opened[1], 0, length, 0)
        )

    def failed(self, error: int = errno.EIO) -> Reply:
        """The reply to send instead when the body cannot be had; ``error`` a positive errno."""
        return Reply(self.unique, encode_error(self.unique, error))


class Sink(Protocol):
    """Takes what the session sends of its own accord. Called from any thread."""

    def reply(self, reply: Reply, origin: Origin) -> None:
        """Send a late answer to where its request came from. Errors are the sink's to log."""
        ...

    def notify(self, message: bytes) -> None:
        """Send a notification.

        Raises:
            OSError: what the kernel answers (ENOENT: it does not know the inode or name).
        """
        ...

    def in_worker(self) -> bool:
        """Whether the calling thread is one that carries requests out. There a notification
        must not be sent directly: the kernel may hold the lock that it needs until the request
        is answered."""
        ...


class DataPaths(Protocol):
    """Turns the answer to "where are the bytes" into a body."""

    def mapped(self, data: Mapped, offset: int, devices: Sequence[int]) -> FileBody:
        """The body for a read at ``offset`` bytes whose data lies in ``data.mappings``.

        Raises:
            FsError: EIO if the mappings do not cover the range.
        """
        ...

    def backing(self, data: Backing, offset: int, size: int) -> FileBody:
        """The body for a read of ``size`` bytes at ``offset`` of another file."""
        ...

    def opened(self, nodeid: int, flags: int, reply: OpenReply) -> OpenReply:
        """A file is opened with O_* ``flags``: the answer, with FOPEN_PASSTHROUGH if the kernel is
        to carry its data. Each call that returns is made up for by one of :meth:`released`.

        Raises:
            FsError: it cannot be opened so.
        """
        ...

    def stored(self, nodeid: int, reply: OpenReply) -> int:
        """How many bytes of a file that was just opened, and is read, to send along: all of it or
        0."""
        ...

    def content(self, data: Mapped, devices: Sequence[int]) -> FileBody:
        """The body for all of a file that was just opened; it is no read."""
        ...

    def idle(self) -> None:
        """No request waits; called again and again while none does."""
        ...

    def released(self, nodeid: int) -> None:
        """An opened file is closed."""
        ...

    def forgotten(self, nodeid: int) -> None:
        """The kernel knows an inode no more."""
        ...


class Backings(Protocol):
    """Registers backing files. Called from any thread; one inode has one at most."""

    def register(self, node: int, fd: int) -> int:
        """The number of an inode's backing file, which is an open file.

        Raises:
            OSError: EPERM, EOPNOTSUPP, ELOOP (no file of this mount can be one), ENFILE (there are
                too many), EINVAL and others (this one cannot).
        """
        ...

    def map(self, node: int, length: int, mappings: Sequence[Mapping]) -> int:
        """The number of an inode's backing file, whose ``length`` bytes lie in an image."""
        ...

    def release(self, node: int) -> None:
        """The inode's backing file is not needed any more. May be put off until :meth:`settle`, or
        until something is registered."""
        ...

    def settle(self) -> None:
        """Nothing is being asked for now: carry out what was put off."""
        ...
