# SPDX-License-Identifier: Apache-2.0
"""300 mounts, each ended at a random point while it is read from: nothing is left, nobody hangs."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import leaks
from tests.support.cycling import HANG_SECONDS, KINDS
from tests.support.images import MIB, make_image
from tests.support.requirements import PROJECT

pytestmark = pytest.mark.requires("mke2fs")

CYCLES = 300
AT_A_TIME = 3
SEED = 20260

CODES = {0, 32, 130, 137, -signal.SIGKILL, -signal.SIGTERM}
"""SIGTERM that comes before the broker listens to signals ends it at once: there is nothing to undo
yet."""
SAID = {
    "penstock: DIR: Device or resource busy; detaching it",
    "penstock: IMAGE on DIR: the server was killed (SIGKILL)",
    "penstock: IMAGE: the server was killed (SIGKILL)",
    "penstock: the keeper (process N) cannot be told anything: [Errno 32] Broken pipe",
    "penstock: the broker died at start by signal 9",
    "penstock: the broker died at start by signal 15",
}
ERRORS = {"ENOENT", "ENOTCONN", "ECONNABORTED", "EIO"}
"""What readers may get: nothing is mounted, and three ways to learn that nobody answers any more.
EIO is for a page of a file that was being read."""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The content of the image, by name: digests."""
    chance = random.Random(SEED)
    tree = tmp_path / "tree"
    tree.mkdir()
    digests = {}
    for name, size in (("small", 10), ("page", 5000), ("some", 70_000), ("large", MIB)):
        data = chance.randbytes(size)
        (tree / name).write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    make_image(tmp_path / "image", size=32 * MIB, tree=tree)
    (tmp_path / "digests.json").write_text(json.dumps(digests), encoding="ascii")
    return digests


def start(tmp_path: Path, number: int) -> subprocess.Popen[str]:
    """A process that cycles at a mount point of its own."""
    mountpoint = tmp_path / f"mnt{number}"
    mountpoint.mkdir()
    words = [tmp_path / "image", mountpoint, SEED + number, CYCLES // AT_A_TIME]
    return subprocess.Popen(
        [
            sys.executable, "-m", "tests.support.cycling", *map(str, words),
            str(tmp_path / "digests.json"),
        ],
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.mark.timeout(400)
def test_cycles(tmp_path: Path, files: dict[str, str]) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    descriptors = os.listdir("/proc/self/fd")
    running = [start(tmp_path, number) for number in range(AT_A_TIME)]
    told = [process.communicate() for process in running]
    assert [err for _, err in told] == [""] * AT_A_TIME
    results: list[dict[str, Any]] = [json.loads(out) for out, _ in told]

    assert [fault for result in results for fault in result["faults"]] == []
    ends: collections.Counter[str] = collections.Counter()
    codes: collections.Counter[int] = collections.Counter()
    for result in results:
        ends += collections.Counter(result["ends"])
        codes += collections.Counter({int(k): v for k, v in result["codes"].items()})
    assert sum(ends.values()) == CYCLES
    assert set(KINDS) <= set(ends)
    assert set(codes) <= CODES
    assert codes[0] > 0
    assert codes[137] > 0
    early = sum(count for kind, count in ends.items() if kind.endswith("early"))
    assert CYCLES // 10 < early < CYCLES // 2
    assert {said for result in results for said in result["said"]} <= SAID

    # Nothing is left: of processes, see tests.support.cycling.
    assert [result["descriptors"] for result in results] == [0] * AT_A_TIME
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert leaks.mounts([str(tmp_path)]) == []
    assert list(leaks.loop_devices([str(tmp_path)])) == []
    assert os.listdir(temporary) == []
    assert all(os.listdir(tmp_path / f"mnt{number}") == [] for number in range(AT_A_TIME))
    brokers = {str(pid) for result in results for pid in result["brokers"]}
    records = os.listdir("/run/penstock") if Path("/run/penstock").exists() else []
    assert [name for name in records if name.lstrip(".").partition("-")[0] in brokers] == []

    # Readers have read, and what they have read was right; no call took long.
    readers = [reader for result in results for reader in result["readers"]]
    assert [reader["wrong"] for reader in readers if reader["wrong"]] == []
    assert min(reader["right"] for reader in readers) > CYCLES
    assert {error for reader in readers for error in reader["errors"]} <= ERRORS
    assert max(reader["slowest"] for reader in readers)[0] < HANG_SECONDS
