# SPDX-License-Identifier: Apache-2.0
"""The registrar by itself, on a connection that nobody mounts: its thread's rights, its answers to
several servers, and its end."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.abi.capability import Capability
from penstock.abi.fuse import InitFlag
from penstock.broker import registrar as module
from penstock.broker.channel import Channel
from penstock.broker.handshake import answer_init
from penstock.broker.lens import Lens
from penstock.broker.protocol import BackingClose, BackingOpen, BackingReply, Extent, Map, Stop
from penstock.broker.registrar import Registrar
from penstock.negotiate import Limits, Profile, When
from penstock.sys import mount as sysmount
from penstock.sys.devfuse import open_device
from tests.support.commands import wait_for
from tests.support.leaks import loop_devices

SIZE = 1 << 20
PAGE = 4096
NOBODY = 65534


@pytest.fixture
def device() -> Iterator[int]:
    """A connection with passthrough, its INIT answered, mounted nowhere."""
    with contextlib.ExitStack() as stack:
        fd = open_device()
        stack.callback(os.close, fd)
        os.set_blocking(fd, False)
        context = sysmount.fsopen("fuse")
        stack.callback(os.close, context)
        for key, value in (
            ("fd", str(fd)), ("rootmode", f"{stat.S_IFDIR:o}"), ("user_id", "0"), ("group_id", "0"),
        ):  # fmt: skip
            sysmount.fsconfig_string(context, key, value)
        sysmount.fsconfig_create(context)
        profile = Profile(0, has=frozenset({When.PASSTHROUGH}))
        assert answer_init(fd, Limits(max_stack_depth=1), profile).flags & InitFlag.PASSTHROUGH
        yield fd


class Asking:
    """A registrar and the sockets of its servers, all of which are this process.

    Attributes:
        violations: what it has reported.
    """

    def __init__(self, device: int, servers: int, **words: Any) -> None:
        self.violations: list[tuple[int, str]] = []
        self.registrar = Registrar(
            device,
            [os.getpid()] * servers,
            superblock_read_only=False,
            on_violation=lambda *said: self.violations.append(said),
            **words,
        )
        self.channels = []
        for number in range(servers):
            end = socket.socket(fileno=os.dup(self.registrar.theirs(number)))
            end.settimeout(20)
            self.channels.append(Channel(end))
        self.registrar.start()

    def ask(self, body: Any, fds: Sequence[int] = (), server: int = 0) -> BackingReply:
        """Ask something; the answer."""
        self.say(body, fds, server, serial=5)
        message = self.channels[server].receive()
        assert message is not None
        assert message.serial == 5
        assert isinstance(message.body, BackingReply)
        return message.body

    def say(self, body: Any, fds: Sequence[int] = (), server: int = 0, serial: int = 0) -> None:
        """Say something that has no answer."""
        self.channels[server].send(body, fds, serial)

    def close(self) -> None:
        self.registrar.close()
        for channel in self.channels:
            channel.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def asking(device: int) -> Iterator[Callable[..., Asking]]:
    """Makes registrars that are closed afterwards."""
    made: list[Asking] = []

    def make(servers: int = 1, **words: Any) -> Asking:
        made.append(Asking(device, servers, **words))
        return made[-1]

    yield make
    for each in made:
        each.close()


def a_lens(image: Path) -> Lens:
    with image.open("rb") as file:
        return Lens(file.fileno(), 0, SIZE, PAGE)


def a_map(node: int, *addresses: int, more: bool = False) -> Map:
    """A file of pages at these addresses."""
    extents = tuple(Extent(at * PAGE, PAGE, where) for at, where in enumerate(addresses))
    return Map(node, len(addresses) * PAGE, more, extents)


def rights(name: str) -> tuple[int, int, int, int]:
    """Of a thread of this process: fsuid, fsgid, effective and permitted capabilities."""
    for task in Path("/proc/self/task").iterdir():
        lines = (task / "status").read_text(encoding="utf-8").splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if status["Name"] == name:
            return (
                int(status["Uid"].split()[3]), int(status["Gid"].split()[3]),
                int(status["CapEff"], 16), int(status["CapPrm"], 16),
            )  # fmt: skip
    raise AssertionError(f"there is no thread {name}")


@pytest.mark.parametrize("through_lens", [False, True])
def test_rights_of_the_thread(
    asking: Callable[..., Asking], image: Path, through_lens: bool
) -> None:
    """Nobody's, and the one right that registering takes; opening the lens's files takes another.
    No other thread has lost anything."""
    made = asking(lens=a_lens(image) if through_lens else None)
    made.ask(a_map(1, 0))
    wanted = 1 << Capability.SYS_ADMIN
    if through_lens:
        wanted |= 1 << Capability.DAC_READ_SEARCH
    assert rights("registrar") == (NOBODY, NOBODY, wanted, wanted)
    status = Path("/proc/thread-self/status").read_text(encoding="utf-8")
    assert "CapEff:\t0000000000000000" not in status
    assert f"{NOBODY}" not in next(line for line in status.splitlines() if line[:4] == "Uid:")


def test_one_inode_has_one_number(asking: Callable[..., Asking], tmp_path: Path) -> None:
    """Whichever server asks, and with whatever file."""
    made = asking(servers=3)
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    with open(tmp_path / "a", "r+b") as a, open(tmp_path / "b", "r+b") as b:
        first = made.ask(BackingOpen(1), [a.fileno()])
        assert first.error == 0
        assert made.ask(BackingOpen(1), [b.fileno()], server=1) == first
        other = made.ask(BackingOpen(2), [b.fileno()], server=2)
        assert other.error == 0
        assert other != first
        assert made.registrar.statistics().registered == 2
        made.say(BackingClose((1,)), server=2)
        assert made.ask(BackingOpen(1), [b.fileno()], server=2).backing_id not in {
            0, other.backing_id,
        }  # fmt: skip


def test_pieces_of_several_servers(asking: Callable[..., Asking], image: Path) -> None:
    """Come between each other and are kept apart."""
    made = asking(servers=2, lens=a_lens(image))
    made.say(a_map(1, 0, PAGE, more=True), server=0)
    made.say(a_map(2, 5 * PAGE, more=True), server=1)
    made.say(Map(1, 4 * PAGE, True, (Extent(2 * PAGE, PAGE, 0),)), server=0)
    first = made.ask(Map(1, 4 * PAGE, False, ()), server=0)
    second = made.ask(Map(2, PAGE, False, ()), server=1)
    assert (first.error, second.error) == (0, 0)
    assert first.backing_id != second.backing_id
    assert made.ask(a_map(1, 0), server=1) == first


@pytest.mark.parametrize("servers", [1, 2])
def test_refused_once(
    asking: Callable[..., Asking], image: Path, monkeypatch: pytest.MonkeyPatch, servers: int
) -> None:
    """With several servers for good, whatever the reason was; with one until it asks again."""
    made = asking(servers=servers, lens=a_lens(image))
    put = Lens.put

    def no_memory(*_: Any) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(Lens, "put", no_memory)
    assert made.ask(a_map(1, 0)).error == errno.ENOMEM
    monkeypatch.setattr(Lens, "put", put)
    later = errno.ENOMEM if servers > 1 else 0
    assert made.ask(a_map(1, 0), server=servers - 1).error == later
    assert made.ask(a_map(2, 0), server=servers - 1).error == 0
    assert made.ask(a_map(1, 0)).error == later


def test_so_many_refusals_that_they_cannot_be_kept(
    asking: Callable[..., Asking], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing new is taken, since it may be one of them; what is known stays known."""
    monkeypatch.setattr(module, "MAX_REFUSED", 10)
    made = asking(servers=2, lens=a_lens(image))
    known = made.ask(a_map(99, 0))
    for node in range(1, 31):
        expected = errno.EINVAL if node <= 10 else errno.ENFILE
        assert made.ask(a_map(node, 1)).error == expected
    assert made.ask(a_map(50, 0)).error == errno.ENFILE
    assert made.ask(a_map(99, 0), server=1) == known


