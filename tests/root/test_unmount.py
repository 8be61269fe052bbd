# SPDX-License-Identifier: Apache-2.0
"""Taking mounts away and ending connections, and telling who serves one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.sys import devfuse, mountinfo
from penstock.sys.mountinfo import MountInfo, find_mount
from penstock.sys.unmount import (
    abort_connection,
    detach,
    find_fuse_mount,
    take_away,
    unmount,
)
from penstock.testing import MemoryFilesystem
from tests.support.commands import wait_for
from tests.support.images import run
from tests.support.mounts import Served, serve_in_process


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A mount with a server that can be stopped."""
    with serve_in_process(MemoryFilesystem, tmp_path) as found:
        yield found
        if found.process.poll() is None:
            found.process.send_signal(signal.SIGCONT)


def the_mount(path: Path) -> MountInfo:
    entry = find_mount(str(path))
    assert entry is not None
    return entry


@pytest.mark.parametrize("fusectl", [False, True])
def test_abort_although_the_server_is_stopped(
    served: Served,
    fusectl: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whoever waits for an answer gets an error; with fusectl mounted or not."""
    entry = the_mount(served.path)
    place = tmp_path_factory.mktemp("connections")
    monkeypatch.setattr("penstock.sys.unmount._CONNECTIONS", str(place))
    if fusectl:
        run("mount", "-t", "fusectl", "none", place)
        monkeypatch.setattr("penstock.sys.mount.fsopen", None)
    try:
        served.process.send_signal(signal.SIGSTOP)
        errors: list[OSError] = []

        def wait_for_an_answer() -> None:
            try:
                os.stat(served.path / "none")
            except OSError as error:
                errors.append(error)

        thread = threading.Thread(target=wait_for_an_answer)
        thread.start()
        assert abort_connection(entry.minor)
        thread.join(10)
        assert [error.strerror for error in errors] in (
            ["Software caused connection abort"],
            ["Transport endpoint is not connected"],
        )
    finally:
        if fusectl:
            run("umount", place)
    assert unmount_there(entry)


def unmount_there(entry: MountInfo) -> bool:
    return detach(entry.mount_id, entry.minor, entry.mountpoint)


def test_abort_of_nothing() -> None:
    assert not abort_connection((1 << 20) - 1)


def test_detach_is_exact(served: Served) -> None:
    entry = the_mount(served.path)
    assert not detach(entry.mount_id + 1, entry.minor, entry.mountpoint)
    assert not detach(entry.mount_id, entry.minor + 1, entry.mountpoint)
    assert not detach(0, entry.minor, entry.mountpoint + "/elsewhere")
    run("mount", "-t", "tmpfs", "on top", served.path)
    assert not unmount_there(entry)
    unmount(str(served.path))
    assert find_fuse_mount(entry.mount_id, entry.minor) == entry
    assert unmount_there(entry)
    assert not unmount_there(entry)
    assert find_fuse_mount(entry.mount_id, entry.minor) is None


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[tuple[Served, Path, Path]]:
    """A mount in a directory that can be moved, and that of somebody else elsewhere."""
    ours, theirs = tmp_path / "ours" / "mnt", tmp_path / "theirs" / "mnt"
    for place in (ours, theirs):
        place.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "somebody else's", theirs)
    try:
        with serve_in_process(MemoryFilesystem, ours) as served:
            yield served, ours.parent, theirs.parent
    finally:
        run("umount", theirs)


def test_a_mount_whose_directory_was_moved(moving: tuple[Served, Path, Path]) -> None:
    """A link to where somebody else has a mount, in the place of the directory, leads nobody there;
    the mount is found where it is."""
    _, ours, theirs = moving
    before = the_mount(ours / "mnt")
    moved = ours.rename(ours.with_name("moved"))
    ours.symlink_to(theirs)
    with pytest.raises(OSError, match="not mounted"):
        unmount(before.mountpoint)
    take_away(before)
    assert find_mount(str(moved / "mnt")) is None
    assert the_mount(theirs / "mnt").source == "somebody else's"
    with pytest.raises(OSError, match="not mounted"):
        take_away(before)


@pytest.mark.parametrize("what", ["link", "directory"])
def test_a_directory_that_is_moved_meanwhile(
    moving: tuple[Served, Path, Path], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the table says is not true any more when the name is used: another mount is there."""
    _, ours, theirs = moving
    before = the_mount(ours / "mnt")
    moved = ours.rename(ours.with_name("moved"))
    if what == "link":
        ours.symlink_to(theirs)
    else:
        theirs = theirs.rename(ours)
    real, asked = mountinfo.mounts, 0

    def late() -> list[MountInfo]:
        nonlocal asked
        asked += 1
        return [before] if asked < 10 else real()

    monkeypatch.setattr("penstock.sys.unmount.mounts", late)
    try:
        assert detach(before.mount_id, before.minor, before.mountpoint)
        assert find_mount(str(moved / "mnt")) is None
        assert the_mount(theirs / "mnt").source == "somebody else's"
    finally:
        if what == "directory":
            theirs.rename(theirs.with_name("theirs"))


def test_a_mount_that_hangs_is_not_asked(served: Served) -> None:
    entry = the_mount(served.path)
    served.process.send_signal(signal.SIGSTOP)
    take_away(entry, lazy=True)
    assert find_mount(str(served.path)) is None


@pytest.mark.requires("all-processes")
def test_who_serves(served: Served) -> None:
    connection = the_mount(served.path).minor
    assert devfuse.find_server(connection) == served.process.pid
    assert devfuse.unserved({connection}) == set()
    nobody = (1 << 20) - 1
    # Another program that has the device open and has not mounted yet leaves it open.
    wait_for(lambda: devfuse.unserved({connection, nobody}) == {nobody}, "certainty")
    with open(devfuse.DEVICE, "r+b", buffering=0):
        assert devfuse.unserved({connection, nobody}) == set()


def test_nothing_is_certain_to_whom_does_not_see_all(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = (1 << 20) - 1
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert devfuse.unserved({nobody}) == set()
    monkeypatch.undo()
    monkeypatch.setattr(devfuse, "FIRST_PID_NAMESPACE", 1)
    assert devfuse.unserved({nobody}) == set()
