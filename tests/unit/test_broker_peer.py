# SPDX-License-Identifier: Apache-2.0
"""The broker's view of a server: what may come when, how often, and what it may say."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import types
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.broker import peer as module
from penstock.broker.channel import Channel
from penstock.broker.launch import Launched
from penstock.broker.outcome import End
from penstock.broker.peer import ALL, RATES, Peer
from penstock.broker.protocol import (
    BECOMES,
    MAY_SEND,
    REGISTRY,
    BackingClose,
    BackingOpen,
    Description,
    Ended,
    EndReason,
    Failed,
    FailureCode,
    GetStatistics,
    Hello,
    Image,
    Invalidate,
    Kind,
    Layer,
    Log,
    Map,
    Message,
    ProtocolError,
    Purpose,
    Read,
    Ready,
    Serve,
    Serving,
    State,
    Statistics,
    Tree,
    Verdict,
    Welcome,
)

SIZE = 1 << 20
GOOD: dict[Kind, Any] = {
    Kind.WELCOME: Welcome(1, ()),
    Kind.READY: Ready("ext4", 0, SIZE, 4096, ()),
    Kind.FAILED: Failed(FailureCode.IMAGE, "damaged"),
    Kind.DESCRIPTION: Description(False, "{}"),
    Kind.SERVING: Serving(()),
    Kind.LOG: Log(20, "a line"),
    Kind.VERDICT: Verdict("damaged"),
    Kind.STATISTICS: Statistics(0, 0, 0, "copy", (), (), (), ()),
    Kind.BACKING_OPEN: BackingOpen(1),
    Kind.BACKING_CLOSE: BackingClose((1,)),
    Kind.MAP: Map(1, 4096, False, ()),
    Kind.INVALIDATE: Invalidate(1, 0, 0),
    Kind.ENDED: Ended(EndReason.ASKED),
}
HELLO = Hello(1, 1, Purpose.MOUNT, 0, 1)
IMAGE = Image(SIZE, "", ())
SERVE = Serve(31, 0, 4096, 32, 0, 1, 1, "auto", "auto", "", ())


class Playing:
    """A peer, the socket behind it, and the clock that it goes by."""

    def __init__(self, process: subprocess.Popen[bytes], *, chatty: bool = False) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.discarded: list[int] = []
        channel = Channel(ours, max_fds=1, discard=self.discarded.append)
        pidfd = os.pidfd_open(process.pid)
        self.process = process
        self.peer = Peer(Launched(process.pid, pidfd, channel), chatty=chatty)
        self.now = 1000.0

    def take(self, body: Any, *fds: int) -> bool:
        return self.peer.take(Message(0, body, fds))

    def bring_to(self, state: State) -> None:
        """By what leads there."""
        purpose = Purpose.DESCRIBE if state is State.DESCRIBING else Purpose.MOUNT
        self.peer.send(HELLO._replace(purpose=purpose))
        way: dict[State, tuple[Any, ...]] = {
            State.STARTED: (),
            State.WELCOMED: (Kind.WELCOME,),
            State.JUDGING: (Kind.WELCOME, IMAGE),
            State.DESCRIBING: (Kind.WELCOME, IMAGE),
            State.READY: (Kind.WELCOME, IMAGE, Kind.READY),
            State.STARTING: (Kind.WELCOME, IMAGE, Kind.READY, SERVE),
            State.SERVING: (Kind.WELCOME, IMAGE, Kind.READY, SERVE, Kind.SERVING),
            State.READING: (Kind.WELCOME, IMAGE, Kind.READY, Read()),
            State.ENDED: (Kind.FAILED,),
        }
        for step in way[state]:
            if isinstance(step, Kind):
                self.take(GOOD[step])
            else:
                self.peer.send(step)
        assert self.peer.state is state


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Sleeps until the peer or this ends it."""
    with subprocess.Popen(["sleep", "100"]) as sleeping:
        yield sleeping
        sleeping.kill()


