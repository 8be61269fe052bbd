# SPDX-License-Identifier: Apache-2.0
"""The socket between broker and server: who sent it, what came with it, how it ends."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from penstock.broker.channel import Channel
from penstock.broker.protocol import (
    MAX_MESSAGE,
    BackingOpen,
    Description,
    Ended,
    EndReason,
    GetStatistics,
    Image,
    Log,
    ProtocolError,
    Stop,
    encode,
)

SO_PASSRIGHTS = 83
STOP = encode(Stop())


def descriptors() -> dict[str, str]:
    """What this process has open, but for the folder that tells."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[link.name] = str(link.readlink())
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The broker's end, which takes messages of this process alone, and a server's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def broker(pair: tuple[socket.socket, socket.socket]) -> Channel:
    """Takes messages of this process, with at most one descriptor each."""
    return Channel(pair[0], sender=os.getpid(), max_fds=1)


@pytest.fixture
def server(pair: tuple[socket.socket, socket.socket], broker: Channel) -> socket.socket:
    """The other end, without a channel's manners."""
    return pair[1]


def send(sock: socket.socket, packet: bytes, fds: Sequence[int]) -> None:
    sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def send_from_another_process(sock: socket.socket, packet: bytes) -> None:
    """Send by way of this very socket, from a process that has it too."""
    program = (
        "import socket, sys; "
        "socket.socket(fileno=int(sys.argv[1])).send(bytes.fromhex(sys.argv[2]))"
    )
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(sock.fileno()), packet.hex()],
        pass_fds=[sock.fileno()],
        check=True,
    )


def test_a_message_and_its_answer(broker: Channel, server: socket.socket) -> None:
    with Channel(server, max_fds=4) as other:
        broker.send(GetStatistics(), serial=7)
        asked = other.receive()
        assert asked is not None
        assert (asked.body, asked.serial, asked.fds) == (GetStatistics(), 7, ())
        other.send(Log(20, "well"), serial=7)
        answer = broker.receive()
        assert answer is not None
        assert (answer.body, answer.serial) == (Log(20, "well"), 7)


def test_a_descriptor_arrives_and_is_not_inherited(
    broker: Channel, server: socket.socket, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("content", encoding="utf-8")
    with Channel(server, max_fds=1) as other, file.open("rb") as image:
        broker.send(Image(7, "ext4", ()), [image.fileno()])
        message = other.receive()
        assert message is not None
        (fd,) = message.fds
        assert fd != image.fileno()
        assert os.pread(fd, 10, 0) == b"content"
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(fd)


def test_nothing_there_is_no_end(broker: Channel) -> None:
    with pytest.raises(BlockingIOError):
        broker.receive()


def test_a_message_of_another_process(broker: Channel, server: socket.socket) -> None:
    send_from_another_process(server, STOP)
    with pytest.raises(ProtocolError, match="another process"):
        broker.receive()


def test_a_message_that_was_sent_before_senders_were_asked_for(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(STOP)
    early = Channel(ours, sender=os.getpid())
    with pytest.raises(ProtocolError, match="another process"):
        early.receive()


def test_a_sender_cannot_name_another_process(broker: Channel, server: socket.socket) -> None:
    """Root may, within its pid namespace; then the name given is the one that counts."""
    credentials = array.array("i", [os.getppid(), os.getuid(), os.getgid()]).tobytes()
    message = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
    try:
        server.sendmsg([STOP], message)
    except PermissionError:
        assert os.geteuid() != 0
    else:
        with pytest.raises(ProtocolError, match="another process"):
            broker.receive()


@pytest.mark.parametrize("count", [2, 3, 100, 253])
def test_more_descriptors_than_a_message_may_bring(
    broker: Channel, server: socket.socket, count: int
) -> None:
    before = descriptors()
    with open(os.devnull, "rb") as null:
        send(server, encode(BackingOpen(1)), [null.fileno()] * count)
    with pytest.raises(ProtocolError, match="descriptors"):
        broker.receive()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("packet", "fds"),
    [
        (encode(Log(20, "text")), 1),
        (encode(BackingOpen(1)), 0),
        (b"\xff\xff", 1),
        (b"", 1),
        (bytes(MAX_MESSAGE + 100), 1),
        (bytes(MAX_MESSAGE + 1), 0),
    ],
)
def test_descriptors_of_what_is_no_message_are_closed(
    broker: Channel, server: socket.socket, packet: bytes, fds: int
) -> None:
    before = descriptors()
    with open(os.devnull, "rb") as null:
        if fds:
            send(server, packet, [null.fileno()] * fds)
        else:
            server.send(packet)
    with pytest.raises(ProtocolError):
        broker.receive()
    assert descriptors() == before


def test_refused_descriptors_go_where_they_cannot_do_harm(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    discarded: list[int] = []
    broker = Channel(ours, sender=os.getpid(), max_fds=1, discard=discarded.append)
    with open(os.devnull, "rb") as null:
        send(theirs, encode(Log(20, "text")), [null.fileno()])
    with pytest.raises(ProtocolError):
        broker.receive()
    (fd,) = discarded
    assert os.readlink(f"/proc/self/fd/{fd}") == os.devnull
    os.close(fd)


def test_a_table_that_is_full(broker: Channel, server: socket.socket) -> None:
    """The kernel closes what it cannot enter, and says so."""
    import resource

    with open(os.devnull, "rb") as null:
        send(server, encode(BackingOpen(1)), [null.fileno()])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    full = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (full[0] + 1, hard))
    try:
        with pytest.raises(ProtocolError, match="cannot be taken"):
            broker.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(full[0])


@pytest.fixture(params=["refused by the kernel", "refused by the channel"])
def without_descriptors(
    request: pytest.FixtureRequest, pair: tuple[socket.socket, socket.socket]
) -> Channel:
    """A channel that takes no descriptors, on kernels with SO_PASSRIGHTS and without."""
    channel = Channel(pair[0], sender=os.getpid())
    if request.param == "refused by the channel":
        try:
            pair[0].setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)
        except OSError:
            assert channel.refuse_fds() is False
    return channel


