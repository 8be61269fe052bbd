# SPDX-License-Identifier: Apache-2.0
"""Who is measured, and how each one mounts: the kernel's ext4, fuse2fs, penstock by data path.

Every mount is a context manager that ends with nothing left: unmounted, its loop device detached,
its server gone. Servers are found by a marker in their environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Contender", "Mounted", "contenders", "memory", "mounted"]

MARKER = "PENSTOCK_BENCH_MOUNT"
WAIT = 60.0


@dataclass(frozen=True)
class Contender:
    """One way to mount the image.

    Attributes:
        command: words of the mount command, IMAGE and MOUNTPOINT standing for themselves.
        absent: why it cannot take part here; None when it can.
    """

    name: str
    title: str
    command: tuple[str, ...]
    absent: str | None = None
    server: bool = True


@dataclass(frozen=True)
class Mounted:
    """A mount in use: where, and how long the command took until files could be listed."""

    point: Path
    seconds: float
    marker: str


def contenders() -> list[Contender]:
    """All of them, those that cannot take part with their reason."""
    root = os.geteuid() == 0
    penstock = Path(sys.executable).parent / "penstock"
    entries = [
        Contender(
            "kernel",
            "kernel ext4 (loop)",
            ("mount", "-t", "ext4", "-o", "loop,ro", "IMAGE", "MOUNTPOINT"),
            None if root else "only root can attach a loop device",
            server=False,
        ),
        Contender(
            "fuse2fs",
            "fuse2fs",
            ("fuse2fs", "-o", "ro", "IMAGE", "MOUNTPOINT"),
            None if shutil.which("fuse2fs") else "not installed (Debian package fuse2fs)",
        ),
    ]
    for name, options in (
        ("penstock", ()),
        ("penstock-sandbox=no", ("-o", "sandbox=no")),
        ("penstock-splice", ("-o", "datapath=splice")),
        ("penstock-copy", ("-o", "datapath=copy")),
    ):
        title = "penstock" if not options else f"penstock, {name.partition('-')[2]}"
        command = (str(penstock), "mount", *options, "IMAGE", "MOUNTPOINT")
        entries.append(Contender(name, title, command))
    return entries


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


def memory(mount: Mounted) -> tuple[float, float] | None:
    """Of the mount's server processes: peak resident set and present proportional set, in MiB."""
    peak = proportional = 0
    servers = _servers(mount.marker)
    for pid in servers:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        peak += int(status.partition("VmHWM:")[2].split()[0])
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        proportional += int(rollup.partition("\nPss:")[2].split()[0])
    return (peak / 1024, proportional / 1024) if servers else None


def _until(condition: bool, deadline: float, what: str) -> bool:
    if condition:
        return True
    if time.monotonic() > deadline:
        raise TimeoutError(f"{what} took more than {WAIT:.0f} s")
    time.sleep(0.0005)
    return False


def _unmount(point: Path, marker: str) -> None:
    if _is_mounted(point):
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        done = subprocess.run([*command, str(point)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            subprocess.run([*command, "-l" if os.geteuid() == 0 else "-z", str(point)], check=False)
    deadline = time.monotonic() + WAIT
    while not _until(not _servers(marker), deadline, f"the end of the server of {point}"):
        pass


@contextlib.contextmanager
def mounted(contender: Contender, image: Path, point: Path) -> Iterator[Mounted]:
    """Mount ``image`` at ``point`` (an empty folder) for the length of the block.

    Raises:
        subprocess.CalledProcessError: the mount command failed; its ``stderr`` says why.
        TimeoutError: the mount did not come, or the server did not end.
    """
    marker = f"{os.getpid()}-{time.monotonic_ns()}"
    words = {"IMAGE": str(image), "MOUNTPOINT": str(point)}
    command = [words.get(word, word) for word in contender.command]
    before = point.stat().st_dev
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            env={**os.environ, MARKER: marker},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=WAIT,
        )
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr)
        deadline = time.monotonic() + WAIT
        while not _until(point.stat().st_dev != before, deadline, f"mounting by {contender.name}"):
            pass
        os.listdir(point)
        yield Mounted(point, time.perf_counter() - begin, marker)
    finally:
        _unmount(point, marker)
