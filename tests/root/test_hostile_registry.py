# SPDX-License-Identifier: Apache-2.0
"""Servers that ask the registry for what they must not have, or for far too much of it.

What cannot be is an errno, and the mount goes on; what is no question ends it. test_hostile_peer.py
has the two mixed.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.broker.lens import MAX_BYTES, MAX_CHUNKS
from penstock.broker.outcome import End
from penstock.broker.protocol import (
    MAX_EXTENTS,
    REGISTRY,
    BackingClose,
    BackingOpen,
    BackingReply,
    Extent,
    Kind,
    Map,
    State,
    Statistics,
    encode,
)
from tests.support.hostileoffers import elsewhere, opened, pieces, remove_offered
from tests.support.hostileserver import SIZE, Play, Server


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
    play.register(serving, [encode(BackingClose((5,)))])
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
            some.append(encode(BackingClose((draw.randrange(3000),))))
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
    play.register(lens, [encode(BackingClose((1,)))])
    assert map_it(play, most, border, node=999).error == 0
    play.unmount()


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_more_than_the_registry_takes(play: Play, lens: Server, kind: Kind) -> None:
    """Nobody reads its answers either."""
    packets = {
        Kind.BACKING_CLOSE: encode(BackingClose((1,))),
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
