# SPDX-License-Identifier: Apache-2.0
"""Locks on the source: they meet those of others there, and wait for them."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.fs import FileHandle, FsError, Lock, NodeId, Pending
from penstock.servers.mirror.ranges import Range, Ranges
from penstock.servers.mirror.server import MirrorServer
from tests.support.mirrors import caller, find, mirror_of

END = 0x7FFF_FFFF_FFFF_FFFF
R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
FLOCK = 1
OFD_SETLK = 37


class Locked:
    """A file, open twice in a mirror."""

    def __init__(self, mirror: MirrorServer, path: Path) -> None:
        self.mirror = mirror
        self.path = path
        self.node: NodeId = find(mirror, path.name)
        self.fhs: list[FileHandle] = [
            mirror.open(caller(), self.node, os.O_RDWR, False).fh for _ in range(2)
        ]

    def set(
        self, owner: int, kind: int, start: int = 0, end: int = END, *, wait: bool = False,
        flock: bool = False, fh: int = 0,
    ) -> Pending[None] | None:  # fmt: skip
        """setlk; a Pending where it waits."""
        lock = Lock(start, end, kind, 1000 + owner)
        answer: Any = self.mirror.setlk(
            caller(), self.node, self.fhs[fh], owner, lock, FLOCK if flock else 0, wait
        )
        return answer  # type: ignore[no-any-return]

    def get(self, owner: int, kind: int, start: int = 0, end: int = END) -> Lock:
        """getlk."""
        answer = self.mirror.getlk(
            caller(), self.node, self.fhs[0], owner, Lock(start, end, kind, 0), 0
        )
        assert isinstance(answer, Lock)
        return answer

    def native(self, kind: int, start: int = 0, length: int = 0) -> int:
        """A lock taken underneath, by a descriptor of its own: to be closed."""
        fd = os.open(self.path, os.O_RDWR)
        fcntl.fcntl(fd, OFD_SETLK, struct.pack("=hh4xqqi4x", kind, 0, start, length, 0))
        return fd

    def refused(self, owner: int, kind: int, start: int = 0, end: int = END) -> bool:
        """Whether a lock is held by another; it is not kept."""
        try:
            self.set(owner, kind, start, end)
        except FsError as error:
            return error.errno == errno.EAGAIN
        self.set(owner, U, start, end)
        return False


@pytest.fixture(params=["handles", "names"])
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Locked]:
    (tmp_path / "file").touch()
    with mirror_of(tmp_path, handles=request.param == "handles") as mirror:
        yield Locked(mirror, tmp_path / "file")


def outcome(pending: Pending[None] | None) -> tuple[threading.Event, list[BaseException | None]]:
    """What becomes of a lock that is waited for."""
    assert pending is not None
    done = threading.Event()
    errors: list[BaseException | None] = []

    def finished(_value: None, error: BaseException | None) -> None:
        errors.append(error)
        done.set()

    pending.then(finished)
    return done, errors


def test_owners_exclude_each_other(file: Locked) -> None:
    file.set(1, W, 0, 9)
    assert file.refused(2, R, 5, 5)
    assert not file.refused(2, W, 10, 20)
    assert not file.refused(1, W, 0, 3)  # which gives up 0 to 3
    assert not file.refused(2, W, 0, 3)
    assert file.refused(2, W, 4, 4)
    assert file.get(2, R, 0, END) == Lock(4, 9, W, 1001)
    assert file.get(1, R).type == U


def test_they_meet_the_locks_underneath(file: Locked) -> None:
    fd = file.native(W, 100, 10)
    assert file.refused(1, R, 105, 105)
    found = file.get(1, R, 0, END)
    assert (found.start, found.end, found.type) == (100, 109, W)
    assert not file.refused(1, W, 0, 99)
    os.close(fd)
    file.set(1, W, 105, 105)
    with pytest.raises(BlockingIOError):
        file.native(R, 105, 1)


def test_flocks_meet_too(file: Locked) -> None:
    file.set(7, W, flock=True)
    fd = os.open(file.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    file.set(7, R, flock=True)
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with pytest.raises(FsError):
        file.set(7, W, flock=True)
    fcntl.flock(fd, fcntl.LOCK_UN)
    file.set(7, W, flock=True)
    file.set(7, U, flock=True)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_closing_drops_the_locks_of_the_process(file: Locked) -> None:
    file.set(1, W)
    file.mirror.flush(caller(), file.node, file.fhs[1], 1)
    assert not file.refused(2, W)


def test_the_end_of_a_handle_drops_what_was_locked_through_it(file: Locked) -> None:
    file.set(1, W, 0, 9, fh=0)
    file.set(2, W, 20, 29, fh=1)
    file.set(3, W, flock=True, fh=1)
    file.mirror.release(caller(), file.node, file.fhs[1], 0, 2, 3)
    assert file.refused(4, W, 0, 0)
    assert not file.refused(4, W, 20, 29)
    os.close(file.native(W, 20, 10))


def test_a_descriptor_for_each_owner_while_it_holds_something(file: Locked) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for owner in range(20):
        file.set(owner, R, 0, 9)
    assert count() == before + 20
    for owner in range(20):
        file.set(owner, U, 0, 4)
    assert count() == before + 20
    for owner in range(20):
        file.set(owner, U, 0, END)
    assert count() == before
    assert file.refused(1, W) is False
    assert count() == before


def test_waiting_for_an_owner(file: Locked) -> None:
    file.set(1, W)
    done, errors = outcome(file.set(2, W, wait=True))
    assert not done.is_set()
    file.set(1, U)
    assert done.wait(10)
    assert errors == [None]
    assert file.refused(1, R)


def test_waiting_for_somebody_underneath(file: Locked) -> None:
    fd = file.native(W)
    done, errors = outcome(file.set(2, W, wait=True))
    os.close(fd)
    assert done.wait(10)
    assert errors == [None]


def test_waiting_for_a_flock(file: Locked) -> None:
    file.set(1, W, flock=True, fh=1)
    done, errors = outcome(file.set(2, R, wait=True, flock=True))
    file.mirror.release(caller(), file.node, file.fhs[1], 0, 2, 1)
    assert done.wait(10)
    assert errors == [None]


def test_who_is_interrupted_waits_no_more(file: Locked) -> None:
    file.set(1, W)
    pending = file.set(2, W, wait=True)
    _, errors = outcome(pending)
    assert pending is not None
    assert pending.cancel()
    assert isinstance(errors[0], FsError)
    assert errors[0].errno == errno.EINTR
    file.set(1, U)
    assert not file.refused(3, W)
    assert not pending.cancel()


def test_a_circle_is_found(file: Locked) -> None:
    file.set(1, W, 0, 0)
    file.set(2, W, 1, 1)
    done, _ = outcome(file.set(1, W, 1, 1, wait=True))
    with pytest.raises(FsError) as caught:
        file.set(2, W, 0, 0, wait=True)
    assert caught.value.errno == errno.EDEADLK
    file.set(2, U, 1, 1)
    assert done.wait(10)


def test_the_end_of_the_mount_ends_waiting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with mirror_of(tmp_path) as mirror:
        file = Locked(mirror, tmp_path / "file")
        file.set(1, W)
        done, errors = outcome(file.set(2, W, wait=True))
    assert done.wait(10)
    assert isinstance(errors[0], FsError)
    os.close(file_lock(tmp_path / "file"))


def file_lock(path: Path) -> int:
    """An exclusive lock underneath; fails if anything is locked."""
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, OFD_SETLK, struct.pack("=hh4xqqi4x", W, 0, 0, 0, 0))
    return fd


def test_after_the_last_name_is_gone(file: Locked) -> None:
    file.mirror.unlink(caller(), NodeId(1), b"file")
    file.set(1, W)
    with pytest.raises(FsError):
        file.set(2, W, fh=1)


@pytest.mark.parametrize(("start", "end", "kind"), [(5, 4, W), (0, END + 1, W), (0, 0, 9)])
def test_what_is_no_lock(file: Locked, start: int, end: int, kind: int) -> None:
    with pytest.raises(FsError) as caught:
        file.set(1, kind, start, end)
    assert caught.value.errno == errno.EINVAL


@given(
    st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 15), st.sampled_from([R, W, U])), max_size=12
    )
)
def test_ranges_are_what_was_set_last(sets: list[tuple[int, int, int]]) -> None:
    ranges = Ranges()
    model = [U] * 16
    for one, other, kind in sets:
        start, end = min(one, other), max(one, other)
        ranges.set(Range(start, end, kind))
        model[start : end + 1] = [kind] * (end + 1 - start)
    assert bool(ranges) == any(kind != U for kind in model)
    for byte, kind in enumerate(model):
        assert (ranges.conflict(Range(byte, byte, W)) is not None) == (kind != U)
        assert (ranges.conflict(Range(byte, byte, R)) is not None) == (kind == W)
