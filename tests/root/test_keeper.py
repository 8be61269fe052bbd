# SPDX-License-Identifier: Apache-2.0
"""The keeper: what is left when a broker is killed, and what is not touched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.abi.capability import Capability
from penstock.sys.mountinfo import MountInfo, find_mount, mounts
from penstock.sys.process import process_name
from penstock.sys.unmount import unmount
from tests.support import keeping
from tests.support.commands import is_gone, wait_for
from tests.support.images import run
from tests.support.ordinary import OrdinaryUser

SECONDS = 2.0
PROGRAM = Path(keeping.__file__).read_text(encoding="utf-8")


class Broker:
    """A little broker and what belongs to it."""

    def __init__(self, process: subprocess.Popen[str], mountpoint: Path, directory: Path) -> None:
        self.process = process
        self.mountpoint = mountpoint
        self.directory = directory
        started = self.says()
        self.keeper = started["keeper"]
        self.server = started["server"]
        mount = find_mount(str(mountpoint))
        assert mount is not None
        self.mount: MountInfo = mount

    def says(self) -> dict[str, int]:
        """The next thing that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.wait()
        said: dict[str, int] = json.loads(line)
        return said

    def kill(self) -> None:
        """As the out-of-memory killer does."""
        self.process.kill()
        self.process.wait()

    @property
    def is_mounted(self) -> bool:
        """Whether its mount is in the table, covered or not."""
        return any(
            (entry.mount_id, entry.minor) == (self.mount.mount_id, self.mount.minor)
            for entry in mounts()
        )

    @property
    def files(self) -> list[str]:
        """What lies in its directory."""
        return sorted(path.name for path in self.directory.iterdir())


FILES = ["record.json", "record.sock"]


