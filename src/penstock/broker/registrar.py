# SPDX-License-Identifier: Apache-2.0
"""Registering files for the servers of a mount, in a thread that has the rights for it and no more.

Each server has a socket for this alone. It asks, and waits: the first opening of a file costs one
message there and one back, and nobody else is woken for it.

Invariants
    - The thread is nobody, with CAP_SYS_ADMIN: those are the credentials with which the kernel
      reads and writes what is registered. With a lens, where nothing can be written, it has
      CAP_DAC_READ_SEARCH besides, which opening the lens's files takes.
    - What is no request of the registry, or comes too often, ends the mount.
    - An inode has one backing file, whichever server asks; and with several servers one answer: a
      file cannot be open in two ways at once, so what was refused to one is refused to all.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from penstock.abi.capability import Capability
from penstock.broker.backings import Backings, BackingsStatistics, become_nobody
from penstock.broker.channel import Channel
from penstock.broker.lens import Lens
from penstock.broker.lensfiles import LensFiles
from penstock.broker.peer import Bucket, Rate
from penstock.broker.protocol import (
    MAX_EXTENTS,
    REGISTRY,
    BackingClose,
    BackingOpen,
    BackingReply,
    Extent,
    Map,
    Message,
    ProtocolError,
)
from penstock.sys.capabilities import set_name

__all__ = ["Registrar"]

_log = logging.getLogger(__name__)

MAX_REFUSED: Final = 1 << 16
"""Files of which it is remembered that they were refused; with so many no others are taken."""
_END_SECONDS: Final = 5.0
_RATE: Final = Rate(40_000, 20_000)
_SOCKET_BYTES: Final = 256 * 1024


class _Client:
    """One server's socket."""

    def __init__(self, number: int, channel: Channel) -> None:
        self.number = number
        self.channel = channel
        self.bucket = Bucket(_RATE, time.monotonic())
        self.begun: list[Extent] = []
        self.node = 0


