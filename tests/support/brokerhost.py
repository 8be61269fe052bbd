# SPDX-License-Identifier: Apache-2.0
"""A process in which the real broker makes real mounts, while a test plays their servers.

Started by :class:`tests.support.hostileserver.Host` with a pipe and a socket. For each mount the
test sends a :class:`Plan` and gets a socket for each server; what the broker thinks is the server's
process only sleeps. Then it may send words (``statistics``, ``ask``), and gets :class:`Told` until
the end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from penstock.broker.channel import Channel
from penstock.broker.launch import Launched
from penstock.broker.mount import Broker
from penstock.broker.options import Containment, MountOptions, Source
from penstock.broker.outcome import ServerFailure
from penstock.cli.trees import opened_tree
from penstock.negotiate import image_profile

__all__ = ["Footprint", "Plan", "Told"]

_SECONDS = 240.0


class Plan(NamedTuple):
    """A mount.

    Attributes:
        place: the mount point.
        image: the file that the servers are given.
        tree: the directory that they are given in its place, if files are passed through.
        servers: how many there are.
        files: what carries whole files: ``lens``, ``passthrough``, or empty: nothing does.
    """

    place: str
    image: str
    tree: str
    servers: int
    files: str


class Footprint(NamedTuple):
    """What the broker's process has."""

    descriptors: int
    threads: int
    children: int
    kibibytes: int
    """Of memory, at the most so far."""


class Told(NamedTuple):
    """Something the host says.

    Attributes:
        what: ``started`` (the processes' numbers), ``attached``, ``answer`` (to a word),
            ``outcome`` (the mount has ended, and how), ``failure`` (it was not made), ``crash``.
        value: belongs to it.
        footprint: at the end.
    """

    what: str
    value: Any
    footprint: Footprint | None = None


class _Lines(logging.Handler):
    """Counts the lines of the log, and keeps those that are not in order."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.count = 0
        self.odd: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line; none has what does not print."""
        self.count += 1
        text = record.getMessage()
        if not text.isprintable() or record.exc_info:
            self.odd.append(repr(text))


def footprint() -> Footprint:
    """What this process has now."""
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    )
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return Footprint(
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        len(children.split()),
        int(fields["VmHWM"].split()[0]),
    )


class _Host:
    def __init__(self, pipe: Connection[Any, Any], sockets: socket.socket) -> None:
        self.pipe = pipe
        self.sockets = sockets
        self.lock = threading.Lock()
        self.lines = _Lines()
        self.broker: Broker | None = None
        log = logging.getLogger("penstock")
        log.setLevel(logging.DEBUG)
        log.addHandler(self.lines)

    def tell(self, *told: Any) -> None:
        with self.lock:
            self.pipe.send(Told(*told))

    def server(self, plan: Plan, undo: contextlib.ExitStack) -> tuple[Launched, socket.socket]:
        """A process that sleeps, and the two ends of its socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
        pid = os.posix_spawn("/bin/sleep", ["sleep", "200"], {})
        channel = Channel(ours, sender=pid)
        undo.callback(theirs.close)
        return Launched(pid, os.pidfd_open(pid), channel), theirs

    def run(self, plan: Plan) -> Told:
        """One mount, from beginning to end."""
        try:
            with contextlib.ExitStack() as undo:
                servers = [self.server(plan, undo) for _ in range(plan.servers)]
                socket.send_fds(self.sockets, [b"x"], [end.fileno() for _, end in servers])
                self.tell("started", [launched.pid for launched, _ in servers])
                undo.close()
                told = self.mount(plan, [launched for launched, _ in servers])
        except Exception:  # noqa: BLE001 - the test is to see it
            return Told("crash", traceback.format_exc())
        finally:
            self.broker = None
        if self.lines.odd:
            return Told("crash", f"in the log: {self.lines.odd}")
        return told

    def mount(self, plan: Plan, servers: list[Launched]) -> Told:
        is_tree = plan.files == "passthrough"
        options = MountOptions(
            read_only=not is_tree, workers=2, datapath="auto" if plan.files else "copy"
        )
        try:
            with contextlib.ExitStack() as opened:
                if is_tree:
                    fd = opened.enter_context(opened_tree(plan.tree, read_only=False))
                else:
                    fd = os.open(plan.image, os.O_RDONLY | os.O_CLOEXEC)
                    opened.callback(os.close, fd)
                size, tree = (None, fd) if is_tree else (os.fstat(fd).st_size, None)
                broker = opened.enter_context(
                    Broker(plan.place, options, image_profile(), servers, Containment(), tree)
                )
                self.broker = broker
                broker.judge(Source(fd, size, "ext4"))
                broker.mount()
                self.tell("attached", None)
                return Told("outcome", broker.wait())
        except ServerFailure as failure:
            return Told("failure", (str(failure), failure.code, failure.outcome))

    def obey(self, word: str) -> None:
        broker = self.broker
        if broker is None:
            return
        if word == "ask":
            broker.ask()
        else:
            self.tell("answer", broker.statistics(0.5))


def main() -> None:
    """Make mounts until the other end is closed."""
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    host = _Host(pipe, socket.socket(fileno=int(sys.argv[2])))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    running: threading.Thread | None = None

    def run(plan: Plan) -> None:
        told = host.run(plan)
        host.tell(told.what, told.value, footprint())

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            word = pipe.recv()
            if isinstance(word, Plan):
                if running is not None:
                    running.join()
                running = threading.Thread(target=run, args=(word,))
                running.start()
            else:
                host.obey(word)
