# SPDX-License-Identifier: Apache-2.0
"""The server's end: one thread, one selector, and nobody who can hold it up.

Bounds: at most :data:`MAX_PEERS` connections (the idlest gives way to a new one), one request of at
most ``MAX_REQUEST`` bytes at a time for each, nothing more is read from a peer that does not take
its answer, and a connection without traffic is closed after :data:`IDLE_SECONDS`. A peer must be
the user of this process or root (SO_PEERCRED); others are closed without a word.

Handlers run in that thread, so they return at once: a snapshot of statistics, a flag to be set.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Final, Self

from penstock.control.directory import (
    open_directory,
    peer_uid,
    remove_if_empty,
    runtime_directory,
)
from penstock.control.protocol import (
    INTERFACE,
    INTERFACE_TEXT,
    MAX_REQUEST,
    METHOD_NOT_FOUND,
    Call,
    ControlError,
    ProtocolError,
    decode_call,
    encode_error,
    encode_reply,
)
from penstock.control.record import Record, socket_name, unlink_files, write_record

__all__ = ["IDLE_SECONDS", "MAX_PEERS", "ControlServer", "Handler"]

_LOG = logging.getLogger("penstock.control")

Handler = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes the parameters of a call, returns those of the answer; raises :class:`ControlError` to
answer an error of its own."""

MAX_PEERS: Final = 16
IDLE_SECONDS: Final = 30.0
_ACCEPT_PAUSE: Final = 1.0
"""Seconds without accepting after accept(2) has failed, as it does when descriptors run out."""
_CLOSE_SECONDS: Final = 1.0
"""How long closing waits for answers that are still on their way out."""


class _Peer:
    """One connection: what came and is no whole request yet, what has not gone out yet."""

    __slots__ = ("incoming", "last", "outgoing", "sock")

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.last = now


