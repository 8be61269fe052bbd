# SPDX-License-Identifier: Apache-2.0
"""Images mounted by penstock's command line, served by a process of their own.

So the test's process may use the mount as it likes. Should the server hang, a timer kills it and
the calls that wait for it fail, instead of keeping the test for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.requirements import PROJECT

__all__ = ["PENSTOCK", "Serving", "is_mounted", "penstock", "serving"]

PENSTOCK = PROJECT / ".venv" / "bin" / "penstock"
_SECONDS = 100.0


def penstock(
    *words: str | os.PathLike[str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run penstock's command line and wait for its end."""
    done = subprocess.run(
        [str(PENSTOCK), *(os.fspath(word) for word in words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if check and done.returncode:
        raise AssertionError(f"penstock {words}: exit {done.returncode}\n{done.stderr}")
    return done


def is_mounted(path: Path) -> bool:
    """Whether the mount table has an entry at ``path``, which itself is not touched."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return any(line.split()[4] == os.fspath(path) for line in table)


def _wait_for_mount(server: subprocess.Popen[bytes], path: Path) -> None:
    """Wait until the mount table has the mount, or the server has ended."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        events = select.poll()
        events.register(table, select.POLLPRI)
        deadline = time.monotonic() + 30
        while not is_mounted(path) and server.poll() is None and time.monotonic() < deadline:
            events.poll(100)
    if not is_mounted(path):
        server.kill()
        raise AssertionError(f"penstock mount: exit {server.wait()}")


class Serving:
    """A mount and the process that serves it."""

    def __init__(self, path: Path, server: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.server = server

    def statistics(self) -> dict[str, Any]:
        """What ``penstock stats --json`` says."""
        answer: dict[str, Any] = json.loads(penstock("stats", "--json", self.path).stdout)
        return answer

    def wait_end(self, seconds: float = 10.0) -> bool:
        """Wait for the end of the server; whether it has ended."""
        try:
            self.server.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


@contextlib.contextmanager
def serving(image: Path, mountpoint: Path, options: str = "") -> Iterator[Serving]:
    """Mount an image with ``penstock mount -f``; unmounted afterwards, and the server has ended.

    What the server says on stderr is shown with a test that fails.

    Args:
        image: the image.
        mountpoint: a directory, made if it is not there.
        options: for ``-o``.
    """
    mountpoint.mkdir(exist_ok=True)
    words = ["-o", options] if options else []
    server = subprocess.Popen([str(PENSTOCK), "mount", "-f", *words, image, mountpoint])
    timer = threading.Timer(_SECONDS, server.kill)
    timer.daemon = True
    timer.start()
    try:
        _wait_for_mount(server, mountpoint)
        served = Serving(mountpoint, server)
        yield served
        if is_mounted(mountpoint):
            penstock("umount", mountpoint)
        assert served.wait_end()
        assert server.returncode in {0, -signal.SIGKILL}
    finally:
        timer.cancel()
        if server.poll() is None:
            server.kill()
            server.wait()
        if is_mounted(mountpoint):
            penstock("umount", "--lazy", mountpoint, check=False)
