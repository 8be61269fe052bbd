# SPDX-License-Identifier: Apache-2.0
"""A contained server's way to backing files: it asks the broker, which has the rights.

One question at a time goes through the socket of the registry, and its answer comes back to the
thread that asked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Sequence
from itertools import islice
from typing import Final

from penstock.broker.channel import Channel
from penstock.broker.protocol import (
    MAX_EXTENTS,
    MAX_EXTENTS_A_MESSAGE,
    BackingClose,
    BackingOpen,
    BackingReply,
    Body,
    Extent,
    Map,
    ProtocolError,
)
from penstock.fs import Mapping, MappingType

__all__ = ["RegistryClient"]

_MAPPED: Final = MappingType.MAPPED
_TOGETHER: Final = 64


class RegistryClient:
    """The session's :class:`Backings`, filled by the broker.

    Args:
        fd: the socket of the registry; owned from here on.
    """

    def __init__(self, fd: int) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
        self._channel = Channel(sock)
        self._lock = threading.Lock()
        self._serial = 0
        self._leaving: list[int] = []

    def register(self, node: int, fd: int) -> int:
        """See :class:`penstock.session.Backings`."""
        with self._lock:
            return self._ask(BackingOpen(node), [fd])

    def map(self, node: int, length: int, mappings: Sequence[Mapping]) -> int:
        """See :class:`penstock.session.Backings`."""
        extents = [
            Extent(offset, size, address)
            for offset, size, kind, address, _device, _flags in mappings
            if kind is _MAPPED
        ]
        if len(extents) > MAX_EXTENTS:
            raise OSError(errno.EFBIG, f"the file lies in {len(extents)} pieces")
        left = iter(extents)
        piece = tuple(islice(left, MAX_EXTENTS_A_MESSAGE))
        with self._lock:
            while following := tuple(islice(left, MAX_EXTENTS_A_MESSAGE)):
                self._send(Map(node, length, True, piece))
                piece = following
            return self._ask(Map(node, length, False, piece))

    def release(self, node: int) -> None:
        """See :class:`penstock.session.Backings`."""
        with self._lock:
            self._leaving.append(node)
            if len(self._leaving) >= _TOGETHER:
                self._close()

    def settle(self) -> None:
        """See :class:`penstock.session.Backings`."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        """Say what is not needed any more: before anything is asked for, which may be the same."""
        if self._leaving:
            nodes, self._leaving = tuple(self._leaving), []
            with contextlib.suppress(OSError):  # the broker has gone, and the files with it
                self._send(BackingClose(nodes))

    def _send(self, body: Body, fds: Sequence[int] = ()) -> None:
        self._channel.send(body, fds, self._serial)

    def _ask(self, body: Body, fds: Sequence[int] = ()) -> int:
        """The number that the broker answers with."""
        self._close()
        self._serial = self._serial % 0xFFFF_FFFF + 1
        self._send(body, fds)
        message = self._channel.receive()
        if message is None:
            raise OSError(errno.EPIPE, "the broker has gone")
        reply = message.body
        if not isinstance(reply, BackingReply) or message.serial != self._serial:
            raise ProtocolError(f"{message.kind.name} where BACKING_REPLY was to come")
        if reply.error:
            raise OSError(reply.error, os.strerror(reply.error))
        return reply.backing_id
