# SPDX-License-Identifier: Apache-2.0
"""Another process to lock against, and another user to be refused."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["Peer"]

_PROGRAM: Final = str(Path(__file__).with_name("_peer.py"))
_PATIENCE: Final = 20.0
"""Seconds to wait for an answer before the filesystem is said to hang."""

_A_WHILE: Final = 1.0


class Peer:
    """A process that carries calls out. A context manager: leaving ends the process.

    Args:
        user: numeric user to be, None: the same.
        group: numeric group, None: the number of the user.
        groups: supplementary groups of another user.
        umask: another umask.
    """

    def __init__(
        self,
        user: int | None = None,
        group: int | None = None,
        groups: Sequence[int] = (),
        umask: int = -1,
    ) -> None:
        become: dict[str, Any] = {"umask": umask}
        if user is not None:
            become["user"] = user
            become["group"] = user if group is None else group
            become["extra_groups"] = list(groups)
        self._process = subprocess.Popen(
            [sys.executable if user is None else "/usr/bin/python3", "-I", "-S", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            **become,
        )
        self._buffer = b""
        self.answer()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the process, whatever it is doing. Idempotent."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def signal(self) -> None:
        """Interrupt the call that it is in: the answer is EINTR."""
        self._process.send_signal(signal.SIGUSR1)

    def call(self, name: str, *args: object) -> Any:
        """Have a call made and wait for its result.

        Raises:
            OSError: what the call failed with.
        """
        self.start(name, *args)
        return self.answer()

    def start(self, name: str, *args: object) -> None:
        """Have a call made, without waiting."""
        pipe = self._process.stdin
        assert pipe is not None
        words = [str(arg) if isinstance(arg, Path) else arg for arg in args]
        pipe.write(json.dumps([name, *words]).encode() + b"\n")
        pipe.flush()

    def wait_blocked(self) -> None:
        """Wait until the call that was started last waits in the kernel, or has been answered.

        What it waits for is not known, only that it is not the next word of ours. Where the kernel
        does not tell (/proc/PID/wchan), it is given a second.
        """
        pipe = self._process.stdout
        assert pipe is not None
        deadline = time.monotonic() + _A_WHILE
        while not select.select([pipe], [], [], 0)[0] and time.monotonic() < deadline:
            try:
                place = Path(f"/proc/{self.pid}/wchan").read_text(encoding="ascii")
            except OSError:
                return
            if place not in {"", "0"} and "pipe" not in place:
                return
            os.sched_yield()

    def answer(self) -> Any:
        """The result of the oldest call not yet answered. Raises as :meth:`call`."""
        pipe = self._process.stdout
        assert pipe is not None
        while b"\n" not in self._buffer:
            if not select.select([pipe], [], [], _PATIENCE)[0]:
                raise AssertionError(f"no answer from the other process in {_PATIENCE:.0f} s")
            data = os.read(pipe.fileno(), 65536)
            if not data:
                raise AssertionError(f"the other process ended ({self._process.wait()})")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        kind, value = json.loads(line)
        if kind == "error":
            raise OSError(value, os.strerror(value))
        return value
