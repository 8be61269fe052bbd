# SPDX-License-Identifier: Apache-2.0
"""A mirror's way to files by handle: it asks the opener (:mod:`penstock.broker.opener`), which has
the right, and opens nothing but what lies beneath the directory."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Final

from penstock.broker.opener import ANSWER, FLAGS, LONGEST

__all__ = ["HandleClient"]

_CLOEXEC: Final = socket.MSG_CMSG_CLOEXEC


class HandleClient:
    """Asks one question at a time. Safe from any thread.

    Args:
        fd: the socket; owned from here on.
    """

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Ask nothing more: the opener ends then. Idempotent."""
        self._sock.close()

    def open(self, _mount: int, handle: bytes, flags: int) -> int:
        """Open a file by its handle, as :func:`penstock.sys.handles.open_handle` does.

        Raises:
            OSError: ESTALE: it is gone, or does not lie beneath the directory, or the handle does
                not say where it lies; EPIPE: there is nobody to ask; and whatever open(2) answers.
        """
        request = FLAGS.pack(flags & 0xFFFF_FFFF) + handle
        if len(request) > LONGEST:
            raise OSError(errno.EINVAL, "no file handle")
        with self._lock:
            self._sock.send(request)
            packet, fds, _, _ = socket.recv_fds(self._sock, ANSWER.size, 1, _CLOEXEC)
        if len(packet) != ANSWER.size:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        (code,) = ANSWER.unpack(packet)
        if code or not fds:
            raise OSError(code or errno.EMFILE, f"open by handle: {os.strerror(code)}")
        return fds[0]
