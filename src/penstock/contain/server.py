# SPDX-License-Identifier: Apache-2.0
"""The program that parses images: what runs inside the sandbox.

Its life: import everything, close the sandbox, say so, get an image, judge it, and then serve what
it was started for. Until the image comes nothing that it has read is hostile; afterwards everything
may be, this program included, and nothing that it does is believed (docs/security.md).

Invariants
    - The sandbox is closed before the image comes. After that nothing is opened or imported, and
      no thread is started once it serves.
    - It holds the null device as standard streams, its socket as number 3, and what the broker
      sends: the image, and the connection with its pipes, or a stream.
    - It ends with its socket: a broker that is gone takes its servers along.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import socket
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

from penstock.abi.fuse import Opcode
from penstock.broker.channel import Channel
from penstock.broker.outcome import EXIT_OUT_OF_MEMORY
from penstock.broker.protocol import (
    MAX_WORKERS,
    VERSION,
    Ended,
    EndReason,
    GetStatistics,
    Hello,
    Image,
    Layer,
    Log,
    Message,
    ProtocolError,
    Purpose,
    ReadRow,
    Ready,
    Reason,
    RequestRow,
    Serve,
    Serving,
    Statistics,
    Stop,
    Welcome,
)
from penstock.contain.failures import failed
from penstock.contain.sandbox import IMAGE_SERVER, LayerReport, close, close_threads
from penstock.contain.streams import describe, serve_stream
from penstock.datapath import ReadPaths
from penstock.fs import Connection
from penstock.servers import Server, open_server
from penstock.servers.ext4.server import open_ext4
from penstock.session import Session
from penstock.sys.capabilities import set_name
from penstock.transport import DevFuse, Prepared

__all__ = ["main"]

_SOCKET: Final = 3
_MAX_WARNINGS: Final = 16
_STOP_SECONDS: Final = 5.0
_MAX_FDS: Final = 3 * MAX_WORKERS + 1
_LOADED: Final = (open_ext4,)
"""Servers are imported when they are first used; here that would be too late."""


_log = logging.getLogger(__name__)


class _Goodbye(Exception):
    """The server ends; the broker has been told why, or has gone."""


class _GivenUp(Exception):
    """The server has failed while it served, which the broker has been told in its log."""


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


def main(outside: str) -> NoReturn:
    """Run until the broker has gone or has nothing more to do.

    Args:
        outside: the namespaces of who started this process, as ``user=N,pid=N,…``.
    """
    code = 1
    channel = Channel(socket.socket(fileno=_SOCKET), max_fds=_MAX_FDS)
    try:
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        logging.getLogger("penstock").addHandler(_ToBroker(channel))
        logging.raiseExceptions = False
        set_name("penstock-server")
        gc.freeze()
        gc.enable()
        _serve(channel, wake, outside)
        code = 0
    except _Goodbye:
        code = 0
    except MemoryError:
        code = EXIT_OUT_OF_MEMORY
    except _GivenUp:
        code = 1
    except Exception as error:  # noqa: BLE001 - there is nobody else to tell
        _log.exception("the server failed")
        with contextlib.suppress(OSError):
            channel.send(failed(error))
    finally:
        os._exit(code)


def _serve(channel: Channel, wake: int, outside: str) -> None:
    hello = _next(channel, Hello).body
    assert isinstance(hello, Hello)
    if not hello.minimum <= VERSION <= hello.maximum:
        raise ProtocolError(f"the broker speaks versions {hello.minimum} to {hello.maximum}")
    logging.getLogger("penstock").setLevel(max(logging.DEBUG, hello.log_level))
    parts = (part.partition("=") for part in outside.split(","))
    numbers = {name: int(number) for name, _, number in parts}
    channel.send(Welcome(VERSION, _layers(close(IMAGE_SERVER, outside=numbers))))
    image = _next(channel, Image)
    if hello.purpose == Purpose.DESCRIBE:
        _describe(channel, image)
        return
    server = _open(channel, image)
    if hello.purpose == Purpose.READ:
        serve_stream(channel, server)
    else:
        _Kernel(channel, server, wake).serve()


def _next(channel: Channel, kind: type[object]) -> Message:
    """The next message, which must be of this kind."""
    message = channel.receive()
    if message is None or isinstance(message.body, Stop):
        raise _Goodbye
    if not isinstance(message.body, kind):
        raise ProtocolError(f"{message.kind.name} instead of {kind.__name__}")
    return message


def _layers(reports: Sequence[LayerReport]) -> tuple[Layer, ...]:
    return tuple(Layer(name, in_force, detail) for name, in_force, detail in reports)


def _describe(channel: Channel, message: Message) -> None:
    image = message.body
    assert isinstance(image, Image)
    words = {word.name: word.value for word in image.words}
    describe(channel, message.fds[0], image.size, image.type or None, words)


def _open(channel: Channel, message: Message) -> Server:
    """The filesystem in the image; the broker is told what it is, or why it is not served."""
    image = message.body
    assert isinstance(image, Image)
    words = {word.name: word.value for word in image.words}
    try:
        server = open_server(message.fds[0], image.type or None, words, size=image.size)
    except Exception as error:
        channel.send(failed(error))
        raise _Goodbye from error
    warnings = server.warnings[:_MAX_WARNINGS]
    channel.send(Ready(server.type, server.offset, server.length, server.block_size, warnings))
    return server


class _Kernel:
    """Answers the kernel.

    Args:
        channel: to the broker.
        server: the filesystem.
        wake: an eventfd.
    """

    def __init__(self, channel: Channel, server: Server, wake: int) -> None:
        self._channel = channel
        self._server = server
        self._wake = wake

    def serve(self) -> NoReturn:
        """Wait for the connection, and serve it to its end."""
        message = _next(self._channel, Serve)
        serve = message.body
        assert isinstance(serve, Serve)
        try:
            paths = self._paths = ReadPaths(serve.datapath)
        except ValueError as error:
            self._channel.send(failed(error))
            raise _Goodbye from error
        transport = self._transport = self._make_transport(serve, message.fds)
        operations = self._server.operations
        trace = _log_request if _log.isEnabledFor(logging.DEBUG) else None
        session = self._session = Session(operations, sink=transport, datapaths=paths, trace=trace)
        transport.attach(session)
        if serve.workers > 1:
            operations.before_wait = transport.before_wait
        session.adopt(
            Connection(
                serve.minor, serve.flags, serve.max_write, serve.max_pages, serve.max_readahead,
                serve.time_gran,
            )
        )  # fmt: skip
        transport.start()
        self._channel.send(Serving(_layers([close_threads(IMAGE_SERVER)])))
        try:
            reason = self._wait()
        except (_Goodbye, MemoryError):
            raise
        except Exception as error:
            _log.exception("the server failed")
            raise _GivenUp from error
        self._channel.send(Ended(reason))
        raise _Goodbye

    def _make_transport(self, serve: Serve, fds: Sequence[int]) -> DevFuse:
        count = serve.workers
        if count < 1 or len(fds) != 3 * count:
            raise ProtocolError(f"{len(fds)} descriptors for {count} workers")
        ends = fds[count:]
        return DevFuse(
            fds[0],
            workers=count,
            poll=int(serve.poll) if serve.poll.isdecimal() else serve.poll,
            max_write=serve.max_write,
            on_splice_refused=self._paths.refuse_splice,
            prepared=Prepared(
                tuple(fds[1:count]), tuple(zip(ends[::2], ends[1::2], strict=True)), self._wake
            ),
        )

    def _wait(self) -> EndReason:
        """Answer the broker until the connection or the broker ends."""
        waiter = select.poll()
        waiter.register(self._channel.fileno(), select.POLLIN)
        waiter.register(self._wake, select.POLLIN)
        while True:
            ready = {fd for fd, _ in waiter.poll()}
            if self._wake in ready:
                self._transport.ended.wait()
                if self._transport.failure is not None:
                    raise self._transport.failure
                return EndReason.UNMOUNTED
            message = self._channel.receive()
            if message is None:
                raise _Goodbye
            if isinstance(message.body, GetStatistics):
                self._channel.send(self._statistics(), serial=message.serial)
            elif isinstance(message.body, Stop):
                self._transport.stop()
                self._transport.ended.wait(_STOP_SECONDS)
                return EndReason.ASKED

    def _statistics(self) -> Statistics:
        session = self._session.statistics()
        paths = self._paths.statistics()
        return Statistics(
            session.pending,
            session.nodes,
            session.malformed,
            paths.datapath,
            tuple(
                RequestRow(_opcode(name), row.count, row.errors, int(row.microseconds * 1000))
                for name, row in session.requests.items()
            ),
            tuple(ReadRow(name, row.reads, row.bytes) for name, row in paths.reads.items()),
            (),
            tuple(Reason(name, text) for name, text in paths.reasons.items()),
        )


def _log_request(line: str) -> None:
    _log.debug("%s", line)


def _opcode(name: str) -> int:
    """The number of a request as statistics name it."""
    if name.startswith("opcode "):
        return int(name.removeprefix("opcode "))
    return int(Opcode[name])
