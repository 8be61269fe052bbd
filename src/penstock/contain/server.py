# SPDX-License-Identifier: Apache-2.0
"""The program that serves filesystems: what runs inside the sandbox.

Its life: import everything, close the sandbox, say so, get an image or be told of its directory,
judge it, and then serve what it was started for. Until then nothing that it has read is hostile;
afterwards everything may be, this program included, and nothing that it does is believed
(docs/security.md). What kind of server it is, a :class:`penstock.contain.role.Role` says.

Invariants
    - The sandbox is closed before the image comes. After that nothing is imported and no thread is
      started once it serves; nothing is opened but what lies in the directory, where it serves one.
    - It holds the null device as standard streams, its socket as number 3, and what the broker
      sends: the image or the directory, and the connection with its pipes, or a stream.
    - It ends with its socket: a broker that is gone takes its servers along.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import traceback
from typing import Final, NoReturn

from penstock.broker.channel import Channel
from penstock.broker.outcome import EXIT_OUT_OF_MEMORY
from penstock.broker.protocol import (
    MAX_WORKERS,
    VERSION,
    Hello,
    Log,
    Message,
    ProtocolError,
    Purpose,
    Ready,
    Welcome,
)
from penstock.contain.failures import failed
from penstock.contain.kernel import GivenUp, Goodbye, Kernel, layer_rows, next_message
from penstock.contain.role import Role, role_of
from penstock.contain.sandbox import close
from penstock.servers.base import Server
from penstock.sys.capabilities import set_name

__all__ = ["main"]

_SOCKET: Final = 3
_MAX_WARNINGS: Final = 16
_STOP_SECONDS: Final = 5.0
_MAX_FDS: Final = 3 * MAX_WORKERS + 1

_log = logging.getLogger(__name__)


class _ToBroker(logging.Handler):
    """Sends records to the broker; one that it does not take at once is lost.

    An exception is its type and text; where it was raised comes only if every line is wanted.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        lines = [record.getMessage()]
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            lines[0] += f": {type(error).__name__}: {error}"
            if _log.isEnabledFor(logging.DEBUG):
                lines += "".join(traceback.format_exception(error)).splitlines()
        with contextlib.suppress(OSError, ValueError):
            for line in lines:
                self._channel.send(Log(min(record.levelno, 255), line), wait=False)


def main(outside: str, kind: str) -> NoReturn:
    """Run until the broker has gone or has nothing more to do.

    Args:
        outside: the namespaces of who started this process, as ``user=N,pid=N,…``.
        kind: which server it is to be, see :func:`role_of`.
    """
    code = 1
    role = role_of(kind)
    channel = Channel(socket.socket(fileno=_SOCKET), max_fds=_MAX_FDS)
    try:
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        logging.getLogger("penstock").addHandler(_ToBroker(channel))
        logging.raiseExceptions = False
        set_name("penstock-server")
        gc.freeze()
        gc.enable()
        _serve(role, channel, wake, outside)
        code = 0
    except Goodbye:
        code = 0
    except MemoryError:
        code = EXIT_OUT_OF_MEMORY
    except GivenUp:
        code = 1
    except Exception as error:  # noqa: BLE001 - there is nobody else to tell
        _log.exception("the server failed")
        with contextlib.suppress(OSError):
            channel.send(failed(error))
    finally:
        os._exit(code)


def _serve(role: Role, channel: Channel, wake: int, outside: str) -> None:
    message = next_message(channel, Hello)
    hello = message.body
    assert isinstance(hello, Hello)
    if not hello.minimum <= VERSION <= hello.maximum:
        raise ProtocolError(f"the broker speaks versions {hello.minimum} to {hello.maximum}")
    logging.getLogger("penstock").setLevel(max(logging.DEBUG, hello.log_level))
    parts = (part.partition("=") for part in outside.split(","))
    numbers = {name: int(number) for name, _, number in parts}
    if len(message.fds) != role.holds_tree:
        raise ProtocolError(f"HELLO: {len(message.fds)} directories")
    tree = message.fds[0] if message.fds else None
    reports = close(role.profile, outside=numbers, tree=tree)
    channel.send(Welcome(VERSION, layer_rows(reports)))
    message = next_message(channel, role.source)
    if hello.purpose in role.others:
        role.others[hello.purpose](channel, message)
        return
    server = _open(role, channel, message, tree)
    if hello.purpose == Purpose.MOUNT:
        Kernel(channel, server, wake, role.profile, hello.servers).serve()
    if role.serve_stream is None:
        raise ProtocolError(f"HELLO: {hello.purpose.name} of a directory")
    role.serve_stream(channel, server)


def _open(role: Role, channel: Channel, message: Message, tree: int | None) -> Server:
    """The filesystem; the broker is told what it is, or why it is not served."""
    try:
        server = role.open(message, tree)
    except Exception as error:
        channel.send(failed(error))
        raise Goodbye from error
    warnings = server.warnings[:_MAX_WARNINGS]
    channel.send(Ready(server.type, server.offset, server.length, server.block_size, warnings))
    return server