class Registrar:
    """Registers files of one connection.

    Args:
        device: /dev/fuse of the connection; stays the caller's.
        servers: the process of each server.
        superblock_read_only: whether the broker made the superblock of the mount so.
        own_mount: see :class:`Backings`; 0 = none.
        lens: where the servers' files are in an image; owned from here on.
        on_violation: called with a server's number and what it did wrong.
    """

    def __init__(
        self,
        device: int,
        servers: Sequence[int],
        *,
        superblock_read_only: bool,
        own_mount: int = 0,
        lens: Lens | None = None,
        on_violation: Callable[[int, str], None],
    ) -> None:
        self._backings = Backings(
            device, superblock_read_only=superblock_read_only, own_mount=own_mount, here=True
        )
        self._lens = lens
        self._files = LensFiles(self._backings, lens)
        self._refused: dict[int, int] | None = {} if len(servers) > 1 else None
        self._on_violation = on_violation
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._clients: dict[int, _Client] = {}
        self._theirs: list[socket.socket] = []
        for number, pid in enumerate(servers):
            self._connect(number, pid)
        self._thread = threading.Thread(target=self._run, name="registrar", daemon=True)
        self._started = False

    def _connect(self, number: int, pid: int) -> None:
        kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        ours.setblocking(False)
        channel = Channel(
            ours,
            sender=pid,
            max_fds=0 if self._lens is not None else 1,
            discard=self._backings.discard,
        )
        self._clients[channel.fileno()] = _Client(number, channel)
        self._theirs.append(theirs)

    def theirs(self, number: int) -> int:
        """The servers' end of the socket of one of them; closed by :meth:`start`."""
        return self._theirs[number].fileno()

    def start(self) -> None:
        """All servers have their ends."""
        for sock in self._theirs:
            sock.close()
        self._started = True
        self._thread.start()

    def statistics(self) -> BackingsStatistics:
        """A snapshot; from any thread."""
        return self._backings.statistics()

    def close(self) -> None:
        """The connection ends: end the thread. Idempotent."""
        if self._wake < 0:
            return
        os.eventfd_write(self._wake, 1)
        if self._started:
            self._thread.join(_END_SECONDS)
            if self._thread.is_alive():  # it closes a file of a filesystem that does not answer
                return
        for sock in self._theirs:
            sock.close()
        for client in self._clients.values():
            client.channel.close()
        self._backings.close()
        if self._lens is not None:
            self._lens.close()
        os.close(self._wake)
        self._wake = -1

    # The thread

    def _run(self) -> None:
        refusal = 0
        with contextlib.suppress(OSError):
            set_name("registrar")
        try:
            become_nobody(*([Capability.DAC_READ_SEARCH] if self._lens is not None else []))
        except OSError as error:
            refusal = error.errno or errno.EPERM
        waiter = select.poll()
        waiter.register(self._wake, select.POLLIN)
        for fd in self._clients:
            waiter.register(fd, select.POLLIN)
        try:
            self._listen(waiter, refusal)
        except Exception:  # noqa: BLE001 - nobody may wait for an answer that does not come
            _log.exception("the registrar failed; files are read from now on")
            for client in self._clients.values():
                client.channel.close()

    def _listen(self, waiter: select.poll, refusal: int) -> None:
        while True:
            for fd, _ in waiter.poll():
                if fd == self._wake:
                    return
                if not self._serve(self._clients[fd], refusal):
                    waiter.unregister(fd)

    def _serve(self, client: _Client, refusal: int) -> bool:
        """Carry out what has come from a server; whether it is to be listened to any longer."""
        try:
            message = client.channel.receive()
            if message is None:
                return False
            self._carry_out(client, message, refusal)
        except BlockingIOError:
            return True
        except ProtocolError as error:
            self._on_violation(client.number, str(error))
            return False
        except OSError:  # it has gone, or does not read
            return False
        return True

    def _carry_out(self, client: _Client, message: Message, refusal: int) -> None:
        if message.kind not in REGISTRY or not client.bucket.take(time.monotonic()):
            for fd in message.fds:
                self._backings.discard(fd)
            if message.kind in REGISTRY:
                raise ProtocolError("requests for files come too often")
            raise ProtocolError(f"{message.kind.name} to the registry")
        body = message.body
        if isinstance(body, BackingClose):
            for node in body.nodes:
                self._files.release(node)
            return
        try:
            if refusal:
                for fd in message.fds:
                    self._backings.discard(fd)
                raise OSError(refusal, "there are no rights to register files")
            if isinstance(body, Map) and not self._complete(client, body):
                return
            number = self._register(client, message)
            reply = BackingReply(0, number)
        except OSError as error:
            reply = BackingReply(error.errno or errno.EIO, 0)
        client.begun = []
        client.channel.send(reply, serial=message.serial)

    def _register(self, client: _Client, message: Message) -> int:
        body = message.body
        assert isinstance(body, BackingOpen | Map)
        try:
            if self._refused is not None:
                self._check_refused(self._refused, body.node)
            if isinstance(body, BackingOpen):
                fd, message = message.fds[0], message._replace(fds=())
                return self._backings.register(body.node, fd)
            return self._files.map(body.node, body.length, client.begun)
        except OSError as error:
            for fd in message.fds:
                self._backings.discard(fd)
            if self._refused is not None and len(self._refused) < MAX_REFUSED:
                self._refused.setdefault(body.node, error.errno or errno.EIO)
            raise

    def _check_refused(self, refused: dict[int, int], node: int) -> None:
        """Raise OSError if the file was refused before, or might have been."""
        number = refused.get(node, 0)
        if number:
            raise OSError(number, "it was refused before")
        if len(refused) >= MAX_REFUSED and not self._backings.known(node):
            raise OSError(errno.ENFILE, "too many files were refused")

    def _complete(self, client: _Client, body: Map) -> bool:
        """Take a message's extents; whether they are all there now."""
        if client.begun and client.node != body.node:
            raise ProtocolError("MAP goes on with another file")
        client.node = body.node
        if len(client.begun) + len(body.extents) > MAX_EXTENTS:
            raise ProtocolError("MAP: too many extents")
        client.begun += body.extents
        return not body.more
