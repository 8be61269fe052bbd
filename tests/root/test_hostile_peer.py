# SPDX-License-Identifier: Apache-2.0
"""Servers that do what they like, against the real broker and real mounts.

A state machine plays the servers: it says what belongs, what belongs elsewhere, ruins of it, and
far too much of it, with wrong descriptors and in other processes' names. The broker must neither
die nor attach what is not served nor hand out anything but what each server is to have; whatever
breaks the protocol ends the mount, with a reason; and nothing is left, be it descriptors, threads,
processes, mounts or memory.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from penstock.broker.outcome import End
from penstock.broker.peer import ALL, RATES
from penstock.broker.protocol import (
    MAX_MESSAGE,
    BackingClose,
    BackingOpen,
    BackingReply,
    Ended,
    EndReason,
    Invalidate,
    Kind,
    Log,
    Message,
    Ready,
    Serving,
    State,
    Statistics,
    Welcome,
    encode,
)
from tests.support.brokermessages import packets, ruined
from tests.support.hostileserver import LAYERS, SIZE, Counted, Play, Server

LEAST = 20_000
"""Messages that the state machine sends, at the least."""
FROM_SERVER = sorted(kind for kind in Kind if kind >= 16)
TO_SERVER = sorted(kind for kind in Kind if kind < 16)
DEPTHS = [State.STARTED, State.JUDGING, State.STARTING, State.SERVING]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    place = tmp_path_factory.mktemp("hostile")
    (place / "mnt").mkdir()
    (place / "image").write_bytes(bytes(SIZE))
    with Play(place / "mnt", place / "image") as playing:
        yield playing


@pytest.fixture(autouse=True)
def _nothing_runs(play: Play) -> Iterator[None]:
    yield
    play.end()


class HostilePeers(RuleBasedStateMachine):
    """One or two servers, and what may come of what they say."""

    play: Play

    @precondition(lambda self: not self.play.running)
    @rule(
        servers=st.sampled_from([1, 1, 2]),
        passthrough=st.booleans(),
        depth=st.sampled_from([*DEPTHS, State.SERVING]),
    )
    def begin(self, servers: int, passthrough: bool, depth: State) -> None:
        self.play.begin(servers, passthrough)
        self.play.advance_to(depth)

    def server(self, which: int) -> Server:
        return self.play.servers[which % len(self.play.servers)]

    @precondition(lambda self: self.play.running)
    @rule(which=st.integers(0, 1))
    def go_on(self, which: int) -> None:
        self.play.advance(self.server(which))

    @precondition(lambda self: self.play.running)
    @rule(which=st.integers(0, 1), packet=st.sampled_from(FROM_SERVER).flatmap(packets))
    def out_of_turn(self, which: int, packet: bytes) -> None:
        """Something that is right by itself, whether or not it is now."""
        fd = self.play.a_file() if packet[:2] == struct.pack("<H", Kind.BACKING_OPEN) else None
        self.play.say(self.server(which), packet, [] if fd is None else [fd])

    @precondition(lambda self: self.play.running)
    @rule(which=st.integers(0, 1), packet=st.sampled_from(TO_SERVER).flatmap(packets))
    def the_brokers_words(self, which: int, packet: bytes) -> None:
        self.play.say(self.server(which), packet)

    @precondition(lambda self: self.play.running)
    @rule(which=st.integers(0, 1), packet=ruined(st.sampled_from(FROM_SERVER).flatmap(packets)))
    def ruins(self, which: int, packet: bytes) -> None:
        self.play.say(self.server(which), packet)

    @precondition(lambda self: self.play.running)
    @rule(
        which=st.integers(0, 1),
        packet=st.sampled_from(FROM_SERVER).flatmap(packets),
        count=st.sampled_from([1, 1, 2, 3, 64, 253]),
    )
    def descriptors(self, which: int, packet: bytes, count: int) -> None:
        self.play.say(self.server(which), packet, [self.play.a_file()] * count)

    @precondition(lambda self: self.play.running)
    @rule(which=st.integers(0, 1), pid=st.sampled_from([1, os.getpid()]))
    def somebody_else(self, which: int, pid: int) -> None:
        """By way of the server's socket, which another process has got hold of."""
        self.play.say(self.server(which), encode(Log(20, "it is me")), pid=pid)

    @precondition(lambda self: self.play.running)
    @rule(which=st.integers(0, 1), size=st.sampled_from([MAX_MESSAGE, MAX_MESSAGE + 1, 100_000]))
    def oversized(self, which: int, size: int) -> None:
        packet = encode(Log(20, ""))
        self.play.say(self.server(which), packet + bytes(size - len(packet)))

    @precondition(lambda self: self.play.running)
    @rule(
        which=st.integers(0, 1),
        some=st.lists(st.sampled_from(FROM_SERVER).flatmap(packets), min_size=2, max_size=12),
    )
    def many_at_once(self, which: int, some: list[bytes]) -> None:
        """Sent before the broker can have looked at the first."""
        self.play.say_all(self.server(which), some)

    @precondition(lambda self: self.play.running)
    @rule(which=st.integers(0, 1), count=st.sampled_from([40, 200, 400]))
    def flood(self, which: int, count: int) -> None:
        """Of what is allowed: lines for the log, and while it serves, more."""
        server = self.server(which)
        some = [encode(Log(level, "so it goes")) for level in (10, 20, 30, 255)]
        if server.state is State.SERVING:
            some += [encode(Invalidate(7, -1, 0)), encode(BackingClose(3))]
        self.play.say_all(server, (some * count)[:count])

    @precondition(lambda self: self.play.attached)
    @rule(packet=packets(Kind.STATISTICS), answer=st.sampled_from([True] * 9 + [False]))
    def statistics(self, packet: bytes, answer: bool) -> None:
        self.play.ask_statistics(packet if answer else None)

    @precondition(lambda self: self.play.attached)
    @rule()
    def unmount(self) -> None:
        self.play.unmount()

    @precondition(lambda self: self.play.running)
    @rule(
        which=st.integers(0, 1),
        number=st.sampled_from([signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM]),
    )
    def die(self, which: int, number: int) -> None:
        self.play.die(self.server(which), number)

    def teardown(self) -> None:
        self.play.end()


