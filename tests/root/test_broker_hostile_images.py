# SPDX-License-Identifier: Apache-2.0
"""2,000 damaged images before contained servers: each is served or refused, and that is all.

No server crashes, hangs, takes too much memory or makes a system call that its sandbox forbids; no
broker ends but as it should; and nothing is left. Real mounts are made of some more.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.sys.mountinfo import find_mount
from tests.support.commands import good
from tests.support.contained import contained
from tests.support.hostilerun import FRESH, image_of
from tests.support.requirements import PROJECT

IMAGES = 2000
AT_A_TIME = 2
MOUNTS = 64
FIRST_MOUNT = 1_000_000
"""The seeds of the images that are mounted."""
SECONDS = 10.0
"""For one image, from the start of its server to the end; a machine may have more to do."""

WALKER = r"""
import errno, json, os, stat, sys
usual = {"EUCLEAN", "EBADMSG", "EIO", "ESTALE", "ENOENT", "EOPNOTSUPP", "ENODATA", "ELOOP",
         "ENOTDIR", "ENXIO", "ERANGE", "E2BIG", "ENOKEY", "EINVAL", "EISDIR", "EOVERFLOW"}
found = {"inodes": 0, "errors": {}}
def call(function, *args, **words):
    try:
        return function(*args, **words)
    except OSError as error:
        name = errno.errorcode[error.errno]
        found["errors"][name] = found["errors"].get(name, 0) + 1
def read(path, size):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for at in {0, size // 2, max(size - 5000, 0)}:
            call(os.pread, fd, 65536, at)
            call(os.lseek, fd, at, os.SEEK_DATA)
    finally:
        os.close(fd)
todo = [os.fsencode(sys.argv[1])]
call(os.statvfs, todo[0])
while todo and found["inodes"] < 60:
    path = todo.pop(0)
    st = call(os.lstat, path)
    for name in (call(os.listxattr, path, follow_symlinks=False) or [])[:5]:
        call(os.getxattr, path, name, follow_symlinks=False)
    if st is None:
        continue
    found["inodes"] += 1
    if stat.S_ISLNK(st.st_mode):
        call(os.readlink, path)
    elif stat.S_ISREG(st.st_mode):
        call(read, path, st.st_size)
    elif stat.S_ISDIR(st.st_mode) and path.count(b"/") < 12:
        todo += [path + b"/" + name for name in (call(os.listdir, path) or [])[:30]]
found["odd"] = sorted(set(found["errors"]) - usual)
print(json.dumps(found))
"""


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes that have servers judge images; they are at work while this one mounts."""
    folder = tmp_path / "images"
    folder.mkdir()
    share = IMAGES // AT_A_TIME
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "tests.support.hostilerun",
                str(number * share), str(share), str(folder),
            ],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(AT_A_TIME)
    ]  # fmt: skip
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def mount(seed: int, folder: Path) -> str:
    """Mount one image and walk it; what became of it."""
    image = folder / f"image-{seed}"
    image.write_bytes(image_of(seed).bytes())
    place = folder / f"mnt-{seed}"
    with contained(image, place, "sandbox=strict") as mounted:
        if mounted.servers:
            walker = subprocess.run(
                [sys.executable, "-c", WALKER, str(place)],
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            found = json.loads(walker.stdout)
            assert found["odd"] == [], seed
            assert all(row["answers"] for row in mounted.statistics()["servers"])
            good("umount", place)
        code, said = mounted.wait()
        lines = said.splitlines()
        assert not [line for line in lines if " failed" in line or "Traceback" in line], seed
        if mounted.servers:
            assert code == 0, (seed, said)
            kind = "read" if found["inodes"] > 1 else "mounted"
        else:
            assert code == 32, (seed, said)
            assert len(lines) == 1
            assert lines[0].startswith(f"penstock: {image}: ")
            kind = "refused"
        mounted.assert_nothing_left()
    assert find_mount(str(place)) is None
    image.unlink()
    return kind


@pytest.mark.timeout(600)
def test_damaged_images(tmp_path: Path, runs: list[subprocess.Popen[str]]) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    mounted = collections.Counter(mount(FIRST_MOUNT + number, tmp_path) for number in range(MOUNTS))
    assert mounted.total() == MOUNTS
    assert mounted["read"] > MOUNTS // 4
    assert mounted["refused"] > 0
    assert len(os.listdir("/proc/self/fd")) == descriptors

    told = [process.communicate() for process in runs]
    assert [process.returncode for process in runs] == [0] * AT_A_TIME, told
    results: list[dict[str, Any]] = [json.loads(out) for out, _ in told]
    assert [fault for result in results for fault in result["faults"]] == []
    served, refused, read = (
        sum(result[what] for result in results) for what in ("served", "refused", "read")
    )
    assert served + refused == IMAGES
    # Damage of both kinds, or the run shows nothing.
    assert refused > IMAGES // 20
    assert read > IMAGES // 4
    reasons = {reason for result in results for reason in result["reasons"]}
    assert len(reasons) > 20
    errors = {name for result in results for name in result["errors"]}
    assert {"EUCLEAN", "EBADMSG"} <= errors
    assert max(result["slowest"] for result in results) < SECONDS


def test_the_run_sees_what_it_is_there_for(tmp_path: Path) -> None:
    """A server that crashes on one image, or makes a call that it may not make, is found: as a
    fault of that image, and the run goes on."""
    script = (
        "import os, ctypes, sys\n"
        "from tests.support import hostilerun\n"
        "opened = hostilerun.imageserver.open_server\n"
        "count = 0\n"
        "def odd(*args, **words):\n"
        "    seed = int(os.environ['SEED'])\n"
        "    if seed == 1: ctypes.string_at(0)\n"
        "    if seed == 2: os.fork()\n"
        "    if seed == 3: raise KeyError('odd')\n"
        "    return opened(*args, **words)\n"
        "hostilerun.imageserver.open_server = odd\n"
        "one = hostilerun._launch\n"
        "def launch(seed):\n"
        "    os.environ['SEED'] = str(seed)\n"
        "    return one(seed)\n"
        "hostilerun._launch = launch\n"
        "sys.argv = ['', '1', '5', sys.argv[1]]\n"
        "hostilerun.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    result = json.loads(done.stdout)
    assert result["served"] + result["refused"] == 5
    assert len(result["faults"]) == 3
    for fault, (seed, what) in zip(
        result["faults"],
        [(1, "the server crashed (SIGSEGV)"), (2, "was ended by its sandbox"), (3, "KeyError")],
        strict=True,
    ):
        assert fault.startswith(f"seed {seed}: ")
        assert what in fault
    assert FRESH > 5  # so that none of these was started with an interpreter of its own
