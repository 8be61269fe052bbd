# SPDX-License-Identifier: Apache-2.0
"""The control socket: messages, access, bounds, records."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from penstock.control import (
    PING,
    STATS,
    ControlClient,
    ControlError,
    ControlServer,
    Handler,
    Listed,
    ProtocolError,
    Record,
    State,
    find_leftovers,
    find_record,
    records,
    remove_leftover,
    remove_record,
)
from penstock.control import server as server_module
from penstock.control.directory import open_directory, runtime_directory
from penstock.control.process import open_process
from penstock.control.protocol import (
    MAX_REQUEST,
    METHOD_NOT_FOUND,
    decode_call,
    decode_reply,
    encode_call,
)
from penstock.control.record import socket_name
from penstock.sys import mountinfo
from penstock.sys.process import process_name, process_start_time

UID = os.geteuid()


def record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "mount_id": 77,
        "connection": 4242,
        "mountpoint": "/mnt/a\udcffb",
        "source": "/srv/disk.img",
        "type": "ext4",
        "started": 1.5,
    }
    return Record.of_this_process(**(fields | changes))


@pytest.fixture
def directory(tmp_path: Path) -> str:
    # Longer than sun_path (108 bytes): sockets are reached through the directory's descriptor.
    path = tmp_path / ("long" * 30)
    path.mkdir(mode=0o700)
    return str(path)


def listed(directory: str, rec: Record) -> Listed:
    return Listed(rec, State.MOUNTED, directory, UID)


def connect(directory: str, rec: Record) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with open_directory(directory, UID) as fd:
        sock.connect(f"/proc/self/fd/{fd}/{socket_name(rec)}")
    sock.settimeout(10)
    return sock


def receive(sock: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\0"):
        piece = sock.recv(65536)
        assert piece, "closed without an answer"
        data += piece
    fields: dict[str, Any] = json.loads(data[:-1])
    return fields


def at_end(sock: socket.socket) -> bool:
    """Whether the server has closed the connection, waiting for it."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_call_and_answer(directory: str) -> None:
    rec = record()
    seen: list[dict[str, Any]] = []

    def stats(parameters: dict[str, Any]) -> dict[str, Any]:
        seen.append(parameters)
        return {"statistics": {"name": "n\udcff"}}

    with ControlServer(rec, {STATS: stats}, directory=directory):
        client = ControlClient(listed(directory, rec))
        assert client.call(STATS, {"a": 1}) == {"statistics": {"name": "n\udcff"}}
    assert seen == [{"a": 1}]


