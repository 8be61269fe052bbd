# SPDX-License-Identifier: Apache-2.0
"""Whoever owns a directory of records writes there what he likes: whom that can lead astray."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.abi.process import FIRST_PID_NAMESPACE
from penstock.cli import mounts as cli_mounts
from penstock.cli.commands import list as list_command
from penstock.cli.commands import stats as stats_command
from penstock.cli.commands import umount as umount_command
from penstock.cli.errors import ExitCode, Failure
from penstock.control import (
    PING,
    STATS,
    ControlClient,
    ControlServer,
    Listed,
    Record,
    State,
    find_leftovers,
    open_recorded_process,
    pid_namespace,
    records,
)
from penstock.control.directory import all_directories, is_served, open_directory
from penstock.control.process import open_process, process_owner
from penstock.sys import mountinfo
from penstock.sys.process import process_start_time, process_state
from tests.support.commands import wait_for

UID = os.geteuid()
NOBODY = 2**22 + 1
"""A number that no process has."""
ELSEWHERE = 4711
"""The number of another pid namespace."""

GOOD: dict[str, Any] = {
    "source": "/a",
    "type": "ext4",
    "mountpoint": "/m",
    "pid": 1,
    "servers": [{"pid": 2, "answers": True}],
    "mounted_by": "fsmount",
    "uptime_seconds": 1.5,
    "datapath": "copy",
    "datapath_reasons": {"splice": "why"},
    "reads": {"copy": {"reads": 1, "bytes": 2}},
    "opens": {"copy": 1},
    "requests": {"READ": {"count": 1, "errors": 0, "microseconds": 3.5}},
    "protocol": {"minor": 45},
    "sandbox": {"layers": {"seccomp": {"in_force": False, "detail": "none"}}},
    "memory": {"resident": 4096, "broker": 4096},
}


def record(**changes: Any) -> Record:
    made = Record.of_this_process(
        mount_id=77,
        connection=4242,
        mountpoint="/mnt/a",
        source="/srv/disk.img",
        type="ext4",
        started=1.5,
    )
    return dataclasses.replace(made, **changes)


def mount_of(rec: Record) -> mountinfo.MountInfo:
    return mountinfo.MountInfo(
        mount_id=rec.mount_id,
        parent_id=1,
        major=0,
        minor=rec.connection,
        root="/",
        mountpoint=rec.mountpoint,
        options="ro",
        fstype="fuse.penstock",
        source=rec.source,
        super_options=f"ro,user_id={UID},group_id=0",
    )


def write(directory: str, rec: Record) -> Path:
    file = Path(directory, f"{rec.name}.json")
    file.write_text(json.dumps(dataclasses.asdict(rec)))
    return file


@pytest.fixture
def directory(tmp_path: Path) -> str:
    path = tmp_path / "records"
    path.mkdir(mode=0o700)
    return str(path)


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process that only ends when it is told to."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def forged(process: subprocess.Popen[bytes], owner: int, **changes: Any) -> Listed:
    begun = process_start_time(process.pid)
    assert begun is not None
    rec = record(pid=process.pid, start_time=begun, **changes)
    return Listed(rec, State.MOUNTED, "/nowhere", owner)


# Processes


def test_no_process_of_another_user_is_signalled(victim: subprocess.Popen[bytes]) -> None:
    listed = forged(victim, UID + 1)
    os.kill(victim.pid, signal.SIGSTOP)
    wait_for(lambda: process_state(victim.pid) == "T", "stop")
    umount_command._wait("/m", listed, lazy=False)
    assert umount_command._end_process(listed)
    assert process_state(victim.pid) == "T"
    assert umount_command._end_process(listed._replace(uid=UID))
    assert victim.wait(10) == -signal.SIGKILL


def test_no_process_of_another_namespace_is_signalled(victim: subprocess.Popen[bytes]) -> None:
    listed = forged(victim, UID, pid_namespace=ELSEWHERE)
    umount_command._wait("/m", listed, lazy=False)
    assert not umount_command._end_process(listed)
    assert victim.poll() is None
    with open_recorded_process(listed) as process:
        assert process is None


def test_open_process(victim: subprocess.Popen[bytes]) -> None:
    begun = process_start_time(victim.pid)
    assert begun is not None
    for pid, start, uid in (
        (victim.pid, begun + 1, UID),
        (victim.pid, begun, UID + 1),
        (NOBODY, begun, UID),
        (0, begun, UID),
        (1 << 62, begun, UID),
    ):
        with open_process(pid, start, uid) as process:
            assert process is None
    with open_process(victim.pid, begun, UID) as process:
        assert process is not None
        assert not process.is_stopped
        assert not process.wait(0.0)
        process.send(signal.SIGKILL)
        assert process.wait(10)
        victim.wait()
        process.send(signal.SIGKILL)


def test_process_owner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert process_owner(os.getpid()) == UID
    assert process_owner(NOBODY) is None
    status = tmp_path / "status"
    monkeypatch.setattr(
        "builtins.open", lambda _path, mode: os.fdopen(os.open(status, os.O_RDONLY), mode)
    )
    status.write_text("Name:\tx\nUid:\t7\t7\t0\t0\n")
    assert process_owner(1) == 7
    status.write_text("Name:\tx\nUid:\t7\t0\t0\t0\n")  # a program with the setuid bit
    assert process_owner(1) is None


def test_a_record_of_somebody_elses_process_is_left_out(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rec = record()
    file = write(directory, rec)
    monkeypatch.setattr("penstock.control.record.mounts", lambda: [mount_of(rec)])
    assert [item.state for item in records([(directory, UID)])] == [State.MOUNTED]
    monkeypatch.setattr("penstock.control.record.process_owner", lambda _: UID + 1)
    assert records([(directory, UID)]) == []
    assert find_leftovers([(directory, UID)]) == []
    assert file.exists()


# Namespaces


@pytest.mark.parametrize("is_mounted", [True, False])
def test_records_of_another_pid_namespace(
    directory: str, monkeypatch: pytest.MonkeyPatch, is_mounted: bool
) -> None:
    """Their numbers say nothing: who listens at the socket does."""
    rec = record(pid=NOBODY, pid_namespace=ELSEWHERE)
    table = [mount_of(rec)] if is_mounted else []
    monkeypatch.setattr("penstock.control.record.mounts", lambda: table)
    monkeypatch.setattr("penstock.control.leftovers.mounts", lambda: table)
    server = ControlServer(rec, {}, directory=directory)
    server.leave_record = True
    with server:
        (found,) = records([(directory, UID)])
        assert found.state is (State.MOUNTED if is_mounted else State.DETACHED)
        assert find_leftovers([(directory, UID)]) == []
        assert len(os.listdir(directory)) == 2
    states = [item.state for item in records([(directory, UID)], tidy=False)]
    assert states == ([State.STALE] if is_mounted else [])
    assert len(find_leftovers([(directory, UID)])) == (0 if is_mounted else 2)


def test_a_socket_without_a_record_may_be_in_use(directory: str) -> None:
    rec = record(pid=NOBODY)
    with ControlServer(rec, {}, directory=directory):
        Path(directory, f"{rec.name}.json").unlink()
        assert find_leftovers([(directory, UID)]) == []


def test_who_is_unseen_need_not_be_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process that serves a mount in sight proves something only where it would be in sight."""
    monkeypatch.setattr(cli_mounts, "find_server", lambda _: None)

    def stale(here: int, recorded: int) -> int:
        monkeypatch.setattr(cli_mounts, "pid_namespace", lambda: here)
        rec = record(pid=NOBODY, pid_namespace=recorded)
        return len(cli_mounts.stale_mounts([Listed(rec, State.STALE, "/", UID, mount_of(rec))]))

    monkeypatch.setattr(cli_mounts, "mounts", list)
    assert [stale(FIRST_PID_NAMESPACE, n) for n in (0, ELSEWHERE, FIRST_PID_NAMESPACE)] == [1, 1, 1]
    assert [stale(ELSEWHERE, n) for n in (0, ELSEWHERE + 1, FIRST_PID_NAMESPACE)] == [0, 0, 0]
    assert stale(ELSEWHERE, ELSEWHERE) == 1
    assert stale(0, 0) == 0