@pytest.mark.timeout(300)
def test_whatever_servers_do(play: Play) -> None:
    HostilePeers.play = play
    profile = settings(
        max_examples=25,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        database=None,
    )
    while not enough(play.counted):
        run_state_machine_as_test(HostilePeers, settings=profile)


def enough(counted: Counted) -> bool:
    """Whether as much has been played as should be: it can end early in no other way."""
    return (
        counted.messages >= LEAST
        and counted.mounts >= 500
        and counted.attached >= 200
        and counted.violations >= 300
    )


def test_lines_for_the_log_that_are_too_many(play: Play) -> None:
    """They are dropped, and cost nobody anything."""
    play.begin(1, passthrough=False)
    play.advance_to(State.SERVING)
    packet = encode(Log(20, "again"))
    count = ALL.burst - 1000
    for _ in range(count):
        assert play.servers[0].send(packet)
    (told,) = play.ask_statistics(encode(Statistics(0, 0, 0, "copy", (), (), ())))
    assert told.counters is not None  # the answer came behind all of the lines
    seconds = 60
    most = RATES[Kind.LOG].burst + seconds * RATES[Kind.LOG].per_second
    assert count - most <= told.dropped_lines < count
    play.unmount()


def test_a_server_that_does_not_listen(play: Play) -> None:
    """The broker asks it for statistics, and does without them."""
    play.begin(1, passthrough=False)
    play.advance_to(State.SERVING)
    for _ in range(4):
        play.ask_statistics(None)
    play.unmount()


def test_a_server_that_hangs_up_and_lives_on(play: Play) -> None:
    play.begin(1, passthrough=False)
    play.advance_to(State.SERVING)
    play.servers[0].sock.close()
    assert "closed its socket" in play.expect_end({End.VIOLATION})


@pytest.mark.parametrize(
    "ready",
    [
        Ready("ext4", 0, SIZE + 1, 4096, ()),
        Ready("ext4", 1, SIZE, 4096, ()),
        Ready("ext4", SIZE, 1, 4096, ()),
        Ready("ext4", (1 << 64) - 1, 2, 4096, ()),
        Ready("ext4", 0, 0, 4096, ()),
        Ready("ext4", 0, SIZE, 0, ()),
        Ready("ext4", 0, SIZE, 256, ()),
        Ready("ext4", 0, SIZE, 4097, ()),
        Ready("ext4", 0, SIZE, 1 << 31, ()),
    ],
)
def test_a_place_outside_the_image(play: Play, ready: Ready) -> None:
    play.begin(1, passthrough=False)
    play.advance_to(State.JUDGING)
    play.say(play.servers[0], encode(ready))
    assert not play.running