def test_no_descriptors_where_none_are_expected(
    without_descriptors: Channel, pair: tuple[socket.socket, socket.socket]
) -> None:
    before = descriptors()
    refused = False
    with open(os.devnull, "rb") as null:
        try:
            send(pair[1], encode(BackingOpen(1)), [null.fileno()])
        except PermissionError:
            refused = True
    if not refused:
        with pytest.raises(ProtocolError, match="cannot be taken"):
            without_descriptors.receive()
    else:
        with pytest.raises(BlockingIOError):
            without_descriptors.receive()
    assert descriptors() == before
    pair[1].send(encode(Log(20, "without one")))
    message = without_descriptors.receive()
    assert message is not None
    assert message.body == Log(20, "without one")


def test_descriptors_may_be_refused_later(broker: Channel, server: socket.socket) -> None:
    with open(os.devnull, "rb") as null:
        send(server, encode(BackingOpen(1)), [null.fileno()])
        message = broker.receive()
        assert message is not None
        os.close(message.fds[0])
        if broker.refuse_fds():
            with pytest.raises(PermissionError):
                send(server, encode(BackingOpen(1)), [null.fileno()])
        else:
            send(server, encode(BackingOpen(1)), [null.fileno()])
            with pytest.raises(ProtocolError):
                broker.receive()


def test_an_empty_packet_is_no_end(broker: Channel, server: socket.socket) -> None:
    server.send(b"")
    with pytest.raises(ProtocolError, match="0 bytes"):
        broker.receive()
    server.close()
    assert broker.receive() is None


def test_the_end(broker: Channel, server: socket.socket) -> None:
    server.close()
    assert broker.receive() is None
    assert broker.receive() is None


def test_what_was_said_before_the_end_is_heard(broker: Channel, server: socket.socket) -> None:
    server.send(encode(Log(40, "I die")))
    server.send(encode(Ended(EndReason.ASKED)))
    server.close()
    heard = [broker.receive() for _ in range(3)]
    assert [message.body for message in heard if message] == [
        Log(40, "I die"),
        Ended(EndReason.ASKED),
    ]
    assert heard[2] is None


def test_what_was_said_is_heard_although_the_other_side_did_not_listen(
    broker: Channel, server: socket.socket
) -> None:
    """With messages unread on its side the kernel reports a reset first."""
    broker.send(Stop())
    server.send(encode(Log(40, "I die")))
    server.close()
    message = broker.receive()
    assert message is not None
    assert message.body == Log(40, "I die")
    assert broker.receive() is None


def test_a_reset_and_nothing_else(broker: Channel, server: socket.socket) -> None:
    broker.send(Stop())
    server.close()
    assert broker.receive() is None


def test_sending_to_whoever_has_gone(broker: Channel, server: socket.socket) -> None:
    server.close()
    with pytest.raises(BrokenPipeError):
        broker.send(Stop())


def flood(channel: Channel) -> None:
    for _ in range(1000):
        channel.send(Description(more=True, text="x" * 30_000), wait=False)


def test_sending_to_whoever_does_not_read(broker: Channel, server: socket.socket) -> None:
    """The broker is never held up by a server."""
    with pytest.raises(BlockingIOError):
        flood(broker)


def test_not_waiting_on_a_socket_that_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(BlockingIOError):
        flood(Channel(pair[1]))


def test_closing_twice(pair: tuple[socket.socket, socket.socket]) -> None:
    with Channel(pair[0]) as channel:
        channel.close()
    assert channel.fileno() == -1
