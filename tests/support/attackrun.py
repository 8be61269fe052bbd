# SPDX-License-Identifier: Apache-2.0
"""Carrying attempts out on a host, and judging what became of them."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, NoReturn
from unittest import mock

from penstock.abi.process import NOBODY
from penstock.broker import launch
from penstock.sys.capabilities import set_dumpable
from penstock.sys.spawn import Spawned, spawn
from tests.support.attackhost import Host, Place
from tests.support.attacks import Attempt
from tests.support.requirements import PROJECT

__all__ = ["BROKER", "Outcome", "Result", "Run", "carry_out"]

BROKER: Final = "broker"
"""Not a layer of the sandbox: what a server is handed is what a broker hands out."""

_SECONDS: Final = 20.0
_AT_ONCE: Final = 4
_STOPPING: Final = {-signal.SIGSYS, -signal.SIGKILL, -signal.SIGXFSZ, -signal.SIGXCPU}


class Outcome(enum.Enum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    BROKEN = "broken"
    """In a way that no layer explains: a mistake in the attempt, in a layer or in here."""


class Result(NamedTuple):
    """What became of an attempt."""

    outcome: Outcome
    detail: str
    missing: dict[str, str]
    """Layers that should have been closed and are not in force, with the reason."""
    errno: int = 0
    """Of the error that stopped it."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One attempt under some layers.

    Attributes:
        attempt: which.
        layers: those of the sandbox, and :data:`BROKER`.
        exact: in a process that was started and has closed its sandbox as servers do; else in a
            child of one that has not closed any.
        threads: whether no more threads can be started either, as when serving has begun.
        ordinary: whether an ordinary user is the one who mounts, and whose secrets are sought.
    """

    attempt: Attempt
    layers: frozenset[str] = frozenset()
    exact: bool = False
    threads: bool = False
    ordinary: bool = False

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether an ordinary user's process must carry it out, one born into namespaces."""
        return self.ordinary, "namespaces" in self.layers

    @property
    def title(self) -> str:
        """For messages."""
        words = "+".join(sorted(self.layers)) or "no layer"
        return f"{self.attempt.name} ({words}{', threads closed' if self.threads else ''})"


def carry_out(host: Host, runs: Iterable[Run]) -> Iterator[tuple[Run, Result]]:
    """Carry attempts out, a few at once; results come as they are there."""
    waiting = sorted(runs, key=lambda run: (run.exact, run.kind), reverse=True)
    idle: list[_Attacker] = []
    busy: list[_Attack] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < _AT_ONCE:
                busy.append(_Attack(host, waiting[-1], _attacker(idle, waiting.pop())))
            for attack in _wait(busy):
                busy.remove(attack)
                result = attack.finish()
                if attack.attacker.alive and not attack.run.exact:
                    idle.append(attack.attacker)
                else:
                    attack.attacker.end()
                yield attack.run, result
    finally:
        for attacker in idle:
            attacker.end()


def _wait(busy: list[_Attack]) -> list[_Attack]:
    """Those that have ended, or have taken too long."""
    poller = select.poll()
    for attack in busy:
        poller.register(attack.attacker.sock, select.POLLIN)
    poller.poll(500)
    return [attack for attack in busy if attack.has_ended()]


