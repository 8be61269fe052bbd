# SPDX-License-Identifier: Apache-2.0
"""A socket that carries messages, on either side.

Facts about descriptors in messages (net/unix, net/core/scm.c)
    - Those that do not fit the receiver's buffer are closed by the kernel, and MSG_CTRUNC says so.
    - With SO_PASSCRED each message tells who sent it, as the kernel knows it: a socket that was
      handed to another process is found out.
    - SO_PASSRIGHTS 0 (Linux 6.16) has the kernel refuse messages with descriptors.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final, Self

from penstock.broker.protocol import MAX_MESSAGE, Body, Message, ProtocolError, decode, encode

__all__ = ["Channel"]

_SO_PASSRIGHTS: Final = 83
_UCRED: Final = struct.Struct("=iII")
_INTS: Final = array.array("i").itemsize
_MSG_CMSG_CLOEXEC: Final = 0x4000_0000


class Channel:
    """One end of a SOCK_SEQPACKET socket. A context manager.

    Args:
        sock: owned from here on.
        sender: the process whose messages are taken; None: whoever has the other end.
        max_fds: descriptors that one message may bring.
    """

    def __init__(self, sock: socket.socket, *, sender: int | None = None, max_fds: int = 1) -> None:
        self.sock = sock
        self.sender = sender
        self._space = socket.CMSG_SPACE(max_fds * _INTS)
        if sender is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._space += socket.CMSG_SPACE(_UCRED.size)

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self.sock.fileno()

    def refuse_fds(self) -> bool:
        """Take no descriptors from here on; whether the kernel can refuse them for us."""
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        except OSError:
            return False
        return True

    def send(self, body: Body, fds: Sequence[int] = (), serial: int = 0) -> None:
        """Send a message; the descriptors stay the caller's.

        Raises:
            BlockingIOError: the other side does not read (on a socket that does not block).
            OSError: it has gone.
        """
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self.sock.sendmsg([encode(body, serial)], ancillary, socket.MSG_NOSIGNAL)

    def receive(self) -> Message | None:
        """The next message; None when the other side has gone.

        Raises:
            BlockingIOError: there is none yet (on a socket that does not block).
            ProtocolError: what came is none; its descriptors are closed.
        """
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(
                MAX_MESSAGE + 1, self._space, _MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return None
        fds = _descriptors(ancillary)
        try:
            # An empty packet and the end look the same but for the sender's name.
            if not data and not ancillary:
                return None
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) > MAX_MESSAGE:
                raise ProtocolError("a message that is too long, or has too many descriptors")
            if self.sender is not None and _sender(ancillary) != self.sender:
                raise ProtocolError("a message of another process")
            return decode(data, fds)
        except ProtocolError:
            for fd in fds:
                os.close(fd)
            raise

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


Ancillary = Sequence[tuple[int, int, bytes]]


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
            pid, _, _ = _UCRED.unpack_from(data)
            return int(pid)
    return None
