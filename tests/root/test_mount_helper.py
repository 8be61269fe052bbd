# SPDX-License-Identifier: Apache-2.0
"""Lines of fstab through the system's own mount(8) and the helpers that install-system installs.

mount(8) looks for helpers in /sbin and nowhere else, so they are put there for these tests, under a
lock and only if there are none, and taken away again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.sys.mountinfo import find_mount
from tests.support.commands import good, mount_flags, penstock
from tests.support.images import MIB, cached_image, make_tree, session_dir
from tests.support.ordinary import OrdinaryUser

pytestmark = [pytest.mark.requires("fuse", "mke2fs")]

HELPERS = ("mount.penstock", "mount.fuse.penstock")
TYPES = ("penstock", "fuse.penstock", "penstock.ext4", "fuse.penstock.ext4")
SAFE = {"ro", "nosuid", "nodev"}


@pytest.fixture(scope="module")
def image() -> Path:
    top = session_dir() / "helper-tree"
    return cached_image(size=64 * MIB, tree=top if top.exists() else make_tree(top, files=5))


@contextlib.contextmanager
def installed(place: Path, *words: str) -> Iterator[None]:
    """The helpers in /sbin; what else install-system installs goes below ``place``."""
    with contextlib.ExitStack() as stack:
        folder = os.open("/sbin", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        fcntl.flock(folder, fcntl.LOCK_EX)
        there = [name for name in HELPERS if os.path.lexists(f"/sbin/{name}")]
        assert not there, "they are somebody's; these tests need their places"
        places = [f"--{name}={place}/{name}" for name in ("units", "tmpfiles", "man")]
        stack.callback(good, "install-system", "--remove", *places, *words)
        done = penstock("install-system", "--force", *places, *words)  # may warn of a clone's place
        assert done.returncode == 0, done.stderr
        yield


@pytest.fixture
def helpers(tmp_path: Path) -> Iterator[None]:
    with installed(tmp_path):
        yield


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mount point"
    path.mkdir()
    yield path
    unmount_all(tmp_path)


def unmount_all(top: Path) -> None:
    for path in top.iterdir():
        while find_mount(str(path)) is not None:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def mount(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["mount", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def escaped(path: Path) -> str:
    """As fstab(5) writes a path."""
    return str(path).replace(" ", "\\040")


def fstab(top: Path, *lines: tuple[Path, Path, str, str]) -> Path:
    table = top / "fstab"
    text = "".join(
        f"{escaped(source)}\t{escaped(target)}\t{type}\t{words}\t0\t0\n"
        for source, target, type, words in lines
    )
    table.write_text(f"# <source> <dir> <type> <words> <dump> <pass>\n{text}", encoding="utf-8")
    return table


@pytest.mark.usefixtures("helpers")
@pytest.mark.parametrize(
    "type", ["penstock", "fuse.penstock", "penstock.ext4", "fuse.penstock.ext4"]
)
@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("defaults", set()),
        ("ro,nofail,_netdev,x-systemd.automount,x-systemd.idle-timeout=60", set()),
        ("rw,noauto,user,comment=the\\040disk,x-gvfs-show", {"noexec"}),
        ("owner,noatime,nodiratime,relatime,sync,lazytime,noexec,nosymfollow", {"noexec"}),
        ("users,exec,allow_other,workers=1,fsname=a\\040name", set()),
    ],
)
def test_lines(
    image: Path, place: Path, tmp_path: Path, type: str, words: str, flags: set[str]
) -> None:
    table = fstab(tmp_path, (image, place, type, words))
    done = mount("-T", table, place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    mounted = find_mount(str(place))
    assert mounted is not None
    assert mounted.fstype == "fuse.penstock"
    assert mounted.source == ("a name" if "fsname" in words else str(image))
    assert SAFE | flags <= mount_flags(place)
    assert "exec" not in words.split(",") or "noexec" not in mount_flags(place)
    assert (place / "lost+found").is_dir()
    subprocess.run(["umount", str(place)], check=True)
    assert find_mount(str(place)) is None


@pytest.mark.usefixtures("helpers")
def test_all_lines_at_once(image: Path, place: Path, tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("second", "third", "missing")]
    for other in others:
        other.mkdir()
    table = fstab(
        tmp_path,
        (image, place, "penstock", "defaults"),
        (image, others[0], "fuse.penstock", "ro,nofail"),
        (image, others[1], "penstock", "noauto"),
        (tmp_path / "none", others[2], "penstock", "nofail"),
    )
    for _ in range(2):  # the second time everything is there
        done = mount("-T", table, "-a")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert [find_mount(str(path)) is not None for path in (place, *others)] == [
            True, True, False, False,
        ]  # fmt: skip


@pytest.mark.usefixtures("helpers")
def test_lines_that_fail(image: Path, place: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(bytes(MIB))
    done = mount("-T", fstab(tmp_path, (bad, place, "penstock", "nofail")), place)
    assert done.returncode == 32
    assert done.stderr.startswith(f"penstock: {bad}: ")
    done = mount("-T", fstab(tmp_path, (image, place, "penstock", "bogus")), place)
    assert done.returncode == 1
    assert "unknown option 'bogus'" in done.stderr
    done = mount("-T", fstab(tmp_path, (image, place, "penstock", "ro")), place)
    assert done.returncode == 0
    done = mount("-o", "remount,noexec", place)
    assert (done.returncode, "cannot be mounted anew" in done.stderr) == (1, True)


@pytest.mark.usefixtures("helpers")
def test_flags_of_mount(image: Path, place: Path) -> None:
    done = mount("-f", "-v", "-t", "penstock", image, place)
    assert done.returncode == 0
    assert find_mount(str(place)) is None
    assert mount("-f", "-t", "penstock", "-o", "bogus", image, place).returncode == 1
    assert mount("-t", "penstock", "-o", "bogus", image, place).returncode == 1
    done = mount("-s", "-n", "-v", "-t", "penstock", "-o", "bogus,noexec", image, place)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"mount.penstock: {image} mounted on {place}\n" in done.stdout
    assert mount_flags(place) >= SAFE | {"noexec"}


@pytest.mark.usefixtures("helpers")
def test_another_mount_namespace(image: Path, place: Path) -> None:
    command = ["unshare", "--mount", "--propagation", "private", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as there:
        assert there.stdin is not None
        assert there.stdout is not None
        there.stdin.write(b"\n")
        there.stdin.flush()
        assert there.stdout.read(1) == b"\n"  # the namespace is made
        done = mount("-N", str(there.pid), "-t", "penstock", image, place)
        assert (done.returncode, done.stderr) == (0, "")
        assert find_mount(str(place)) is None
        enter = ["nsenter", f"--target={there.pid}", "--mount"]
        shown = subprocess.run(
            [*enter, "ls", "-d", f"{place}/lost+found"], capture_output=True, text=True, check=True
        )
        assert shown.stdout == f"{place}/lost+found\n"
        subprocess.run([*enter, "umount", str(place)], check=True)


@pytest.mark.requires("fusermount3")
def test_the_helper_of_libfuse(image: Path, place: Path, tmp_path: Path) -> None:
    """Where ``fuse.penstock`` has no helper of its own, mount(8) runs that of libfuse, with these
    words; it runs ``penstock`` from PATH, and appends dev and suid."""
    program = tmp_path / "bin" / "penstock"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m penstock "$@"\n', "utf-8")
    program.chmod(0o755)
    command = ["/sbin/mount.fuse3", image, place, "-o", "rw,nofail,_netdev,fsname=x y"]
    done = subprocess.run(
        [*map(str, command), "-t", "fuse.penstock"],
        env={**os.environ, "PATH": f"{program.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert mount_flags(place) >= SAFE
    mounted = find_mount(str(place))
    assert mounted is not None
    assert mounted.source == "x y"


@pytest.mark.requires("fusermount3", "ordinary-user")
@pytest.mark.usefixtures("dev_fuse_for_all")
def test_lines_for_users(ordinary_user: OrdinaryUser, image: Path, tmp_path: Path) -> None:
    """A line with ``user`` in /etc/fstab, which is another file in a namespace of its own."""
    place = ordinary_user.folder("user-line")
    copy = ordinary_user.copy(image, "user-line.img")
    table = fstab(tmp_path, (copy, place, "fuse.penstock", "ro,user,noauto,nofail,x-a=b"))
    python = tmp_path / "python"  # that finds penstock wherever the user sees this clone
    python.write_text(
        f'#!/bin/sh\nshift\nPYTHONPATH={ordinary_user.root}/src exec {ordinary_user.python} "$@"\n',
        "utf-8",
    )
    python.chmod(0o755)
    shown = ordinary_user.home / "python"
    script = f"""
        set -e
        mount --bind {shlex.quote(str(table))} /etc/fstab
        touch {shown}
        mount --bind {shlex.quote(str(python))} {shown}
        runuser -u nobody -- sh -ec '
            mount {place}
            ls -d {place}/lost+found
            grep " {place} " /proc/self/mountinfo
            umount {place}
            ! grep " {place} " /proc/self/mountinfo
        '
    """
    with installed(tmp_path, f"--python={shown}"):
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "lost+found" in done.stdout
    assert f"user_id={ordinary_user.uid}" in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if "user_id" in line)
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split(" ")[5].split(","))
