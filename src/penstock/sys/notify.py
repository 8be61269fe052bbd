# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3): telling the service manager that a service is ready, or what it does.

The protocol is a datagram of ``NAME=value`` lines to the socket that ``NOTIFY_SOCKET`` names. Who
asked for it (a unit with ``Type=notify``) waits for ``READY=1``, so a message that cannot be
delivered is an error; where nobody asked, nothing happens.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

__all__ = ["notify"]

_VARIABLE: Final = "NOTIFY_SOCKET"
_MAX_LINE: Final = 512
"""Characters of one line; the manager cuts long ones off itself, and refuses huge datagrams."""


def notify(*lines: str) -> bool:
    """Send a message to the service manager.

    Args:
        lines: as ``READY=1``, ``STATUS=text``, ``STOPPING=1``. Control characters become spaces, so
            that no text can smuggle in another line.

    Returns:
        False if no manager waits for messages.

    Raises:
        OSError: there is one, and it cannot be reached; its filename says which.
    """
    path = os.environ.get(_VARIABLE)
    if not path:
        return False
    message = "\n".join(_one_line(line)[:_MAX_LINE] for line in lines)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(os.fsencode(message), _address(path))
        except OSError as error:  # a path that is too long has no number
            code = error.errno or errno.ENAMETOOLONG
            raise OSError(code, os.strerror(code), f"{_VARIABLE} {path}") from error
    return True


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _address(path: str) -> str | bytes:
    """An abstract address is written with ``@`` for its first byte, which is NUL."""
    return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path
