# SPDX-License-Identifier: Apache-2.0
"""The program as users start it: run, and look at what it said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from penstock.sys.mountinfo import find_mount

COMMAND = (sys.executable, "-m", "penstock")


def penstock(*words: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=timeout,
    )


def good(*words: str | Path) -> str:
    """Run a command that must work and say nothing on stderr; its output."""
    done = penstock(*words)
    assert (done.returncode, done.stderr) == (0, ""), f"{words}: {done.returncode} {done.stderr}"
    return done.stdout


def refused(*words: str | Path) -> tuple[int, str]:
    """Run a command that must fail with one line; its exit code and that line."""
    done = penstock(*words)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("penstock: ")
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.removeprefix("penstock: ").rstrip("\n")


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        os.sched_yield()


def shell(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which "$@" is the program and what is given."""
    command = ["sh", "-c", script, "sh", *COMMAND, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def server_of(mountpoint: Path) -> int:
    """Process number of who answers for a mount: its broker, or its server where there is none."""
    rows = json.loads(good("list", "--json"))
    return next(int(row["pid"]) for row in rows if row["mountpoint"] == str(mountpoint))


def contained_servers_of(mountpoint: Path) -> list[int]:
    """Process numbers of the servers of a mount."""
    statistics = json.loads(good("stats", mountpoint, "--json"))
    return [int(server["pid"]) for server in statistics["servers"]]


def is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def mount_flags(mountpoint: Path) -> set[str]:
    entry = find_mount(str(mountpoint))
    assert entry is not None
    return set(entry.options.split(","))