def test_errors_are_varlink_errors(directory: str, caplog: pytest.LogCaptureFixture) -> None:
    rec = record()

    def broken(_: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no luck")

    def refused(_: dict[str, Any]) -> dict[str, Any]:
        raise ControlError("org.penstock.Mount.Busy", {"message": "in use"})

    handlers = {PING: broken, STATS: refused}
    with ControlServer(rec, handlers, directory=directory):
        client = ControlClient(listed(directory, rec))
        with pytest.raises(ControlError, match=r"org\.penstock\.Nothing") as unknown:
            client.call("org.penstock.Nothing")
        assert unknown.value.name == METHOD_NOT_FOUND
        with pytest.raises(ControlError, match="no luck") as failed:
            client.call(PING)
        assert failed.value.name == "org.penstock.Mount.Failed"
        with pytest.raises(ControlError, match="Busy: in use"):
            client.call(STATS)
    assert "control method org.penstock.Mount.Ping has failed" in caplog.text


def test_service_interface(directory: str) -> None:
    rec = record()
    with ControlServer(rec, {}, directory=directory):
        client = ControlClient(listed(directory, rec))
        info = client.call("org.varlink.service.GetInfo")
        assert "org.penstock.Mount" in info["interfaces"]
        method = "org.varlink.service.GetInterfaceDescription"
        text = client.call(method, {"interface": "org.penstock.Mount"})["description"]
        assert "method Stats()" in text
        with pytest.raises(ControlError, match="InterfaceNotFound"):
            client.call(method, {"interface": "other"})


def test_requests_in_pieces_and_in_a_row(directory: str) -> None:
    rec = record()
    with (
        ControlServer(rec, {PING: lambda _: {"pid": 1}}, directory=directory),
        connect(directory, rec) as sock,
    ):
        message = encode_call(PING, {})
        sock.sendall(message[:5])
        sock.sendall(message[5:] + message)
        data = b""
        while data.count(b"\0") < 2:
            data += sock.recv(4096)
        assert data == b'{"parameters":{"pid":1}}\0' * 2
        sock.sendall(b'{"method":"org.penstock.Mount.Ping","oneway":true}\0' + message)
        assert receive(sock) == {"parameters": {"pid": 1}}


@pytest.mark.parametrize(
    "junk",
    [
        b"x" * (MAX_REQUEST + 2),
        b"not json\0",
        b"[1]\0",
        b"{}\0",
        b'{"method":1}\0',
        b'{"method":"m","parameters":[]}\0',
        b"\xff\0",
        b"[" * 60_000 + b"\0",
    ],
)
def test_bad_requests_end_only_their_connection(directory: str, junk: bytes) -> None:
    rec = record()
    with (
        ControlServer(rec, {PING: lambda _: {"pid": 1}}, directory=directory),
        connect(directory, rec) as good,
        connect(directory, rec) as bad,
    ):
        bad.sendall(junk)
        assert at_end(bad)
        good.sendall(encode_call(PING, {}))
        assert receive(good) == {"parameters": {"pid": 1}}


def test_peer_that_does_not_read_blocks_nobody(directory: str) -> None:
    rec = record()
    handlers: dict[str, Handler] = {
        STATS: lambda _: {"x": "y" * 200_000},
        PING: lambda _: {"pid": 1},
    }
    with (
        ControlServer(rec, handlers, directory=directory),
        connect(directory, rec) as greedy,
        connect(directory, rec) as good,
    ):
        greedy.setblocking(False)
        message = encode_call(STATS, {}) * 64
        with suppress(BlockingIOError):
            while True:  # until the server has stopped reading
                greedy.send(message)
        good.sendall(encode_call(PING, {}))
        assert receive(good) == {"parameters": {"pid": 1}}


def test_newcomer_replaces_the_idlest(directory: str) -> None:
    rec = record()
    with ControlServer(rec, {PING: lambda _: {"pid": 1}}, directory=directory):
        first = connect(directory, rec)
        others = [connect(directory, rec) for _ in range(server_module.MAX_PEERS)]
        try:
            assert at_end(first)
            others[-1].sendall(encode_call(PING, {}))
            assert receive(others[-1]) == {"parameters": {"pid": 1}}
        finally:
            for sock in [first, *others]:
                sock.close()


def test_idle_connections_are_closed(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.05)
    rec = record()
    with ControlServer(rec, {}, directory=directory), connect(directory, rec) as sock:
        assert at_end(sock)


@pytest.mark.skipif(UID != 0, reason="becoming another user needs root")
def test_strangers_are_turned_away(directory: str) -> None:
    rec = record()
    with ControlServer(rec, {PING: lambda _: {"pid": 1}}, directory=directory):
        # The mode alone would keep others out; let them reach the socket to see the check itself.
        os.chmod(directory, 0o755)
        path = f"{directory}/{socket_name(rec)}"
        os.chmod(path, 0o666)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.chdir(directory)
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.settimeout(10)
                sock.connect(socket_name(rec))
                code = 0 if at_end(sock) else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        os.chmod(directory, 0o700)


def test_client_gives_up_on_a_stopped_server(directory: str) -> None:
    rec = record()
    with open_directory(directory, UID) as fd, socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(f"/proc/self/fd/{fd}/{socket_name(rec)}")
        deaf.listen(1)
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match="does not answer"):
            ControlClient(listed(directory, rec)).call(PING, timeout=0.1)
        assert time.monotonic() - begun < 5


