# SPDX-License-Identifier: Apache-2.0
"""The client's end of a stream of FUSE messages (:mod:`penstock.transport.stream` is the server's).

The server may be in the power of whoever made the image. So it gets a time to answer in, its
replies a size that they may have, and once it has done what no server does, the stream is over: no
later message could be told from the middle of another.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from penstock.wire import OUT_HEADER_SIZE, REPLIES

__all__ = ["LARGEST_REPLY", "Aside", "ServerLost", "StreamTransport"]

LARGEST_REPLY: Final = (4 << 20) + 4096
"""Bytes of the largest reply that is taken by default: 1024 pages of data, and its header."""

_CHUNK: Final = 1 << 16
_SILENT: Final = frozenset(int(opcode) for opcode, reply in REPLIES.items() if reply is None)
"""Requests that have no reply."""


class ServerLost(OSError):
    """Nothing more comes from the server: it has ended, hangs, or sends nonsense (EIO, ETIMEDOUT,
    EPROTO)."""


class Aside(NamedTuple):
    """Another descriptor to look at while a reply is waited for."""

    fd: int
    look: Callable[[], None]
    """Called when it can be read."""


class StreamTransport:
    """Sends requests over a socket and waits for their replies. Safe from any thread.

    Args:
        sock: a stream socket; stays the caller's, but does not block from here on.
        seconds: how long a request may take.
        largest: bytes of the largest reply that is taken.
        aside: what else to look at while waiting.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        seconds: float = 30.0,
        largest: int = LARGEST_REPLY,
        aside: Aside | None = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._seconds = seconds
        self._largest = largest
        self._aside = aside
        self._poll = select.poll()
        if aside is not None:
            self._poll.register(aside.fd, select.POLLIN)
        self._sending = threading.Lock()
        self._turn = threading.Condition()
        self._reading = False
        self._rest = bytearray()
        self._expected: set[int] = set()
        self._kept: dict[int, bytes] = {}
        self.lost: ServerLost | None = None
        """Why no more replies come."""

    def call(self, message: bytes) -> None:
        """Send one request; :meth:`wait_reply` has its reply.

        Raises:
            ServerLost: the server does not take it.
        """
        opcode = int.from_bytes(message[4:8], "little")
        with self._sending:
            if self.lost is not None:
                raise self.lost
            if opcode not in _SILENT:
                self._expected.add(int.from_bytes(message[8:16], "little"))
            self._send(message)

    def wait_reply(self, unique: int, timeout: float) -> bytes:
        """The reply to a request, in at most ``timeout`` seconds or the transport's own limit.

        Of several threads one reads, and keeps what is for others.

        Raises:
            ServerLost: it does not come.
        """
        deadline = time.monotonic() + min(timeout, self._seconds)
        with self._turn:
            while (reply := self._kept.pop(unique, None)) is None:
                if self.lost is not None:
                    raise self.lost
                if self._reading:
                    if not self._turn.wait(max(0.0, deadline - time.monotonic())):
                        self._lose(errno.ETIMEDOUT, "the server does not answer")
                else:
                    self._read_one(deadline)
        return reply

    def _read_one(self, deadline: float) -> None:
        """Read a message while others may wait for what it brings."""
        self._reading = True
        self._turn.release()
        try:
            message = self._receive(deadline)
        except BaseException:
            if self.lost is None:  # interrupted, perhaps in the middle of a message
                self.lost = ServerLost(errno.EINTR, "reading from the server was interrupted")
            raise
        finally:
            self._turn.acquire()
            self._reading = False
            self._turn.notify_all()
        self._keep(message)

    def _keep(self, message: bytes) -> None:
        """Put a reply where who waits for it looks. Notifications are dropped: nothing is cached
        here that they could be about."""
        unique = int.from_bytes(message[8:16], "little")
        if unique in self._expected:
            self._expected.remove(unique)
            self._kept[unique] = message
        elif unique:
            self._lose(errno.EPROTO, f"an answer to request {unique}, which was not sent")

    def _send(self, message: bytes) -> None:
        deadline = time.monotonic() + self._seconds
        todo = memoryview(message)
        while todo:
            try:
                todo = todo[self._sock.send(todo, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
            except OSError:
                self._ended()

    def _receive(self, deadline: float) -> bytes:
        """The next whole message."""
        have, self._rest = self._rest, bytearray()
        while len(have) < OUT_HEADER_SIZE:
            have += self._read(deadline)
        length = int.from_bytes(have[:4], "little")
        if not OUT_HEADER_SIZE <= length <= self._largest:
            self._lose(errno.EPROTO, f"a message of {length} bytes")
        if len(have) < length:
            self._read_into(have, length, deadline)
        elif len(have) > length:
            self._rest = have[length:]
            del have[length:]
        return bytes(have)

    def _read_into(self, have: bytearray, length: int, deadline: float) -> None:
        """Read until there are ``length`` bytes."""
        filled = len(have)
        have += bytes(length - filled)
        with memoryview(have) as view:
            while filled < length:
                self._wait(select.POLLIN, deadline)
                try:
                    count = self._sock.recv_into(view[filled:])
                except BlockingIOError:
                    continue
                except OSError:
                    count = 0
                if not count:
                    self._ended()
                filled += count

    def _read(self, deadline: float) -> bytes:
        while True:
            self._wait(select.POLLIN, deadline)
            try:
                data = self._sock.recv(_CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._ended()
            return data

    def _wait(self, event: int, deadline: float) -> None:
        """Wait until the socket is ready."""
        poll = self._poll
        poll.register(self._sock, event)
        fd = self._sock.fileno()
        while (left := deadline - time.monotonic()) > 0:
            ready = {number for number, _ in poll.poll(left * 1000)}
            if fd in ready:
                return
            if ready and self._aside is not None:
                self._aside.look()
        self._lose(errno.ETIMEDOUT, "the server does not answer")

    def _ended(self) -> NoReturn:
        self._lose(errno.EIO, "the server has ended")

    def _lose(self, code: int, text: str) -> NoReturn:
        self.lost = ServerLost(code, text)
        raise self.lost
