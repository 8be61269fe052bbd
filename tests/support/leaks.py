# SPDX-License-Identifier: Apache-2.0
"""What a test session left behind: mounts, loop devices, processes.

Only what is the session's own counts, since other work may go on beside it on the same machine:
mounts and loop devices of files below the session's folders, and processes that carry the
session's marker in their environment or name one of those folders on their command line.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["MARKER", "clean_up", "left_behind"]

MARKER = "PENSTOCK_TEST_SESSION"


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def mounts(folders: list[str]) -> list[str]:
    """Mount points at or below ``folders``, the deepest and latest first."""
    found = []
    for line in (
        Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    ):
        point = line.split(" ")[4].encode().decode("unicode_escape")
        if _below(point, folders):
            found.append(point)
    return found[::-1]


def loop_devices(folders: list[str]) -> Iterator[tuple[str, str]]:
    """Loop devices (path, backing file) of files below ``folders``."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            name = backing.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue  # detached meanwhile
        if _below(name.removesuffix(" (deleted)"), folders):
            yield f"/dev/{backing.parent.parent.name}", name


def processes(session: str, folders: list[str]) -> Iterator[tuple[int, str]]:
    """Processes (id, command line) of the session, without this one and its ancestors."""
    kin = {os.getpid()}
    parent = os.getppid()
    while parent > 1:
        kin.add(parent)
        status = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8", errors="replace")
        parent = int(status.rpartition(")")[2].split()[1])
    marker = f"{MARKER}={session}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in kin:
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile, or somebody else's
        named = any(f"{folder}/".encode() in word + b"/" for word in words for folder in folders)
        if words != [b""] and (marker in environment or named):
            yield int(entry.name), b" ".join(words).decode(errors="replace").strip()


def left_behind(session: str, folders: list[str]) -> list[str]:
    """One line for each thing of the session that is still there."""
    lines = [f"mount: {point}" for point in mounts(folders)]
    lines += [f"loop device: {device} ({file})" for device, file in loop_devices(folders)]
    lines += [f"process {pid}: {command}" for pid, command in processes(session, folders)]
    return lines


def clean_up(session: str, folders: list[str]) -> None:
    """Take away what :func:`left_behind` names, so that one bad test does not spoil the machine."""
    for point in mounts(folders):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
    for pid, _ in processes(session, folders):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for device, _ in loop_devices(folders):
        subprocess.run(["losetup", "--detach", device], capture_output=True, check=False)
