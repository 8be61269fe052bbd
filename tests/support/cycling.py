# SPDX-License-Identifier: Apache-2.0
"""Mount, be read from, and be ended at a random point, many times over, at one mount point.

``python -m tests.support.cycling IMAGE MOUNTPOINT SEED CYCLES``: prints what it found as JSON, see
:func:`main`. Whoever is orphaned becomes a child of this process, so that nobody can get away.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import mmap
import os
import random
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from penstock.sys.mountinfo import find_mount
from penstock.sys.process import process_name
from tests.support.commands import COMMAND
from tests.support.contained import KEEPER, SERVER

_PR_SET_CHILD_SUBREAPER = 36
_READERS = 2
_END_SECONDS = 10.0
_LEFT_SECONDS = 2.0
HANG_SECONDS = 5.0
KINDS = {
    "server": 8, "broker": 4, "server, broker": 3, "broker, server": 2, "keeper, server": 1,
    "SIGTERM": 2, "umount": 2, "umount --lazy": 1, "umount --abort": 1,
}  # fmt: skip
"""How a mount ends, and how often: who is killed, which signal, which command."""

READER = r"""
import errno, hashlib, json, mmap, os, random, select, struct, sys, time
top, seed, expected, beat = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
heart = mmap.mmap(beat, 4096)
chance = random.Random(seed)
errors, slowest, right, wrong, held = {}, (0.0, ""), 0, [], []
table = open("/proc/self/mountinfo", "rb")
changes = select.poll()
changes.register(table, select.POLLPRI)
changes.register(0, select.POLLIN)
def read(name):
    global right
    with open(top + "/" + name, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    right += digest == expected[name]
    if digest != expected[name]:
        wrong.append(name)
def hold(name):
    held.append(os.open(top + "/" + name, os.O_RDONLY))
def one():
    name = chance.choice(list(expected))
    what = chance.choice(["read", "read", "stat", "list", "statfs", "hold", "held", "drop"])
    if what == "read":
        read(name)
    elif what == "stat":
        os.stat(top + "/" + name)
    elif what == "list":
        os.listdir(top)
    elif what == "statfs":
        os.statvfs(top)
    elif what == "hold" and len(held) < 3:
        hold(name)
    elif what == "held" and held:
        os.pread(chance.choice(held), 65536, 0)
    elif held:
        os.close(held.pop(chance.randrange(len(held))))
    return what
running = True
while running:
    begun = time.monotonic()
    heart[:8] = struct.pack("d", begun)
    what = "?"
    try:
        what = one()
    except OSError as error:
        key = errno.errorcode[error.errno]
        errors[key] = errors.get(key, 0) + 1
        heart[:8] = struct.pack("d", 0)
        changes.poll(20)
    heart[:8] = struct.pack("d", 0)
    slowest = max(slowest, (time.monotonic() - begun, what))
    running = not any(fd == 0 for fd, _ in changes.poll(0))
print(json.dumps({"errors": errors, "slowest": slowest, "right": right, "wrong": wrong}))
"""


class Reader:
    """A process that uses the mount point all the time, whatever is there."""

    def __init__(self, top: str, seed: int, expected: dict[str, str]) -> None:
        fd = os.memfd_create("heart")
        os.ftruncate(fd, 4096)
        self._heart = mmap.mmap(fd, 4096)
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, top, str(seed), json.dumps(expected), str(fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[fd],
            text=True,
        )
        os.close(fd)

    def busy_since(self) -> float:
        """For how long it has been in the call that it is in; 0: in none."""
        (begun,) = struct.unpack("d", self._heart[:8])
        return time.monotonic() - begun if begun else 0.0

    def finish(self) -> dict[str, Any]:
        """End it; what it has seen."""
        out, _ = self.process.communicate("", timeout=20)
        self._heart.close()
        found: dict[str, Any] = json.loads(out)
        return found


def own_children() -> dict[int, tuple[str, str]]:
    """Children of this process: state letter and name."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                head, _, rest = file.read().decode(errors="replace").rpartition(") ")
                fields = rest.split()
                if int(fields[1]) == os.getpid():
                    found[int(entry)] = (fields[0], head.partition(" (")[2])
    return found


