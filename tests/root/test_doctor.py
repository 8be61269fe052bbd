# SPDX-License-Identifier: Apache-2.0
"""doctor tries the data paths for real: with all there is, with rights and things taken away."""

from __future__ import annotations

import errno
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.abi.fuse import InitFlag
from penstock.cli.probes import datapaths, lens, trialmount
from penstock.cli.probes.base import attempt
from penstock.fs import Operations
from tests.support.loopfs import PARAMETERS, loop_filesystem
from tests.support.ordinary import OrdinaryUser

pytestmark = pytest.mark.requires("root", "fuse")

DOCTOR = [sys.executable, "-m", "penstock", "doctor", "--json"]
BOTH = {"lens", "passthrough"}
READ = {"copy", "splice"}


class Told:
    """What doctor said."""

    def __init__(self, text: str) -> None:
        found = json.loads(text)
        self.features: dict[str, dict[str, Any]] = {row["name"]: row for row in found["features"]}
        self.datapaths: dict[str, str] = found["datapaths"]
        self.verdict: str = found["verdict"]

    def works(self, names: set[str]) -> set[str]:
        """Which of them this user can make use of."""
        return {name for name in names if self.features[name]["user"]}

    def enable(self, name: str) -> str:
        return str(self.features[name]["enable"])

    def detail(self, name: str) -> str:
        return str(self.features[name]["detail"])


def doctor(*words: str, cwd: Path | None = None) -> Told:
    """Run it, behind ``words``."""
    done = subprocess.run(
        [*words, *DOCTOR], capture_output=True, text=True, check=True, timeout=60, cwd=cwd
    )
    assert done.stderr == ""
    return Told(done.stdout)


def doctor_after(script: str) -> Told:
    """Run it in a mount namespace in which something was changed before."""
    line = f"set -e; {script}; exec {shlex.join(DOCTOR)}"
    return doctor("unshare", "--mount", "--propagation", "private", "sh", "-c", f"{line} # ")


def test_all_of_them() -> None:
    told = doctor()
    assert told.works(BOTH | READ) == BOTH | READ
    assert told.datapaths == {"images": "lens", "directories": "passthrough"}
    assert told.verdict.endswith("by lens for images, by passthrough for directories")
    assert "stack depth 1" in told.detail("passthrough")
    assert not told.enable("passthrough")