@pytest.fixture
def play(process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Playing]:
    playing = Playing(process)
    clock = types.SimpleNamespace(monotonic=lambda: playing.now)
    monkeypatch.setattr(module, "time", clock)
    playing.peer = Peer(Launched(process.pid, playing.peer.pidfd, playing.peer.channel))
    yield playing
    playing.peer.close()
    playing.theirs.close()


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("kind", list(GOOD))
def test_what_may_come_when(play: Playing, state: State, kind: Kind) -> None:
    play.bring_to(state)
    fds = (77,) if kind is Kind.BACKING_OPEN else ()
    if state is State.SERVING and kind is Kind.STATISTICS:
        play.peer.send(GetStatistics())
    if kind in MAY_SEND[state]:
        assert play.take(GOOD[kind], *fds)
        assert play.peer.state is BECOMES[state].get(kind, state)
        assert not play.discarded
    else:
        with pytest.raises(ProtocolError, match=f"{kind.name} from a server that is {state.value}"):
            play.take(GOOD[kind], *fds)
        assert play.peer.state is state
        assert play.discarded == list(fds)


def fill(peer: Peer) -> None:
    while True:
        peer.send(GetStatistics())


def test_no_state_changes_when_a_message_is_not_taken(play: Playing) -> None:
    """A server that does not read does not get further by it."""
    play.bring_to(State.WELCOMED)
    with pytest.raises(BlockingIOError):
        fill(play.peer)
    with pytest.raises(BlockingIOError):
        play.peer.send(IMAGE)
    assert play.peer.state is State.WELCOMED
    assert play.peer.image_size == 0


@pytest.mark.parametrize(
    ("offset", "length", "right"),
    [
        (0, SIZE, True),
        (SIZE - 1, 1, True),
        (4096, SIZE - 4096, True),
        (0, 0, False),
        (0, SIZE + 1, False),
        (1, SIZE, False),
        (SIZE, 1, False),
        ((1 << 64) - 1, 1, False),
        (0, (1 << 64) - 1, False),
        ((1 << 64) - 1, (1 << 64) - 1, False),
    ],
)
def test_the_filesystem_lies_in_the_image(
    play: Playing, offset: int, length: int, right: bool
) -> None:
    play.bring_to(State.JUDGING)
    ready = Ready("ext4", offset, length, 4096, ())
    if right:
        play.take(ready)
        assert play.peer.ready == ready
    else:
        with pytest.raises(ProtocolError, match="of an image of"):
            play.take(ready)
        assert play.peer.ready is None


@pytest.mark.parametrize(
    ("offset", "length", "right"), [(0, 0, True), (1, 0, False), (0, 1, False), (0, SIZE, False)]
)
def test_a_directory_is_no_place_in_an_image(
    play: Playing, offset: int, length: int, right: bool
) -> None:
    play.bring_to(State.WELCOMED)
    play.peer.send(Tree("mirror", ()))
    assert play.peer.state is State.JUDGING
    ready = Ready("mirror", offset, length, 4096, ())
    if right:
        assert play.take(ready)
        return
    with pytest.raises(ProtocolError, match="a directory"):
        play.take(ready)
    assert play.peer.ready is None


@pytest.mark.parametrize("size", [512, 1024, 4096, 1 << 16, 1 << 20])
def test_sizes_of_blocks(play: Playing, size: int) -> None:
    play.bring_to(State.JUDGING)
    assert play.take(Ready("ext4", 0, SIZE, size, ()))


@pytest.mark.parametrize("size", [0, 1, 256, 511, 513, 4095, 12288, 1 << 21, 1 << 31])
def test_what_no_block_is_as_large_as(play: Playing, size: int) -> None:
    play.bring_to(State.JUDGING)
    with pytest.raises(ProtocolError, match=f"blocks of {size} bytes"):
        play.take(Ready("ext4", 0, SIZE, size, ()))


@pytest.mark.parametrize("version", [0, 2, 0xFFFF])
def test_versions_that_nobody_speaks(play: Playing, version: int) -> None:
    play.peer.send(HELLO)
    with pytest.raises(ProtocolError, match=f"version {version}"):
        play.take(Welcome(version, ()))


def test_layers_can_only_get_worse(play: Playing) -> None:
    play.peer.send(HELLO)
    play.take(Welcome(1, (Layer("a", True, "x"), Layer("b", False, "none"), Layer("c", True, "y"))))
    play.peer.send(IMAGE)
    play.take(GOOD[Kind.READY])
    play.peer.send(SERVE)
    later = (Layer("a", False, "lost"), Layer("b", True, "now"), Layer("c", True, "more"))
    play.take(Serving((*later, Layer("d", True, "invented"))))
    assert play.peer.layers == {
        "a": Layer("a", False, "lost"),
        "b": Layer("b", False, "none"),
        "c": Layer("c", True, "more"),
    }


