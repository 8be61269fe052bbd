# SPDX-License-Identifier: Apache-2.0
"""Mounts whose server hangs, or has died: every command comes back, and clears up what is left."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from penstock.control import runtime_directory
from penstock.control.directory import remove_if_empty
from penstock.sys.mountinfo import find_mount
from penstock.sys.process import process_start_time, process_state
from tests.support.commands import COMMAND, good, is_gone, penstock, refused, wait_for
from tests.support.images import copy_image
from tests.support.ordinary import OrdinaryUser

pytestmark = pytest.mark.requires("mke2fs")

SECONDS = 2.0
SANDBOXES = pytest.mark.parametrize("sandbox", ["yes", "no"])


class Processes(NamedTuple):
    """Who is behind a mount."""

    broker: int
    servers: tuple[int, ...]
    keeper: int

    @property
    def answering(self) -> list[int]:
        """Those without which nobody answers for the mount; the keeper is none."""
        return [*self.servers, *({self.broker} - set(self.servers))]

    def are_gone(self) -> bool:
        """Whether all have ended."""
        return all(is_gone(pid) for pid in (*self.answering, self.keeper) if pid)


def processes(statistics: str) -> Processes:
    """What ``penstock stats --json`` says of them."""
    row = json.loads(statistics)
    servers = tuple(server["pid"] for server in row["servers"])
    return Processes(row["pid"], servers, row.get("keeper", 0))


def listed(mountpoint: Path, *words: str) -> list[dict[str, Any]]:
    """The rows of ``penstock list`` about one mount point."""
    rows: list[dict[str, Any]] = json.loads(good("list", "--json", *words))
    return [row for row in rows if row["mountpoint"] == str(mountpoint)]


@pytest.fixture
def mounted(image: Path, mountpoint: Path, sandbox: str) -> Iterator[Processes]:
    """A mount; afterwards all of its processes run again, or have ended."""
    good("mount", "-o", f"sandbox={sandbox}", image, mountpoint)
    found = processes(good("stats", "--json", mountpoint))
    yield found
    for pid in (*found.answering, found.keeper):
        if pid and not is_gone(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    if find_mount(str(mountpoint)) is not None:
        penstock("umount", "--abort", mountpoint)


def stop(pids: list[int]) -> None:
    """Stop processes, and see that they have."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        wait_for(functools.partial(is_stopped, pid), "stop")


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken effect."""
    return process_state(pid) == "T"


@contextlib.contextmanager
def waiting(mountpoint: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that waits for an answer of a stopped server."""
    script = "import os, sys\ntry: os.stat(sys.argv[1])\nexcept OSError as e: sys.exit(e.errno)"
    process = subprocess.Popen([sys.executable, "-c", script, mountpoint / "not asked before"])
    where = Path(f"/proc/{process.pid}/wchan")
    try:
        wait_for(lambda: "wait_answer" in where.read_text(), "request")
        yield process
    finally:
        process.kill()
        process.wait()


def quick(*words: str | Path, code: int = 0) -> str:
    """Run a command that must come back in time, with an exit code; its output."""
    begun = time.monotonic()
    done = penstock(*words)
    assert time.monotonic() - begun < SECONDS, words
    assert done.returncode == code, (words, done.stderr)
    assert done.stderr.count("\n") == (code != 0), done.stderr
    return done.stdout


@SANDBOXES
@pytest.mark.parametrize("stopped", ["servers", "all"])
def test_no_command_waits_for_a_stopped_server(
    image: Path, mountpoint: Path, mounted: Processes, stopped: str
) -> None:
    stop(mounted.answering if stopped == "all" else list(mounted.servers))
    place = str(mountpoint)
    assert place in quick("list")
    assert place in quick("list", "--json")
    assert place not in quick("list", "--stale")
    silent = stopped == "all" or mounted.broker in mounted.servers
    for words in (["stats"], ["stats", "--json"]):
        assert (place in quick(*words, mountpoint, code=2 if silent else 0)) != silent
    for words in (["mount", str(image)], ["clean", "--dry-run"], ["clean"]):
        assert quick(*words, mountpoint, code=32) == ""
    assert "In short" in quick("doctor")
    assert str(image) in quick("info", image)
    assert find_mount(place) is not None


@SANDBOXES
@pytest.mark.parametrize("stopped", ["broker", "servers", "all"])
@pytest.mark.parametrize("how", ["", "--lazy", "--abort"])
def test_stopped_server_is_unmounted(
    mountpoint: Path, mounted: Processes, stopped: str, how: str
) -> None:
    pids = {"broker": [mounted.broker], "servers": list(mounted.servers)}
    stop(pids.get(stopped, mounted.answering))
    assert quick("umount", *filter(None, [how]), mountpoint) == ""
    assert find_mount(str(mountpoint)) is None
    wait_for(mounted.are_gone, "end of the processes")
    assert listed(mountpoint) == []


