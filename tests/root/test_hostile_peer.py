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

import errno
import itertools
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from penstock.broker.lens import MAX_BYTES, MAX_CHUNKS
from penstock.broker.outcome import End
from penstock.broker.peer import ALL, RATES
from penstock.broker.protocol import (
    MAX_MESSAGE,
    REGISTRY,
    BackingClose,
    BackingOpen,
    BackingReply,
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
from penstock.broker.registrar import MAX_EXTENTS
from tests.support.brokermessages import packets, ruined
from tests.support.hostileserver import LAYERS, SIZE, Counted, Play, Server

LEAST = 20_000
"""Messages that the state machine sends, at the least."""
LEAST_REGISTRY = 300
"""Of those, to the registry; :func:`test_any_extents` sends it more."""
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
    Path(f"/dev/shm/penstock-test-{os.getpid()}").unlink(missing_ok=True)


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


def pieces(node: int, length: int, extents: list[Extent], cuts: list[int]) -> list[bytes]:
    """The messages that register a file, cut where it is said."""
    borders = [0, *sorted(cut for cut in cuts if cut <= len(extents)), len(extents)]
    parts = [tuple(extents[a:b]) for a, b in itertools.pairwise(borders)]
    last = len(parts) - 1
    return [encode(Map(node, length, at < last, part), 7) for at, part in enumerate(parts)]


def opened(flags: int) -> Callable[[Play], int]:
    """Opens a file of the server's directory, as the server can."""
    made = os.O_CREAT * (not flags & os.O_PATH)
    return lambda play: os.open("file", flags | made, 0o600, dir_fd=play.known.tree)


def elsewhere(flags: int, folder: str = "/dev/shm") -> Callable[[Play], int]:
    """Opens a file of another mount; empty: of the very directory, by way of the tree of mounts."""

    def opener(play: Play) -> int:
        path = Path(folder or play.tree) / f"penstock-test-{os.getpid()}"
        path.touch()
        return os.open(path, flags)

    return opener


OFFERED: dict[str, Callable[[Play], int]] = {
    "reads and writes": opened(os.O_RDWR),
    "reads": opened(os.O_RDONLY),
    "writes": opened(os.O_WRONLY),
    "appends": opened(os.O_RDWR | os.O_APPEND),
    "a directory": lambda play: os.open(".", os.O_RDONLY, dir_fd=play.known.tree),
    "a directory's path": lambda play: os.open(".", os.O_PATH, dir_fd=play.known.tree),
    "a path": lambda play: os.open("/proc/self/exe", os.O_PATH),
    "a memory file": lambda play: os.memfd_create("x"),
    "an event": lambda play: os.eventfd(0),
    "a device": lambda play: os.open("/dev/zero", os.O_RDWR),
    "the device of FUSE": lambda play: os.open("/dev/fuse", os.O_RDWR),
}
for _flags in (os.O_RDWR, os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_PATH):
    OFFERED[f"elsewhere, {_flags:#o}"] = elsewhere(_flags)
    OFFERED[f"by another mount, {_flags:#o}"] = elsewhere(_flags, "")


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
        self.to_registry(which, [encode(BackingClose(node), 3) for node in nodes])

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
        self.to_registry(which, [encode(BackingClose(1))], pid=pid)

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


# Backing files, asked for by a server


@pytest.fixture
def serving(play: Play) -> Server:
    """A server of a directory, writable, with passthrough."""
    play.begin(1, "passthrough")
    play.advance_to(State.SERVING)
    return play.servers[0]


@pytest.fixture
def lens(play: Play) -> Server:
    """A server of an image with a lens."""
    play.begin(1, "lens")
    play.advance_to(State.SERVING)
    return play.servers[0]


def ask(play: Play, fd: int, node: int = 5) -> BackingReply:
    """Offer a descriptor, which is closed here; the broker's answer."""
    reply = play.register(play.servers[0], [encode(BackingOpen(node), serial=77)], [fd])
    os.close(fd)
    assert reply is not None
    return reply


def map_it(play: Play, length: int, *extents: Extent, node: int = 5) -> BackingReply:
    """Say where a file lies; the broker's answer."""
    reply = play.register(play.servers[0], pieces(node, length, list(extents), []))
    assert reply is not None
    return reply


def test_a_file_that_the_server_may_write(play: Play, serving: Server, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    first = ask(play, os.open(file, os.O_RDWR))
    assert first.error == 0
    assert first.backing_id > 0
    assert ask(play, os.open(file, os.O_RDWR)) == first
    play.register(serving, [encode(BackingClose(5))])
    again = ask(play, os.open(file, os.O_RDWR))
    assert again.error == 0
    assert again != first


LESS = [os.O_RDONLY, os.O_PATH, os.O_WRONLY, os.O_RDWR | os.O_APPEND]


@pytest.mark.parametrize("folder", ["/dev/shm", ""])
@pytest.mark.parametrize("flags", LESS)
def test_a_file_that_the_server_may_not_write(
    play: Play, serving: Server, flags: int, folder: str
) -> None:
    """Nor may anybody else by way of it, if it is not by its own mount that the server has it."""
    reply = ask(play, elsewhere(flags, folder)(play))
    assert reply.error == errno.EPERM
    assert reply.backing_id == 0
    assert serving.state is State.SERVING


@pytest.mark.parametrize("flags", LESS)
def test_a_file_of_the_servers_directory(play: Play, serving: Server, flags: int) -> None:
    """May be read and written by the server, so nobody gains by whatever else it is opened for."""
    reply = ask(play, opened(flags)(play))
    assert reply.error == (errno.EPERM if flags & os.O_PATH else 0)
    assert serving.state is State.SERVING


def test_what_is_no_file(play: Play, serving: Server, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    ends = os.pipe()
    for fd in (ours.detach(), theirs.detach(), *ends, os.memfd_create("x"), os.eventfd(0)):
        assert ask(play, fd).error
    assert ask(play, os.open(tmp_path, os.O_RDONLY)).error
    assert ask(play, os.open("/dev/fuse", os.O_RDWR)).error
    assert serving.state is State.SERVING


def test_the_servers_own_sockets(play: Play, serving: Server) -> None:
    """A socket that is on its way through itself is found by nobody but the kernel."""
    assert serving.registry is not None
    for _ in range(30):
        assert ask(play, os.dup(serving.sock.fileno())).error
        assert ask(play, os.dup(serving.registry.sock.fileno())).error
    play.unmount()


def any_extents(draw: random.Random) -> list[Extent]:
    """Such as can be, or nearly such."""
    extents = []
    offset = 0
    for _ in range(draw.choice([0, 1, 2, 5, 40])):
        offset += 4096 * draw.choice([0, 0, 1, 300])
        size = 4096 * draw.choice([1, 1, 2, 17, 256])
        address = 4096 * draw.randrange(max(1, (SIZE - size) // 4096))
        extents.append(Extent(offset, size, address))
        offset += size
    if extents and draw.random() < 0.4:
        at = draw.randrange(len(extents))
        field = draw.randrange(3)
        values = list(extents[at])
        values[field] = draw.choice(
            [0, 1, values[field] ^ 512, values[field] ^ 4096, SIZE, 1 << 62, (1 << 64) - 1]
        )
        extents[at] = Extent(*values)
    return extents


def test_any_extents(play: Play, lens: Server) -> None:
    """What can be is a file, what cannot is refused with an errno, thousands of times."""
    draw = random.Random(5)
    before = play.counted.registry
    while play.counted.registry - before < 8_000:
        extents = any_extents(draw)
        end = sum(extents[-1][:2]) if extents else 0
        length = max(0, end + draw.choice([0, 0, -1, -4095, 1, 4096, 1 << 20, 1 << 40, 1 << 61]))
        if length >= 1 << 64:
            continue
        node = draw.randrange(3000)
        some = pieces(node, length, extents, draw.sample(range(41), draw.randrange(3)))
        if draw.random() < 0.3:
            some.append(encode(BackingClose(draw.randrange(3000))))
        play.register(lens, some, may={errno.ENFILE})
    assert play.running
    play.unmount()


def test_extents_without_end(play: Play, lens: Server) -> None:
    """So many as one file may have are taken, and with one more the mount ends."""
    few = tuple(Extent(at * 4096, 4096, 0) for at in range(2048))
    for _ in range(MAX_EXTENTS // 2048):
        play.register(lens, [encode(Map(5, 1 << 30, True, few))])
    assert play.running
    play.register(lens, [encode(Map(5, 1 << 30, True, few[:1]))])
    assert not play.running


def test_chunks_that_are_very_many(play: Play, lens: Server) -> None:
    """Small messages that would be large files of the lens: what they take is bounded."""
    most = MAX_CHUNKS * 4096
    border = Extent(4096, 4096, 4096)
    assert map_it(play, most + 1, border).error == errno.EFBIG
    sizes = []
    for node in range(1, 200):
        reply = play.register(lens, pieces(node, most, [border], []), may={errno.ENFILE})
        assert reply is not None
        sizes.append(reply.error)
    taken = sizes.index(errno.ENFILE)
    assert 16 < taken <= MAX_BYTES // (8 * MAX_CHUNKS)
    assert set(sizes[taken:]) == {errno.ENFILE}
    play.register(lens, [encode(BackingClose(1))])
    assert map_it(play, most, border, node=999).error == 0
    play.unmount()


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_more_than_the_registry_takes(play: Play, lens: Server, kind: Kind) -> None:
    """Nobody reads its answers either."""
    packets = {
        Kind.BACKING_CLOSE: encode(BackingClose(1)),
        Kind.MAP: encode(Map(1, 0, False, ())),
        Kind.BACKING_OPEN: encode(Map(1, 0, True, ())),  # without an end, and without an extent
    }
    assert lens.registry is not None
    for _ in range(2_000_000):
        if not lens.registry.send(packets[kind]):
            break
    else:
        pytest.fail("as much as one likes")
    assert "too often" in play.expect_end({End.VIOLATION})


def test_a_registry_that_is_hung_up(play: Play, lens: Server) -> None:
    """Then no file is registered any more, and that is all."""
    assert lens.registry is not None
    lens.registry.sock.close()
    (told,) = play.ask_statistics(encode(Statistics(0, 0, 0, "lens", (), (), (), ())))
    assert told.counters is not None
    play.unmount()


def test_what_was_refused_to_one_server(play: Play) -> None:
    """Is refused to the other: else a file would be open in two ways, which is EIO."""
    play.begin(2, "lens")
    play.advance_to(State.SERVING)
    good, bad = (pieces(8, 4096, [Extent(0, 4096, at)], []) for at in (0, 1))
    for server, said in ((0, bad), (1, good), (0, good)):
        reply = play.register(play.servers[server], said)
        assert reply is not None
        assert reply.error == errno.EINVAL
    play.unmount()


def test_an_end_that_is_announced(play: Play, serving: Server) -> None:
    """Once it has said goodbye, nothing more may come."""
    serving.send(encode(Ended(EndReason.ASKED)))
    serving.send(encode(Log(20, "one more thing")))
    play.expect_end({End.VIOLATION})


def test_statistics_that_nobody_asked_for(play: Play, serving: Server) -> None:
    play.say(serving, encode(Statistics(0, 0, 0, "copy", (), (), (), ())))
    assert not play.running