class ControlServer:
    """Publishes a mount: its record, and a socket that answers for it while the context lasts.

    Args:
        record: what the mount is.
        handlers: qualified method name → what answers it.
        directory: where socket and record go; None: the user's runtime directory.

    Raises:
        OSError: on entering, when the directory is not safe or the socket cannot be made.
    """

    def __init__(
        self, record: Record, handlers: Mapping[str, Handler], *, directory: str | None = None
    ) -> None:
        self.record = record
        self.leave_record = False
        """Whether closing leaves the files there, for a mount that outlives its server."""
        self._handlers = dict(handlers)
        self._directory = directory or runtime_directory()
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, _Peer] = {}
        self._stack = ExitStack()
        self._listener: socket.socket | None = None
        self._accept_after = 0.0
        self._closing = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="penstock-control", daemon=True)

    def __enter__(self) -> Self:
        try:
            try:
                self._publish()
            except FileNotFoundError:  # the last one in the directory has just removed it
                self._stack.close()
                self._publish()
        except BaseException:
            self._release()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Withdraw the record and the socket, and end the thread. May be called again."""
        if self._thread.is_alive():
            with suppress(OSError):
                self._wake_write.send(b"x")
            self._thread.join()
        self._release()

    def _publish(self) -> None:
        uid = os.geteuid()
        fd = self._stack.enter_context(open_directory(self._directory, uid, create=True))
        name = socket_name(self.record)
        listener = self._stack.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        )
        # Through the descriptor: the length of the path does not matter, nor who replaces it.
        unlink_files(fd, self.record)
        listener.bind(f"/proc/self/fd/{fd}/{name}")
        self._stack.callback(self._unlink, fd)
        os.chmod(name, 0o600, dir_fd=fd)
        listener.listen(MAX_PEERS)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        write_record(fd, self.record)

    def _unlink(self, fd: int) -> None:
        if not self.leave_record:
            unlink_files(fd, self.record)

    def _release(self) -> None:
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._stack.close()
        remove_if_empty(self._directory)
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    # The thread

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn(self._timeout())
            deadline = time.monotonic() + _CLOSE_SECONDS
            while any(p.outgoing for p in self._peers.values()) and time.monotonic() < deadline:
                self._turn(0.05)
        except Exception:  # noqa: BLE001  logged; the mount lives on without its socket
            _LOG.exception("the control socket of %s has failed", self.record.mountpoint)

    def _timeout(self) -> float | None:
        now = time.monotonic()
        due = [peer.last + IDLE_SECONDS for peer in self._peers.values()]
        if self._accept_after:
            due.append(self._accept_after)
        return max(0.0, min(due) - now) if due else None

    def _turn(self, timeout: float | None) -> None:
        for key, events in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake_read:
                self._closing = True
                self._selector.unregister(self._wake_read)
            elif key.data is not None:
                self._serve(key.data, events)
        now = time.monotonic()
        for peer in [p for p in self._peers.values() if p.last + IDLE_SECONDS <= now]:
            self._drop(peer)
        if self._accept_after and self._accept_after <= now and self._listener is not None:
            self._accept_after = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ, None)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError, InterruptedError):
            return
        except OSError as error:
            _LOG.warning("the control socket cannot accept: %s", error)
            self._selector.unregister(self._listener)
            self._accept_after = time.monotonic() + _ACCEPT_PAUSE
            return
        if not _is_trusted(sock):
            sock.close()
            return
        if len(self._peers) >= MAX_PEERS:
            self._drop(min(self._peers.values(), key=lambda peer: peer.last))
        sock.setblocking(False)
        peer = _Peer(sock, time.monotonic())
        self._peers[sock.fileno()] = peer
        self._selector.register(sock, selectors.EVENT_READ, peer)

    def _drop(self, peer: _Peer) -> None:
        if self._peers.pop(peer.sock.fileno(), None) is not None:
            self._selector.unregister(peer.sock)
            peer.sock.close()

    def _serve(self, peer: _Peer, events: int) -> None:
        """Move bytes for one peer that is ready, and answer if that completes a request."""
        if peer.sock.fileno() not in self._peers:
            return  # dropped earlier in this turn
        peer.last = time.monotonic()
        try:
            if events & selectors.EVENT_WRITE:
                del peer.outgoing[: peer.sock.send(peer.outgoing)]
            elif not self._receive(peer):
                self._drop(peer)
                return
            self._answer_next(peer)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ProtocolError) as error:
            _LOG.debug("control connection dropped: %s", error)
            self._drop(peer)

    def _receive(self, peer: _Peer) -> bool:
        data = peer.sock.recv(MAX_REQUEST)
        peer.incoming += data
        return bool(data)

    def _answer_next(self, peer: _Peer) -> None:
        """Answer the requests that are there; stop at one whose answer does not fit the socket."""
        while not peer.outgoing:
            end = peer.incoming.find(b"\0")
            if end < 0:
                if len(peer.incoming) > MAX_REQUEST:
                    raise ProtocolError(f"a request of more than {MAX_REQUEST} bytes")
                break
            message = bytes(peer.incoming[:end])
            del peer.incoming[: end + 1]
            peer.outgoing += self._answer(decode_call(message))
            with suppress(BlockingIOError):
                del peer.outgoing[: peer.sock.send(peer.outgoing)]
        wanted = selectors.EVENT_WRITE if peer.outgoing else selectors.EVENT_READ
        self._selector.modify(peer.sock, wanted, peer)

    def _answer(self, call: Call) -> bytes:
        handler = self._handlers.get(call.method) or _SERVICE.get(call.method)
        try:
            if handler is None:
                reply = encode_error(METHOD_NOT_FOUND, {"method": call.method})
            else:
                reply = encode_reply(handler(call.parameters))
        except ControlError as error:
            reply = encode_error(error.name, error.parameters)
        except Exception as error:  # noqa: BLE001  logged and answered
            _LOG.exception("control method %s has failed", call.method)
            reply = encode_error(f"{INTERFACE}.Failed", {"message": str(error)})
        return b"" if call.oneway else reply


def _is_trusted(sock: socket.socket) -> bool:
    return peer_uid(sock) in {0, os.geteuid()}


def _get_info(_: dict[str, Any]) -> dict[str, Any]:
    return {
        "vendor": "penstock",
        "product": "penstock",
        "version": "1",
        "url": "",
        "interfaces": ["org.varlink.service", INTERFACE],
    }


def _get_interface_description(parameters: dict[str, Any]) -> dict[str, Any]:
    name = parameters.get("interface")
    if name != INTERFACE:
        raise ControlError("org.varlink.service.InterfaceNotFound", {"interface": str(name)})
    return {"description": INTERFACE_TEXT}


_SERVICE: Final[dict[str, Handler]] = {
    "org.varlink.service.GetInfo": _get_info,
    "org.varlink.service.GetInterfaceDescription": _get_interface_description,
}
