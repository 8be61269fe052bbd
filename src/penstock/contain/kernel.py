# SPDX-License-Identifier: Apache-2.0
"""A contained server's part of a mount: from the connection that it is given to that one's end."""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Sequence
from typing import Final, NoReturn

from penstock.abi.fuse import Opcode
from penstock.broker.channel import Channel
from penstock.broker.protocol import (
    Ended,
    EndReason,
    GetStatistics,
    Layer,
    Message,
    OpenRow,
    ProtocolError,
    ReadRow,
    Reason,
    RequestRow,
    Serve,
    Serving,
    Statistics,
    Stop,
)
from penstock.contain.failures import failed
from penstock.contain.profile import Profile
from penstock.contain.registry import RegistryClient
from penstock.contain.sandbox import LayerReport, close_threads
from penstock.datapath import Paths, WholeFiles
from penstock.fs import Connection
from penstock.servers.base import Server
from penstock.session import Session
from penstock.transport import DevFuse, Prepared

__all__ = ["GivenUp", "Goodbye", "Kernel", "layer_rows", "next_message"]

_log = logging.getLogger(__name__)

_STOP_SECONDS: Final = 5.0
_SWEEP_SECONDS: Final = 20.0
"""How often to look at what nobody has open any more."""


class Goodbye(Exception):
    """The server ends; the broker has been told why, or has gone."""


class GivenUp(Exception):
    """The server has failed while it served, which the broker has been told in its log."""


def next_message(channel: Channel, kind: type[object]) -> Message:
    """The next message, which must be of this kind."""
    message = channel.receive()
    if message is None or isinstance(message.body, Stop):
        raise Goodbye
    if not isinstance(message.body, kind):
        raise ProtocolError(f"{message.kind.name} instead of {kind.__name__}")
    return message


def layer_rows(reports: Sequence[LayerReport]) -> tuple[Layer, ...]:
    """Reports on layers, as messages have them."""
    return tuple(Layer(name, in_force, detail) for name, in_force, detail in reports)


class Kernel:
    """Answers the kernel.

    Args:
        channel: to the broker.
        server: the filesystem.
        wake: an eventfd.
        profile: of the sandbox.
        servers: how many serve the mount.
    """

    def __init__(
        self, channel: Channel, server: Server, wake: int, profile: Profile, servers: int
    ) -> None:
        self._profile = profile
        self._servers = servers
        self._sweeps = False
        self._channel = channel
        self._server = server
        self._wake = wake

    def serve(self) -> NoReturn:
        """Wait for the connection, and serve it to its end."""
        message = next_message(self._channel, Serve)
        serve = message.body
        assert isinstance(serve, Serve)
        self._sweeps = bool(serve.files)
        try:
            paths = self._paths = self._make_paths(serve, message.fds)
        except ValueError as error:
            self._channel.send(failed(error))
            raise Goodbye from error
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
        self._channel.send(Serving(layer_rows([close_threads(self._profile)])))
        try:
            reason = self._wait()
        except (Goodbye, MemoryError):
            raise
        except Exception as error:
            _log.exception("the server failed")
            raise GivenUp from error
        self._channel.send(Ended(reason))
        raise Goodbye

    def _make_paths(self, serve: Serve, fds: Sequence[int]) -> Paths:
        reasons = {reason.datapath: reason.text for reason in serve.reasons}
        if not serve.files:
            return Paths(serve.datapath, reasons=reasons)
        files = WholeFiles(
            serve.files,
            RegistryClient(fds[-1]),
            everything=serve.datapath == serve.files,
            direct=os.O_DIRECT if serve.files == "lens" else 0,
            shared=self._servers > 1,
        )
        return Paths(serve.datapath, files=files, reasons=reasons)

    def _make_transport(self, serve: Serve, fds: Sequence[int]) -> DevFuse:
        count = serve.workers
        if count < 1 or len(fds) != 3 * count + bool(serve.files):
            raise ProtocolError(f"{len(fds)} descriptors for {count} workers")
        ends = fds[count : 3 * count]
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
            ready = {fd for fd, _ in waiter.poll(_SWEEP_SECONDS * 1000 if self._sweeps else None)}
            self._paths.sweep()
            if not ready:
                continue
            if self._wake in ready:
                self._transport.ended.wait()
                if self._transport.failure is not None:
                    raise self._transport.failure
                return EndReason.UNMOUNTED
            message = self._channel.receive()
            if message is None:
                raise Goodbye
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
            tuple(OpenRow(name, count) for name, count in paths.opens.items()),
            tuple(Reason(name, text) for name, text in paths.reasons.items()),
        )


def _log_request(line: str) -> None:
    _log.debug("%s", line)


def _opcode(name: str) -> int:
    """The number of a request as statistics name it."""
    if name.startswith("opcode "):
        return int(name.removeprefix("opcode "))
    return int(Opcode[name])
