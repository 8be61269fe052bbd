# SPDX-License-Identifier: Apache-2.0
"""A socket that carries messages, on either side.

Facts about descriptors in messages (net/unix, net/core/scm.c)
    - Those that do not fit the receiver's buffer, or its table of descriptors, are closed by the
      kernel, and MSG_CTRUNC says so.
    - The buffer is filled in whole words: where there is room for one, two may come.
    - SO_PASSRIGHTS 0 (Linux 6.16) has the kernel refuse messages with descriptors: the sender gets
      EPERM.
    - Closing a descriptor that came may wait: close(2) flushes, and a server of FUSE or NFS may
      take its time for it, uninterruptibly. What the kernel closes by itself is not flushed. So
      nothing is received where nothing is expected, and what is refused goes to ``discard``.

Facts about senders
    - With SO_PASSCRED each message tells who sent it, as the kernel knows it: a socket that was
      handed to another process is found out. A message that was sent before the option was set has
      no sender, and is refused.
    - Whoever has CAP_SYS_ADMIN over a pid namespace may name another process of that namespace
      instead, so one of a server's own.

Facts about ends
    - An end that was closed with messages unread gives the other ECONNRESET once, before what was
      sent the other way; that is still there.
    - An empty packet looks like the end, but for its sender.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final, Self

from penstock.abi.socket import SO_PASSRIGHTS, UCRED
from penstock.broker.protocol import MAX_MESSAGE, Body, Message, ProtocolError, decode, encode

__all__ = ["Channel"]

_INTS: Final = array.array("i").itemsize
_TRUNC: Final = int(socket.MSG_TRUNC)
_CTRUNC: Final = int(socket.MSG_CTRUNC)

Ancillary = Sequence[tuple[int, int, bytes]]


class Channel:
    """One end of a SOCK_SEQPACKET socket. A context manager.

    Args:
        sock: owned from here on.
        sender: the process whose messages are taken; None: whoever has the other end.
        max_fds: descriptors that one message may bring.
        discard: closes a descriptor that came with what is no message.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        sender: int | None = None,
        max_fds: int = 0,
        discard: Callable[[int], None] = os.close,
    ) -> None:
        self.sock = sock
        self.sender = sender
        self.discard = discard
        self._space = 0
        if sender is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._space = socket.CMSG_SPACE(UCRED.size)
        self._sender_space = self._space
        if max_fds:
            self._space += socket.CMSG_SPACE(max_fds * _INTS)
        else:
            self.refuse_fds()

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self.sock.fileno()

    def refuse_fds(self) -> bool:
        """Take no descriptors from here on; whether the kernel refuses them at the sender's.

        Where it does not, it closes what comes, and the message is refused.
        """
        self._space = self._sender_space
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError:
            return False
        return True

    def send(
        self, body: Body, fds: Sequence[int] = (), serial: int = 0, *, wait: bool = True
    ) -> None:
        """Send a message; the descriptors stay the caller's.

        Args:
            body: what to say.
            fds: goes with it.
            serial: of the message that this one answers.
            wait: whether to wait until there is room for it, on a socket that blocks.

        Raises:
            BlockingIOError: there is no room: the other side does not read.
            OSError: it has gone.
        """
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
        self.sock.sendmsg([encode(body, serial)], ancillary, flags)

    def receive(self) -> Message | None:
        """The next message; None when the other side has gone.

        Raises:
            BlockingIOError: there is none yet (on a socket that does not block).
            ProtocolError: what came is none; its descriptors are discarded.
        """
        try:
            data, ancillary, flags, _ = self._receive_packet()
        except ConnectionError:
            return None
        fds = _descriptors(ancillary)
        try:
            if not data and not ancillary and not flags & _CTRUNC:
                return None
            if flags & _TRUNC or len(data) > MAX_MESSAGE:
                raise ProtocolError("a message that is too long")
            if flags & _CTRUNC:
                raise ProtocolError("a message with descriptors that cannot be taken")
            if self.sender is not None and _sender(ancillary) != self.sender:
                raise ProtocolError("a message of another process")
            return decode(data, fds)
        except BaseException:
            for fd in fds:
                self.discard(fd)
            raise

    def _receive_packet(self) -> tuple[bytes, Ancillary, int, object]:
        try:
            return self.sock.recvmsg(MAX_MESSAGE + 1, self._space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            # What was sent before the other side went is still to be had.
            return self.sock.recvmsg(MAX_MESSAGE + 1, self._space, socket.MSG_CMSG_CLOEXEC)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _descriptors(ancillary: Ancillary) -> tuple[int, ...]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            with contextlib.suppress(ValueError):
                numbers.frombytes(data[: len(data) - len(data) % _INTS])
            found += numbers
    return tuple(found)


def _sender(ancillary: Ancillary) -> int | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, _, _ = UCRED.unpack_from(data)
            return int(pid)
    return None
