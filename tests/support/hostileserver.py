# SPDX-License-Identifier: Apache-2.0
"""The part of a server, played by a test against the real broker in a process of its own.

:class:`Play` knows what the broker must make of each message: whether it may come, and what comes
of it. It knows by the tables of :mod:`penstock.broker.protocol` and by what docs/broker-protocol.md
says beyond them, not by what the broker does.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import multiprocessing
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from penstock.broker.outcome import End
from penstock.broker.protocol import (
    BECOMES,
    MAX_MESSAGE,
    MAY_SEND,
    VERSION,
    BackingReply,
    Body,
    Hello,
    Image,
    Invalidated,
    Kind,
    Layer,
    Log,
    Message,
    ProtocolError,
    Ready,
    Serve,
    Serving,
    State,
    Statistics,
    Tree,
    Welcome,
    decode,
    encode,
)
from penstock.broker.statistics import ServerStatistics
from penstock.sys.mountinfo import find_mount
from tests.support.brokerhost import Footprint, Plan, Told
from tests.support.hostileregistry import Known, Registry, send_as
from tests.support.requirements import PROJECT

__all__ = ["LAYERS", "SIZE", "Counted", "Host", "Play", "Server"]

SIZE = 1 << 20
"""Bytes of the image."""
LAYERS = (Layer("seccomp", True, "a list"), Layer("landlock", False, "not in this kernel"))
_SECONDS = 20.0
"""For the broker to do what it must."""
_MEMORY = 96 << 10
"""KiB that the broker's process may have at any time."""
_BLOCK_SIZES = {1 << bits for bits in range(9, 21)}


class Counted(NamedTuple):
    """What has been played so far."""

    messages: int = 0
    mounts: int = 0
    attached: int = 0
    violations: int = 0
    registry: int = 0
    """Of the messages, those to the registry."""


