# SPDX-License-Identifier: Apache-2.0
"""Mount a contender, find its processes, look at their memory, and leave nothing behind.

Every mount is a context manager that ends with it unmounted, its loop device detached and its
server gone. Servers are found by a marker in their environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contenders import Contender

__all__ = ["Memory", "Mounted", "memory", "mounted", "statistics"]

MARKER = "PENSTOCK_BENCH_MOUNT"
WAIT = 60.0


@dataclass(frozen=True)
class Mounted:
    """A mount in use: where, and how long the command took until files could be listed."""

    point: Path
    seconds: float
    marker: str


@dataclass(frozen=True)
class Memory:
    """Of a mount's processes, in bytes: peak resident set and present proportional set, summed."""

    peak: int
    proportional: int


def _is_mounted(point: Path) -> bool:
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    return f" {point} " in text


def _servers(marker: str) -> list[int]:
    """Processes with the marker, and those that they have started without it."""
    wanted = f"{MARKER}={marker}".encode()
    found = set()
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return sorted(found | {pid for pid, parent in parents.items() if parent in found})


def memory(mount: Mounted) -> Memory | None:
    """What the mount's server processes use; None when it has none."""
    peak = proportional = 0
    servers = _servers(mount.marker)
    for pid in servers:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        peak += int(status.partition("VmHWM:")[2].split()[0])
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        proportional += int(rollup.partition("\nPss:")[2].split()[0])
    return Memory(peak << 10, proportional << 10) if servers else None


def statistics(contender: Contender, mount: Mounted) -> dict[str, Any]:
    """What the contender says of a mount; empty when it says nothing."""
    if not contender.stats:
        return {}
    command = [word.replace("{point}", str(mount.point)) for word in contender.stats]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        told = json.loads(asked.stdout)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took more than {WAIT:.0f} s")
        time.sleep(0.0005)


def _unmount(point: Path, marker: str, process: subprocess.Popen[bytes] | None) -> None:
    if _is_mounted(point):
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        done = subprocess.run([*command, str(point)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            subprocess.run([*command, "-l" if os.geteuid() == 0 else "-z", str(point)], check=False)
    if process is not None:
        try:
            process.wait(timeout=WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _wait(lambda: not _servers(marker), f"the end of the server of {point}")


@contextlib.contextmanager
def mounted(contender: Contender, subject: Path, point: Path) -> Iterator[Mounted]:
    """Mount ``subject`` at ``point`` (an empty folder) for the length of the block.

    Raises:
        subprocess.CalledProcessError: the mount command failed; its ``stderr`` says why.
        TimeoutError: the mount did not come, or the server did not end.
    """
    if not contender.command:
        yield Mounted(subject, 0.0, "")
        return
    marker = f"{os.getpid()}-{time.monotonic_ns()}"
    command = [
        word.replace("{subject}", str(subject)).replace("{point}", str(point))
        for word in contender.command
    ]
    before = point.stat().st_dev
    process: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryFile() as said:
        begin = time.perf_counter()
        try:
            process = subprocess.Popen(
                command,
                env={**os.environ, **contender.environment, MARKER: marker},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            if not contender.foreground:
                process.wait(timeout=WAIT)

            def there() -> bool:
                status = process.poll()
                if status is not None and (status != 0 or contender.foreground):
                    said.seek(0)
                    words = said.read().decode(errors="replace")
                    raise subprocess.CalledProcessError(status, command, stderr=words)
                return point.stat().st_dev != before

            _wait(there, f"mounting by {contender.name}")
            os.listdir(point)
            yield Mounted(point, time.perf_counter() - begin, marker)
        finally:
            _unmount(point, marker, process)
