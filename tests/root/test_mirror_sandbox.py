# SPDX-License-Identifier: Apache-2.0
"""What a mirror's server that was taken over may try, under each layer of its sandbox and under all
of them; and the opener, which opens files by handle in its place."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.broker import opener
from penstock.broker.opener import ANSWER, LONGEST, Opener
from penstock.cli.trees import opened_tree
from penstock.contain.handles import HandleClient
from penstock.contain.mirrorprofile import MIRROR_OF_A_USER, MIRROR_SERVER
from penstock.contain.sandbox import LAYERS
from penstock.sys.handles import encode_handle, encode_own_handle
from tests.support.mirrorattacking import BROKER, Row, measure
from tests.support.mirrorattacks import load

pytestmark = pytest.mark.requires("landlock")

ATTEMPTS = load()
ALL = {*LAYERS, BROKER} - MIRROR_SERVER.without.keys()
OF_A_USER = set(LAYERS) - MIRROR_OF_A_USER.without.keys()


@pytest.fixture(scope="module")
def rows(session_place: Path) -> list[Row]:
    folder = session_place / f"attacked-{os.getpid()}"
    folder.mkdir(mode=0o755)
    return measure(folder)


def test_there_is_enough_to_try() -> None:
    assert len(ATTEMPTS) >= 70
    for layer in ALL - {"no_new_privs", "limits"}:
        assert sum(layer in attempt.by for attempt in ATTEMPTS.values()) >= 5, layer
    assert any("limits" in attempt.by for attempt in ATTEMPTS.values())


def test_no_attempt_is_broken(rows: list[Row]) -> None:
    assert not [row for row in rows if row.outcome == "broken"]


def test_attempts_are_real(rows: list[Row]) -> None:
    """With no layer all succeed but those that the kernel itself refuses."""
    stopped = {row.attempt for row in rows if not row.layers and row.outcome == "stopped"}
    assert stopped == {name for name, attempt in ATTEMPTS.items() if attempt.kernel}


def test_each_layer_stops_what_it_must_by_itself(rows: list[Row]) -> None:
    single = [row for row in rows if len(row.layers) == 1]
    assert {(row.attempt, *row.layers) for row in single} == {
        (name, layer) for name, attempt in ATTEMPTS.items() for layer in attempt.by
    }
    assert not [row for row in single if row.outcome != "stopped"]


def test_all_layers_stop_all(rows: list[Row]) -> None:
    full = [row for row in rows if set(row.layers) == ALL and not row.ordinary]
    assert {row.attempt for row in full} == set(ATTEMPTS)
    assert not [row for row in full if row.outcome != "stopped"]


def test_all_layers_of_an_ordinary_user(rows: list[Row]) -> None:
    """What is left to such a server is in docs/security.md: attributes of the user's own files."""
    full = [row for row in rows if row.ordinary]
    assert {frozenset(row.layers) for row in full} == {frozenset(OF_A_USER)}
    assert not [row for row in full if row.outcome != "stopped"]
    untried = set(ATTEMPTS) - {row.attempt for row in full}
    assert untried == {
        name
        for name, attempt in ATTEMPTS.items()
        if not attempt.later and attempt.by <= {"root", "namespaces", BROKER}
    }


# The opener


