# SPDX-License-Identifier: Apache-2.0
"""The registry of backing files as a hostile server sees it: what it must answer, and to what.

:class:`Known` is a model: it judges each message by what docs/broker-protocol.md says, not by what
the broker does.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import stat
import struct
from collections.abc import Iterable, Sequence
from fcntl import F_GETFL, fcntl
from typing import NamedTuple

from penstock.broker.lens import MAX_CHUNKS
from penstock.broker.protocol import (
    MAX_EXTENTS,
    MAX_MESSAGE,
    REGISTRY,
    BackingClose,
    BackingOpen,
    BackingReply,
    Extent,
    Map,
    ProtocolError,
    Ready,
    decode,
)

__all__ = ["Known", "Registry", "Verdict", "chunks", "possible", "send_as"]

_PAGE = 4096
_LONGEST = 1 << 62


def send_as(sock: socket.socket, pid: int, packet: bytes, fds: Sequence[int] = ()) -> bool:
    """Send in the name of a process; whether it was taken.

    Raises:
        PermissionError: no descriptors are wanted.
    """
    credentials = struct.pack("=iII", pid, 0, 0)
    ancillary: list[tuple[int, int, bytes]] = [
        (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)
    ]
    if fds:
        rights = array.array("i", fds).tobytes()
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
    try:
        sock.sendmsg([packet], ancillary)
    except (ConnectionError, ProcessLookupError):  # the broker has killed it
        return False
    return True


class Registry:
    """A server's end of the socket.

    Attributes:
        node: of the file whose extents have begun to come.
        begun: those that have come.
    """

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        self.pid = pid
        self.node = 0
        self.begun: list[Extent] = []
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 20, 0))

    def send(self, packet: bytes, fds: Sequence[int] = (), pid: int = 0) -> bool:
        """As :func:`send_as`."""
        return send_as(self.sock, pid or self.pid, packet, fds)

    def answer(self, seconds: float) -> BackingReply:
        """The next answer."""
        ready, _, _ = select.select([self.sock], [], [], seconds)
        assert ready, "the registry does not answer"
        packet = self.sock.recv(MAX_MESSAGE)
        assert packet, "the registry has hung up"
        message = decode(packet)
        assert isinstance(message.body, BackingReply)
        self.serial = message.serial
        return message.body


def mount_of(fd: int) -> str:
    """The mount by way of which a file was opened."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next(line for line in lines if line.startswith("mnt_id:"))


class Verdict(NamedTuple):
    """What is to come of a message.

    Attributes:
        answered: whether there is an answer.
        node: the inode.
        errors: what may be answered; 0 = a number.
        serial: of the question.
        registry: whose it is.
    """

    answered: bool
    node: int = 0
    errors: frozenset[int] = frozenset()
    serial: int = 0
    registry: Registry | None = None


class Known:
    """What the registry of one mount must know.

    Args:
        files: ``lens``, ``passthrough`` or empty.
        servers: how many there are.

    Attributes:
        place: what the servers have said of the image.
        tree: their directory, opened as they have it; what is opened below it is theirs.
    """

    def __init__(self, files: str, servers: int) -> None:
        self.files = files
        self.tree = -1
        self.place: Ready | None = None
        self._shared = servers > 1
        self._numbers: dict[int, int] = {}
        self._refused: dict[int, int] = {}
        self._dead: set[int] = set()

    def judge(
        self, registry: Registry, packet: bytes, fds: Sequence[int], *, foreign: bool
    ) -> Verdict | None:
        """What must come of a message; None: the end."""
        if foreign or len(packet) > MAX_MESSAGE:
            return None
        try:
            message = decode(packet, tuple(fds))
        except ProtocolError:
            return None
        body = message.body
        if message.kind not in REGISTRY or (fds and self.files == "lens"):
            return None
        if isinstance(body, BackingClose):
            for node in body.nodes:
                self._forget(node)
            return Verdict(answered=False)
        if isinstance(body, BackingOpen):
            errors = self._opening(body.node, fds[0])
        else:
            assert isinstance(body, Map)
            if registry.begun and registry.node != body.node:
                return None
            registry.node = body.node
            registry.begun += body.extents
            if len(registry.begun) > MAX_EXTENTS:
                return None
            if body.more:
                return Verdict(answered=False)
            errors = self._mapping(body, registry.begun)
        registry.begun = []
        if body.node in self._numbers:
            errors = frozenset({0})
        if self._shared and body.node in self._refused:
            errors = frozenset({self._refused[body.node]})
        return Verdict(True, body.node, errors, message.serial, registry)

    def _forget(self, node: int) -> None:
        number = self._numbers.pop(node, None)
        if number is not None:
            self._dead.add(number)

    def take(self, verdict: Verdict, reply: BackingReply, may: Iterable[int] = ()) -> None:
        """Check an answer, and remember it."""
        assert verdict.registry is not None
        assert verdict.registry.serial == verdict.serial
        assert reply.error in verdict.errors.union(may), (os.strerror(reply.error), verdict)
        assert bool(reply.backing_id) == (not reply.error)
        if reply.error:
            self._refused.setdefault(verdict.node, reply.error)
            return
        number = self._numbers.setdefault(verdict.node, reply.backing_id)
        assert number == reply.backing_id
        others = [each for node, each in self._numbers.items() if node != verdict.node]
        assert number not in others

    def _opening(self, node: int, fd: int) -> frozenset[int]:
        """Of a descriptor of the directory's own mount, or of another's."""
        flags = fcntl(fd, F_GETFL)
        status = os.fstat(fd)
        regular = stat.S_ISREG(status.st_mode)
        own = mount_of(fd) == mount_of(self.tree)
        whole = flags & os.O_ACCMODE == os.O_RDWR and not flags & os.O_APPEND
        if node and regular and not flags & os.O_PATH and (own or (whole and status.st_nlink)):
            return frozenset({0})
        return frozenset({errno.EINVAL, errno.EPERM})

    def _mapping(self, body: Map, extents: Sequence[Extent]) -> frozenset[int]:
        if self.files != "lens":
            return frozenset({errno.EOPNOTSUPP})
        place = self.place
        assert place is not None
        block = next(
            size
            for size in (4096, 2048, 1024, 512)
            if place.block_size % size == place.offset % size == 0
        )
        if not body.node or not possible(body.length, extents, block, place):
            return frozenset({errno.EINVAL})
        if chunks(body.length, extents, block) > MAX_CHUNKS:
            return frozenset({errno.EFBIG})
        return frozenset({0})


def possible(length: int, extents: Sequence[Extent], block: int, place: Ready) -> bool:
    """Whether a file can lie so."""
    if length >= _LONGEST:
        return False
    after = 0
    for offset, size, address in extents:
        end = offset + size
        blocks = -(-size // block) * block
        whole = end % block == 0 or end >= length
        inside = place.offset <= address and address + blocks <= place.offset + place.length
        if offset % block or address % block or not size or offset < after:
            return False
        if not whole or not inside:
            return False
        after = end
    return after < length + block


def chunks(length: int, extents: Sequence[Extent], block: int) -> int:
    """How many blocks of the largest size that will do."""
    borders = [offset for offset, _, _ in extents]
    borders += [offset + size for offset, size, _ in extents if offset + size < length]
    chunk = block << 31
    while chunk > block and any(border % chunk for border in borders):
        chunk //= 2
    return -(-length // chunk)