@pytest.mark.serial
def test_it_takes_little_time() -> None:
    """CPU time, since others may be at work here."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    doctor()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_in_a_user_namespace() -> None:
    """Root there may mount, but register nothing; the kernel is the same."""
    told = doctor("unshare", "--user", "--map-root-user", "--mount")
    assert told.works(BOTH | READ) == READ
    for name in BOTH:
        assert told.features[name]["kernel"] is True
        assert told.enable(name) == "CAP_SYS_ADMIN in the first user namespace (root)"
    assert told.datapaths == {"images": "splice", "directories": "splice"}
    assert told.verdict.endswith("(for lens and passthrough: " + told.enable("lens") + ")")
    assert told.works({"open-by-handle", "fanotify"}) == set()


def test_root_without_the_capability() -> None:
    """fusermount3 cannot mount then either; a user namespace shows what the kernel could do."""
    told = doctor("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    assert told.works(BOTH | READ) == set()
    assert told.datapaths == {"images": "", "directories": ""}
    assert "but not mount them" in told.verdict


def test_on_a_tmpfs_the_lens_takes_loop_devices() -> None:
    told = doctor_after("mount -t tmpfs none /var/tmp")
    assert told.works(BOTH) == BOTH
    assert ", on loop devices" in told.detail("lens")
    assert "a /var/tmp on a disk" in told.enable("lens")


def test_without_those_there_is_no_lens() -> None:
    told = doctor_after("mount -t tmpfs none /var/tmp; mount --bind /dev/null /dev/loop-control")
    assert told.works(BOTH) == {"passthrough"}
    assert "loop devices" in told.enable("lens")
    assert told.datapaths == {"images": "splice", "directories": "passthrough"}


def test_stacked_files_are_passed_through_too(tmp_path: Path) -> None:
    for name in "lower", "upper", "work":
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    told = doctor_after(f"mount -t overlay -o {layers} none /var/tmp")
    assert told.works({"passthrough"})
    assert "stack depth 2" in told.detail("passthrough")


def test_nothing_can_be_written() -> None:
    places = "/ /tmp /var/tmp /dev/shm"
    read_only = f"for d in {places}; do mount --bind $d $d; mount -o remount,ro,bind $d; done"
    told = doctor_after(f"{read_only}; cd {shlex.quote(os.getcwd())}")
    assert told.works(BOTH | READ) == set()
    assert "no directory to mount on" in told.verdict
    assert told.features["reflink"]["user"] is None


@pytest.mark.parametrize("name", PARAMETERS)
def test_reflink_says_where(tmp_path: Path, name: str) -> None:
    with loop_filesystem(name, tmp_path) as top:
        told = doctor(cwd=top)
    shares = name != "ext4"
    assert f"{top} ({name}): {'works' if shares else 'Operation not supported'}" in (
        told.detail("reflink")
    )
    if shares:
        assert told.works({"reflink"})
    elif "works" not in told.detail("reflink"):
        assert "XFS, Btrfs" in told.enable("reflink")


@pytest.mark.requires("ordinary-user", "fusermount3")
def test_an_ordinary_user_who_may_mount(
    ordinary_user: OrdinaryUser, dev_fuse_for_all: None
) -> None:
    done = ordinary_user.run([*ordinary_user.penstock, "doctor", "--json"])
    assert (done.returncode, done.stderr) == (0, "")
    told = Told(done.stdout)
    assert told.works(BOTH | READ) == READ
    assert told.features["copy"]["how"] == "files read by a mount with fusermount3"
    for name in BOTH:
        assert told.enable(name) == "CAP_SYS_ADMIN in the first user namespace (root)"
    assert "(fusermount3 helps)" in told.verdict
    assert told.datapaths == {"images": "splice", "directories": "splice"}


@pytest.mark.requires("ordinary-user", "fusermount3")
def test_an_ordinary_user_who_may_not(ordinary_user: OrdinaryUser, dev_fuse_for_root: None) -> None:
    done = ordinary_user.run([*ordinary_user.penstock, "doctor", "--json"])
    assert (done.returncode, done.stderr) == (0, "")
    told = Told(done.stdout)
    assert told.works(BOTH | READ) == set()
    assert told.datapaths == {"images": "", "directories": ""}
    assert told.verdict.endswith("but not mount them: /dev/fuse: permission denied")


# Trials that go wrong


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No directory, and no mount that others see."""
    yield
    assert not list(Path("/tmp").glob("penstock-doctor-*"))
    assert "penstock-doctor" not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.serial
def test_a_mount_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> None:
    def hang(*_: Any) -> Any:
        time.sleep(100)

    monkeypatch.setattr(trialmount._Files, "lookup", hang)
    begun = time.monotonic()
    found = trialmount.try_mount()
    assert time.monotonic() - begun < 4
    assert (found.failures, found.reason) == ({}, "no answer within 1 s")


@pytest.mark.serial
def test_a_server_that_dies(monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> None:
    monkeypatch.setattr(trialmount._Files, "read", lambda *_: os._exit(1))
    found = trialmount.try_mount()
    assert found.failures == {}
    assert found.reason == "the server of the mount died"


@pytest.mark.serial
def test_files_that_are_wrong(monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> None:
    monkeypatch.setattr(trialmount._Files, "read", lambda *_: b"wrong")
    found = trialmount.try_mount()
    assert found.reason == ""
    assert found.failures["copy"]
    assert found.failures["splice"]


@pytest.mark.serial
def test_a_kernel_without_passthrough(monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> None:
    """Files come all the same, but not that way; and nothing can be registered."""
    monkeypatch.setattr(Operations, "refuse", int(InitFlag.PASSTHROUGH))
    found = trialmount.try_mount()
    assert (found.failures["copy"], found.failures["splice"]) == ("", "")
    assert found.failures["passthrough"]
    offer = {"minor": 45, "flags": 0, "clone": True, "backing": None}
    row = datapaths._passthrough(offer, found)
    assert (row.kernel, row.user) == (False, False)
    assert "CONFIG_FUSE_PASSTHROUGH" in row.enable


def test_a_lens_whose_files_cannot_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _depth: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no passthrough")

    monkeypatch.setattr(lens, "try_backing", refuse)
    found = attempt(lens.lens_trial)
    if found.errno != errno.ENODEV:  # no EROFS
        assert (found.value["stage"], found.value["reason"]) == ("register", "no passthrough")


def test_a_lens_that_shows_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lens, "_EXTENTS", lens._EXTENTS[:1])
    monkeypatch.setattr(lens, "_right", lambda fd, _: os.pread(fd, 1, 8192) != b"\0")
    found = attempt(lens.lens_trial)
    if found.errno != errno.ENODEV:
        assert found.value["stage"] == "read"
