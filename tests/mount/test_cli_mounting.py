# SPDX-License-Identifier: Apache-2.0
"""penstock mount in the surroundings that a user may have: streams, signals, other mounts."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from penstock.cli.mountpoints import claimed
from penstock.control import runtime_directory
from penstock.serve import mount
from penstock.sys.mountinfo import find_mount
from penstock.testing import MemoryFilesystem
from tests.support.commands import COMMAND, good, penstock, refused, shell, wait_for
from tests.support.images import copy_image, run
from tests.support.ordinary import OrdinaryUser

pytestmark = pytest.mark.requires("mke2fs")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(image: Path, mountpoint: Path, closed: str) -> None:
    for words in (("mount", image, mountpoint), ("umount", mountpoint)):
        done = shell(f'exec "$@" {closed}', *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (find_mount(str(mountpoint)) is not None) == (words[0] == "mount")


def test_foreground_with_closed_streams(image: Path, mountpoint: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, "mount", "-f"]
    process = subprocess.Popen([*command, str(image), str(mountpoint)])
    wait_for(lambda: find_mount(str(mountpoint)), "mount")
    assert (mountpoint / "size59").stat().st_size == 59
    good("umount", mountpoint)
    assert process.wait(20) == 0


def test_debug_shows_each_request(image: Path, mountpoint: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "mount", "-d", "-o", "datapath=copy", str(image), str(mountpoint)],
            stderr=stderr,
        )
    wait_for(lambda: find_mount(str(mountpoint)), "mount")
    assert (mountpoint / "size59").read_bytes()
    assert not (mountpoint / "none").exists()
    # How large is the list of attributes? This has an answer of another form than the list has.
    assert ctypes.CDLL(None).listxattr(os.fsencode(mountpoint / "size59"), None, 0) == 0
    os.statvfs(mountpoint)
    os.listdir(mountpoint / "many")
    good("umount", mountpoint)
    assert process.wait(20) == 0
    lines = log.read_text().splitlines()
    assert all(line.startswith("penstock: ") for line in lines)
    assert not any(" = ?" in line for line in lines)
    for pattern in (
        r"LISTXATTR #\d+ node=\d+ size=0 .* = size=0 <[\d.]+ us>",
        r'LOOKUP #\d+ node=1 "size59" uid=.* = node=\d+ .* size=59 .* <[\d.]+ us>',
        r"READ #\d+ .* = 59 .*<[\d.]+ us>",
    ):
        assert any(re.fullmatch("penstock: server: " + pattern, line) for line in lines), pattern
    assert any(re.fullmatch(r"penstock: INIT: FUSE 7\.\d+, flags 0x[\da-f]+", li) for li in lines)


def test_root_directory_is_refused(image: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    for path in ("/", "//", "/tmp/..", tmp_path / "link"):
        reason = f"{path}: is the root directory; choose another mount point"
        assert refused("mount", image, path) == (32, reason)


@pytest.mark.requires("root")
def test_covering_another_mount_is_told(image: Path, mountpoint: Path) -> None:
    run("mount", "-t", "tmpfs", "penstock-test", mountpoint)
    try:
        done = penstock("mount", image, mountpoint)
        told = f"{mountpoint}: tmpfs (penstock-test) is mounted there, and is covered now"
        assert (done.returncode, done.stderr) == (0, f"penstock: warning: {told}\n")
        good("umount", mountpoint)
    finally:
        run("umount", mountpoint)


def test_two_mounts_at_the_same_time(image: Path, mountpoint: Path) -> None:
    command = [*COMMAND, "mount", str(image), str(mountpoint)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 32, 32, 32]
    assert sum("is mounted there" in text or "is being made there" in text for text in said) == 3
    good("umount", mountpoint)
    assert find_mount(str(mountpoint)) is None


def test_a_mount_that_is_being_made(image: Path, mountpoint: Path) -> None:
    with claimed(str(mountpoint)):
        reason = f"{mountpoint}: another mount is being made there"
        assert refused("mount", image, mountpoint) == (32, reason)
    good("mount", image, mountpoint)
    good("umount", mountpoint)
    there = mountpoint.stat()
    lock = f"{there.st_dev:x}-{there.st_ino:x}.lock"
    assert not Path(runtime_directory(), lock).exists()


def test_a_lock_on_the_directory_keeps_nobody_from_mounting(image: Path, mountpoint: Path) -> None:
    """Whoever may open a directory may lock it."""
    held = os.open(mountpoint, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with claimed(str(mountpoint)) as place:
            assert place.path == str(mountpoint)
    finally:
        os.close(held)


@pytest.mark.parametrize("way", ["sandbox=yes", "sandbox=no"])
def test_a_directory_that_is_moved(image: Path, tmp_path: Path, way: str) -> None:
    """The mount is taken away wherever it is by now, and what took its place is not touched."""
    place, moved = tmp_path / "parent" / "mnt", tmp_path / "moved"
    place.mkdir(parents=True)
    process = subprocess.Popen([*COMMAND, "mount", "-f", "-o", way, str(image), str(place)])
    wait_for(lambda: str(place) in good("list"), "record")
    place.parent.rename(moved)
    place.mkdir(parents=True)
    process.terminate()
    assert process.wait(20) == 0
    assert find_mount(str(moved / "mnt")) is None


@pytest.mark.requires("root")
@pytest.mark.parametrize("way", ["fsmount", "mount"])
def test_a_directory_that_is_moved_before_it_is_mounted_on(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was claimed is what is mounted on, and the mount is known by where it really is."""
    if way == "mount":
        absent = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        monkeypatch.setattr("penstock.sys.mount.fsopen", mock.Mock(side_effect=absent))
    place, moved, theirs = tmp_path / "parent" / "mnt", tmp_path / "moved", tmp_path / "theirs"
    for each in (place, theirs / "mnt"):
        each.mkdir(parents=True)
    with claimed(str(place)) as claim:
        place.parent.rename(moved)
        place.parent.symlink_to(theirs)
        with mount(MemoryFilesystem(), claim.path, directory=claim.directory) as mounted:
            assert mounted.statistics().how == way
            assert mounted.mountpoint == str(moved / "mnt")
            assert find_mount(mounted.mountpoint) == mounted.info is not None
            assert find_mount(str(theirs / "mnt")) is None
    assert find_mount(str(moved / "mnt")) is None


