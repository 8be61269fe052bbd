# SPDX-License-Identifier: Apache-2.0
"""Servers that do what they like, against the real broker and real mounts.

A state machine plays the servers: it says what belongs, what belongs elsewhere, ruins of it, and
far too much of it, with wrong descriptors and in other processes' names, to the broker and to its
registry of backing files. The broker must neither die nor attach what is not served nor hand out
anything but what each server is to have; whatever breaks the protocol ends the mount with a reason,
and what is merely impossible gets an errno; and nothing is left, be it descriptors, threads,
processes, mounts or memory.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from penstock.broker.outcome import End
from penstock.broker.peer import ALL, RATES
from penstock.broker.protocol import (
    MAX_MESSAGE,
    REGISTRY,
    BackingClose,
    BackingOpen,
    Ended,
    EndReason,
    Extent,
    Invalidate,
    Kind,
    Log,
    Map,
    Ready,
    Serving,
    State,
    Statistics,
    Welcome,
    encode,
)
from tests.support.brokermessages import packets, ruined
from tests.support.hostileoffers import OFFERED, pieces, remove_offered
from tests.support.hostileserver import LAYERS, SIZE, Counted, Play, Server

LEAST = 20_000
"""Messages that the state machine sends, at the least."""
LEAST_REGISTRY = 300
"""Of those, to the registry; test_hostile_registry.py sends it more."""
FROM_SERVER = sorted(kind for kind in Kind if kind >= 16)
TO_SERVER = sorted(kind for kind in Kind if kind < 16)
DEPTHS = [State.STARTED, State.JUDGING, State.STARTING, State.SERVING]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    place = tmp_path_factory.mktemp("hostile")
    (place / "mnt").mkdir()
    (place / "image").write_bytes(bytes(SIZE))
    (place / "tree").mkdir()
    with Play(place / "mnt", place / "image", place / "tree") as playing:
        yield playing
    remove_offered()


@pytest.fixture(autouse=True)
def _nothing_runs(play: Play) -> Iterator[None]:
    yield
    play.end()


NODES = st.integers(0, 12) | st.sampled_from([1 << 32, (1 << 64) - 1])
_BLOCKS = st.integers(0, 300).map(lambda block: block * 4096)
_ODD = st.sampled_from([0, 1, 511, 512, 4095, SIZE, SIZE - 4096, 1 << 40, 1 << 62, (1 << 64) - 1])
_PLACES = _BLOCKS | _BLOCKS | _BLOCKS | _ODD
LENGTHS = st.integers(0, SIZE) | _ODD
EXTENTS = st.lists(st.builds(Extent, _PLACES, _PLACES, _PLACES), max_size=6) | st.lists(
    st.builds(Extent, _PLACES, _PLACES, _PLACES), max_size=6
).map(sorted)
CUTS = st.lists(st.integers(0, 6), max_size=3)


class HostilePeers(RuleBasedStateMachine):
    """One or two servers, and what may come of what they say."""

    play: Play

    @precondition(lambda self: not self.play.running)
    @rule(
        servers=st.sampled_from([1, 1, 2]),
        files=st.sampled_from(["", "lens", "passthrough"]),
        depth=st.sampled_from([*DEPTHS, State.SERVING, State.SERVING]),
    )
    def begin(self, servers: int, files: str, depth: State) -> None:
        self.play.begin(servers, files)
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
        self.play.say(self.server(which), packet)

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
            some.append(encode(Invalidate(7, -1, 0)))
        self.play.say_all(server, (some * count)[:count])

    # To the registry

    def to_registry(self, which: int, packets: list[bytes], *fds: int, pid: int = 0) -> None:
        self.play.register(self.server(which), packets, fds, pid)

    @precondition(lambda self: self.play.has_registry)
    @rule(which=st.integers(0, 1), node=NODES, length=LENGTHS, extents=EXTENTS, cuts=CUTS)
    def map_a_file(
        self, which: int, node: int, length: int, extents: list[Extent], cuts: list[int]
    ) -> None:
        """In one message or in several."""
        self.to_registry(which, pieces(node, length, extents, cuts))

    @precondition(lambda self: self.play.has_registry)
    @rule(which=st.integers(0, 1), node=NODES, pages=st.lists(st.integers(0, 200), max_size=20))
    def map_a_good_file(self, which: int, node: int, pages: list[int]) -> None:
        extents = [Extent(at * 4096, 4096, page * 4096) for at, page in enumerate(pages)]
        self.to_registry(which, pieces(node, len(pages) * 4096, extents, []))

    @precondition(lambda self: self.play.has_registry)
    @rule(which=st.integers(0, 1), node=NODES, kind=st.sampled_from(sorted(OFFERED)))
    def offer_a_descriptor(self, which: int, node: int, kind: str) -> None:
        if self.play.known.tree < 0:
            kind = "a memory file"
        fd = OFFERED[kind](self.play)
        try:
            self.to_registry(which, [encode(BackingOpen(node), 9)], fd)
        finally:
            os.close(fd)

    @precondition(lambda self: self.play.has_registry)
    @rule(which=st.integers(0, 1), nodes=st.lists(NODES, min_size=1, max_size=100))
    def close_many(self, which: int, nodes: list[int]) -> None:
        """Such as were never registered too."""
        some = [BackingClose(tuple(nodes)), *(BackingClose((node,)) for node in nodes[:20])]
        self.to_registry(which, [encode(each, 3) for each in some])

    @precondition(lambda self: self.play.has_registry)
    @rule(
        which=st.integers(0, 1), packet=ruined(st.sampled_from(sorted(REGISTRY)).flatmap(packets))
    )
    def ruins_to_the_registry(self, which: int, packet: bytes) -> None:
        self.to_registry(which, [packet])

    @precondition(lambda self: self.play.has_registry)
    @rule(which=st.integers(0, 1), packet=st.sampled_from(sorted(Kind)).flatmap(packets))
    def other_words_to_the_registry(self, which: int, packet: bytes) -> None:
        self.to_registry(which, [packet])

    @precondition(lambda self: self.play.has_registry)
    @rule(
        which=st.integers(0, 1),
        packet=st.sampled_from(sorted(REGISTRY)).flatmap(packets),
        count=st.sampled_from([1, 1, 2, 3, 64, 253]),
    )
    def descriptors_to_the_registry(self, which: int, packet: bytes, count: int) -> None:
        self.to_registry(which, [packet], *[self.play.a_file()] * count)

    @precondition(lambda self: self.play.has_registry)
    @rule(which=st.integers(0, 1), pid=st.sampled_from([1, os.getpid()]))
    def somebody_else_to_the_registry(self, which: int, pid: int) -> None:
        self.to_registry(which, [encode(BackingClose((1,)))], pid=pid)

    @precondition(lambda self: self.play.has_registry)
    @rule(which=st.integers(0, 1), node=st.integers(1, 3))
    def another_file_in_between(self, which: int, node: int) -> None:
        first = encode(Map(node, 8192, True, (Extent(0, 4096, 0),)))
        self.to_registry(which, [first, encode(Map(node + 1, 8192, False, ()))])

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
        and counted.registry >= LEAST_REGISTRY
    )


def test_lines_for_the_log_that_are_too_many(play: Play) -> None:
    """They are dropped, and cost nobody anything."""
    play.begin(1)
    play.advance_to(State.SERVING)
    packet = encode(Log(20, "again"))
    count = ALL.burst - 1000
    for _ in range(count):
        assert play.servers[0].send(packet)
    (told,) = play.ask_statistics(encode(Statistics(0, 0, 0, "copy", (), (), (), ())))
    assert told.counters is not None  # the answer came behind all of the lines
    seconds = 60
    most = RATES[Kind.LOG].burst + seconds * RATES[Kind.LOG].per_second
    assert count - most <= told.dropped_lines < count
    play.unmount()


def test_a_server_that_does_not_listen(play: Play) -> None:
    """The broker asks it for statistics, and does without them."""
    play.begin(1)
    play.advance_to(State.SERVING)
    for _ in range(4):
        play.ask_statistics(None)
    play.unmount()


def test_a_server_that_hangs_up_and_lives_on(play: Play) -> None:
    play.begin(1)
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
    play.begin(1)
    play.advance_to(State.JUDGING)
    play.say(play.servers[0], encode(ready))
    assert not play.running


def test_servers_that_contradict_each_other(play: Play) -> None:
    play.begin(2)
    play.advance_to(State.JUDGING)
    play.say(play.servers[0], encode(Ready("ext4", 0, SIZE, 4096, ())))
    play.say(play.servers[1], encode(Ready("ext4", 0, SIZE, 1024, ())))
    assert not play.running


def test_serving_and_a_violation_in_one_breath(play: Play) -> None:
    """The mount is never attached, not even for a moment."""
    play.begin(1)
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
    play.begin(1)
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


@pytest.fixture
def serving(play: Play) -> Server:
    """A server of a directory, writable, with passthrough."""
    play.begin(1, "passthrough")
    play.advance_to(State.SERVING)
    return play.servers[0]


def test_an_end_that_is_announced(play: Play, serving: Server) -> None:
    """Once it has said goodbye, nothing more may come."""
    serving.send(encode(Ended(EndReason.ASKED)))
    serving.send(encode(Log(20, "one more thing")))
    play.expect_end({End.VIOLATION})


def test_statistics_that_nobody_asked_for(play: Play, serving: Server) -> None:
    play.say(serving, encode(Statistics(0, 0, 0, "copy", (), (), (), ())))
    assert not play.running