def test_servers_that_contradict_each_other(play: Play) -> None:
    play.begin(2, passthrough=False)
    play.advance_to(State.JUDGING)
    play.say(play.servers[0], encode(Ready("ext4", 0, SIZE, 4096, ())))
    play.say(play.servers[1], encode(Ready("ext4", 0, SIZE, 1024, ())))
    assert not play.running


def test_serving_and_a_violation_in_one_breath(play: Play) -> None:
    """The mount is never attached, not even for a moment."""
    play.begin(1, passthrough=False)
    play.advance_to(State.STARTING)
    server = play.servers[0]
    server.stop_broker()
    server.send(encode(Serving(())))
    server.send(b"rubbish")
    server.resume_broker()
    told = play.host.told()
    assert told is not None
    assert told.what == "failure", told
    play.expect_end({End.VIOLATION}, told)


def test_a_layer_does_not_come_into_force_later(play: Play) -> None:
    """What was missing before the image came is missing, whatever is said afterwards."""
    play.begin(1, passthrough=False)
    server = play.servers[0]
    play.say(server, encode(Welcome(1, LAYERS)))
    play.say(server, encode(Ready("ext4", 0, SIZE, 4096, ())))
    better = tuple(layer._replace(in_force=True, detail="now") for layer in LAYERS)
    play.say(server, encode(Serving((*better, LAYERS[0]._replace(name="another")))))
    (told,) = play.ask_statistics(None)
    assert {layer.name: layer.in_force for layer in told.layers} == {
        layer.name: layer.in_force for layer in LAYERS
    }
    play.unmount()


# Backing files, asked for by a server


@pytest.fixture
def serving(play: Play) -> Server:
    """A server of a writable mount with passthrough."""
    play.begin(1, passthrough=True)
    play.advance_to(State.SERVING)
    return play.servers[0]


def ask(play: Play, fd: int, node: int = 5) -> BackingReply:
    """Offer a descriptor, which is closed here; the broker's answer."""
    server = play.servers[0]
    play.say(server, encode(BackingOpen(node), serial=77), [fd])
    os.close(fd)
    found: list[Message] = []

    def answered() -> bool:
        found.extend(message for message in play.heard if isinstance(message.body, BackingReply))
        return bool(found)

    play.heard.clear()
    play.wait_for(answered)
    assert found[0].serial == 77
    body = found[0].body
    assert isinstance(body, BackingReply)
    return body


def test_a_file_that_the_server_may_write(play: Play, serving: Server, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    first = ask(play, os.open(file, os.O_RDWR))
    assert first.error == 0
    assert first.backing_id > 0
    assert ask(play, os.open(file, os.O_RDWR)) == first
    play.say(serving, encode(BackingClose(5)))
    again = ask(play, os.open(file, os.O_RDWR))
    assert again.error == 0
    assert again != first


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH, os.O_WRONLY, os.O_RDWR | os.O_APPEND])
def test_a_file_that_the_server_may_not_write(
    play: Play, serving: Server, tmp_path: Path, flags: int
) -> None:
    """Nor may anybody else by way of it."""
    file = tmp_path / "file"
    file.touch()
    reply = ask(play, os.open(file, flags))
    assert reply.error
    assert reply.backing_id == 0
    assert serving.state is State.SERVING


def test_what_is_no_file(play: Play, serving: Server, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    ends = os.pipe()
    for fd in (ours.detach(), theirs.detach(), *ends, os.memfd_create("x"), os.eventfd(0)):
        assert ask(play, fd).error
    assert ask(play, os.open(tmp_path, os.O_RDONLY)).error
    assert ask(play, os.open("/dev/fuse", os.O_RDWR)).error
    assert serving.state is State.SERVING


def test_the_servers_own_socket(play: Play, serving: Server) -> None:
    """A socket that is on its way through itself is found by nobody but the kernel."""
    for _ in range(30):
        assert ask(play, os.dup(serving.sock.fileno())).error
    play.unmount()


def test_an_end_that_is_announced(play: Play, serving: Server) -> None:
    """Once it has said goodbye, nothing more may come."""
    serving.send(encode(Ended(EndReason.ASKED)))
    serving.send(encode(Log(20, "one more thing")))
    play.expect_end({End.VIOLATION})


def test_statistics_that_nobody_asked_for(play: Play, serving: Server) -> None:
    play.say(serving, encode(Statistics(0, 0, 0, "copy", (), (), ())))
    assert not play.running