def test_records_say_their_namespace(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rec = record()
    assert rec.pid_namespace == pid_namespace() != 0
    fields = dataclasses.asdict(rec)
    del fields["pid_namespace"]
    Path(directory, f"{rec.name}.json").write_text(json.dumps(fields))
    monkeypatch.setattr("penstock.control.record.mounts", lambda: [mount_of(rec)])
    monkeypatch.setattr("penstock.control.record.pid_namespace", lambda: FIRST_PID_NAMESPACE)
    (found,) = records([(directory, UID)])
    assert (found.state, found.record.pid_namespace) == (State.MOUNTED, 0)
    assert found.record.is_local
    monkeypatch.setattr("penstock.control.record.pid_namespace", lambda: ELSEWHERE)
    assert not found.record.is_local


# Sockets


def test_links_to_sockets_are_not_followed(directory: str, tmp_path: Path) -> None:
    rec = record()
    other = tmp_path / "other"
    with ControlServer(rec, {PING: lambda _: {}}, directory=str(other)):
        Path(directory, f"{rec.name}.sock").symlink_to(other / f"{rec.name}.sock")
        with pytest.raises(PermissionError, match="is not a socket"):
            ControlClient(Listed(rec, State.MOUNTED, directory, UID)).call(PING)


def test_who_listens_is_looked_at(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rec = record()
    name = f"{rec.name}.sock"
    with (
        ControlServer(rec, {PING: lambda _: {}}, directory=directory),
        open_directory(directory, UID) as fd,
    ):
        assert is_served(fd, name, UID)
        with pytest.raises(PermissionError, match="belongs to uid"):
            is_served(fd, name, UID + 1)
        monkeypatch.setattr("penstock.control.directory.peer_uid", lambda _: UID + 1)
        with pytest.raises(PermissionError, match="listens there"):
            ControlClient(Listed(rec, State.MOUNTED, directory, UID)).call(PING)


def test_a_socket_with_a_full_queue_is_served(directory: str) -> None:
    with socket.socket(socket.AF_UNIX) as deaf, open_directory(directory, UID) as fd:
        deaf.bind(f"{directory}/s")
        assert not is_served(fd, "s", UID)
        deaf.listen(0)
        assert all(is_served(fd, "s", UID) for _ in range(3))
        assert not is_served(fd, "none", UID)


def test_no_directory_is_looked_into_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("penstock.control.directory.runtime_directory", lambda: "/tmp//penstock-0")
    names = {"/tmp": ["penstock-7", "penstock-0"], "/run/user": []}
    monkeypatch.setattr("penstock.control.directory._names", names.__getitem__)
    assert all_directories() == [("/tmp/penstock-0", 0), ("/tmp/penstock-7", 7)]


# What is shown


def test_long_texts_are_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rec = record(source="s\x1b" * 30_000, type="t" * 60_000, mountpoint="/" + "m" * 60_000)
    monkeypatch.setattr(
        list_command, "records", lambda: [Listed(rec, State.DETACHED, "/nowhere", 2**31)]
    )
    monkeypatch.setattr(list_command, "stale_mounts", lambda _: [])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    list_command.run(argparse.Namespace(stale=False, json=False))
    heading, row = capsys.readouterr().out.splitlines()
    assert len(row) < 500
    assert row.count("…") == 3
    assert heading.split()[-2:] == ["AGE", "USER"]
    assert row.endswith(f"user {2**31}")
    list_command.run(argparse.Namespace(stale=False, json=True))
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["source"], shown["uid"]) == (rec.source, 2**31)
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    list_command.run(argparse.Namespace(stale=False, json=False))
    assert "USER" not in capsys.readouterr().out


def ask(answer: Any, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``penstock stats`` of a mount whose server answers that."""
    rec = record()
    listed = Listed(rec, State.MOUNTED, directory, UID)
    monkeypatch.setattr(stats_command, "our_mount", lambda *_: (mount_of(rec), listed))
    with ControlServer(rec, {STATS: lambda _: {"statistics": answer}}, directory=directory):
        stats_command.run(argparse.Namespace(mountpoint="/m", json=False))


def test_names_in_statistics_are_made_harmless(
    directory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(GOOD, directory, monkeypatch)
    good = capsys.readouterr().out
    assert {"seccomp", "splice", "READ"} < set(good.split())

    def evil(value: Any) -> Any:
        if isinstance(value, dict):
            own = {f"{name}\x1b]0;x\x07": evil(item) for name, item in value.items()}
            return own if set(value) & {"splice", "copy", "READ", "seccomp"} else {
                name: evil(item) for name, item in value.items()
            }  # fmt: skip
        return f"{value}\x1b[2J" if isinstance(value, str) else value

    ask(evil(GOOD), directory, monkeypatch)
    bad = capsys.readouterr().out
    assert "\x1b" not in bad
    assert bad.count("\\x1b") >= 8
    assert "\x07" not in bad


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("source",), None),
        (("servers",), {}),
        (("servers", 0), {"pid": 1}),
        (("servers", 0, "pid"), "\x1b"),
        (("uptime_seconds",), float("inf")),
        (("uptime_seconds",), float("nan")),
        (("uptime_seconds",), 1 << 80),
        (("uptime_seconds",), -1),
        (("requests",), [1]),
        (("requests", "READ", "count"), True),
        (("reads", "copy"), {}),
        (("opens", "copy"), "1"),
        (("memory",), {}),
        (("sandbox", "layers"), None),
        (("protocol", "minor"), "45"),
        ((), None),
        ((), {}),
    ],
)
def test_wrong_statistics_are_refused(
    directory: str, monkeypatch: pytest.MonkeyPatch, path: tuple[Any, ...], value: object
) -> None:
    answer = {"all": copy.deepcopy(GOOD)}
    place: Any = answer
    *way, last = ("all", *path)
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(Failure, match="answered no statistics") as failed:
        ask(answer["all"], directory, monkeypatch)
    assert failed.value.code == ExitCode.SYSTEM
