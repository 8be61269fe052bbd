# SPDX-License-Identifier: Apache-2.0
"""Images mounted by penstock's command line, served by a process of their own.

So the test's process may use the mount as it likes. Should the server hang, a timer kills it and
the calls that wait for it fail, instead of keeping the test for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
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


class Serving:
    """A mount and the process that serves it."""

    def __init__(self, path: Path, pid: int) -> None:
        self.path = path
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    def statistics(self) -> dict[str, Any]:
        """What ``penstock stats --json`` says."""
        answer: dict[str, Any] = json.loads(penstock("stats", "--json", self.path).stdout)
        return answer

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the server a signal, if it still lives."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def wait_end(self, seconds: float = 10.0) -> bool:
        """Wait for the end of the server; whether it has ended."""
        import select

        return bool(select.select([self.pidfd], [], [], seconds)[0])


@contextlib.contextmanager
def serving(image: Path, mountpoint: Path, options: str = "") -> Iterator[Serving]:
    """Mount an image with ``penstock mount``; unmounted afterwards, and the server has ended.

    Args:
        image: the image.
        mountpoint: a directory, made if it is not there.
        options: for ``-o``.
    """
    mountpoint.mkdir(exist_ok=True)
    words = ["-o", options] if options else []
    penstock("mount", image, mountpoint, *words)
    listed = json.loads(penstock("list", "--json").stdout)
    (pid,) = [entry["pid"] for entry in listed if entry["mountpoint"] == os.fspath(mountpoint)]
    served = Serving(mountpoint, pid)
    timer = threading.Timer(_SECONDS, served.kill)
    timer.daemon = True
    timer.start()
    try:
        yield served
    except BaseException:
        served.kill()
        penstock("umount", "--lazy", mountpoint, check=False)
        raise
    else:
        if is_mounted(mountpoint):
            penstock("umount", mountpoint)
        assert served.wait_end()
    finally:
        timer.cancel()
        os.close(served.pidfd)
