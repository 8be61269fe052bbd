# SPDX-License-Identifier: Apache-2.0
"""``penstock serve`` as service managers start it, for tests that play the mount helper."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.support.commands import wait_for
from tests.support.requirements import PROJECT

__all__ = ["SECONDS", "SERVE", "Server", "activated", "status", "words"]

SERVE = (sys.executable, "-I", "-m", "penstock", "serve", "ext4")
SECONDS = 20


class Server:
    """``penstock serve`` as a service manager starts it, but for the socket's number."""

    def __init__(self, *prefix: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(SECONDS)
        self.socket = ours
        self.process = subprocess.Popen(
            [*prefix, *SERVE, "--fd", str(theirs.fileno())],
            cwd=PROJECT,
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        theirs.close()

    def end(self) -> tuple[int, list[str]]:
        """Wait for its end: exit code, and what it said but for layers of the sandbox."""
        out, err = self.process.communicate(timeout=SECONDS)
        assert out == ""
        lines = err.splitlines()
        assert all(line.startswith("penstock: ") for line in lines), err
        said = [line.removeprefix("penstock: ") for line in lines]
        return self.process.returncode, [
            line for line in said if not line.startswith("not closed by the server itself: ")
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.socket.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def words(image: Path, place: Path, options: str = "ro") -> list[str]:
    """The helper's command line, as the server sees it."""
    return ["penstock-ext4", str(image), str(place), "-o", options]


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@contextlib.contextmanager
def activated(path: Path) -> Iterator[None]:
    """A service manager that starts a server for each connection to a socket."""
    command = ["systemd-socket-activate", "--seqpacket", "--accept", f"--listen={path}", *SERVE]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as manager:
        try:
            wait_for(path.exists, "the socket")
            yield
        finally:
            manager.terminate()
            manager.communicate(timeout=SECONDS)
            path.unlink(missing_ok=True)
