# SPDX-License-Identifier: Apache-2.0
"""The mirror in its sandbox, as root: what its server has and holds, that each caller is himself,
that nothing leads out of the directory, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from penstock.contain.mirrorprofile import MIRROR_SERVER, TRUSTED_MIRROR
from penstock.contain.sandbox import LAYERS
from penstock.sys.files import rename2
from tests.support.commands import mount_flags, penstock, refused, wait_for
from tests.support.contained import children, contained, odd
from tests.support.ordinary import OrdinaryUser

pytestmark = pytest.mark.requires("fuse", "landlock")

NAMESPACES = {"cgroup", "ipc", "mnt", "net", "pid", "time", "uts"}
HELD = re.compile(r"/null|/fuse|pipe:\[\d+\]|socket:\[\d+\]|anon_inode:\[eventfd\]|/(below)?")
A, B = 12345, 12346
SHARED = 12400


class Places(NamedTuple):
    """A directory to serve, where to mount it, and a folder beside both."""

    source: Path
    mount: Path
    beside: Path


@pytest.fixture
def places(session_place: Path, request: pytest.FixtureRequest) -> Iterator[Places]:
    top = session_place / f"mirror-{os.getpid()}-{abs(hash(request.node.name))}"
    made = Places(top / "source", top / "mount", top / "beside")
    for folder in made:
        folder.mkdir(parents=True)
    (made.source / "file").write_text("content\n")
    (made.beside / "secret").write_text("secret\n")
    (made.beside / "secret").chmod(0o600)
    yield made
    shutil.rmtree(top)


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return {name: value.strip() for name, _, value in (s.partition(":") for s in text.splitlines())}


def as_user(user: int, script: str, *words: str | Path, groups: tuple[int, ...] = ()) -> str:
    """What a line of shell prints, run as somebody; it must succeed."""
    done = subprocess.run(
        ["sh", "-ec", script, "sh", *map(str, words)],
        user=user, group=user, extra_groups=groups, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def refused_to(user: int, script: str, *words: str | Path, groups: tuple[int, ...] = ()) -> str:
    """What a line of shell complains of, run as somebody; it must fail."""
    done = subprocess.run(
        ["sh", "-c", script, "sh", *map(str, words)],
        user=user, group=user, extra_groups=groups, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode, done
    return done.stderr


# What the server has and holds


@pytest.mark.parametrize("word", ["yes", "strict"])
def test_layers(places: Places, word: str) -> None:
    with contained(places.source, places.mount, f"sandbox={word}") as mount:
        statistics = mount.statistics()
        assert statistics["type"] == "mirror"
        assert statistics["source"] == str(places.source)
        sandbox = statistics["sandbox"]
        assert (sandbox["mode"], sandbox["active"]) == (word, True)
        layers = sandbox["layers"]
        assert set(layers) == set(LAYERS)
        there = {name for name, layer in layers.items() if layer["in_force"]}
        assert there == {name for name, layer in layers.items() if layer["wanted"]}
        assert set(LAYERS) - there == {"identity"}
        assert "setfsuid" in layers["identity"]["detail"]
        assert set(layers["namespaces"]["detail"].split()) == NAMESPACES
        assert "not identity" in penstock("stats", places.mount).stdout
        assert "rw" in mount_flags(places.mount)
        assert {"nosuid", "nodev"} <= mount_flags(places.mount)


@pytest.mark.parametrize("options", ["", "trusted"])
def test_what_the_server_is(places: Places, options: str) -> None:
    profile = TRUSTED_MIRROR if options else MIRROR_SERVER
    with contained(places.source, places.mount, options) as mount:
        assert (places.mount / "file").read_text() == "content\n"
        (server,) = mount.servers
        status = status_of(server)
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"0"}
        assert status["Groups"] == ""
        kept = sum(1 << number for number in profile.capabilities)
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == kept
        for name in ("CapInh", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        for name in NAMESPACES:
            assert os.readlink(f"/proc/{server}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        assert os.readlink(f"/proc/{server}/ns/user") == os.readlink("/proc/self/ns/user")
        assert os.listdir(f"/proc/{server}/root") == []
        limits = Path(f"/proc/{server}/limits").read_text(encoding="ascii")
        assert re.search(r"Max data size +2147483648 +2147483648", limits)
        assert re.search(r"Max file size +unlimited", limits)
        assert re.search(r"Max core file size +0 +0", limits)


def test_what_the_server_holds(places: Places) -> None:
    """Beside its sockets, pipes and devices (whose nodes it cannot change): the directory."""
    (places.source / "below").mkdir()
    with contained(places.source, places.mount) as mount:
        os.listdir(places.mount / "below")
        (server,) = mount.servers
        folder = f"/proc/{server}/fd"
        held = {int(fd): os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)}
        assert not [path for path in held.values() if not HELD.fullmatch(path)]
        assert [held[fd] for fd in (0, 1, 2)] == ["/null"] * 3
        directories = {os.stat(f"{folder}/{fd}").st_ino for fd in held if held[fd].startswith("/")}
        assert os.stat(places.source).st_ino in directories
        for name in ("null", "fuse"):
            (fd, *_) = (fd for fd, path in held.items() if path == f"/{name}")
            with pytest.raises(OSError, match="Read-only"):
                os.chmod(f"{folder}/{fd}", os.stat(f"/dev/{name}").st_mode & 0o7777)


def test_a_system_call_too_many_ends_the_mount(places: Places) -> None:
    """As with images; the exit code says so."""
    with contained(places.source, places.mount, program=odd("lookup")) as mount:
        with contextlib.suppress(OSError):
            os.stat(places.mount / "!sandbox")
        ended = mount.wait()
        assert ended.code == 4
        mount.assert_nothing_left()
    assert (places.source / "file").exists()


# Each caller is himself


def test_files_belong_to_who_makes_them(places: Places) -> None:
    places.source.chmod(0o1777)
    make = 'cd "$1"; umask 027; echo x >f; mkdir d; ln -s f l; mkfifo p; ln f h; stat -c %u:%g:%a *'
    with contained(places.source, places.mount, "allow_other"):
        folder = places.mount / "made"
        folder.mkdir()
        folder.chmod(0o777)
        said = as_user(A, make, folder).split()
    assert said == [f"{A}:{A}:{mode}" for mode in ("750", "640", "640", "777", "640")]
    found = [os.lstat(path) for path in sorted((places.source / "made").iterdir())]
    assert {(each.st_uid, each.st_gid) for each in found} == {(A, A)}


def test_groups_are_the_callers(places: Places) -> None:
    """What his supplementary groups allow he may, and what they do not he may not."""
    shared = places.source / "shared"
    shared.mkdir()
    os.chown(shared, 0, SHARED)
    shared.chmod(0o2770)
    (shared / "theirs").write_text("theirs\n")
    (shared / "theirs").chmod(0o660)
    os.chown(shared / "theirs", B, SHARED)
    member = (SHARED,)
    with contained(places.source, places.mount, "allow_other"):
        at = places.mount / "shared"
        assert as_user(A, 'cat "$1/theirs"', at, groups=member) == "theirs\n"
        make = 'echo more >>"$1/theirs"; echo new >"$1/new"; mkdir "$1/dir"'
        as_user(A, make, at, groups=member)
        for line in ('cat "$1/theirs"', 'echo >"$1/other"'):
            assert "Permission denied" in refused_to(A, line, at)
        for line in ('chmod 666 "$1/theirs"', f'chown {B} "$1/new"', 'chgrp 0 "$1/new"'):
            assert "Operation not permitted" in refused_to(A, line, at, groups=member)
        as_user(A, f'chgrp {A} "$1/new"', at, groups=member)
    assert (shared / "theirs").read_text() == "theirs\nmore\n"
    for name, group in (("new", A), ("dir", SHARED)):
        found = os.stat(shared / name)
        assert (found.st_uid, found.st_gid) == (A, group)
    assert os.stat(shared / "dir").st_mode & stat.S_ISGID


RACER = """
import os, sys, threading
folder, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
def make(thread):
    for number in range(count):
        path = f"{folder}/{name}-{thread}-{number}"
        kind = number % 4
        if kind == 0:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        elif kind == 1:
            os.mkdir(path, 0o700)
        elif kind == 2:
            os.symlink("x", path)
        else:
            os.mkfifo(path, 0o600)
        found = os.lstat(path)
        assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid()), path
