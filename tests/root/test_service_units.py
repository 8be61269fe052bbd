# SPDX-License-Identifier: Apache-2.0
"""Services as units start them: by a socket, and with what the hardening leaves to them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.sys.mountinfo import find_mount
from tests.support.commands import good, is_gone, refused, wait_for
from tests.support.hardened import allowed_calls, directives
from tests.support.images import MIB, cached_image, make_tree, session_dir
from tests.support.requirements import PROJECT
from tests.support.servicehelper import Helper
from tests.support.services import SECONDS, Server, activated, status, words

pytestmark = [pytest.mark.requires("fuse", "mke2fs")]


@pytest.fixture(scope="module")
def image() -> Path:
    top = session_dir() / "service-tree"
    return cached_image(size=128 * MIB, tree=top if top.exists() else make_tree(top, files=30))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mount point"
    path.mkdir()
    yield path
    while find_mount(str(path)) is not None:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.requires("systemd")
def test_started_by_a_socket(image: Path, place: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with activated(path):
        for _ in range(2):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.settimeout(SECONDS)
                connection.connect(str(path))
                assert Helper(connection, words(image, place)).run() == 0
            assert stat.S_ISDIR((place / "lost+found").stat().st_mode)
            subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def hardened(tmp_path: Path) -> tuple[str, ...]:
    """The words before a command that run it as the unit does."""
    good("install-system", "--root", tmp_path, "--units", "/units")
    unit = tmp_path / "units" / "penstock-ext4@.service"
    return sys.executable, "-m", "tests.support.hardened", str(unit)


@pytest.mark.requires("systemd", "ordinary-user")
def test_with_what_the_unit_leaves(hardened: tuple[str, ...], image: Path, place: Path) -> None:
    with Server(*hardened) as server:
        assert Helper(server.socket, words(image, place)).run() == 0
        fields = status(server.process.pid)
        assert (fields["Seccomp"], fields["NoNewPrivs"], fields["Uid"].split()[0]) == (
            "2", "1", "65534",
        )  # fmt: skip
        assert int(fields["Seccomp_filters"]) >= 3  # the unit's, and both of the server
        assert (place / "symlink60").is_symlink()
        subprocess.run(["cat", place / "size300001"], stdout=subprocess.DEVNULL, check=True)
        subprocess.run(["umount", str(place)], check=True)
        out, err = server.process.communicate(timeout=SECONDS)
    assert (server.process.returncode, out) == (0, "")
    given = {line.split(": ")[2] for line in err.splitlines() if "not closed by" in line}
    assert given == {"namespaces", "root", "identity"}  # the service manager's part
    assert err.splitlines()[-1] == f"penstock: {image} on {place}"


ATTEMPTS = """
import mmap, os, socket, threading
def attempt(name, what):
    try:
        what()
    except OSError as error:
        print(name, error.errno)
    else:
        print(name, "done")
