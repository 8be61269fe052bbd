# SPDX-License-Identifier: Apache-2.0
"""What servers ask of the broker while they serve: backing files, and to tell one another."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.abi.fuse import InitFlag
from penstock.broker.peer import Peer
from penstock.broker.protocol import (
    BackingClose,
    BackingOpen,
    BackingReply,
    Body,
    Invalidate,
    Invalidated,
    Message,
    State,
)
from penstock.fs import Connection

if TYPE_CHECKING:
    from penstock.broker.backings import Backings, BackingsStatistics

__all__ = ["Requests"]


class Requests:
    """Carries out what the servers of one mount ask for.

    Args:
        peers: all of them.
    """

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = peers
        self._backings: Backings | None = None

    def start(self, device: int, connection: Connection, *, superblock_read_only: bool) -> None:
        """The connection is there.

        Args:
            device: its descriptor; stays the caller's.
            connection: what is in force on it.
            superblock_read_only: whether the broker made it so.
        """
        if not connection.flags & InitFlag.PASSTHROUGH:
            for peer in self._peers:
                peer.channel.refuse_fds()
            return
        from penstock.broker.backings import Backings  # noqa: PLC0415 - most mounts have none

        self._backings = Backings(device, superblock_read_only=superblock_read_only)
        for peer in self._peers:
            peer.channel.discard = self._backings.discard

    def carry_out(self, peer: Peer, message: Message) -> None:
        """Carry out a message that :meth:`Peer.take` has let pass; its descriptors end here.

        Raises:
            ProtocolError: its descriptors cannot be closed any more.
        """
        body = message.body
        if isinstance(body, BackingOpen):
            reply = self._open(peer, body.node, message.fds[0])
            self._tell(peer, reply, message.serial)
        elif isinstance(body, BackingClose):
            if self._backings is not None:
                self._backings.release(body.node)
        elif isinstance(body, Invalidate):
            for other in self._peers:
                if other is not peer and other.state is State.SERVING:
                    self._tell(other, Invalidated(*body))

    def _open(self, peer: Peer, node: int, fd: int) -> BackingReply:
        if self._backings is None:
            peer.channel.discard(fd)
            return BackingReply(errno.EOPNOTSUPP, 0)
        try:
            return BackingReply(0, self._backings.register(node, fd))
        except OSError as error:
            return BackingReply(error.errno or errno.EIO, 0)

    def _tell(self, peer: Peer, body: Body, serial: int = 0) -> None:
        """Send what a server that does not read has to do without."""
        try:
            peer.send(body, serial=serial)
        except OSError:
            peer.unheard += 1

    def statistics(self) -> BackingsStatistics | None:
        """Of backing files; None where there can be none."""
        return None if self._backings is None else self._backings.statistics()

    def close(self) -> None:
        """The connection ends. Idempotent."""
        if self._backings is not None:
            self._backings.close()