def children_of(pid: int) -> dict[str, list[int]]:
    """Children of another process, by name."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
                if int(fields[1]) == pid and fields[0] not in b"ZX":
                    found[process_name(int(entry))].append(int(entry))
    return found


class Cycles:
    """The mounts at one mount point.

    Args:
        image: what to mount.
        mountpoint: where.
        chance: decides everything.
        readers: who is there all the time.
    """

    def __init__(
        self, image: str, mountpoint: str, chance: random.Random, readers: list[Reader]
    ) -> None:
        self._image = image
        self._mountpoint = mountpoint
        self._chance = chance
        self._readers = readers
        self._strangers = {reader.process.pid for reader in readers}
        self.faults: list[str] = []
        self.ends: collections.Counter[str] = collections.Counter()
        self.codes: collections.Counter[int] = collections.Counter()
        self.said: set[str] = set()
        self.brokers: set[int] = set()

    def one(self) -> None:
        """One mount, from its beginning to its end."""
        chance = self._chance
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        early = chance.random() < 0.3
        words = chance.choice([[], [], ["-o", "processes=2"], ["-o", "workers=4"]])
        daemon = [] if chance.random() < 0.7 else ["background"]
        place = f"{kind}{' early' * early}{' '.join(['', *words, *daemon])}"
        foreground = [] if daemon else ["-f"]
        process = subprocess.Popen(
            [*COMMAND, "mount", *foreground, *words, self._image, self._mountpoint],
            stderr=subprocess.PIPE,
            text=True,
        )
        if early:
            self._while(process, chance.uniform(0.0, 0.25))
        elif self._until_mounted(process):
            self._while(process, chance.uniform(0.0, 0.06))
        ended = self._end(process, kind, in_foreground=not daemon)
        try:
            said = process.communicate(timeout=_END_SECONDS)[1]
        except subprocess.TimeoutExpired:
            self.faults.append(f"{place}: the command does not end")
            process.kill()
            said = process.communicate()[1]
        if daemon and ended == process.pid:
            self._end_orphan()
        self.ends[f"{kind} early" if early else kind] += 1
        for name, path in (("IMAGE", self._image), ("DIR", self._mountpoint)):
            said = said.replace(path, name)
        self.codes[process.returncode] += 1
        self.said |= set(re.sub(r"process \d+", "process N", said).splitlines())
        self._nothing_left(place)

    def _while(self, process: subprocess.Popen[str], seconds: float) -> None:
        """Let it run for so long, or to its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    def _until_mounted(self, process: subprocess.Popen[str]) -> bool:
        pidfd = os.pidfd_open(process.pid)
        try:
            with open("/proc/self/mountinfo", "rb") as table:
                events = select.poll()
                events.register(pidfd, select.POLLIN)
                events.register(table, select.POLLPRI)
                while find_mount(self._mountpoint) is None:
                    if any(fd == pidfd for fd, _ in events.poll(_END_SECONDS * 1000)):
                        break
        finally:
            os.close(pidfd)
        return find_mount(self._mountpoint) is not None

    def _end(self, process: subprocess.Popen[str], kind: str, *, in_foreground: bool) -> int:
        """End the mount; the process that was taken for its broker."""
        broker = process.pid if in_foreground else self._daemon(process)
        self.brokers.add(broker)
        everybody = children_of(broker)
        victims = {
            "server": everybody[SERVER][:1],
            "keeper": everybody[KEEPER],
            "broker": [broker],
        }
        if kind.startswith("umount"):
            command = [*COMMAND, *kind.split(), self._mountpoint]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
            if done.returncode == 0:
                return broker
            kind = "SIGTERM"  # in use, or not mounted yet
        if kind == "SIGTERM":
            _signal(broker, signal.SIGTERM)
            return broker
        for name in kind.split(", "):
            for pid in victims[name]:
                _signal(pid, signal.SIGKILL)
        if not victims["server"] and "broker" not in kind:  # so early that there is none
            _signal(broker, signal.SIGTERM)
        return broker

    def _end_orphan(self) -> None:
        """Where the command was ended instead, its broker gives up, or was just ready."""
        for pid, (state, name) in own_children().items():
            if pid not in self._strangers and state not in "ZX" and name not in {SERVER, KEEPER}:
                _signal(pid, signal.SIGTERM)

    def _daemon(self, process: subprocess.Popen[str]) -> int:
        """The broker in the background: a child of the command, or an orphan."""
        for pid in children_of(process.pid).get(process_name(process.pid), []):
            return pid
        for pid, (state, name) in own_children().items():
            mine = pid not in self._strangers and pid != process.pid
            if mine and state not in "ZX" and name not in {SERVER, KEEPER}:
                return pid
        return process.pid

    def _nothing_left(self, place: str) -> None:
        deadline = time.monotonic() + _LEFT_SECONDS
        with open("/proc/self/mountinfo", "rb") as table:
            changes = select.poll()
            changes.register(table, select.POLLPRI)
            while (left := self._left()) and time.monotonic() < deadline:
                changes.poll(5)
        if left:
            self.faults.append(f"{place}: left: {left}")
            self._clean_up()
        for reader in self._readers:
            if reader.busy_since() > HANG_SECONDS:
                self.faults.append(f"{place}: a reader hangs")

    def _left(self) -> list[str]:
        found = []
        for pid, (state, name) in own_children().items():
            if pid in self._strangers:
                continue
            if state == "Z":
                os.waitpid(pid, 0)
            else:
                found.append(f"{name} {pid}")
        if find_mount(self._mountpoint) is not None:
            found.append("mount")
        return found

    def _clean_up(self) -> None:
        for pid in own_children().keys() - self._strangers:
            _signal(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        while find_mount(self._mountpoint) is not None:
            subprocess.run(["umount", "--lazy", self._mountpoint], check=True)


def _signal(pid: int, number: int) -> None:
    """A signal to a process that is a descendant of this one, and so cannot be another one yet."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def main() -> None:
    """Print: faults, ends (how often each kind), codes (of exit, how often
    each), said (lines of the commands), brokers (process numbers),
    readers (what each saw), descriptors (how many more than before)."""
    image, mountpoint, seed, count, expected = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    chance = random.Random(int(seed))
    before = _descriptors()
    readers = [
        Reader(mountpoint, chance.randrange(1 << 30), json.loads(Path(expected).read_text()))
        for _ in range(_READERS)
    ]
    cycles = Cycles(image, mountpoint, chance, readers)
    for _ in range(int(count)):
        cycles.one()
    seen = [reader.finish() for reader in readers]
    print(  # noqa: T201 - what it is for
        json.dumps(
            {
                "faults": cycles.faults,
                "ends": cycles.ends,
                "codes": cycles.codes,
                "said": sorted(cycles.said),
                "brokers": sorted(cycles.brokers),
                "readers": seen,
                "descriptors": _descriptors() - before,
            }
        )
    )


if __name__ == "__main__":
    main()