class Server:
    """A server as the test plays it, and what the broker must think of it.

    Attributes:
        ready: what it has said of the image.
        asked: GET_STATISTICS that it has not answered.
        serial: of the last one.
        registry: its end of the registry's socket, once it has one.
    """

    def __init__(self, sock: socket.socket, pid: int, broker: int) -> None:
        self.sock = sock
        self.pid = pid
        self.broker = broker
        self.state = State.STARTED
        self.ready: Ready | None = None
        self.asked = 0
        self.serial = 0
        self.registry: Registry | None = None
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_SECONDS), 0))

    def send(self, packet: bytes, fds: Sequence[int] = (), pid: int = 0) -> bool:
        """Send in the name of the server's process, or of another; whether it was taken.

        Raises:
            PermissionError: no descriptors are wanted.
        """
        return send_as(self.sock, pid or self.pid, packet, fds)

    def close(self) -> None:
        """Close its ends."""
        self.sock.close()
        if self.registry is not None:
            self.registry.sock.close()

    def receive(self) -> Message | None:
        """The next message of the broker's; None if there is none."""
        try:
            data, ancillary, _, _ = self.sock.recvmsg(
                MAX_MESSAGE, socket.CMSG_SPACE(4 * 250), socket.MSG_DONTWAIT
            )
        except (BlockingIOError, ConnectionError):
            return None
        fds = array.array("i")
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(rights)
        return decode(data, tuple(fds)) if data else None

    def kill(self, number: int) -> None:
        """Send the process a signal, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def stop_broker(self) -> None:
        """Have the broker see nothing until it is resumed."""
        os.kill(self.broker, signal.SIGSTOP)

    def resume_broker(self) -> None:
        """The contrary."""
        os.kill(self.broker, signal.SIGCONT)


class Host:
    """The process of the broker."""

    def __init__(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.sockets, sockets = socket.socketpair()
        words = [sys.executable, "-c", "from tests.support.brokerhost import main; main()"]
        self.process = subprocess.Popen(
            [*words, str(theirs.fileno()), str(sockets.fileno())],
            pass_fds=[theirs.fileno(), sockets.fileno()],
            cwd=PROJECT,
        )
        theirs.close()
        sockets.close()

    def told(self, seconds: float = _SECONDS) -> Told | None:
        """What it says next; None if it says nothing for so long."""
        if not self.pipe.poll(seconds):
            return None
        told: Told = self.pipe.recv()
        return told

    def start(self, plan: Plan) -> list[Server]:
        """Have a mount begun."""
        self.pipe.send(plan)
        told = self.told()
        assert told is not None
        assert told.what == "started", told
        _, fds, _, _ = socket.recv_fds(self.sockets, 1, plan.servers)
        return [
            Server(socket.socket(fileno=fd), pid, self.process.pid)
            for fd, pid in zip(fds, told.value, strict=True)
        ]

    def close(self) -> None:
        """End it."""
        self.pipe.close()
        self.sockets.close()
        try:
            self.process.wait(_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()


class Play:
    """One mount after the other. A context manager.

    Args:
        place: the mount point.
        image: the image, of :data:`SIZE` bytes.
        tree: the directory.
    """

    def __init__(self, place: Path, image: Path, tree: Path) -> None:
        self.host = Host()
        self.place = place
        self.image = image
        self.tree = tree
        self.known = Known("", 1)
        self.servers: list[Server] = []
        self.files = ""
        self.attached = False
        self.counted = Counted()
        self.heard: list[Message] = []
        self._identity = image.stat()
        self._file = os.open(image.with_name("another"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        self._first: Footprint | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.host.close()
        os.close(self._file)

    @property
    def running(self) -> bool:
        """Whether there is a mount, or one being made."""
        return bool(self.servers)

    @property
    def has_registry(self) -> bool:
        """Whether there is a mount whose servers can register files."""
        return self.running and all(server.registry is not None for server in self.servers)

    def _count(self, **more: int) -> None:
        now = {name: getattr(self.counted, name) + number for name, number in more.items()}
        self.counted = self.counted._replace(**now)

    def a_file(self) -> int:
        """A descriptor that stays open."""
        return self._file

    def begin(self, servers: int, files: str = "") -> None:
        """Begin a mount."""
        self.files = files
        self.attached = False
        plan = Plan(str(self.place), str(self.image), str(self.tree), servers, files)
        self.known = Known(files, servers)
        self.servers = self.host.start(plan)
        self._count(mounts=1)

    def advance_to(self, state: State) -> None:
        """Have every server say what belongs, until all are so far."""
        while any(server.state is not state for server in self.servers):
            for server in self.servers:
                if server.state is not state:
                    self.advance(server)

    def advance(self, server: Server) -> None:
        """Have a server say what belongs now."""
        belongs: dict[State, Body] = {
            State.STARTED: Welcome(VERSION, LAYERS),
            State.JUDGING: Ready("ext4", 0, self.size, 4096, ()),
            State.STARTING: Serving(LAYERS[:1]),
        }
        self.say(server, encode(belongs.get(server.state, Log(20, "nothing new"))))

    @property
    def size(self) -> int:
        """Bytes of the image; 0: it is a directory."""
        return 0 if self.files == "passthrough" else SIZE

    # What comes from the broker

    def hear(self, server: Server) -> None:
        """Take what the broker has sent, and check that it may be so."""
        while (message := server.receive()) is not None:
            self._check(server, message)
            fds = list(message.fds)
            if isinstance(message.body, Serve) and message.body.files:
                server.registry = Registry(socket.socket(fileno=fds.pop()), server.pid)
                self.known.place = server.ready
            if isinstance(message.body, Hello) and fds and self.known.tree < 0:
                self.known.tree = fds.pop()
            for fd in fds:
                os.close(fd)
            self.heard.append(message)
            server.state = BECOMES[server.state].get(message.kind, server.state)

    def _check(self, server: Server, message: Message) -> None:
        """Nothing is handed out but the image, to be read, and the connection."""
        body = message.body
        if isinstance(body, Image):
            assert server.state is State.WELCOMED
            (fd,) = message.fds
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            assert os.path.samestat(os.fstat(fd), self._identity)
        elif isinstance(body, Serve):
            assert server.state is State.READY
            kinds = [os.readlink(f"/proc/self/fd/{fd}") for fd in message.fds]
            workers = body.workers
            assert body.files == self.files
            assert len(kinds) == 3 * workers + bool(body.files)
            assert set(kinds[:workers]) <= {"/dev/fuse", "/fuse"}
            assert all(kind.startswith("pipe:") for kind in kinds[workers : 3 * workers])
            assert all(kind.startswith("socket:") for kind in kinds[3 * workers :])
            assert not self.mounted()
        elif message.kind is Kind.GET_STATISTICS:
            assert server.state is State.SERVING
            server.asked += 1
            server.serial = message.serial
        elif isinstance(body, Hello) and self.files == "passthrough":
            (fd,) = message.fds
            assert os.path.samestat(os.fstat(fd), self.tree.stat())
        elif isinstance(body, Tree):
            assert server.state is State.WELCOMED
            assert self.files == "passthrough"
        else:
            assert isinstance(body, Hello | Invalidated) or message.kind is Kind.STOP
            assert not message.fds

    def mounted(self) -> bool:
        """Whether anything is mounted at the place."""
        return find_mount(str(self.place)) is not None

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Hear the broker out until something is true."""
        deadline = time.monotonic() + _SECONDS
        while True:
            for server in self.servers:
                self.hear(server)
            if done():
                return
            assert time.monotonic() < deadline
            told = self.host.told(0)
            assert told is None, told
            select.select([server.sock for server in self.servers], [], [], 0.05)

    def _all_are(self, state: State) -> bool:
        return {server.state for server in self.servers} == {state}

    # What is said to it

    def say(self, server: Server, packet: bytes, fds: Sequence[int] = (), pid: int = 0) -> None:
        """Say anything, and see that the broker does what it must."""
        self.say_all(server, [packet], fds, pid)

    def say_all(
        self, server: Server, some: Sequence[bytes], fds: Sequence[int] = (), pid: int = 0
    ) -> None:
        """Say several things, one right after the other."""
        for position, packet in enumerate(some):
            self.hear(server)
            self._count(messages=1)
            kind = self._verdict(server, packet, fds, pid)
            try:
                assert server.send(packet, fds, pid)
            except PermissionError:  # the kernel knows that no descriptors are wanted
                assert fds
                continue
            if kind is None:
                for rest in some[position + 1 :]:
                    server.send(rest)
                self.expect_end({End.VIOLATION})
                self._count(violations=1)
            else:
                self._follow(server, kind)
            if server not in self.servers:
                return

    def _verdict(self, server: Server, packet: bytes, fds: Sequence[int], pid: int) -> Kind | None:
        """What kind of message it is; None if it may not come. The server's state is then what it
        leads to."""
        if pid not in {0, server.pid} or len(packet) > MAX_MESSAGE:
            return None
        try:
            message = decode(packet, tuple(fds))
        except ProtocolError:
            return None
        kind = message.kind
        if kind not in MAY_SEND[server.state] or fds:
            return None
        if not self._sensible(server, message.body):
            return None
        server.state = BECOMES[server.state].get(kind, server.state)
        return kind

    def _sensible(self, server: Server, body: object) -> bool:
        if isinstance(body, Welcome):
            return body.version == VERSION
        if isinstance(body, Ready):
            server.ready = body
            inside = 0 < body.length <= SIZE and body.offset + body.length <= SIZE
            if not self.size:
                inside = body.offset == body.length == 0
            return inside and body.block_size in _BLOCK_SIZES
        if isinstance(body, Statistics):
            server.asked -= 1
            return server.asked >= 0
        return True

    def _follow(self, server: Server, kind: Kind) -> None:
        """See what the broker does next, where it must do something."""
        if kind is Kind.FAILED:
            self.expect_end({End.ERROR})
        elif kind is Kind.ENDED:
            self.die(server, signal.SIGTERM)
        elif self._all_are(State.WELCOMED):
            self.wait_for(lambda: self._all_are(State.JUDGING))
        elif self._all_are(State.READY):
            if len({each.ready for each in self.servers}) > 1:
                self.expect_end({End.VIOLATION})
            else:
                self.wait_for(lambda: self._all_are(State.STARTING))
        elif self._all_are(State.SERVING) and not self.attached:
            told = self.host.told()
            assert told is not None
            assert told.what == "attached", told
            assert self.mounted()
            self.attached = True
            self._count(attached=1)

    def ask_statistics(self, packet: bytes | None) -> tuple[ServerStatistics, ...]:
        """Have the broker ask its servers, which answer with this, or not at all."""
        for server in self.servers:
            self.hear(server)
        asked = [server.asked for server in self.servers]
        self.host.pipe.send("statistics")
        if packet is not None:
            self.wait_for(
                lambda: all(
                    server.asked > before
                    for server, before in zip(self.servers, asked, strict=True)
                )
            )
            for server in list(self.servers):
                self.say(server, packet[:4] + struct.pack("<I", server.serial) + packet[8:])
        told = self.host.told()
        assert told is not None
        assert told.what == "answer", told
        servers: tuple[ServerStatistics, ...] = told.value.servers
        assert len(servers) == len(self.servers)
        return servers

    # The registry

    def register(
        self,
        server: Server,
        packets: Sequence[bytes],
        fds: Sequence[int] = (),
        pid: int = 0,
        *,
        may: Iterable[int] = (),
    ) -> BackingReply | None:
        """Say things to the registry, each with these descriptors, and see that it does what it
        must; its last answer, if it has given one and the mount goes on.

        Args:
            may: errnos that may be answered too.
        """
        registry = server.registry
        assert registry is not None
        reply = None
        for packet in packets:
            self._count(messages=1, registry=1)
            verdict = self.known.judge(registry, packet, fds, foreign=pid not in {0, server.pid})
            try:
                taken = registry.send(packet, fds, pid)
            except PermissionError:
                assert fds
                assert self.files == "lens"
                continue
            if verdict is None:
                self.expect_end({End.VIOLATION})
                self._count(violations=1)
                return None
            assert taken
            if verdict.answered:
                reply = registry.answer(_SECONDS)
                self.known.take(verdict, reply, may)
        return reply

    # Ends

    def unmount(self) -> None:
        """Ask the broker to unmount; the servers end as they should."""
        self.host.pipe.send("ask")
        deadline = time.monotonic() + _SECONDS
        while self.mounted():
            assert time.monotonic() < deadline
            select.select([server.sock for server in self.servers], [], [], 0.01)
        for server in self.servers:
            server.kill(signal.SIGKILL)
        self.expect_end({End.CLEAN, End.KILLED})

    def die(self, server: Server, number: int) -> None:
        """The server's process ends."""
        server.kill(number)
        self.expect_end(set(End) - {End.CLEAN, End.VIOLATION, End.HUNG})

    def end(self) -> None:
        """End what runs; should that fail, the next mount is made by a new process.

        Raises:
            AssertionError: the broker does not end as it must.
        """
        try:
            if self.running:
                self.die(self.servers[0], signal.SIGKILL)
        except BaseException:
            self._start_anew()
            raise

    def _start_anew(self) -> None:
        self.host.process.kill()
        for server in self.servers:
            server.kill(signal.SIGKILL)
            server.close()
        self._drop_tree()
        self.servers = []
        self.attached = False
        self.host.close()
        if self.mounted():
            subprocess.run(["umount", "--lazy", self.place], check=True)
        self.host = Host()
        self._first = None

    def _drop_tree(self) -> None:
        if self.known.tree >= 0:
            os.close(self.known.tree)
            self.known.tree = -1

    def expect_end(self, ends: set[End], told: Told | None = None) -> str:
        """The mount has ended, or is not made, for such a reason; nothing is left of it."""
        while told is None or told.what in {"attached", "answer"}:
            told = self.host.told()
            assert told is not None, "the mount does not end"
        for server in self.servers:
            server.close()
        self._drop_tree()
        self.servers = []
        self.attached = False
        assert told.what in {"outcome", "failure"}, told.value
        end, text = self._reason(told)
        assert end in ends, told.value
        assert text
        assert text.isprintable()
        assert not self.mounted()
        self._check_footprint(told.footprint)
        return text

    def _reason(self, told: Told) -> tuple[End, str]:
        if told.what == "outcome":
            end, text = told.value
            return end, text
        text, _, outcome = told.value
        return (outcome.end if outcome is not None else End.ERROR), text

    def _check_footprint(self, footprint: Footprint | None) -> None:
        assert footprint is not None
        assert footprint.children == 0
        assert footprint.kibibytes < _MEMORY
        first = self._first = self._first or footprint
        # Two threads of the last mount's, and what they have to close, may be about to end.
        assert footprint.threads <= first.threads + 2
        assert footprint.descriptors <= first.descriptors + 4