class _Attacker:
    """A process that carries attempts out, started by this one."""

    def __init__(self, kind: tuple[bool, bool]) -> None:
        self.kind = kind
        self.alive = True
        self.broker = os.getpid()
        self._code = 0
        self._start()

    def _start(self) -> None:
        with mock.patch.object(launch, "_program", _program), contextlib.ExitStack() as stack:
            if not self.kind[1]:
                stack.enter_context(mock.patch.object(launch, "_start", _start_here))
            self.pid, self.pidfd, channel, _ = launch.launch()
        self.sock = channel.sock

    def end(self) -> None:
        """Make sure of its end."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.status()

    def status(self) -> int:
        """Its exit status, waited for."""
        if self.alive:
            self.alive = False
            self._code = self._wait()
            os.close(self.pidfd)
            self.sock.close()
        return self._code

    def _wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


class _AttackerOfAnother(_Attacker):
    """One that was started by a broker of an ordinary user: a child of this process."""

    def _start(self) -> None:
        self._ours, theirs = socket.socketpair()
        self.broker = os.fork()
        if self.broker == 0:
            self._be_broker(theirs)
        theirs.close()
        number, fds, _, _ = socket.recv_fds(self._ours, 64, 2)
        self.pid = int(number)
        self.pidfd, sock = fds
        self.sock = socket.socket(fileno=sock)
        self.sock.setblocking(False)

    def _be_broker(self, theirs: socket.socket) -> NoReturn:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            set_dumpable(dumpable=True)  # as a process that such a user has executed
            super()._start()
            fds = [self.pidfd, self.sock.fileno()]
            socket.send_fds(theirs, [str(self.pid).encode()], fds)
            self.sock.close()
            theirs.send(str(self._wait()).encode())
        finally:
            os._exit(0)

    def _wait(self) -> int:
        if self.broker == 0:  # in the broker itself
            return super()._wait()
        status = int(self._ours.recv(64))
        self._ours.close()
        os.waitpid(self.broker, 0)
        return status


def _attacker(idle: list[_Attacker], run: Run) -> _Attacker:
    """An idle one of the right kind, or a new one."""
    if not run.exact:
        for attacker in idle:
            if attacker.kind == run.kind:
                idle.remove(attacker)
                return attacker
    return (_AttackerOfAnother if run.ordinary else _Attacker)(run.kind)


_server_program = launch._program


def _program(kind: launch.ServerKind = launch.ServerKind.IMAGE) -> list[str]:
    """The command line of a server, but for what it runs."""
    words = _server_program(kind)
    place = next(at for at, word in enumerate(words) if word.endswith("/__main__.py"))
    outside = words[place + 2]
    start = (
        f"import sys; sys.path += {[str(PROJECT / 'src'), str(PROJECT)]!r}; "
        "from tests.support.attackprogram import main; main(sys.argv[1])"
    )
    return [*words[:place], "-c", start, outside]


def _start_here(fds: list[int], kind: launch.ServerKind) -> Spawned:
    """As the launcher does where no namespace can be made."""
    return spawn(_program(kind), fds=fds)


class _Attack:
    """One attempt on its way."""

    def __init__(self, host: Host, run: Run, attacker: _Attacker) -> None:
        self.run = run
        self.attacker = attacker
        self._deadline = time.monotonic() + _SECONDS
        self._said: dict[str, Any] = {}
        self._late = False
        by_broker = BROKER in run.layers or BROKER not in run.attempt.stopped_by
        self._place: Place = host.place(
            run.attempt.needs,
            broker=attacker.broker,
            owner=NOBODY if run.ordinary else 0,
            by_broker=by_broker,
        )
        sock = attacker.sock
        layers = sorted(run.layers - {BROKER})
        order = {"layers": layers, "threads": run.threads, "fork": not run.exact}
        sock.send(json.dumps(order).encode())
        needs = run.attempt.needs
        task = {
            "attempt": run.attempt.name,
            "has": [True, "fuse" in needs, "loop" in needs, True, True],
            "facts": self._place.facts._asdict(),
        }
        socket.send_fds(sock, [json.dumps(task).encode()], self._place.fds)

    def has_ended(self) -> bool:
        """Whether there is nothing more to wait for."""
        with contextlib.suppress(BlockingIOError):
            while data := self._receive():
                with contextlib.suppress(ValueError):  # messages that are attacks
                    self._said |= json.loads(data)
                if "status" in self._said:
                    return True
            self._said["status"] = self.attacker.status()
            return True
        if time.monotonic() < self._deadline:
            return False
        self._late = True
        self.attacker.end()
        return True

    def _receive(self) -> bytes:
        try:
            return self.attacker.sock.recv(1 << 16)
        except ConnectionResetError:  # it died without reading all
            return b""

    def finish(self) -> Result:
        """What became of the attempt; what was made for it is gone."""
        with self._place as place:
            if "layers" not in self._said:
                return Result(Outcome.BROKEN, f"it did not begin: {self._said}", {})
            told = self._said["layers"]
            wanted = self.run.layers - {BROKER}
            missing = {name: told.get(name, "not told of") for name in wanted}
            missing = {name: reason for name, reason in missing.items() if reason}
            outcome, detail = self._judge()
            confirm = self.run.attempt.confirm
            if outcome is Outcome.SUCCEEDED and confirm is not None and not confirm(place.facts):
                outcome, detail = Outcome.STOPPED, "without effect"
            return Result(outcome, detail, missing, self._said.get("errno", 0))

    def _judge(self) -> tuple[Outcome, str]:
        said, status = self._said, self._said.get("status")
        if "broken" in said:
            return Outcome.BROKEN, said["broken"]
        if "stopped" in said:
            return Outcome.STOPPED, said["stopped"]
        if self._late:
            return Outcome.BROKEN, f"no end after {_SECONDS:.0f} s"
        if status in _STOPPING:
            return Outcome.STOPPED, f"killed by {signal.Signals(-status).name}"
        if "succeeded" in said or status == 0:
            return Outcome.SUCCEEDED, ""
        return Outcome.BROKEN, f"ended with status {status}"