def test_a_failure_has_a_reason(play: Playing) -> None:
    play.take(Failed(FailureCode.IMAGE, "  "))
    assert play.peer.failed == Failed(FailureCode.IMAGE, "the server does not say why")


def test_answers_that_were_asked_for(play: Playing) -> None:
    play.bring_to(State.SERVING)
    for _ in range(3):
        play.peer.send(GetStatistics())
    for _ in range(3):
        assert play.take(GOOD[Kind.STATISTICS])
    with pytest.raises(ProtocolError, match="nobody asked for"):
        play.take(GOOD[Kind.STATISTICS])


# Rates


def test_lines_that_are_too_many_are_dropped(play: Playing) -> None:
    rate = RATES[Kind.LOG]
    taken = [play.take(GOOD[Kind.LOG]) for _ in range(rate.burst + 10)]
    assert taken == [True] * rate.burst + [False] * 10
    assert play.peer.dropped == 10
    play.now += 2.5 / rate.per_second
    assert [play.take(GOOD[Kind.LOG]) for _ in range(3)] == [True, True, False]


def test_lines_where_all_are_wanted(process: subprocess.Popen[bytes], play: Playing) -> None:
    peer = Peer(Launched(process.pid, play.peer.pidfd, play.peer.channel), chatty=True)
    for _ in range(ALL.burst + 10):
        assert peer.take(Message(0, GOOD[Kind.LOG]))
    assert peer.dropped == 0


def test_more_than_any_server_has_to_say(play: Playing) -> None:
    """Whatever it is, lines that are dropped included."""
    for _ in range(ALL.burst):
        play.take(GOOD[Kind.LOG])
    with pytest.raises(ProtocolError, match="too often"):
        play.take(GOOD[Kind.LOG])
    play.now += 1.0
    for _ in range(int(ALL.per_second)):
        play.take(GOOD[Kind.LOG])
    with pytest.raises(ProtocolError, match="too often"):
        play.take(GOOD[Kind.LOG])


@pytest.mark.parametrize("kind", sorted(set(RATES) - {Kind.LOG}))
def test_each_kind_has_its_rate(play: Playing, kind: Kind) -> None:
    play.bring_to(State.SERVING)
    for _ in range(RATES[kind].burst):
        if kind is Kind.STATISTICS:
            play.peer.send(GetStatistics())
            play.theirs.recv(100)
        assert play.take(GOOD[kind])
    if kind is Kind.STATISTICS:
        play.peer.send(GetStatistics())
    with pytest.raises(ProtocolError, match=f"{kind.name} comes too often"):
        play.take(GOOD[kind])


def test_what_has_no_rate_of_its_own_comes_once(play: Playing) -> None:
    """Any other kind leads to a state in which it may not come again, or ends with the image."""
    for kind in set(GOOD) - set(RATES) - REGISTRY - {Kind.DESCRIPTION, Kind.VERDICT}:
        for state, kinds in MAY_SEND.items():
            if kind in kinds:
                after = BECOMES[state][kind]
                assert kind not in MAY_SEND[after]


# The process


def test_a_process_that_lives(play: Playing) -> None:
    assert play.peer.reap() is False
    assert play.peer.exit_status is None


def test_a_process_that_was_killed(play: Playing) -> None:
    play.peer.kill()
    assert play.peer.reap(seconds=20)
    assert play.peer.exit_status == -signal.SIGKILL
    outcome = play.peer.outcome(oom_killed=False)
    assert outcome is not None
    assert outcome.end is End.KILLED
    play.peer.kill()  # no other process that has its number by then
    play.process.returncode = play.peer.exit_status


def test_a_goodbye_counts_if_the_process_ends_well(play: Playing) -> None:
    play.bring_to(State.SERVING)
    play.take(GOOD[Kind.ENDED])
    play.peer.exit_status = 0
    assert play.peer.outcome(oom_killed=False) is None
    play.peer.exit_status = -signal.SIGSEGV
    outcome = play.peer.outcome(oom_killed=False)
    assert outcome is not None
    assert outcome.end is End.CRASHED
    play.peer.exit_status = None


def test_closing_ends_all_of_it(play: Playing) -> None:
    pidfd = play.peer.pidfd
    play.peer.close()
    play.process.returncode = play.peer.exit_status
    assert play.peer.exit_status == -signal.SIGKILL
    with pytest.raises(OSError) as caught:
        os.fstat(pidfd)
    assert caught.value.errno == errno.EBADF
    assert play.theirs.recv(100) == b""
    play.peer.close()
