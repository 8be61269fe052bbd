# SPDX-License-Identifier: Apache-2.0
"""Requests and replies, one at a time, over whatever carries messages.

The handshake is here, and the one place where a reply becomes either a value or an OSError. A reply
is untrusted: one that cannot be decoded, or answers something else, is EIO.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

from penstock.abi.fuse import (
    KERNEL_MINOR,
    KERNEL_VERSION,
    BatchForgetIn,
    ForgetOne,
    InitFlag,
    InitIn,
    InitOut,
    Opcode,
)
from penstock.client.stream import ServerLost
from penstock.wire import (
    REPLIES,
    Features,
    WireError,
    decode_reply,
    encode_request,
    requests,
)

__all__ = ["Channel", "Transport"]

_PAGE: Final = 4096
_DEFAULT_PAGES: Final = 32
_MAX_PAGES: Final = 1024
"""No reply is taken that is larger than so many pages, whatever the server negotiates."""
_REPLY_SECONDS: Final = 30.0

_OFFERED: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.INIT_EXT
)
"""What this kernel's half can do. Nothing that makes the server rely on a page cache."""


class Transport(Protocol):
    """What carries messages: :class:`penstock.transport.MemoryTransport`, or a stream."""

    def call(self, message: bytes) -> bytes | None:
        """Send one request; its whole reply, or None if there is none or it comes later."""
        ...

    def wait_reply(self, unique: int, timeout: float) -> bytes:
        """The late reply to a request.

        Raises:
            TimeoutError: it did not come in time.
        """
        ...


class Channel:
    """One connection, after its handshake. Safe from several threads if the transport is.

    Args:
        transport: carries the messages.
        uid: who asks, as the server sees it.
        gid: with which group.
        reason: asked for the reason of each error; empty if it is not known.

    Raises:
        OSError: EPROTO if the server speaks another protocol; what it answers otherwise.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        uid: int,
        gid: int,
        reason: Callable[[], str] | None = None,
    ) -> None:
        self._transport = transport
        self._reason = reason or str
        self._uid = uid
        self._gid = gid
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._unique = 0
        self._features = Features(setxattr_ext=False)
        reply: InitOut = self.request(Opcode.INIT, 0, requests.Init(_init_in())).arg
        if reply.major != KERNEL_VERSION:
            raise OSError(errno.EPROTO, f"the server speaks FUSE {reply.major}, not 7")
        self.flags = InitFlag((reply.flags | reply.flags2 << 32) & _OFFERED)
        pages = reply.max_pages if self.flags & InitFlag.MAX_PAGES else _DEFAULT_PAGES
        self.max_data = min(max(pages, 1), _MAX_PAGES) * _PAGE
        """Bytes of the largest read."""

    def request(self, opcode: Opcode, nodeid: int, body: tuple[Any, ...]) -> Any:
        """Send a request and wait for its reply.

        Returns:
            The reply, of the class that :data:`penstock.wire.REPLIES` names.

        Raises:
            OSError: what the server answered; EIO for a reply that makes no sense, ETIMEDOUT
                for one that does not come.
        """
        unique = self._next_unique()
        message = encode_request(
            body,
            self._features,
            unique=unique,
            nodeid=nodeid,
            uid=self._uid,
            gid=self._gid,
            pid=self._pid,
        )
        reply = self._transport.call(message)
        if REPLIES[opcode] is None:
            return None
        if reply is None:
            try:
                reply = self._transport.wait_reply(unique, _REPLY_SECONDS)
            except TimeoutError as error:
                raise OSError(errno.ETIMEDOUT, f"the server does not answer: {error}") from error
        try:
            header, value = decode_reply(opcode, reply)
        except WireError as error:
            raise OSError(errno.EIO, f"the server sent a bad reply: {error}") from error
        if header.unique != unique:
            raise OSError(errno.EIO, "the server answered another request")
        if header.error:
            raise OSError(-header.error, self._reason() or os.strerror(-header.error))
        return value

    def forget(self, nodes: list[tuple[int, int]]) -> None:
        """Give lookup counts back: (node id, count) pairs; to nobody where the server is lost."""
        for start in range(0, len(nodes), 256):
            items = tuple(ForgetOne(*pair) for pair in nodes[start : start + 256])
            body = requests.BatchForget(BatchForgetIn(len(items), 0), items)
            with contextlib.suppress(ServerLost):
                self.request(Opcode.BATCH_FORGET, 0, body)

    def _next_unique(self) -> int:
        with self._lock:
            self._unique += 2  # even, as the kernel's; odd ones name interrupts
            return self._unique


def _init_in() -> InitIn:
    low = int(_OFFERED) & 0xFFFF_FFFF
    high = int(_OFFERED) >> 32
    return InitIn(KERNEL_VERSION, KERNEL_MINOR, 128 * 1024, low, high, bytes(44))