threads = [threading.Thread(target=make, args=(n,)) for n in range(4)]
for each in threads: each.start()
for each in threads: each.join()
"""


def test_two_users_at_once(places: Places) -> None:
    """From many threads each; nobody's file is ever another's."""
    places.source.chmod(0o1777)
    with contained(places.source, places.mount, "allow_other,workers=4"):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, places.mount, str(user), "250"],
                user=user, group=user, extra_groups=[SHARED] if user == A else [],
                stderr=subprocess.PIPE,
            )
            for user in (A, B, 0)
        ]  # fmt: skip
        said = [each.communicate(timeout=100)[1] for each in running]
        assert [each.returncode for each in running] == [0, 0, 0], said
    wrong = []
    count = 0
    for entry in os.scandir(places.source):
        if entry.name != "file":
            found = entry.stat(follow_symlinks=False)
            count += 1
            if entry.name.partition("-")[0] != str(found.st_uid) or found.st_uid != found.st_gid:
                wrong.append(entry.name)
    assert (count, wrong) == (3 * 4 * 250, [])


# Nothing leads out


def test_set_user_id_files_and_devices(places: Places, ordinary_user: OrdinaryUser) -> None:
    shutil.copyfile("/bin/sh", places.source / "shell")
    (places.source / "shell").chmod(0o4755)
    os.mknod(places.source / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (places.source / "zero").chmod(0o666)
    shell = [str(places.mount / "shell"), "-p", "-c", "id -u"]
    device = ["head", "-c", "4", str(places.mount / "zero")]
    with contained(places.source, places.mount, "allow_other"):
        assert stat.S_IMODE((places.mount / "shell").stat().st_mode) == 0o4755
        assert ordinary_user.run(shell).stdout == f"{ordinary_user.uid}\n"
        denied = ordinary_user.run(device)
        assert denied.returncode == 1
        assert "Permission denied" in denied.stderr
    with contained(places.source, places.mount, "allow_other,suid,dev"):
        assert ordinary_user.run(shell).stdout == "0\n"
        assert ordinary_user.run(device).stdout == "\0" * 4


def test_what_is_mounted_below_is_not_seen(places: Places) -> None:
    below = places.source / "below"
    below.mkdir()
    (below / "under").touch()
    subprocess.run(["mount", "-t", "tmpfs", "below", below], check=True)
    try:
        (below / "over").touch()
        with contained(places.source, places.mount):
            assert os.listdir(places.mount / "below") == ["under"]
    finally:
        subprocess.run(["umount", below], check=True)


def test_mount_point_inside_the_source(places: Places) -> None:
    inside = places.source / "inside"
    with contained(places.source, inside):
        assert sorted(os.listdir(inside)) == ["file", "inside"]
        assert os.listdir(inside / "inside") == []
        (inside / "new").write_text("new")
        assert (inside / "new").read_text() == "new"
        done = subprocess.run(
            ["find", places.source], capture_output=True, text=True, check=True, timeout=20
        )
        assert len(done.stdout.splitlines()) == 3 + 4
    assert sorted(os.listdir(places.source)) == ["file", "inside", "new"]


def test_links_lead_where_the_caller_is(places: Places) -> None:
    """Their text is all that the server gives; following it is the caller's kernel's."""
    (places.source / "out").symlink_to(places.beside / "secret")
    (places.source / "up").symlink_to("../beside/secret")
    with contained(places.source, places.mount):
        assert os.readlink(places.mount / "out") == str(places.beside / "secret")
        assert (places.mount / "up").read_text() == "secret\n"  # beside the mount point as well
    with contained(places.source, places.mount, "nosymfollow"):
        with pytest.raises(OSError, match=r".") as caught:
            (places.mount / "out").read_text()
        assert caught.value.errno == errno.ELOOP


def test_races_with_links_underneath(places: Places) -> None:
    """Whoever swaps directories and links underneath has no file outside opened, made or changed by
    the server: it acts as root, so it would succeed."""
    inner = places.source / "swapped"
    inner.mkdir()
    (inner / "secret").write_text("inside\n")
    (places.source / "link").symlink_to(places.beside)
    before = os.stat(places.beside / "secret")
    stop = threading.Event()

    def swap() -> None:
        names = inner, places.source / "link"
        while not stop.is_set():
            rename2(*names, 2)

    with contained(places.source, places.mount, "allow_other,timeout=0"):
        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            deadline = time.monotonic() + 4
            fd = os.open(places.mount, os.O_RDONLY)
            seen: set[bytes] = set()
            while time.monotonic() < deadline:
                for action in (_read, _touch, _make, _change_mode):
                    with contextlib.suppress(OSError), _folder(fd, "swapped") as folder:
                        seen.add(action(folder))
            os.close(fd)
        finally:
            stop.set()
            swapper.join()
    after = os.stat(places.beside / "secret")
    assert seen == {b"", b"inside\n"}
    assert os.listdir(places.beside) == ["secret"]
    assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode, before.st_mtime_ns, before.st_ctime_ns,
    )  # fmt: skip


@contextlib.contextmanager
def _folder(fd: int, name: str) -> Iterator[int]:
    """A directory, which the caller himself does not take for one if it is a link."""
    opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    try:
        yield opened
    finally:
        os.close(opened)


def _read(folder: int) -> bytes:
    opened = os.open("secret", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        return os.read(opened, 20)
    finally:
        os.close(opened)


def _touch(folder: int) -> bytes:
    os.utime("secret", (1, 1), dir_fd=folder)
    return b""


def _make(folder: int) -> bytes:
    os.close(os.open("made", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666, dir_fd=folder))
    return b""


def _change_mode(folder: int) -> bytes:
    os.chmod("secret", 0o666, dir_fd=folder)
    return b""


def test_read_only(places: Places) -> None:
    """The server could not write either: its mount of the directory is read-only."""
    with contained(places.source, places.mount, "ro") as mount:
        assert "ro" in mount_flags(places.mount)
        with pytest.raises(OSError, match="Read-only"):
            (places.mount / "file").write_text("x")
        with pytest.raises(OSError, match="Read-only"):
            os.chmod(f"/proc/{mount.servers[0]}/fd/{_directory_of(mount.servers[0])}", 0o700)
    assert (places.source / "file").read_text() == "content\n"


def _directory_of(pid: int) -> int:
    return next(
        int(fd) for fd in os.listdir(f"/proc/{pid}/fd") if os.path.isdir(f"/proc/{pid}/fd/{fd}")
    )


# Nothing is left


@pytest.mark.parametrize("who", ["server", "broker", "keeper and broker's end", "opener"])
def test_whoever_is_killed(places: Places, who: str) -> None:
    with contained(places.source, places.mount) as mount:
        (opener,) = (pid for pid, name in children(mount.broker).items() if "opener" in name)
        fd = os.open(places.mount / "file", os.O_RDWR)
        if who == "opener":  # files that were moved underneath are not found again; no more
            os.kill(opener, signal.SIGKILL)
            assert (places.mount / "file").read_text() == "content\n"
            (places.mount / "later").write_text("later")
            mount.kill(mount.broker, signal.SIGTERM)
            mount.wait()
        elif who == "server":
            mount.kill(mount.servers[0])
            assert mount.wait().code == 137
        elif who == "broker":
            mount.kill(mount.broker)
        else:
            mount.kill(mount.keeper)
            mount.kill(mount.broker, signal.SIGTERM)
        with contextlib.suppress(OSError):
            os.close(fd)
        mount.assert_nothing_left()
        wait_for(lambda: not Path(f"/proc/{opener}").exists(), "end of the opener", 2)
    assert (places.source / "file").read_text() == "content\n"


def test_no_command_waits_for_a_stopped_server(places: Places) -> None:
    with contained(places.source, places.mount) as mount:
        mount.stop(mount.servers[0])
        for words in (
            ("list",), ("stats", places.mount), ("stats", "--json", places.mount),
            ("clean", "--dry-run"), ("umount", "--lazy", places.mount),
        ):  # fmt: skip
            begun = time.monotonic()
            done = penstock(*words, timeout=10)
            assert time.monotonic() - begun < 2, words
            assert done.returncode == 0, (words, done)
        mount.wait(20)
        mount.assert_nothing_left()


def test_umount_abort_of_a_stopped_server(places: Places) -> None:
    with contained(places.source, places.mount) as mount:
        mount.stop(mount.servers[0])
        begun = time.monotonic()
        assert penstock("umount", "--abort", places.mount).returncode == 0
        assert time.monotonic() - begun < 2
        mount.wait(20)
        mount.assert_nothing_left()


# What cannot be done


def test_refusals(places: Places) -> None:
    code, text = refused("mount", "-o", "processes=2", places.source, places.mount)
    assert (code, "a directory has one server" in text) == (1, True)
    code, text = refused("mount", "-t", "ext4", places.source, places.mount)
    assert (code, "is a directory" in text) == (32, True)
    code, text = refused("mount", "-t", "mirror", places.source / "file", places.mount)
    assert (code, "is no directory" in text) == (32, True)
    code, text = refused("mount", "-o", "cache=often", places.source, places.mount)
    assert (code, "cache=often" in text) == (1, True)


def test_a_listening_socket_of_the_source(places: Places) -> None:
    """It is shown; to connect takes the directory itself, as with any network filesystem."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(places.source / "socket"))
        with contained(places.source, places.mount):
            assert stat.S_ISSOCK(os.stat(places.mount / "socket").st_mode)
