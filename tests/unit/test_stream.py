# SPDX-License-Identifier: Apache-2.0
"""FUSE messages over a stream: both ends against each other, and each against nonsense."""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.abi.fuse import Opcode
from penstock.client import Client, ServerLost, StreamTransport
from penstock.client.stream import Aside
from penstock.datapath import Paths
from penstock.fs import Context, FileHandle, Mapped, Mapping, MappingType, NodeId, Pending
from penstock.session import Limits
from penstock.transport.stream import StreamServer
from penstock.wire import encode_error
from tests.support.trees import PlusTreeFilesystem, TreeFilesystem

BIG = os.urandom(3 << 20)
SECONDS = 0.2
"""For what must run into its time limit."""


@contextmanager
def serving(filesystem: TreeFilesystem, **options: Any) -> Iterator[tuple[StreamServer, Any]]:
    """A server in a thread of its own, and the client's end of its stream."""
    ours, theirs = socket.socketpair()
    server = StreamServer(filesystem, theirs.fileno(), datapaths=Paths("copy"), **options)

    def run() -> None:
        with theirs:
            server.serve()

    thread = threading.Thread(target=run)
    thread.start()
    with ours:
        try:
            yield server, ours
        finally:
            ours.close()
            thread.join(10)
            assert not thread.is_alive()


