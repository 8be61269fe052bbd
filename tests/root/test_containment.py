# SPDX-License-Identifier: Apache-2.0
"""What a server that has been taken over can reach: the matrices, and a real mount's server.

The attempts are in tests/support/attack_*.py, carried out as tests/support/attackrun.py tells. Each
one succeeds with no layer, is stopped by each single layer that stands beside it, and by all.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.abi.syscalls import SYSCALLS
from penstock.contain.sandbox import LAYERS
from penstock.sys.namespaces import namespace_ids
from tests.support.attackdocument import documents
from tests.support.attackmatrix import ALL, Measured, measure, problems, uses_only_allowed
from tests.support.attackrun import Outcome
from tests.support.attacks import load
from tests.support.commands import mount_flags
from tests.support.images import MIB, kernel_mount, make_image, run
from tests.support.ordinary import OrdinaryUser
from tests.support.servings import Serving, serving

pytestmark = pytest.mark.requires("fuse", "loop")

HELD = re.compile(r"/null|/fuse|pipe:\[\d+\]|socket:\[\d+\]|anon_inode:\[(eventfd|io_uring)\]")


@pytest.fixture(scope="module")
def measured() -> list[Measured]:
    """Everything that was tried, and what became of it."""
    return measure()


def test_every_attempt_ends_as_promised(measured: list[Measured]) -> None:
    assert problems(measured) == []


def test_attempts_are_real(measured: list[Measured]) -> None:
    """With no layer they succeed."""
    real = [row for row in measured if not row.layers and row.outcome is Outcome.SUCCEEDED]
    assert len(real) >= 55


def test_each_layer_stops_attempts_by_itself(measured: list[Measured]) -> None:
    stopped = Counter(
        next(iter(row.layers))
        for row in measured
        if len(row.layers) == 1 and row.outcome is Outcome.STOPPED
    )
    assert not {layer: stopped[layer] for layer in LAYERS if stopped[layer] < 5}


@pytest.mark.parametrize(
    "ordinary",
    [False, pytest.param(True, marks=pytest.mark.requires("ordinary-user"))],
    ids=["root", "ordinary-user"],
)
def test_all_layers_stop_every_attempt(measured: list[Measured], *, ordinary: bool) -> None:
    stopped = {
        row.attempt
        for row in measured
        if (row.layers, row.ordinary) == (ALL, ordinary)
        and row.outcome is Outcome.STOPPED
        and not row.missing
    }
    assert stopped == load().keys()


def test_attempts_are_many_and_of_many_kinds() -> None:
    attempts = load().values()
    assert len(attempts) >= 64
    calls = {call for attempt in attempts for call in attempt.calls}
    assert len(calls) >= 25
    assert calls <= SYSCALLS["x86_64"].keys()
    assert sum(map(uses_only_allowed, attempts)) >= 10


def test_documents_say_what_was_measured(measured: list[Measured]) -> None:
    """Else run ``python -m tests.support.attackmatrix``, which writes them."""
    for path, text in documents(measured).items():
        assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("layers", "outcome", "words"),
    [
        (frozenset(), Outcome.STOPPED, "not real"),
        (frozenset({"seccomp"}), Outcome.SUCCEEDED, "not stopped"),
        (ALL, Outcome.SUCCEEDED, "not stopped"),
        (ALL, Outcome.BROKEN, "broken"),
    ],
)
def test_a_broken_promise_is_noticed(layers: frozenset[str], outcome: Outcome, words: str) -> None:
    row = Measured("fork", layers, False, False, outcome, "", {}, 0)
    assert [line.partition(":")[0] for line in problems([row])] == [words]


def test_a_layer_that_is_not_in_force_is_noticed() -> None:
    row = Measured("fork", ALL, False, False, Outcome.STOPPED, "", {"landlock": "not there"}, 0)
    assert [line.partition(":")[0] for line in problems([row])] == ["not in force"]


# --- the server of a real mount


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Path]]:
    """A mount by root with three servers, in use, and its image."""
    place = tmp_path_factory.mktemp("contained")
    tree = place / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    image = make_image(place / "image", size=16 * MIB, tree=tree)
    with serving(image, place / "mnt", "processes=3") as served:
        assert (served.path / "file").read_bytes() == b"content"
        yield served, image


def servers_of(served: Serving) -> list[int]:
    servers = [int(each["pid"]) for each in served.statistics()["servers"]]
    assert len(servers) == 3
    return servers


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_all_layers_are_in_force(mounted: tuple[Serving, Path]) -> None:
    sandbox = mounted[0].statistics()["sandbox"]
    assert (sandbox["mode"], sandbox["active"]) == ("yes", True)
    assert set(sandbox["layers"]) == set(LAYERS)
    assert not {name: row for name, row in sandbox["layers"].items() if not row["in_force"]}


def test_a_server_has_no_rights(mounted: tuple[Serving, Path]) -> None:
    for pid in servers_of(mounted[0]):
        status = status_of(pid)
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0
        (user,) = {*status["Uid"].split(), *status["Gid"].split()}
        assert int(user) >= 1_900_000_000  # nobody else's, each server's its own
        assert status["Groups"].split() == []


def test_a_server_holds_only_what_it_works_with(mounted: tuple[Serving, Path]) -> None:
    """Beside the null device: its socket, /dev/fuse, pipes, and the image for reading only. The
    devices come through a mount of nowhere, where their nodes cannot be changed."""
    served, image = mounted
    for pid in servers_of(served):
        folder = f"/proc/{pid}/fd"
        held = {int(fd): os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)}
        odd = [path for path in held.values() if not HELD.fullmatch(path) and path != str(image)]
        assert not odd
        assert [held[fd] for fd in (0, 1, 2)] == ["/null"] * 3
        sockets = sum(path.startswith("socket:") for path in held.values())
        assert sockets in {1, 2}  # the broker's, and that of its registry
        assert "/fuse" in held.values()
        (fd,) = (fd for fd, path in held.items() if path == str(image))
        fdinfo = Path(f"/proc/{pid}/fdinfo/{fd}").read_text(encoding="ascii")
        flags = int(re.search(r"flags:\t(\d+)", fdinfo).group(1), 8)  # type: ignore[union-attr]
        assert flags & os.O_ACCMODE == os.O_RDONLY


def test_a_server_sees_nothing_of_the_host(mounted: tuple[Serving, Path]) -> None:
    """No namespace is the host's; the root is an empty folder, which is not "/"; it knows no
    environment, and no memory of it can be written and executed."""
    ours = namespace_ids()
    for pid in servers_of(mounted[0]):
        theirs = {name: os.stat(f"/proc/{pid}/ns/{name}").st_ino for name in ours}
        assert not {name for name in ours if ours[name] == theirs[name]}
        assert os.readlink(f"/proc/{pid}/root") != "/"
        assert os.listdir(f"/proc/{pid}/root") == []
        assert Path(f"/proc/{pid}/environ").read_bytes() == b""
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
        assert not re.search(r" .wx. ", maps, re.ASCII)


def test_a_crash_leaves_no_copy_of_a_servers_memory(mounted: tuple[Serving, Path]) -> None:
    for pid in servers_of(mounted[0]):
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
        # What belongs to root although the process is nobody's is not dumpable.
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0


# --- what an image brings along


@pytest.mark.requires("mke2fs", "kernel-ext4", "ordinary-user")
def test_set_user_id_programs_and_devices_of_an_image_are_nobodys(
    ordinary_user: OrdinaryUser, session_place: Path, tmp_path: Path
) -> None:
    """A set-user-ID shell of root and the node of a disk, for whoever is on the host. The same
    image, mounted by the kernel or by root in so many words, gives root away."""
    secret = tmp_path / "disk"
    secret.write_bytes(b"secret".ljust(MIB, b"\0"))
    disk = run("losetup", "--find", "--show", secret).strip()
    place = session_place / "contained"
    place.mkdir()
    try:
        image = make_image(
            tmp_path / "image", size=16 * MIB, tree=make_evil_tree(tmp_path / "tree", disk)
        )
        shell = [str(place / "shell"), "-p", "-c", "id -u"]
        device = ["head", "-c", "6", str(place / "disk")]
        with kernel_mount(image, place, "ro,suid,dev"):
            assert ordinary_user.run(shell).stdout == "0\n"
            assert ordinary_user.run(device).stdout == "secret"
        with serving(image, place, "allow_other"):
            assert mount_flags(place) >= {"nosuid", "nodev", "ro"}
            assert stat.S_IMODE((place / "shell").stat().st_mode) == 0o4755
            assert ordinary_user.run(shell).stdout == f"{ordinary_user.uid}\n"
            denied = ordinary_user.run(device)
            assert (denied.returncode, denied.stdout) == (1, "")
            assert "Permission denied" in denied.stderr
        with serving(image, place, "allow_other,suid,dev"):  # root's own words
            assert ordinary_user.run(shell).stdout == "0\n"
            assert ordinary_user.run(device).stdout == "secret"
    finally:
        run("losetup", "--detach", disk)
        place.rmdir()


def make_evil_tree(tree: Path, disk: str) -> Path:
    """A shell of mode 4755 that belongs to root, and a node of ``disk`` that all may use."""
    tree.mkdir()
    shutil.copyfile("/bin/sh", tree / "shell")
    (tree / "shell").chmod(0o4755)
    os.mknod(tree / "disk", stat.S_IFBLK | 0o666, os.stat(disk).st_rdev)
    (tree / "disk").chmod(0o666)
    return tree
