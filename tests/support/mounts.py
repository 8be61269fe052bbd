# SPDX-License-Identifier: Apache-2.0
"""Filesystems of our own classes, mounted and served by a process of their own.

A process that uses its own mount may wait for itself: for a thread that waits for the interpreter
lock which the call holds. So the filesystem lives in a child process, and the test uses the mount
as any program would; :meth:`Served.call` reaches into the child.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from penstock.fs import Operations
from penstock.serve import Mount, MountOptions, MountStatistics
from tests.support.requirements import PROJECT

__all__ = ["Inside", "Served", "serve_in_process"]

Inside = tuple[Any, Mount, list[str]]
"""What a function called in the child gets: filesystem, mount, log lines."""

R = TypeVar("R")
_SECONDS = 100.0


class Served:
    """A mount and the process that serves it."""

    def __init__(
        self, path: Path, process: subprocess.Popen[bytes], pipe: Connection[Any, Any]
    ) -> None:
        self.path = path
        self.process = process
        self._pipe = pipe

    def call(self, function: Callable[..., R], *args: Any) -> R:
        """Have ``function((filesystem, mount, log), *args)`` called in the serving process.

        Raises:
            AssertionError: no answer, the process hangs or has ended.
            Exception: whatever the function raised.
        """
        self._pipe.send((function, args))
        return self.answer()  # type: ignore[no-any-return]

    def answer(self) -> Any:
        """The next answer of the child."""
        if not self._pipe.poll(_SECONDS):
            raise AssertionError("the serving process does not answer")
        try:
            error, value = self._pipe.recv()
        except EOFError:
            raise AssertionError(f"the serving process ended: {self.process.wait()}") from None
        if error is not None:
            raise error
        return value

    def statistics(self) -> MountStatistics:
        """The mount's statistics."""
        return self.call(_statistics)

    def requests(self) -> dict[str, int]:
        """How many requests of each opcode were carried out, by name."""
        counts = self.statistics().session.requests
        return {name: each.count for name, each in counts.items()}


def _statistics(inside: Inside) -> MountStatistics:
    return inside[1].statistics()


@contextlib.contextmanager
def serve_in_process(
    factory: Callable[[], Operations],
    path: Path,
    options: MountOptions = MountOptions(),
    *,
    seconds: float = _SECONDS,
) -> Iterator[Served]:
    """Mount ``factory()`` at ``path``, an existing directory; unmounted and ended on leaving.

    Args:
        factory: a function of a module; called in the serving process.
        path: the mount point.
        options: how to mount.
        seconds: after this time the process ends itself, whatever it does.
    """
    ours, theirs = multiprocessing.Pipe()
    with contextlib.closing(ours):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.mountserver", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=PROJECT,
        )
        theirs.close()
        served = Served(path, process, ours)
        try:
            ours.send((factory, str(path), options, seconds))
            served.answer()
            yield served
        finally:
            ours.close()
            _end(process, path)


def _end(process: subprocess.Popen[bytes], path: Path) -> None:
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    left = [
        line
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        if line.split(" ")[4] == str(path)
    ]
    if left:
        subprocess.run(["umount", "--lazy", path], check=False)