@contextmanager
def answering(script: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """The client's end of a stream at whose other end ``script`` runs, then the stream ends."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs:
            script(theirs)

    thread = threading.Thread(target=run)
    thread.start()
    with ours:
        try:
            yield ours
        finally:
            ours.close()
            thread.join(10)
            assert not thread.is_alive()


def waited_for(event: threading.Event) -> None:
    """What a server does that hangs until the test is over."""
    event.wait(30)


def message(unique: int, opcode: int = Opcode.GETATTR) -> bytes:
    """A request of a header alone, and 16 bytes."""
    return struct.pack("<IIQQIIIHH", 56, opcode, unique, 1, 0, 0, 0, 0, 0) + bytes(16)


def reply(unique: int, body: bytes = b"") -> bytes:
    return struct.pack("<IiQ", 16 + len(body), 0, unique) + body


def lost(action: Callable[[], object]) -> ServerLost:
    with pytest.raises(ServerLost) as caught:
        action()
    return caught.value


# Both ends


@pytest.mark.parametrize("kind", [TreeFilesystem, PlusTreeFilesystem])
def test_a_tree(kind: type[TreeFilesystem]) -> None:
    names = {f"name{number}": b"%d" % number for number in range(2000)}
    filesystem = kind({"big": BIG, "dir": names, "link": "dir/name7"})
    with serving(filesystem) as (server, sock):
        with Client(StreamTransport(sock)) as client:
            assert client.read(client.resolve(b"big")) == BIG
            assert client.read(client.resolve(b"link")) == b"7"
            assert len(list(client.tree(client.root))) == 2003
            with pytest.raises(FileNotFoundError):
                client.resolve(b"nothing")
        assert server.session.statistics().malformed == 0
        assert server.session.statistics().pending == 0


def test_data_that_lies_in_a_file(tmp_path: Any) -> None:
    class InFile(PlusTreeFilesystem):
        def read(self, ctx: Context, nodeid: NodeId, *rest: Any) -> Any:
            offset, size = rest[1], rest[2]
            length = min(size, len(BIG) - offset)
            where = Mapping(0, len(BIG) + 4096, MappingType.MAPPED, 0, 1, 0)
            return Mapped((where,), max(0, length))

    path = tmp_path / "data"
    path.write_bytes(BIG)
    fd = os.open(path, os.O_RDONLY)
    filesystem = InFile({"big": BIG, "short": BIG})
    filesystem.devices = (fd,)
    with serving(filesystem) as (_, sock), Client(StreamTransport(sock)) as client:
        assert client.read(client.resolve(b"big")) == BIG
        os.truncate(path, 1 << 20)
        assert client.read(client.resolve(b"short"), 0, 1 << 20) == BIG[: 1 << 20]
        with pytest.raises(OSError) as caught:
            client.read(client.resolve(b"short"), 1 << 20, 10)
        assert caught.value.errno == errno.EIO
    os.close(fd)


def test_answers_that_come_late_and_out_of_order() -> None:
    first: Pending[Any] = Pending()
    asked = threading.Event()

    class Late(PlusTreeFilesystem):
        def readlink(self, ctx: Context, nodeid: NodeId) -> Any:
            asked.set()
            return first

    with serving(Late({"l": "x", "f": b"data"})) as (_, sock):
        client = Client(StreamTransport(sock))
        node = client.resolve(b"l", follow=False)
        answers: list[bytes] = []
        waiting = threading.Thread(target=lambda: answers.append(client.readlink(node)))
        waiting.start()
        assert asked.wait(10)
        # While one thread waits, another asks and is answered.
        other = threading.Thread(
            target=lambda: answers.append(client.read(client.resolve(b"f"))), name="other"
        )
        other.start()
        other.join(10)
        assert answers == [b"data"]
        first.complete(b"target")
        waiting.join(10)
        assert answers == [b"data", b"target"]


def test_notifications_are_dropped() -> None:
    class Telling(PlusTreeFilesystem):
        def getattr(self, ctx: Context, nodeid: NodeId, fh: FileHandle | None) -> Any:
            server.session.notifier.inval_inode(nodeid)
            return super().getattr(ctx, nodeid, fh)

    with (
        serving(Telling({"f": b"data"})) as (server, sock),
        Client(StreamTransport(sock)) as client,
    ):
        for _ in range(3):
            assert client.getattr(client.root).ino == 1001


def test_several_requests_in_one_piece() -> None:
    with serving(PlusTreeFilesystem({})) as (_, sock):
        sock.sendall(message(2) + message(4) + message(6)[:20])
        sock.sendall(message(6)[20:])
        uniques: list[int] = []
        while len(uniques) < 3:
            head = sock.recv(16, socket.MSG_WAITALL)
            length, _, unique = struct.unpack("<IiQ", head)
            sock.recv(length - 16, socket.MSG_WAITALL)
            uniques.append(unique)
        assert uniques == [2, 4, 6]


def test_a_stream_byte_by_byte() -> None:
    """Each end takes messages in whatever pieces they come."""
    with serving(PlusTreeFilesystem({"f": b"data"})) as (_, far):
        ours, theirs = socket.socketpair()

        def relay(source: socket.socket, target: socket.socket) -> None:
            while data := source.recv(1):
                target.sendall(data)
            with suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)

        threads = [
            threading.Thread(target=relay, args=(theirs, far)),
            threading.Thread(target=relay, args=(far, theirs)),
        ]
        for thread in threads:
            thread.start()
        with ours, theirs:
            with Client(StreamTransport(ours)) as client:
                assert client.read(client.resolve(b"f")) == b"data"
            ours.close()
            for thread in threads:
                thread.join(10)


# A server and nonsense


@pytest.mark.parametrize("length", [0, 4, 39, 9000, 0xFFFF_FFFF])
def test_a_request_of_impossible_length_ends_the_stream(length: int) -> None:
    with serving(PlusTreeFilesystem({}), limits=Limits(max_write=4096)) as (server, sock):
        sock.sendall(struct.pack("<I", length) + bytes(60))
        with suppress(ConnectionResetError):  # it had not read all
            assert sock.recv(100) == b""
    assert server.session.statistics().requests == {}


@given(st.binary(max_size=300))
def test_noise_never_breaks_a_server(noise: bytes) -> None:
    with serving(PlusTreeFilesystem({"f": b"x"}), limits=Limits(max_write=4096)) as (_, sock):
        sock.sendall(noise)
        sock.shutdown(socket.SHUT_WR)


def test_a_client_that_leaves_before_its_answer() -> None:
    with serving(PlusTreeFilesystem({"big": BIG})) as (_, sock):
        client = Client(StreamTransport(sock))
        node = client.resolve(b"big")
        sock.setblocking(True)
        body = struct.pack("<QQIIQII", 0, 0, 1 << 20, 0, 0, 0, 0)
        header = struct.pack("<IIQQIIIHH", 80, Opcode.READ, 100, node.nodeid, 0, 0, 0, 0, 0)
        sock.sendall((header + body) * 20)


# A client and nonsense


@pytest.mark.parametrize("length", [0, 15, 5000, 0xFFFF_FFFF])
def test_a_reply_of_impossible_length_ends_the_stream(length: int) -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(struct.pack("<IiQ", length, 0, 2) + bytes(40))

    with answering(script) as sock:
        transport = StreamTransport(sock, largest=4999)
        transport.call(message(2))
        error = lost(lambda: transport.wait_reply(2, 10))
        assert error.errno == errno.EPROTO
        assert str(length) in str(error)
        # And so it stays.
        assert lost(lambda: transport.call(message(4))) is error
        assert lost(lambda: transport.wait_reply(4, 10)) is error
        assert transport.lost is error


def test_a_reply_to_nobody() -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(reply(0) + reply(6))

    with answering(script) as sock:
        transport = StreamTransport(sock)
        transport.call(message(2))
        assert lost(lambda: transport.wait_reply(2, 10)).errno == errno.EPROTO


def test_a_second_reply_to_one_request() -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(reply(2, b"one") + reply(2, b"two"))
        sock.recv(100)

    with answering(script) as sock:
        transport = StreamTransport(sock)
        transport.call(message(2))
        assert transport.wait_reply(2, 10) == reply(2, b"one")
        transport.call(message(4))
        assert lost(lambda: transport.wait_reply(4, 10)).errno == errno.EPROTO


@pytest.mark.parametrize(
    "sent",
    [b"", reply(2)[:7], reply(2), reply(2, bytes(100))[:90]],
    ids=["silent", "half a header", "another reply", "half a body"],
)
def test_a_server_that_hangs(sent: bytes) -> None:
    released = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.sendall(sent)
        released.wait(30)

    with answering(script) as sock:
        transport = StreamTransport(sock, seconds=SECONDS)
        if sent == reply(2):  # a whole one, but not the one that is waited for
            transport.call(message(2))
        transport.call(message(4))
        wanted = 4 if sent == reply(2) else 2
        error = lost(lambda: transport.wait_reply(wanted, 10))
        released.set()
    assert error.errno == errno.ETIMEDOUT


def test_a_server_that_dribbles() -> None:
    """Each byte comes soon, the message never: the time limit is for the whole of it."""
    released = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.sendall(struct.pack("<IiQ", 1 << 20, 0, 2))
        while not released.wait(SECONDS / 20):
            sock.sendall(b"x")

    with answering(script) as sock:
        transport = StreamTransport(sock, seconds=SECONDS)
        transport.call(message(2))
        error = lost(lambda: transport.wait_reply(2, 10))
        released.set()
    assert error.errno == errno.ETIMEDOUT


def test_a_server_that_does_not_read() -> None:
    released = threading.Event()
    with answering(lambda _: waited_for(released)) as sock:
        transport = StreamTransport(sock, seconds=SECONDS)

        def flood() -> None:
            for unique in range(2, 1 << 20, 2):
                transport.call(message(unique))

        error = lost(flood)
        released.set()
    assert error.errno == errno.ETIMEDOUT


@pytest.mark.parametrize(
    "sent",
    [b"", reply(2)[:7], reply(2, bytes(100))[:90]],
    ids=["silent", "half a header", "half a body"],
)
def test_a_server_that_ends(sent: bytes) -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(sent)

    with answering(script) as sock:
        transport = StreamTransport(sock)
        transport.call(message(2))
        assert lost(lambda: transport.wait_reply(2, 10)).errno == errno.EIO


def test_what_else_is_looked_at_while_waiting() -> None:
    read_end, write_end = os.pipe()
    seen: list[bytes] = []

    def script(sock: socket.socket) -> None:
        sock.recv(100)
        os.write(write_end, b"1")
        sock.recv(1)
        sock.sendall(reply(2))

    with answering(script) as sock:

        def look() -> None:
            seen.append(os.read(read_end, 10))
            sock.send(b"g")

        transport = StreamTransport(sock, aside=Aside(read_end, look))
        transport.call(message(2))
        assert transport.wait_reply(2, 10) == reply(2)
    assert seen == [b"1"]
    os.close(read_end)
    os.close(write_end)


def test_what_is_never_done_aside_does_not_outlast_the_time_limit() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"always readable")
    released = threading.Event()
    with answering(lambda _: waited_for(released)) as sock:
        aside = Aside(read_end, lambda: None)
        transport = StreamTransport(sock, seconds=SECONDS, aside=aside)
        transport.call(message(2))
        error = lost(lambda: transport.wait_reply(2, 10))
        released.set()
    assert error.errno == errno.ETIMEDOUT
    os.close(read_end)
    os.close(write_end)


def test_an_interrupted_wait_ends_the_stream() -> None:
    """Where in a message it was interrupted nobody knows."""
    read_end, write_end = os.pipe()
    os.write(write_end, b"x")
    released = threading.Event()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with answering(lambda _: waited_for(released)) as sock:
        transport = StreamTransport(sock, aside=Aside(read_end, interrupt))
        transport.call(message(2))
        with pytest.raises(KeyboardInterrupt):
            transport.wait_reply(2, 10)
        assert lost(lambda: transport.call(message(4))).errno == errno.EINTR
        released.set()
    os.close(read_end)
    os.close(write_end)


@given(st.binary(max_size=200))
def test_noise_never_breaks_a_client(noise: bytes) -> None:
    with answering(lambda sock: sock.sendall(noise)) as sock:
        transport = StreamTransport(sock, seconds=5)
        with pytest.raises(OSError):
            Client(transport)


def test_losing_the_server_ends_walks_and_closes_silently() -> None:
    """What is open when the server is lost is given up, also by generators that nobody ends."""
    with serving(TreeFilesystem({"d": {"a": b"", "b": b""}, "f": b""})) as (_, sock):
        client = Client(StreamTransport(sock))
        listing = client.readdir(client.root)
        next(listing)
        with client.open(client.resolve(b"f")):
            walk = client.tree(client.root, lambda _path, _error: None)
            next(walk)
            sock.shutdown(socket.SHUT_RDWR)
            with pytest.raises(ServerLost):
                list(walk)
        del listing
        gc.collect()
        client.close()


def test_errors_of_the_server_are_its_own() -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(200)
        sock.sendall(encode_error(2, errno.EPROTO))

    with answering(script) as sock, pytest.raises(OSError) as caught:
        Client(StreamTransport(sock))
    assert not isinstance(caught.value, ServerLost)
