# SPDX-License-Identifier: Apache-2.0
"""The caller's end of a control socket: one call, one answer, one deadline for all of it."""

from __future__ import annotations

import socket
import time
from typing import Any

from penstock.control.directory import connect, open_directory
from penstock.control.protocol import MAX_REPLY, ProtocolError, decode_reply, encode_call
from penstock.control.record import Listed, socket_name

__all__ = ["ControlClient"]


class ControlClient:
    """Calls the server of a mount.

    Args:
        listed: the mount, as :func:`penstock.control.record` listed it.
    """

    def __init__(self, listed: Listed) -> None:
        self.listed = listed

    def call(
        self, method: str, parameters: dict[str, Any] | None = None, *, timeout: float = 5.0
    ) -> dict[str, Any]:
        """Call ``method`` and wait for the answer.

        Args:
            method: qualified name, as ``org.penstock.Mount.Stats``.
            parameters: what goes with it.
            timeout: seconds for the whole exchange.

        Returns:
            The parameters of the answer.

        Raises:
            ControlError: the server answered an error.
            ProtocolError: it answered something else.
            TimeoutError: it did not answer in time, as when it is stopped.
            OSError: there is no server to be reached; PermissionError: what is there is not of the
                mount's owner.
        """
        deadline = time.monotonic() + timeout
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            with open_directory(self.listed.directory, self.listed.uid) as fd:
                connect(sock, fd, socket_name(self.listed.record), self.listed.uid)
            sock.sendall(encode_call(method, parameters or {}))
            return decode_reply(_receive(sock, deadline))


def _receive(sock: socket.socket, deadline: float) -> bytes:
    """Everything up to the NUL."""
    reply = bytearray()
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the server does not answer")
        sock.settimeout(remaining)
        try:
            piece = sock.recv(65536)
        except TimeoutError as error:
            raise TimeoutError("the server does not answer") from error
        if not piece:
            raise ConnectionError("the server closed the connection without an answer")
        end = piece.find(b"\0")
        if end >= 0:
            return bytes(reply + piece[:end])
        reply += piece
        if len(reply) > MAX_REPLY:
            raise ProtocolError(f"an answer of more than {MAX_REPLY} bytes")
