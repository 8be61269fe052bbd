# SPDX-License-Identifier: Apache-2.0
"""Contained mounts in the foreground: who belongs to them, how they end, and that nothing is left.

The broker is a child of the test, so its exit code and all that it says can be looked at. When it
can be used it says so as to a service manager, so nobody has to try.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from penstock.sys.mountinfo import find_mount
from penstock.sys.process import process_state
from tests.support.commands import COMMAND, good, wait_for
from tests.support.requirements import PROJECT

__all__ = ["KEEPER", "SERVER", "Contained", "Ended", "children", "contained", "odd"]

SERVER, KEEPER = "penstock-server", "penstock-keeper"
"""What the processes of a mount are called."""
_SECONDS = 30.0
_numbers = itertools.count()


class Ended(NamedTuple):
    """How a mount in the foreground has ended."""

    code: int
    said: str
    """On stderr."""


def children(parent: int) -> dict[int, str]:
    """The children of a process that have not ended, and their names."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                name, _, rest = text.partition(" (")[2].rpartition(") ")
                fields = rest.split()
                if int(fields[1]) == parent and fields[0] not in "ZX":
                    found[int(entry.name)] = name
    return found


class Contained:
    """A mount, and the processes that are behind it."""

    def __init__(self, process: subprocess.Popen[str], mountpoint: Path) -> None:
        self.process = process
        self.mountpoint = mountpoint
        self.servers: list[int] = []
        self.keeper = 0
        self._pidfds: dict[int, int] = {}

    @property
    def broker(self) -> int:
        """Process number of the broker."""
        return self.process.pid

    @property
    def everybody(self) -> list[int]:
        """The processes of the mount."""
        return [self.broker, self.keeper, *self.servers]

    def look(self) -> None:
        """Find out who the broker has started."""
        names = children(self.broker)
        self.servers = sorted(pid for pid, name in names.items() if name == SERVER)
        self.keeper = next((pid for pid, name in names.items() if name == KEEPER), 0)
        for pid in filter(None, self.everybody):
            self._pidfds[pid] = os.pidfd_open(pid)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send one of its processes a signal; nobody, if that has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfds[pid], number)

    def stop(self, pid: int) -> None:
        """Stop one of its processes, and see that it has."""
        self.kill(pid, signal.SIGSTOP)
        wait_for(lambda: process_state(pid) in {"T", None}, "stop")

    def ended(self, pid: int) -> bool:
        """Whether one of its processes has."""
        poller = select.poll()
        poller.register(self._pidfds[pid], select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Take away what a test that failed has left."""
        for pid in self._pidfds:
            self.kill(pid)
        if self.process.poll() is None:
            self.process.kill()
        if self.process.stderr is not None and not self.process.stderr.closed:
            self.process.communicate()
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()
        while find_mount(str(self.mountpoint)) is not None:
            subprocess.run(["umount", "--lazy", str(self.mountpoint)], check=True)

    def statistics(self) -> dict[str, Any]:
        """What ``penstock stats --json`` says."""
        answer: dict[str, Any] = json.loads(good("stats", "--json", self.mountpoint))
        return answer

    def listed(self) -> list[dict[str, Any]]:
        """The rows of ``penstock list`` about its mount point."""
        rows: list[dict[str, Any]] = json.loads(good("list", "--json"))
        return [row for row in rows if row["mountpoint"] == str(self.mountpoint)]

    def wait(self, seconds: float = _SECONDS) -> Ended:
        """Wait for the end of the broker."""
        _, said = self.process.communicate(timeout=seconds)
        return Ended(self.process.returncode, said)

    def wait_all_ended(self, seconds: float = 2.0) -> None:
        """Wait for the end of all of its processes."""
        wait_for(lambda: all(map(self.ended, self._pidfds)), "end of all processes", seconds)

    def assert_nothing_left(self, seconds: float = 2.0) -> None:
        """No mount, no process and no record, within this time; the directory can be looked at."""
        wait_for(lambda: find_mount(str(self.mountpoint)) is None, "unmount", seconds)
        self.wait_all_ended(seconds)
        assert self.listed() == []
        assert os.listdir(self.mountpoint) == []
        assert not [name for name in _records() if name.startswith(f"{self.broker}-")]


def _records() -> list[str]:
    """Files of brokers in root's runtime directory."""
    with contextlib.suppress(FileNotFoundError):
        return os.listdir("/run/penstock")
    return []


def odd(cue: str, *settings: str) -> tuple[str, ...]:
    """The words that start a penstock whose servers have a flaw (:mod:`tests.support.oddbroker`).

    Args:
        cue: which one, and when.
        settings: as ``_JUDGE_SECONDS=1``.
    """
    return (sys.executable, "-m", "tests.support.oddbroker", cue, *settings, "--")


@contextlib.contextmanager
def contained(
    image: Path,
    mountpoint: Path,
    options: str = "",
    *,
    program: Sequence[str] = COMMAND,
    env: Mapping[str, str] = {},
) -> Iterator[Contained]:
    """``penstock mount -f``, from when it can be used or has ended; afterwards nothing is left.

    Args:
        image: what to mount.
        mountpoint: where; made if it is not there.
        options: for ``-o``.
        program: what to start.
        env: more environment.
    """
    mountpoint.mkdir(exist_ok=True)
    words = ["-o", options] if options else []
    name = f"penstock-test-{os.getpid()}-{next(_numbers)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind("\0" + name)
        process = subprocess.Popen(
            [*program, "mount", "-f", *words, str(image), str(mountpoint)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            cwd=PROJECT,
            env={**os.environ, **env, "NOTIFY_SOCKET": "@" + name},
        )
        mount = Contained(process, mountpoint)
        try:
            if _wait_ready(process, ready):
                mount.look()
            yield mount
        finally:
            mount.close()


def _wait_ready(process: subprocess.Popen[str], ready: socket.socket) -> bool:
    """Whether it can be used; False: the process has ended."""
    pidfd = os.pidfd_open(process.pid)
    try:
        events = select.poll()
        events.register(pidfd, select.POLLIN)
        events.register(ready, select.POLLIN)
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            for fd, _ in events.poll(1000):
                if fd == ready.fileno():
                    return ready.recv(4096).startswith(b"READY=1")
                return False
    finally:
        os.close(pidfd)
    process.kill()
    raise AssertionError(f"neither mounted nor refused: {process.communicate()[1]}")