@pytest.mark.requires("ordinary-user", "fusermount3")
def test_what_fusermount3_has_not_is_refused(
    image: Path, ordinary_user: OrdinaryUser, dev_fuse_for_all: None
) -> None:
    place = ordinary_user.folder("mnt")
    copy = ordinary_user.copy(image, "nosymfollow.img")
    words = ["mount", "-o", "nosymfollow", str(copy), str(place)]
    done = ordinary_user.run([*ordinary_user.penstock, *words])
    mounted = find_mount(str(place))
    copy.unlink()
    place.rmdir()
    assert (done.returncode, mounted) == (32, None)
    reason = f"penstock: {place}: nosymfollow cannot be had through fusermount3\n"
    assert done.stderr == reason


def test_ignored_signals_stay_ignored(image: Path, mountpoint: Path) -> None:
    command = ["sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh", *COMMAND, "mount", "-f"]
    process = subprocess.Popen([*command, str(image), str(mountpoint)])
    wait_for(lambda: str(mountpoint) in good("list"), "record")
    ignored = next(
        int(line.split()[1], 16)
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("SigIgn:")
    )
    for number in (signal.SIGINT, signal.SIGHUP):
        assert ignored >> (number - 1) & 1
        process.send_signal(number)
    assert (mountpoint / "size59").stat().st_size == 59
    process.terminate()
    assert process.wait(20) == 0


@pytest.mark.requires("ordinary-user")
def test_records_in_a_user_namespace(
    image: Path, ordinary_user: OrdinaryUser, dev_fuse_for_all: None
) -> None:
    """Its root cannot write to /run; mounting says nothing of that, and leaves nothing."""
    copy = copy_image(image, ordinary_user.home / "theirs.img")
    copy.chmod(0o444)
    place = ordinary_user.home / "mnt"
    place.mkdir()
    place.chmod(0o777)
    words = " ".join(map(shlex.quote, ordinary_user.penstock))
    script = f"set -e; {words} mount {copy} {place}; {words} list; {words} umount {place}"
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    process = ordinary_user.popen([*unshare, "sh", "-c", script])
    out, err = process.communicate(timeout=60)
    place.rmdir()
    copy.unlink()
    assert (process.returncode, err) == (0, "")
    assert str(place) in out
    assert not Path("/tmp/penstock-0").exists()


@pytest.mark.requires("ordinary-user", "fusermount3")
def test_device_that_may_not_be_opened(
    image: Path, ordinary_user: OrdinaryUser, dev_fuse_for_root: None
) -> None:
    copy = copy_image(image, ordinary_user.home / "theirs.img")
    copy.chmod(0o444)
    place = ordinary_user.home / "mnt"
    place.mkdir()
    os.chown(place, ordinary_user.uid, ordinary_user.gid)
    process = ordinary_user.popen([*ordinary_user.penstock, "mount", str(copy), str(place)])
    err = process.communicate(timeout=60)[1]
    place.rmdir()
    copy.unlink()
    assert process.returncode == 32
    assert err.count("\n") == 1
    assert err.endswith(" (see penstock doctor)\n")
