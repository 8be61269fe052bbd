# SPDX-License-Identifier: Apache-2.0
"""The server's end of a stream of FUSE messages: a socket pair, or anything else with two ways.

A message says its own length in its first four bytes, so on a stream messages follow each other
with nothing in between. A length that cannot be leaves no way to find the next message: it ends the
stream. The client's end is :mod:`penstock.client.stream`.

Only read(2) and write(2) are used, whatever the descriptor is: a sandbox allows those.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from typing import Final

from penstock.fs import Operations
from penstock.session import FileBody, Limits, Origin, Reply, Session
from penstock.session.ports import DataPaths
from penstock.transport.body import CopyBuffer
from penstock.wire import IN_HEADER_SIZE

__all__ = ["StreamServer"]

_log = logging.getLogger(__name__)

_ROOM: Final = 4096
"""Bytes of a request beyond ``max_write``: headers and names."""
_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET})


class StreamServer:
    """Serves one filesystem over a stream, in the thread that calls :meth:`serve`.

    Args:
        operations: the filesystem.
        fd: the stream, which blocks; stays the caller's.
        datapaths: how mapped data is read.
        limits: what to negotiate.
    """

    def __init__(
        self,
        operations: Operations,
        fd: int,
        *,
        datapaths: DataPaths,
        limits: Limits = Limits(),
    ) -> None:
        self.session = Session(operations, sink=self, datapaths=datapaths, limits=limits)
        self._fd = fd
        self._buffer = memoryview(bytearray(limits.max_write + _ROOM))
        self._copy = CopyBuffer()
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Answer until the client has gone, or sends what is no message; then end the session."""
        try:
            filled = 0
            while count := self._read(filled):
                filled = self._handle(filled + count)
        except ValueError as error:
            _log.warning("the client's stream is given up: %s", error)
        except OSError as error:
            if error.errno not in _GONE:
                raise
        finally:
            self.session.end()

    def _read(self, filled: int) -> int:
        return os.readv(self._fd, (self._buffer[filled:],))

    def _handle(self, filled: int) -> int:
        """Carry out the whole messages at the front of the buffer; bytes that are left of the
        next one, moved to the front.

        Raises:
            ValueError: a message of an impossible length.
        """
        buffer = self._buffer
        start = 0
        while filled - start >= 4:
            length = int.from_bytes(buffer[start : start + 4], "little")
            if not IN_HEADER_SIZE <= length <= len(buffer):
                raise ValueError(f"a message of {length} bytes")
            if filled - start < length:
                break
            reply = self.session.handle(buffer[start : start + length])
            if reply is not None:
                self._send(reply)
            start += length
        if start:
            buffer[: filled - start] = bytes(buffer[start:filled])
        return filled - start

    def _send(self, reply: Reply) -> None:
        body = reply.body
        with self._lock:  # late answers come from other threads
            if isinstance(body, FileBody):
                self._write(self._filled(reply, body))
            else:
                self._write(reply.head, body)

    def _filled(self, reply: Reply, body: FileBody) -> memoryview | bytes:
        try:
            message = self._copy.fill(reply.head, body)
        except OSError as error:
            _log.warning("reading the image: %s", error)
            return reply.failed(error.errno or errno.EIO).head
        message[:4] = len(message).to_bytes(4, "little")
        return message

    def _write(self, *pieces: bytes | bytearray | memoryview) -> None:
        todo = [memoryview(piece) for piece in pieces if piece]
        while todo:
            count = os.writev(self._fd, todo)
            while todo and count >= len(todo[0]):
                count -= len(todo.pop(0))
            if todo:
                todo[0] = todo[0][count:]

    # The session's sink

    def reply(self, reply: Reply, origin: Origin) -> None:
        """Send a late answer. If the client has gone, the serving thread hears of it too."""
        with contextlib.suppress(OSError):
            self._send(reply)

    def notify(self, message: bytes) -> None:
        """Send a notification; raises OSError if the client has gone."""
        with self._lock:
            self._write(message)

    def in_worker(self) -> bool:
        """Never: a client holds no locks while it waits, so a notification can go out at once."""
        return False