def test_client_bounds_the_answer(directory: str) -> None:
    rec = record()
    with open_directory(directory, UID) as fd, socket.socket(socket.AF_UNIX) as hostile:
        hostile.bind(f"/proc/self/fd/{fd}/{socket_name(rec)}")
        hostile.listen(1)

        def flood() -> None:
            sock, _ = hostile.accept()
            with sock:
                try:
                    while True:
                        sock.sendall(b"x" * 65536)
                except OSError:
                    return

        thread = threading.Thread(target=flood)
        thread.start()
        with pytest.raises(ProtocolError, match="an answer of more than"):
            ControlClient(listed(directory, rec)).call(PING)
        thread.join()


def test_files_are_private_and_go_away(directory: str) -> None:
    rec = record()
    server = ControlServer(rec, {}, directory=directory)
    with server:
        names = sorted(os.listdir(directory))
        assert names == [f"{rec.name}.json", f"{rec.name}.sock"]
        for name in names:
            info = os.lstat(f"{directory}/{name}")
            assert stat.S_IMODE(info.st_mode) == 0o600
    assert os.listdir(directory) == []
    server.close()


def test_unsafe_directories_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "real"
    target.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(PermissionError, match="is not a directory"):
        ControlServer(record(), {}, directory=str(link)).__enter__()
    target.chmod(0o755)
    with pytest.raises(PermissionError, match="open to other users"):
        ControlServer(record(), {}, directory=str(target)).__enter__()
    target.chmod(0o700)
    with (
        pytest.raises(PermissionError, match="belongs to uid"),
        open_directory(str(target), UID + 1),
    ):
        pass


def test_runtime_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime_directory() == "/run/penstock"
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory() == "/tmp/penstock-12345"  # somebody else's XDG_RUNTIME_DIR
    os.chown(tmp_path, *((12345, -1) if UID == 0 else (-1, -1)))
    if UID == 0:
        assert runtime_directory() == f"{tmp_path}/penstock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert runtime_directory() == "/tmp/penstock-12345"


def fake_mount(rec: Record, **changes: Any) -> mountinfo.MountInfo:
    fields: dict[str, Any] = {
        "mount_id": rec.mount_id,
        "parent_id": 1,
        "major": 0,
        "minor": rec.connection,
        "root": "/",
        "mountpoint": rec.mountpoint,
        "options": "ro",
        "fstype": "fuse.penstock",
        "source": rec.source,
        "super_options": f"ro,user_id={UID},group_id=0",
    }
    return mountinfo.MountInfo(**(fields | changes))


