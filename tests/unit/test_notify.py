# SPDX-License-Identifier: Apache-2.0
"""sd_notify: what reaches the service manager's socket."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from penstock.sys.notify import notify


def receiver(address: str | bytes) -> socket.socket:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(address)
    manager.setblocking(False)
    return manager


@pytest.mark.parametrize("abstract", [False, True])
def test_lines_arrive_as_one_datagram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool
) -> None:
    name = f"penstock-test-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
    with receiver(b"\0" + name.encode() if abstract else name) as manager:
        assert notify("READY=1", "STATUS=/srv/image on /mnt")
        assert manager.recv(4096) == b"READY=1\nSTATUS=/srv/image on /mnt"


def test_no_text_becomes_another_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with receiver(str(tmp_path / "notify")) as manager:
        assert notify("STATUS=a\nMAINPID=1\0\x1b[2J", "STATUS=" + "x" * 5000, "STATUS=\udcff ü")
        first, second, third = manager.recv(4096).split(b"\n")
    assert first == b"STATUS=a MAINPID=1  [2J"
    assert len(second) == 512
    assert third == b"STATUS=  \xc3\xbc"


def test_nothing_happens_where_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    assert not notify("READY=1")


def test_a_manager_that_cannot_be_reached_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with pytest.raises(FileNotFoundError) as caught:
        notify("READY=1")
    assert caught.value.filename == f"NOTIFY_SOCKET {tmp_path}/nobody"
    monkeypatch.setenv("NOTIFY_SOCKET", "/x" * 200)
    with pytest.raises(OSError, match="File name too long: 'NOTIFY_SOCKET /x"):
        notify("READY=1")