@SANDBOXES
@pytest.mark.parametrize("stopped", ["servers", "all"])
def test_abort_frees_who_waits(mountpoint: Path, mounted: Processes, stopped: str) -> None:
    stop(mounted.answering if stopped == "all" else list(mounted.servers))
    with waiting(mountpoint) as user:
        begun = time.monotonic()
        assert good("umount", "--abort", mountpoint) == ""
        assert time.monotonic() - begun < SECONDS
        assert os.strerror(user.wait(SECONDS)) in {
            "Software caused connection abort",
            "Transport endpoint is not connected",
        }
    assert find_mount(str(mountpoint)) is None
    wait_for(mounted.are_gone, "end of the processes")
    assert listed(mountpoint) == []


@SANDBOXES
def test_abort_of_a_mount_in_use(mountpoint: Path, mounted: Processes) -> None:
    user = os.open(mountpoint, os.O_RDONLY)
    try:
        assert refused("umount", mountpoint)[0] == 32
        assert good("umount", "--abort", mountpoint) == ""
        assert mounted.are_gone()
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.stat("size59", dir_fd=user)
    finally:
        os.close(user)
    assert find_mount(str(mountpoint)) is None
    assert listed(mountpoint) == []


@pytest.mark.parametrize("sandbox", ["yes"])
@pytest.mark.parametrize("first", ["servers", "broker"])
def test_nothing_is_left_of_killed_processes(
    image: Path, mountpoint: Path, mounted: Processes, first: str
) -> None:
    begun = time.monotonic()
    for pid in mounted.answering if first == "servers" else mounted.answering[::-1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(mounted.are_gone, "end of the processes", SECONDS)
    assert find_mount(str(mountpoint)) is None
    assert os.listdir(mountpoint) == []
    assert listed(mountpoint) == []
    assert time.monotonic() - begun < SECONDS
    good("mount", image, mountpoint)
    good("umount", mountpoint)


def has_no_files(pid: int) -> bool:
    """Whether a broker has left nothing in the runtime directory."""
    try:
        names = os.listdir(runtime_directory())
    except FileNotFoundError:
        return True
    return not any(name.lstrip(".").startswith(f"{pid}-") for name in names)


def test_broker_killed_as_soon_as_it_has_mounted(image: Path, mountpoint: Path) -> None:
    """Before it has said that it is ready, perhaps before its record is written."""
    for _ in range(8):
        process = subprocess.Popen([*COMMAND, "mount", "-f", str(image), str(mountpoint)])
        wait_for(lambda: find_mount(str(mountpoint)), "mount")
        process.kill()
        process.wait()
        wait_for(lambda: find_mount(str(mountpoint)) is None, "unmount", SECONDS)
        wait_for(functools.partial(has_no_files, process.pid), "end of the record", SECONDS)


def make_stale(image: Path, mountpoint: Path) -> Processes:
    """A mount whose processes were all killed, the keeper first."""
    good("mount", image, mountpoint)
    found = processes(good("stats", "--json", mountpoint))
    for pid in (found.keeper, found.broker):
        os.kill(pid, signal.SIGKILL)
        wait_for(functools.partial(is_gone, pid), "end")
    wait_for(found.are_gone, "end of the servers")
    return found


def test_stale_mounts_are_listed_and_cleaned(image: Path, mountpoint: Path) -> None:
    found = make_stale(image, mountpoint)
    (row,) = listed(mountpoint, "--stale")
    assert (row["state"], row["pid"], row["keeper"]) == ("stale", found.broker, found.keeper)
    assert [row["state"] for row in listed(mountpoint)] == ["stale"]
    reason = f"{mountpoint}: its server has died; run: penstock umount {mountpoint}"
    assert refused("stats", mountpoint) == (2, reason)
    line = f"unmount {mountpoint} ({image})\n"
    assert good("clean", "--dry-run", mountpoint) == f"would {line}"
    assert find_mount(str(mountpoint)) is not None
    assert good("clean", mountpoint) == line.replace("unmount", "unmounted")
    assert find_mount(str(mountpoint)) is None
    assert listed(mountpoint) == []
    assert refused("clean", mountpoint)[0] == 32


@pytest.mark.parametrize("words", [[], ["--lazy"], ["--abort"]])
def test_stale_mounts_are_unmounted(image: Path, mountpoint: Path, words: list[str]) -> None:
    make_stale(image, mountpoint)
    assert good("umount", *words, mountpoint) == ""
    assert find_mount(str(mountpoint)) is None
    assert listed(mountpoint) == []


def test_stale_mount_is_replaced(image: Path, mountpoint: Path) -> None:
    """Also where somebody still has a file of it open, and where several lie on each other."""
    make_stale(image, mountpoint)
    user = os.open(mountpoint, os.O_PATH)
    try:
        done = penstock("mount", image, mountpoint)
        told = f"{mountpoint}: a mount whose server had died was there, and has been taken away"
        assert (done.returncode, done.stderr) == (0, f"penstock: warning: {told}\n")
        assert [row["state"] for row in listed(mountpoint)] == ["mounted"]
        assert (mountpoint / "size59").stat().st_size == 59
    finally:
        os.close(user)
    good("umount", mountpoint)
    assert find_mount(str(mountpoint)) is None


def test_crash_keep(image: Path, mountpoint: Path) -> None:
    """The mount stays until somebody takes it away, and its users are told."""
    good("mount", "-o", "crash=keep", image, mountpoint)
    found = processes(good("stats", "--json", mountpoint))
    os.kill(found.broker, signal.SIGKILL)
    wait_for(found.are_gone, "end of the processes", SECONDS)
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.listdir(mountpoint)
    assert [row["state"] for row in listed(mountpoint, "--stale")] == ["stale"]
    good("clean", mountpoint)
    assert find_mount(str(mountpoint)) is None


@pytest.mark.requires("root")
def test_commands_in_another_pid_namespace(image: Path, mountpoint: Path) -> None:
    """They see no process of the mount, and take it for alive all the same."""
    good("mount", image, mountpoint)
    (row,) = listed(mountpoint)
    unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    for words, shown in (
        (["list"], True),
        (["list", "--stale"], False),
        (["clean", "--dry-run"], False),
    ):
        command = [*unshare, *COMMAND, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert (str(mountpoint) in done.stdout) == shown
        assert f"/{row['pid']}-{row['connection']}." not in done.stdout
    assert [row["state"] for row in listed(mountpoint)] == ["mounted"]
    assert (mountpoint / "size59").stat().st_size == 59
    good("umount", mountpoint)


@pytest.mark.requires("root", "ordinary-user")
def test_root_believes_no_record_of_another_users_process(
    image: Path, mountpoint: Path, ordinary_user: OrdinaryUser
) -> None:
    """A record in the user's directory with the number of a process of root."""
    good("mount", image, mountpoint)
    found = processes(good("stats", "--json", mountpoint))
    (row,) = listed(mountpoint)
    fields = {name: row[name] for name in row if name not in {"state", "uid"}}
    own = Path(f"/tmp/penstock-{ordinary_user.uid}")
    own.mkdir(mode=0o700, exist_ok=True)
    try:
        file = own / f"{found.broker}-1.json"
        file.write_text(json.dumps(fields | {"connection": 1, "started": 0}))
        for path in (own, file):
            os.chown(path, ordinary_user.uid, ordinary_user.gid)
        assert len(listed(mountpoint)) == 1
    finally:
        file.unlink()
        remove_if_empty(str(own))
    good("umount", mountpoint)


@pytest.mark.requires("root", "ordinary-user", "fusermount3")
@pytest.mark.parametrize("how", ["--abort", "--lazy"])
def test_root_signals_no_process_that_a_user_names(
    image: Path, ordinary_user: OrdinaryUser, dev_fuse_for_all: None, how: str
) -> None:
    """A user's mount, whose record he has rewritten."""
    user = ordinary_user
    copy = copy_image(image, user.home / "theirs.img")
    copy.chmod(0o444)
    place = user.folder("mnt")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as victim:
        try:
            done = user.run([*user.penstock, "mount", str(copy), str(place)])
            assert (done.returncode, done.stderr) == (0, "")
            (row,) = listed(place)
            found = processes(good("stats", "--json", place))
            stop([victim.pid])
            own = Path(f"/tmp/penstock-{user.uid}")
            written = own / f"{row['pid']}-{row['connection']}.json"
            fields = json.loads(written.read_text())
            fields |= {"pid": victim.pid, "start_time": process_start_time(victim.pid)}
            false = own / f"{victim.pid}-{row['connection']}.json"
            false.write_text(json.dumps(fields))
            os.chown(false, user.uid, user.gid)
            written.unlink()
            assert listed(place) == []
            good("umount", how, place)
            assert process_state(victim.pid) == "T"
            assert find_mount(str(place)) is None
            wait_for(found.are_gone, "end of the processes")
        finally:
            victim.kill()
            for file in Path(f"/tmp/penstock-{user.uid}").glob(f"{victim.pid}-*"):
                file.unlink()
            remove_if_empty(f"/tmp/penstock-{user.uid}")
            while find_mount(str(place)) is not None:
                subprocess.run(["umount", "--lazy", str(place)], check=True)
            place.rmdir()
            copy.unlink()


ISOLATED = """
set -e
mount -t tmpfs none /run
penstock() {{ {penstock} "$@"; }}
penstock mount "$1" "$2"
penstock mount "$1" "$3"
kill -9 $(penstock list --json | sed -n 's/.*"keeper": \\([0-9]*\\).*/\\1/p')
kill -9 $(penstock list --json | sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p' | head -n 1)
while [ "$(penstock list --stale | grep -c "$2")" != 1 ]; do :; done
touch /run/penstock/4194305-1.sock /run/penstock/.4194305-1.new /run/penstock/notes
echo recorded; penstock clean --dry-run
rm $(grep -l "$2" /run/penstock/*.json)
while [ "$(penstock list --stale | grep -c "$2")" != 1 ]; do :; done
echo unrecorded; penstock list --stale | grep "$2"
penstock list --stale --json | grep -c '"pid": null'
penstock clean
echo cleaned; ls -A /run/penstock; penstock clean
grep -c " $2 " /proc/mounts || true
ls "$3" | grep size59
umount "$3"
"""


@pytest.mark.requires("root", "all-processes")
def test_clean_of_everything(image: Path, tmp_path: Path) -> None:
    """In a mount namespace and with a /run of its own: it would clean up after others, too."""
    places = [tmp_path / "dead", tmp_path / "alive"]
    for place in places:
        place.mkdir()
    script = ISOLATED.format(penstock=shlex.join(COMMAND))
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    done = subprocess.run(
        [*unshare, str(image), *map(str, places)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    recorded, rest = done.stdout.removeprefix("recorded\n").split("unrecorded\n")
    unrecorded, cleaned = rest.split("cleaned\n")
    files = ["/run/penstock/.4194305-1.new", "/run/penstock/4194305-1.sock"]
    unmounted = f"unmounted {places[0]} ({image})"
    assert recorded.splitlines() == [
        f"would {unmounted.replace('unmounted', 'unmount')}",
        *(f"would remove {file}" for file in files),
    ]
    row, count, *lines = unrecorded.splitlines()
    assert row.split() == [str(places[0]), str(image), "-", "stale", "-", "-", "root"]
    assert count == "1"
    assert lines[0] == unmounted
    assert set(files) < {line.removeprefix("removed ") for line in lines[1:]}
    *left, count, file = cleaned.splitlines()
    assert [name.partition("-")[2].partition(".")[2] for name in left] == ["json", "sock", ""]
    assert left[-1] == "notes"
    assert (count, file) == ("0", "size59")


@pytest.mark.requires("ordinary-user", "fusermount3")
@pytest.mark.parametrize("how", ["abort", "lazy", "clean", "broker"])
def test_ordinary_user(
    image: Path, ordinary_user: OrdinaryUser, dev_fuse_for_all: None, how: str
) -> None:
    user = ordinary_user
    copy = copy_image(image, user.home / "theirs.img")
    copy.chmod(0o444)
    place = user.folder("mnt")
    try:

        def run(*words: str) -> str:
            begun = time.monotonic()
            done = user.run([*user.penstock, *words])
            assert (done.returncode, done.stderr) == (0, "")
            assert words[0] == "mount" or time.monotonic() - begun < SECONDS
            return done.stdout

        run("mount", str(copy), str(place))
        found = processes(run("stats", "--json", str(place)))
        if how in {"abort", "lazy"}:
            stop(found.answering)
            assert str(place) in run("list")
            assert run("list", "--stale") == ""
            assert run("clean") == ""
            run("umount", f"--{how}", str(place))
        elif how == "broker":
            os.kill(found.broker, signal.SIGKILL)
            wait_for(lambda: find_mount(str(place)) is None, "unmount", SECONDS)
        else:
            for pid in (found.keeper, found.broker):
                os.kill(pid, signal.SIGKILL)
                wait_for(functools.partial(is_gone, pid), "end")
            assert str(place) in run("list", "--stale")
            assert run("clean") == f"unmounted {place} ({copy})\n"
        assert find_mount(str(place)) is None
        wait_for(found.are_gone, "end of the processes")
        assert run("list") == ""
        assert not Path(f"/tmp/penstock-{user.uid}").exists()
    finally:
        while find_mount(str(place)) is not None:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()
        copy.unlink()