def test_states(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rec = record()
    table: list[mountinfo.MountInfo] = []
    monkeypatch.setattr("penstock.control.record.mounts", lambda: table)

    def states() -> list[State]:
        found = records([(directory, UID)])
        assert all(item.record == rec for item in found)
        return [item.state for item in found]

    with ControlServer(rec, {}, directory=directory):
        assert states() == [State.DETACHED]
        table[:] = [fake_mount(rec)]
        assert states() == [State.MOUNTED]
        table[:] = [fake_mount(rec, mountpoint="/moved/elsewhere")]
        assert states() == [State.MOUNTED]
        table[:] = [fake_mount(rec, mountpoint="/other", mount_id=1)]
        assert states() == [State.DETACHED]
        table[:] = [fake_mount(rec, fstype="tmpfs")]
        assert states() == [State.DETACHED]
        table[:] = [fake_mount(rec, super_options=f"ro,user_id={UID + 1}")]
        assert states() == [State.DETACHED]  # somebody else's mount is none of ours
        table[:] = [fake_mount(rec)]
        monkeypatch.setattr("penstock.control.record.process_start_time", lambda _: None)
        assert states() == [State.STALE]
        # The number in use again by a younger process is not the server either.
        monkeypatch.setattr(
            "penstock.control.record.process_start_time", lambda _: rec.start_time + 1
        )
        assert states() == [State.STALE]
        table.clear()
        assert states() == []
        assert os.listdir(directory) == []  # nothing left of it: the record is removed


def test_numbers_that_are_used_again(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount may have the numbers and the place of one that has just gone, whose record is still
    there: it belongs to who serves it now."""
    dead, ending, now = (
        dataclasses.replace(record(), pid=number, started=float(number)) for number in (1, 2, 3)
    )
    entry = fake_mount(now)
    for each in (dead, ending, now):
        Path(directory, f"{each.name}.json").write_text(json.dumps(each.__dict__))
    monkeypatch.setattr("penstock.control.record.mounts", lambda: [entry])
    monkeypatch.setattr("penstock.control.record.all_directories", lambda: [(directory, UID)])
    times = {2: ending.start_time, 3: now.start_time}
    monkeypatch.setattr("penstock.control.record.process_start_time", times.get)
    monkeypatch.setattr("penstock.control.record.process_owner", lambda _: UID)
    found = [(item.record, item.state) for item in records(tidy=False)]
    assert found == [(ending, State.DETACHED), (now, State.MOUNTED)]
    answering = find_record(entry)
    assert answering is not None
    assert answering.record == now
    del times[3]
    assert [(i.record, i.state) for i in records(tidy=False)] == [(ending, State.MOUNTED)]
    del times[2]
    assert [(i.record, i.state) for i in records(tidy=False)] == [(now, State.STALE)]


def test_remove_record(directory: str) -> None:
    rec = record()
    with ControlServer(rec, {}, directory=directory):
        remove_record(listed(directory, rec))
        assert os.listdir(directory) == []
        remove_record(listed(directory, rec))


def test_old_records_are_read(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a version that did not know the newer fields; but not ones with a wrong value."""
    rec = record()
    monkeypatch.setattr("penstock.control.record.mounts", lambda: [fake_mount(rec)])
    file = Path(directory, f"{rec.name}.json")
    fields = dict(rec.__dict__)
    del fields["keeper"]
    file.write_text(json.dumps(fields))
    assert [item.record for item in records([(directory, UID)])] == [rec]
    file.write_text(json.dumps(fields | {"keeper": "1"}))
    assert records([(directory, UID)]) == []


def test_locks_that_nobody_holds_are_left_over(directory: str) -> None:
    with open_directory(directory, UID, create=True):
        for name in ("fe00-2a.lock", "fe00-2b.lock", "notes.lock"):
            Path(directory, name).touch()
        with open(Path(directory, "fe00-2b.lock")) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            found = [item.name for item in find_leftovers([(directory, UID)])]
    assert found == ["fe00-2a.lock"]


def test_leftovers(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What belongs to no process and to no mount; the rest is not looked at."""
    rec = record()
    gone = dataclasses.replace(rec, pid=2**22 + 1, connection=4243)
    stale = dataclasses.replace(rec, pid=2**22 + 2, connection=4244, mount_id=78)
    table = [fake_mount(rec), fake_mount(stale)]
    monkeypatch.setattr("penstock.control.record.mounts", lambda: table)
    monkeypatch.setattr("penstock.control.leftovers.mounts", lambda: table)

    def names() -> list[str]:
        found = find_leftovers([(directory, UID)])
        assert {item.directory for item in found} <= {directory}
        return [item.name for item in found]

    with ControlServer(rec, {}, directory=directory):
        for name in (
            f"{gone.name}.sock", f".{gone.name}.new", f"{stale.name}.sock", f".{rec.name}.new",
            "4194308-1.sock", "4194308-2.json", ".4194308-3.new", "notes.json", "1-2-3.sock",
            "4194308-4.sock.old", "4194308.json", "x4194308-5.json",
        ):  # fmt: skip
            Path(directory, name).touch()
        for item in (gone, stale):
            Path(directory, f"{item.name}.json").write_text(json.dumps(item.__dict__))
        with_record = [f".{gone.name}.new", f"{gone.name}.json", f"{gone.name}.sock"]
        alone = [".4194308-3.new", "4194308-1.sock", "4194308-2.json"]
        assert sorted(names()) == sorted(with_record + alone)
        assert len(records([(directory, UID)], tidy=False)) == 2
        assert sorted(names()) == sorted(with_record + alone)
        places = {item.name: item.mountpoint for item in find_leftovers([(directory, UID)])}
        assert places[f"{gone.name}.sock"] == gone.mountpoint
        assert places["4194308-1.sock"] == ""
        table.clear()  # then its record is of no use either
        assert {f"{stale.name}.json", f"{stale.name}.sock"} < set(names())
        for file in find_leftovers([(directory, UID)]):
            assert remove_leftover(file)
            assert not remove_leftover(file)
        assert names() == []
        assert not set(with_record + alone) & set(os.listdir(directory))
        assert {f"{rec.name}.json", f"{rec.name}.sock", "notes.json"} < set(os.listdir(directory))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"pid": true}',
        "[" * 60_000,
        json.dumps(record().__dict__ | {"pid": "1"}),
        json.dumps(record().__dict__ | {"pid": -1}),
        json.dumps(record().__dict__ | {"pid": 1 << 70}),
        json.dumps(record().__dict__ | {"started": "now"}),
        json.dumps(record().__dict__ | {"connection": 1}),  # not the one its name says
        json.dumps(record().__dict__) + " " * 100_000 + "x",
    ],
)
def test_bad_records_are_left_out(directory: str, text: str) -> None:
    rec = record()
    with ControlServer(rec, {}, directory=directory):
        os.mkfifo(f"{directory}/1-1.json")
        os.symlink(f"{rec.name}.json", f"{directory}/2-2.json")
        Path(directory, "3-3.json").write_text(text)
        Path(directory, f"{rec.name}.json").write_text(text)
        assert [item.record for item in records([(directory, UID)])] in ([], [rec])


def test_missing_directory_lists_nothing(tmp_path: Path) -> None:
    assert records([(str(tmp_path / "none"), UID)]) == []


def test_decode() -> None:
    assert decode_call(encode_call("a.B", {"c": 1})[:-1]) == ("a.B", {"c": 1}, False)
    assert decode_call(b'{"method":"a.B"}').parameters == {}
    assert decode_reply(b"{}") == {}
    for junk in (b"1", b'{"parameters":1}', b'{"error":1}'):
        with pytest.raises(ProtocolError):
            decode_reply(junk)


def test_processes() -> None:
    assert process_start_time(os.getpid()) is not None
    assert process_name(os.getpid()) != "?"
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    begun = process_start_time(pid)
    assert begun is not None
    with open_process(pid, begun + 1, os.geteuid()) as other:
        assert other is None  # another process had that number
    with open_process(pid, begun, os.geteuid()) as process:
        assert process is not None
        assert not process.wait(0.01)
        os.close(write_end)
        os.close(read_end)
        assert process.wait(10)
        assert process_start_time(pid) is None  # a zombie is gone
        os.waitpid(pid, 0)
        assert process.wait(0)
    with open_process(pid, begun, os.geteuid()) as process:
        assert process is None
    assert process_name(pid) == "?"


def test_root_of_a_user_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is called root, but /run is not its own."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime_directory(0) == "/run/penstock" or not os.access("/run", os.W_OK)
    monkeypatch.setattr(os, "access", lambda path, _mode: not path.startswith("/run"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert runtime_directory() == "/tmp/penstock-0"
    monkeypatch.setattr("penstock.control.directory._owner", lambda _path: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory() == f"{tmp_path}/penstock"


def test_an_empty_directory_in_tmp_goes() -> None:
    directory = f"/tmp/penstock-test-control-{os.getpid()}"
    with ControlServer(record(connection=1), {}, directory=directory):
        with ControlServer(record(connection=2), {}, directory=directory):
            assert len(os.listdir(directory)) == 4
        assert len(os.listdir(directory)) == 2
    assert not os.path.exists(directory)
