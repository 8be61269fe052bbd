# SPDX-License-Identifier: Apache-2.0
"""Closing a sandbox for a test, and doing things inside (insandbox_program.py)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from penstock.contain.sandbox import LayerReport
from tests.support.ordinary import OrdinaryUser
from tests.support.requirements import PROJECT

__all__ = ["Sandboxed", "sandboxed"]

_TEXT: Final = (Path(__file__).parent / "insandbox_program.py").read_text(encoding="utf-8")


class Sandboxed:
    """A process in a sandbox of its own, which waits to be told to go on.

    Attributes:
        pid: its number, seen from here.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = int(self.line()["pid"])
        self._pidfd = os.pidfd_open(self.pid)  # its parent has not waited for it yet

    def line(self) -> dict[str, Any]:
        """What it says next."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        assert text, self.errors()
        found: dict[str, Any] = json.loads(text)
        return found

    def reports(self) -> dict[str, LayerReport]:
        """What it says of its layers. Once; they are also in force then."""
        said = self.line()
        self.seconds = float(said["seconds"])
        return {report[0]: LayerReport(*report) for report in said["reports"]}

    def go(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("x")
        self._process.stdin.flush()

    def result(self) -> Any:
        """Let it do its task; what that returned. It ended well then."""
        self.go()
        result = self.line()["result"]
        assert self.status() == 0
        return result

    def status(self) -> int:
        """How it ended: its exit status, negative the signal that killed it."""
        return int(self.line()["status"])

    def errors(self) -> str:
        """What it wrote as errors, once it has ended."""
        assert self._process.stderr is not None
        return self._process.stderr.read()

    def kill_parent(self) -> None:
        """Kill the process that started it."""
        self._process.kill()

    def wait_end(self, seconds: float) -> bool:
        """Wait until it has ended; whether it did in that time."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def end(self) -> None:
        """Kill it, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
        self._process.kill()

    def proc(self, name: str) -> str:
        """A file in its folder of /proc."""
        return Path(f"/proc/{self.pid}/{name}").read_text(encoding="utf-8")

    def field(self, name: str) -> str:
        """A field of its status."""
        lines = self.proc("status").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(name + ":"))

    def link(self, name: str) -> str:
        """A link in its folder of /proc."""
        return os.readlink(f"/proc/{self.pid}/{name}")


@contextlib.contextmanager
def sandboxed(
    task: str = "nothing",
    *,
    layers: Sequence[str] | None = None,
    namespaces: Sequence[str] = ("user", "pid"),
    profile: Mapping[str, int] = {},
    refused: Mapping[str, int] = {},
    user: OrdinaryUser | None = None,
    python: str | None = None,
    folder: Path | None = None,
) -> Iterator[Sandboxed]:
    """Start a process in namespaces, in which a sandbox closes; end it.

    Args:
        task: what it shall do inside, see insandbox_program.py.
        layers: to close; None: all.
        namespaces: those that it is started in.
        profile: fields of the profile that are not the image server's.
        refused: functions of ``penstock.sys`` that fail inside, and with which errno.
        user: who starts it; None: whoever runs the tests.
        python: the interpreter; None: this one.
        folder: where the task may try to make something.
    """
    root = PROJECT if user is None else user.root
    interpreter = python or (sys.executable if user is None else user.python)
    order = {
        "path": [str(root / "src")],
        "python": interpreter,
        "task": task,
        "layers": layers if layers is None else list(layers),
        "namespaces": list(namespaces),
        "profile": dict(profile),
        "refused": dict(refused),
        "folder": str(folder),
    }
    command = [interpreter, "-I", "-c", _TEXT, "launch", json.dumps(order)]
    identity: dict[str, Any] = {}
    if user is not None:
        identity = {"user": user.uid, "group": user.gid, "extra_groups": [user.gid]}
        identity["env"] = user.environment()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **identity,
    ) as process:
        running = Sandboxed(process)
        try:
            yield running
        finally:
            running.end()
