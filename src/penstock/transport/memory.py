# SPDX-License-Identifier: Apache-2.0
"""A transport without a kernel: messages are handed to the session and replies handed back.

For unit tests, and for reading an image in one process without a mount
(:mod:`penstock.client`).
"""

from __future__ import annotations

import errno
import threading
from typing import Self

from penstock.fs import Operations
from penstock.session import FileBody, Limits, Origin, Reply, Session
from penstock.session.ports import DataPaths
from penstock.transport.body import CopyBuffer

__all__ = ["MemoryTransport"]


class MemoryTransport:
    """Drives a session from memory. Safe from any thread. A context manager.

    Args:
        operations: the filesystem.
        limits: what to negotiate.
        datapaths: how mapped data is read.
    """

    def __init__(
        self, operations: Operations, *, datapaths: DataPaths, limits: Limits = Limits()
    ) -> None:
        self.session = Session(operations, sink=self, datapaths=datapaths, limits=limits)
        self.notifications: list[bytes] = []
        self._late: dict[int, bytes] = {}
        self._arrived = threading.Condition()

    def call(self, message: bytes | memoryview) -> bytes | None:
        """Carry one message out.

        Returns:
            The whole reply with its body read in; None where there is none, or not yet: then
            :meth:`wait_reply` has it.
        """
        reply = self.session.handle(message)
        return None if reply is None else _whole(reply)

    def wait_reply(self, unique: int, timeout: float = 10.0) -> bytes:
        """The late reply to a request.

        Raises:
            TimeoutError: it did not come in ``timeout`` seconds.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: unique in self._late, timeout):
                raise TimeoutError(f"no reply to request {unique} within {timeout} s")
            return self._late.pop(unique)

    def close(self) -> None:
        """End the session. Idempotent."""
        self.session.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # The session's sink

    def reply(self, reply: Reply, origin: Origin) -> None:
        with self._arrived:
            self._late[reply.unique] = _whole(reply)
            self._arrived.notify_all()

    def notify(self, message: bytes) -> None:
        self.notifications.append(message)

    def in_worker(self) -> bool:
        return False


def _whole(reply: Reply) -> bytes:
    body = reply.body
    if not isinstance(body, FileBody):
        return reply.head + bytes(body) if body else reply.head
    try:
        message = bytearray(CopyBuffer().fill(reply.head, body))
    except OSError as error:
        return reply.failed(error.errno or errno.EIO).head
    message[:4] = len(message).to_bytes(4, "little")
    return bytes(message)