attempt("socket", lambda: socket.socket(socket.AF_UNIX))
attempt("code", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))
attempt("program", lambda: os.posix_spawn("/bin/true", ["true"], {}))
attempt("clock", lambda: __import__("time").clock_settime(0, 0))
attempt("thread", threading.Thread(target=int).start)
"""


@pytest.mark.requires("systemd", "ordinary-user")
def test_what_the_unit_takes_away(hardened: tuple[str, ...]) -> None:
    """What the test above relies on."""
    command = [*hardened, sys.executable, "-I", "-c", ATTEMPTS]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"socket {errno.EAFNOSUPPORT}", f"code {errno.EACCES}", f"program {errno.EACCES}",
        f"clock {errno.EPERM}", "thread done",
    ]  # fmt: skip


RESTRICTED = """
import os, sys
from penstock.sys import capabilities
from penstock.sys.libc import call
capabilities.no_new_privs()
call("prctl", 65, 1, 0, 0, 0)  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_the_unit_of_one_mount(tmp_path: Path, image: Path, place: Path) -> None:
    """Its command, with no new rights and no writable code, says when it is ready and when not."""
    good("install-system", "--root", tmp_path, "--units", "/units")
    unit = directives(tmp_path / "units" / "penstock@.service")
    assert (unit["Type"], unit["NotifyAccess"]) == (["notify"], ["main"])
    assert (unit["NoNewPrivileges"], unit["MemoryDenyWriteExecute"]) == (["yes"], ["yes"])
    values = {"${OPTIONS}": "ro", "${SOURCE}": str(image), "%f": str(place)}
    command = [values.get(word, word) for word in shlex.split(unit["ExecStart"][0])]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(SECONDS)
        process = subprocess.Popen(
            [sys.executable, "-c", RESTRICTED, *command],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=subprocess.PIPE,
            text=True,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            said = manager.recv(4096).decode()
            assert said == f"READY=1\nSTATUS={image} is mounted on {place}"
            assert (place / "lost+found").is_dir()
            process.terminate()
            assert manager.recv(4096) == b"STOPPING=1"
            stderr = process.communicate(timeout=SECONDS)[1]
    assert (process.returncode, stderr) == (0, "")
    assert find_mount(str(place)) is None


@pytest.mark.parametrize("words", [[], ["-f"], ["-o", "sandbox=no"]])
def test_a_manager_that_cannot_be_told(
    tmp_path: Path,
    image: Path,
    place: Path,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/nobody")
    said = f"NOTIFY_SOCKET {tmp_path}/nobody: no such file or directory"
    assert refused("mount", image, place, *words) == (2, said)
    assert find_mount(str(place)) is None


def test_the_unit_takes_away_what_a_killed_broker_left(
    tmp_path: Path, image: Path, place: Path
) -> None:
    good("install-system", "--root", tmp_path, "--units", "/units")
    unit = directives(tmp_path / "units" / "penstock@.service")
    (line,) = unit["ExecStopPost"]
    values = {"%f": str(place)}
    command = [values.get(word, word.replace("$$", "$")) for word in shlex.split(line[1:])]
    good("mount", image, place)
    statistics = json.loads(good("stats", place, "--json"))
    for process in ("keeper", "pid"):  # as systemd kills the rest of a unit
        os.kill(statistics[process], signal.SIGKILL)
    wait_for(lambda: is_gone(statistics["pid"]), "the broker's end")
    assert find_mount(str(place)) is not None
    for result, left in (("success", True), ("signal", False)):
        environment = {**os.environ, "SERVICE_RESULT": result}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        assert (find_mount(str(place)) is not None) == left


@pytest.mark.requires("systemd")
def test_lists_of_system_calls_add_up() -> None:
    assert {"read", "openat", "setgroups"} <= allowed_calls(["@system-service"])
    assert not {"setgroups", "mount"} & allowed_calls(["@system-service", "~@privileged @mount"])
    assert "mount" in allowed_calls(["@system-service", "~@mount", "mount"])


@pytest.mark.requires("systemd", "fuservicemount3")
def test_with_the_helper_of_libfuse(image: Path, place: Path) -> None:
    name = f"penstock-test-{secrets.token_hex(4)}"
    folder = Path("/run/filesystems")
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    helper = os.environ["FUSERVICEMOUNT3"]
    command = [helper, str(image), str(place), "-t", name, "-o", "ro"]
    try:
        with activated(folder / name):
            subprocess.run(command, check=True, timeout=SECONDS)
            mounted = find_mount(str(place))
            assert mounted is not None
            assert mounted.fstype == f"fuse.{name}"
            assert (place / "lost+found").is_dir()
            subprocess.run(["umount", str(place)], check=True)
            command[1] = "/etc/passwd"
            assert subprocess.run(command, check=False, timeout=SECONDS).returncode == 32
    finally:
        if made:
            folder.rmdir()