def test_what_fails_leaves_no_room_taken(
    asking: Callable[..., Asking], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the kernel does not take is gone from the lens."""
    lens = a_lens(image)
    made = asking(lens=lens)

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOMEM, "no memory")

    assert made.ask(a_map(1, 0)).error == 0
    used = lens._used
    backings = made.registrar._backings
    monkeypatch.setattr(backings, "add", refuse)
    before = set(os.listdir("/proc/self/fd"))
    for node in range(2, 50):
        assert made.ask(a_map(node, 0, PAGE)).error == errno.ENOMEM
    assert lens._used == used
    assert set(os.listdir("/proc/self/fd")) == before


def test_room_is_given_back(asking: Callable[..., Asking], image: Path) -> None:
    """By a thread that has nobody's rights, soon after a file was given up."""
    lens = a_lens(image)
    made = asking(lens=lens)
    wide = tuple(range(0, 100 * PAGE, PAGE))
    for node in range(1, 400):
        assert made.ask(a_map(node, *wide)).error == 0
        made.say(BackingClose((node,)))

    def drained() -> bool:
        """The kernel lets go of them a little later, and files that follow find out."""
        assert made.ask(a_map(400, 0)).error == 0
        made.say(BackingClose((400,)))
        return len(lens._leaving) < 20

    wait_for(drained, "room for others")
    assert lens._used < 20 * 1000


def test_without_the_rights(
    asking: Callable[..., Asking], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers each request with the reason, and closes what comes."""

    def cannot(*_: Any) -> None:
        raise OSError(errno.EPERM, "no rights")

    monkeypatch.setattr(module, "become_nobody", cannot)
    made = asking()
    for _ in range(5):
        with image.open("r+b") as file:
            assert made.ask(BackingOpen(1), [file.fileno()]).error == errno.EPERM
    assert made.ask(a_map(1, 0)).error == errno.EPERM
    assert made.registrar.statistics().registered == 0


def test_a_server_that_goes_hurts_no_other(asking: Callable[..., Asking], image: Path) -> None:
    made = asking(servers=2, lens=a_lens(image))
    made.channels[0].close()
    assert made.ask(a_map(1, 0), server=1).error == 0
    assert made.violations == []


def test_a_violation_is_reported_once(asking: Callable[..., Asking], image: Path) -> None:
    """And nobody listens to that server any more; others go on."""
    made = asking(servers=2, lens=a_lens(image))
    for _ in range(3):
        made.say(Stop())
    wait_for(lambda: made.violations, "a violation")
    assert made.ask(a_map(1, 0), server=1).error == 0
    assert made.violations == [(0, "STOP to the registry")]


def test_its_end(asking: Callable[..., Asking], image: Path) -> None:
    """The thread has ended, and the lens with it; twice does no harm."""
    made = asking(lens=a_lens(image))
    made.ask(a_map(1, 0))
    made.registrar.close()
    made.registrar.close()
    assert not [each for each in threading.enumerate() if each.name == "registrar"]
    assert made.channels[0].receive() is None
    assert not list(loop_devices([str(image.parent)]))


def test_its_end_before_it_was_started(device: int, image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    registrar = Registrar(
        device, [1, 2], superblock_read_only=True, lens=a_lens(image), on_violation=print
    )
    registrar.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_nobody_waits_for_a_registrar_that_failed(
    asking: Callable[..., Asking], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its servers hear of the end at once, and read from then on."""

    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Registrar, "_carry_out", fail)
    made = asking(servers=2)
    made.say(BackingClose((1,)))
    assert [channel.receive() for channel in made.channels] == [None, None]