class Asked:
    """An opener of a directory, and somebody who asks it."""

    def __init__(self, tree: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.opener = Opener.start(tree, theirs)
        self.sock = ours
        self.client = HandleClient(os.dup(ours.fileno()))

    def close(self) -> None:
        """Ask nothing more."""
        self.client.close()
        self.sock.close()

    def open(self, handle: bytes, flags: int = os.O_RDONLY) -> bytes:
        """The first bytes of the file."""
        fd = self.client.open(-1, handle, flags)
        try:
            return os.read(fd, 16)
        finally:
            os.close(fd)

    def ask(self, packet: bytes) -> int:
        """The errno that it answers; 0 with a descriptor."""
        self.sock.send(packet)
        answer, fds, _, _ = socket.recv_fds(self.sock, 64, 4)
        for fd in fds:
            os.close(fd)
        (code,) = ANSWER.unpack(answer)
        assert bool(fds) == (code == 0)
        return int(code)


@pytest.fixture
def folder(session_place: Path) -> Path:
    """``source/file`` and ``source/below/deep``, and ``outside`` beside it."""
    top = session_place / f"opener-{os.getpid()}-{random.randrange(1 << 30)}"
    (top / "source" / "below").mkdir(parents=True)
    (top / "source" / "file").write_text("file")
    (top / "source" / "below" / "deep").write_text("deep")
    (top / "outside").write_text("secret")
    return top


@pytest.fixture
def asked(folder: Path) -> Iterator[Asked]:
    with opened_tree(str(folder / "source"), read_only=False) as tree:
        each = Asked(tree)
        with each.opener:
            yield each
            each.close()


def handle_of(path: Path) -> bytes:
    fd = os.open(path.parent, os.O_PATH)
    try:
        return encode_handle(fd, os.fsencode(path.name))
    finally:
        os.close(fd)


def plain_handle_of(path: Path) -> bytes:
    fd = os.open(path, os.O_PATH)
    try:
        return encode_own_handle(fd)
    finally:
        os.close(fd)


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2", encoding="ascii")


@pytest.mark.parametrize("cold", [False, True])
def test_opener_opens_what_lies_beneath(folder: Path, asked: Asked, cold: bool) -> None:
    handles = {
        b"file": handle_of(folder / "source" / "file"),
        b"deep": handle_of(folder / "source" / "below" / "deep"),
    }
    if cold:
        drop_caches()
    for content, handle in handles.items():
        assert asked.open(handle) == content
        assert asked.open(handle, os.O_RDWR) == content
    below = asked.client.open(-1, handle_of(folder / "source" / "below"), os.O_PATH)
    assert os.stat("deep", dir_fd=below).st_size == 4
    os.close(below)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("forged", ["connectable", "plain", "marked"])
def test_opener_opens_nothing_else(folder: Path, asked: Asked, forged: str, cold: bool) -> None:
    """A handle of a file outside: with its parent, without, and without but marked as if with."""
    outside = folder / "outside"
    handle = handle_of(outside) if forged == "connectable" else plain_handle_of(outside)
    if forged == "marked":
        length, kind = struct.unpack_from("=Ii", handle)
        handle = struct.pack("=Ii", length, kind | 0x1_0000) + handle[8:]
    if cold:
        drop_caches()
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_PATH, os.O_RDONLY | os.O_DIRECTORY):
        with pytest.raises(OSError, match=r".") as caught:
            asked.open(handle, flags)
        assert caught.value.errno == errno.ESTALE


def test_opener_opens_no_plain_handle_of_its_own(folder: Path, asked: Asked) -> None:
    """They would open whatever lies anywhere; so none is opened at all."""
    with pytest.raises(OSError, match=r".") as caught:
        asked.open(plain_handle_of(folder / "source" / "file"))
    assert caught.value.errno == errno.ESTALE


def test_opener_takes_no_nonsense(folder: Path, asked: Asked) -> None:
    good = handle_of(folder / "source" / "file")
    for flags in (os.O_CREAT, os.O_TRUNC, os.O_TMPFILE, os.O_EXCL, 1 << 31):
        assert asked.ask(struct.pack("=I", flags) + good) == errno.EINVAL
    for packet in (
        b"x",
        b"x" * 11,
        struct.pack("=IIi", 0, 4, 1),
        struct.pack("=I", 0) + good + b"x",
    ):
        assert asked.ask(packet) == errno.EINVAL
    wild = random.Random(1)
    for _ in range(2000):
        body = wild.randbytes(wild.choice([8, 12, 16, 20, 28, 128]))
        kind = wild.choice([0, 1, 2, 0x81, 0x82, 0x4D, 0xFF, 0x5678]) | 0x1_0000
        packet = struct.pack("=IIi", 0, len(body), kind) + body
        assert asked.ask(packet) in {errno.ESTALE, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT}
    assert asked.open(good) == b"file"  # it is still there
    asked.sock.send(b"x" * (LONGEST + 2))
    assert asked.sock.recv(16) == b""  # which no honest server sends


def test_opener_blocks_on_nothing(folder: Path, asked: Asked) -> None:
    os.mkfifo(folder / "source" / "pipe")
    assert asked.open(handle_of(folder / "source" / "pipe")) == b""
    os.mknod(folder / "source" / "device", 0o020666, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        asked.open(handle_of(folder / "source" / "device"))


def test_opener_holds_little(asked: Asked) -> None:
    pid = asked.opener.pid
    client = threading.Thread(target=asked.ask, args=(b"x",))
    client.start()
    client.join()  # it has settled when it answers
    held = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert set(held) == {0, 1, 2, 3, 4}
    assert {held[fd] for fd in (0, 1, 2)} == {"/dev/null"}
    assert held[4].startswith("socket:")
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 1 << 2
    assert fields["NoNewPrivs"] == "1"
    assert fields["Name"] == opener._NAME


def test_opener_ends_with_the_server(asked: Asked) -> None:
    asked.close()
    assert os.waitpid(asked.opener.pid, 0)[1] == 0