@contextlib.contextmanager
def a_broker(
    mountpoint: Path,
    directory: Path,
    crash: str = "umount",
    far: str = "watched",
    user: OrdinaryUser | None = None,
) -> Iterator[Broker]:
    """A little broker; whatever it leaves is removed."""
    words = [str(mountpoint), str(directory), crash, far]
    if user is None:
        command = [sys.executable, "-c", PROGRAM, *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    else:
        process = user.popen([user.python, "-c", PROGRAM, *words])
    pids: list[int] = []
    try:
        broker = Broker(process, mountpoint, directory)
        pids += [broker.keeper, broker.server]
        yield broker
    finally:
        process.kill()
        process.communicate()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while find_mount(str(mountpoint)) is not None:
            run("umount", "--lazy", mountpoint)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A mount point and a directory for records."""
    found = tmp_path / "mount point", tmp_path / "records"
    for place in found:
        place.mkdir()
    return found


def test_killed_broker(places: tuple[Path, Path]) -> None:
    """Mount, server, keeper and files go; what else is in the directory stays."""
    (places[1] / "other.json").touch()
    with a_broker(*places) as broker:
        assert broker.is_mounted
        broker.kill()
        wait_for(lambda: not broker.is_mounted, "unmount", SECONDS)
        wait_for(lambda: is_gone(broker.keeper), "end of the keeper", SECONDS)
        assert is_gone(broker.server)
        assert broker.files == ["other.json"]
        assert os.listdir(broker.mountpoint) == []


def test_moved_mount(places: tuple[Path, Path]) -> None:
    """It is found in the directory that was moved; what was put in its place stays."""
    mountpoint = places[0] / "below"
    mountpoint.mkdir()
    moved = places[0].with_name("moved")
    with a_broker(mountpoint, places[1]) as broker:
        places[0].rename(moved)
        mountpoint.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "instead", mountpoint)
        broker.kill()
        wait_for(lambda: not broker.is_mounted, "unmount", SECONDS)
        wait_for(lambda: is_gone(broker.keeper), "end of the keeper", SECONDS)
        assert find_mount(str(mountpoint)) is not None
        assert broker.files == []


def test_crash_keep(places: tuple[Path, Path]) -> None:
    """The mount stays, on record, and answers that its server has gone."""
    with a_broker(*places, crash="keep") as broker:
        broker.kill()
        wait_for(lambda: is_gone(broker.keeper), "end of the keeper", SECONDS)
        assert is_gone(broker.server)
        assert broker.is_mounted
        assert broker.files == FILES
        with pytest.raises(OSError, match="not connected"):
            os.listdir(broker.mountpoint)


def test_covered_mount_stays(places: tuple[Path, Path]) -> None:
    """What lies on top is not the keeper's to take away, and the record still tells of the mount
    below it."""
    with a_broker(*places) as broker:
        run("mount", "-t", "tmpfs", "on top", broker.mountpoint)
        broker.kill()
        wait_for(lambda: is_gone(broker.keeper), "end of the keeper", SECONDS)
        top = find_mount(str(broker.mountpoint))
        assert top is not None
        assert top.source == "on top"
        assert broker.is_mounted
        assert broker.files == FILES


def test_replaced_mount_stays(places: tuple[Path, Path]) -> None:
    """Of the mount itself nothing is left, so its files go."""
    with a_broker(*places) as broker:
        unmount(str(broker.mountpoint))
        run("mount", "-t", "tmpfs", "instead", broker.mountpoint)
        broker.kill()
        wait_for(lambda: is_gone(broker.keeper), "end of the keeper", SECONDS)
        left = find_mount(str(broker.mountpoint))
        assert left is not None
        assert left.source == "instead"
        assert broker.files == []


def test_other_fuse_mount_stays(places: tuple[Path, Path]) -> None:
    """Neither the type alone nor the place alone makes a mount the keeper's."""
    second = places[0].parent / "second"
    second.mkdir()
    with a_broker(*places) as broker, a_broker(places[0], second) as other:
        broker.kill()
        wait_for(lambda: is_gone(broker.keeper), "end of the keeper", SECONDS)
        assert other.is_mounted
        assert broker.is_mounted
        other.kill()
        wait_for(lambda: not other.is_mounted, "unmount", SECONDS)


def test_signals_do_not_end_it(places: tuple[Path, Path]) -> None:
    with a_broker(*places) as broker:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(broker.keeper, number)
        broker.kill()
        wait_for(lambda: not broker.is_mounted, "unmount", SECONDS)
        wait_for(lambda: is_gone(broker.keeper), "end of the keeper", SECONDS)
        assert broker.files == []


def test_killed_before_it_was_told_of_the_mount(places: tuple[Path, Path]) -> None:
    with a_broker(*places, far="early") as broker:
        broker.kill()
        wait_for(lambda: is_gone(broker.keeper), "end of the keeper", SECONDS)
        assert is_gone(broker.server)
        assert broker.is_mounted
        assert broker.files == FILES


def test_dismissed(places: tuple[Path, Path]) -> None:
    """Then the broker has done everything itself, or does not want it done."""
    with a_broker(*places) as broker:
        broker.process.send_signal(signal.SIGUSR1)
        assert broker.process.wait(SECONDS) == 0
        assert is_gone(broker.keeper)
        assert not is_gone(broker.server)
        assert broker.is_mounted
        assert broker.files == FILES


def test_stopped_keeper_is_dismissed(places: tuple[Path, Path]) -> None:
    with a_broker(*places) as broker:
        os.kill(broker.keeper, signal.SIGSTOP)
        broker.process.send_signal(signal.SIGUSR1)
        assert broker.process.wait(10) == 0
        assert is_gone(broker.keeper)
        assert broker.is_mounted


def test_killed_keeper(places: tuple[Path, Path]) -> None:
    """The broker goes on as if it were there, and ends as ever."""
    with a_broker(*places) as broker:
        os.kill(broker.keeper, signal.SIGKILL)
        wait_for(lambda: is_gone(broker.keeper), "end of the keeper")
        broker.process.send_signal(signal.SIGUSR2)
        assert broker.says() == {"alive": False}
        assert broker.is_mounted
        broker.process.send_signal(signal.SIGUSR1)
        assert broker.process.wait(SECONDS) == 0


def test_told_again(places: tuple[Path, Path]) -> None:
    with a_broker(*places) as broker:
        for _ in range(3):
            broker.process.send_signal(signal.SIGUSR2)
            assert broker.says() == {"alive": True}
        held = Path(f"/proc/{broker.keeper}/fd")
        wait_for(lambda: len(list(held.iterdir())) == 3 + 2 + 4 + 1, "messages to arrive")
        broker.kill()
        wait_for(lambda: not broker.is_mounted, "unmount", SECONDS)


def test_what_it_holds(places: tuple[Path, Path]) -> None:
    """A session of its own, its own name, and next to nothing to do harm with."""
    with a_broker(*places) as broker:
        proc = Path(f"/proc/{broker.keeper}")
        wait_for(lambda: len(list((proc / "fd").iterdir())) == 3 + 2 + 2, "messages to arrive")
        links = [os.readlink(path) for path in (proc / "fd").iterdir()]
        assert links.count("/dev/null") == 3
        assert links.count(str(places[1])) == 1
        assert sum("pidfd" in link for link in links) == 2
        assert sum(link.startswith("socket:") for link in links) == 1
        assert process_name(broker.keeper) == "penstock-keeper"
        assert os.getsid(broker.keeper) == broker.keeper
        assert os.readlink(proc / "cwd") == "/"
        status = dict(
            line.split(":\t", 1)
            for line in (proc / "status").read_text().splitlines()
            if ":\t" in line
        )
        kept = {Capability.SYS_ADMIN, Capability.DAC_READ_SEARCH, Capability.KILL}
        for name in ("CapEff", "CapPrm"):
            assert int(status[name], 16) == sum(1 << number for number in kept)
        assert int(status["CapInh"], 16) == 0


def test_mount_point_in_a_closed_directory(tmp_path: Path) -> None:
    """One that root enters by right of capabilities only."""
    closed, records = tmp_path / "closed", tmp_path / "records"
    records.mkdir()
    (closed / "mnt").mkdir(parents=True)
    os.chown(closed, 65534, 65534)
    closed.chmod(0o700)
    with a_broker(closed / "mnt", records) as broker:
        broker.kill()
        wait_for(lambda: not broker.is_mounted, "unmount", SECONDS)


@pytest.mark.requires("ordinary-user", "fusermount3")
def test_ordinary_user(ordinary_user: OrdinaryUser, dev_fuse_for_all: None) -> None:
    mountpoint, records = ordinary_user.folder("kept"), ordinary_user.folder("records")
    try:
        with a_broker(mountpoint, records, user=ordinary_user) as broker:
            broker.kill()
            wait_for(lambda: not broker.is_mounted, "unmount", SECONDS)
            wait_for(lambda: is_gone(broker.keeper), "end of the keeper", SECONDS)
            assert is_gone(broker.server)
            assert broker.files == []
    finally:
        for place in (mountpoint, records):
            place.rmdir()
