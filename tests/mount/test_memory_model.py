# SPDX-License-Identifier: Apache-2.0
"""The mounted memory filesystem against tmpfs, step by step, and under 64 threads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import random
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from penstock.testing import MemoryFilesystem
from penstock.testing.posix.calls import fallocate, opened, rename2
from tests.support.mounts import Inside, Served, serve_in_process

THREADS = 64
STEPS = 100

NAMES = ["a", "b", "c", "d/a", "d/b", "d/e/a", "d", "d/e"]
names = st.sampled_from(NAMES)
sizes = st.one_of(st.integers(0, 20_000), st.sampled_from([0, 4096, 8192, 12288]))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The filesystem under test."""
    with serve_in_process(MemoryFilesystem, tmp_path_factory.mktemp("memory")) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def tmpfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The oracle."""
    path = tmp_path_factory.mktemp("tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a call, or the name of its errno."""
    try:
        return function(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """All there is to see below a directory, times and inode numbers apart."""
    seen: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            xattrs = () if stat.S_ISLNK(status.st_mode) else tuple(sorted(os.listxattr(path)))
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            key = str(path.relative_to(root))
            seen[key] = (status.st_mode, status.st_nlink, status.st_uid, size, content, xattrs)
    return seen


def drop_cache(inside: Inside) -> None:
    """Have the kernel drop all data and attributes."""
    filesystem, mounted, _ = inside
    for nodeid in list(filesystem._table._nodes):
        # Not known to the kernel, or not any more.
        with contextlib.suppress(FileNotFoundError):
            mounted.notifier.inval_inode(nodeid)


class Twins(RuleBasedStateMachine):
    """Does everything twice, on the filesystem under test and on tmpfs, and compares."""

    roots: tuple[Path, Path]
    served: Served
    rounds = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        place = f"round-{next(self.rounds)}"
        self.places = tuple(root / place for root in self.roots)
        self.handles: list[tuple[int, int]] = []
        for each in self.places:
            (each / "d" / "e").mkdir(parents=True)

    def teardown(self) -> None:
        """Compare all there is, then remove it."""
        try:
            self.served.call(drop_cache)
            first, second = map(tree, self.places)
            assert first == second
        finally:
            for fd in itertools.chain.from_iterable(self.handles):
                os.close(fd)
            for each in self.places:
                shutil.rmtree(each)

    def both(self, function: Callable[[Path], Any]) -> Any:
        """Call with either root; the outcome, which must be the same."""
        first, second = (outcome(function, each) for each in self.places)
        assert first == second
        return first

    def handle(self, number: int) -> Iterator[int]:
        """The two descriptors of one of the open files."""
        return iter(self.handles[number % len(self.handles)] if self.handles else ())

    def both_handles(self, number: int, function: Callable[[int], Any]) -> None:
        """Call with either descriptor of an open file, if there is one."""
        results = [outcome(function, fd) for fd in self.handle(number)]
        assert not results or results[0] == results[1]

    @rule(name=names, data=st.binary(max_size=30))
    def write_file(self, name: str, data: bytes) -> None:
        self.both(lambda root: (root / name).write_bytes(data))

    @rule(name=names)
    def make_directory(self, name: str) -> None:
        self.both(lambda root: os.mkdir(root / name))

    @rule(name=names)
    def remove_file(self, name: str) -> None:
        self.both(lambda root: os.unlink(root / name))

    @rule(name=names)
    def remove_directory(self, name: str) -> None:
        self.both(lambda root: os.rmdir(root / name))

    @rule(old=names, new=names, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, old: str, new: str, flags: int) -> None:
        self.both(lambda root: rename2(root / old, root / new, flags))

    @rule(old=names, new=names)
    def link(self, old: str, new: str) -> None:
        self.both(lambda root: os.link(root / old, root / new, follow_symlinks=False))

    @rule(name=names, to=st.sampled_from(["a", "../b", "nowhere", "d", "e/a"]))
    def symlink(self, name: str, to: str) -> None:
        self.both(lambda root: os.symlink(to, root / name))

    @rule(name=names, mode=st.integers(0, 0o7777))
    def chmod(self, name: str, mode: int) -> None:
        self.both(lambda root: os.chmod(root / name, mode))

    @rule(number=st.integers(0, 7), size=sizes)
    def truncate_open(self, number: int, size: int) -> None:
        self.both_handles(number, lambda fd: os.ftruncate(fd, size))

    @rule(name=names, size=sizes)
    def truncate(self, name: str, size: int) -> None:
        self.both(lambda root: os.truncate(root / name, size))

    @rule(name=names, mtime=st.integers(-(10**18), 10**19))
    def set_times(self, name: str, mtime: int) -> None:
        def act(root: Path) -> tuple[int, int]:
            os.utime(root / name, ns=(0, mtime))
            return os.stat(root / name).st_mtime_ns, os.stat(root / name).st_atime_ns

        self.both(act)

    @rule(name=names, key=st.sampled_from(["user.a", "user.b"]), value=st.binary(max_size=20))
    def set_xattr(self, name: str, key: str, value: bytes) -> None:
        self.both(lambda root: os.setxattr(root / name, key, value))

    @rule(name=names, key=st.sampled_from(["user.a", "user.b"]))
    def drop_xattr(self, name: str, key: str) -> None:
        self.both(lambda root: os.getxattr(root / name, key))
        self.both(lambda root: os.removexattr(root / name, key))

    @rule(name=names, flags=st.sampled_from([0, os.O_CREAT, os.O_TRUNC, os.O_CREAT | os.O_EXCL]))
    def open(self, name: str, flags: int) -> None:
        pair: list[int] = []

        def act(root: Path) -> None:
            pair.append(os.open(root / name, flags | os.O_RDWR, 0o640))

        self.both(act)
        if pair and len(self.handles) < 8:
            self.handles.append((pair[0], pair[1]))
        else:
            for fd in pair:
                os.close(fd)

    @rule(number=st.integers(0, 7))
    def close(self, number: int) -> None:
        if self.handles:
            for fd in self.handles.pop(number % len(self.handles)):
                os.close(fd)

    @rule(number=st.integers(0, 7), offset=sizes, size=sizes)
    def write(self, number: int, offset: int, size: int) -> None:
        self.both_handles(number, lambda fd: os.pwrite(fd, b"x" * size, offset))

    @rule(number=st.integers(0, 7), offset=sizes, size=sizes)
    def read(self, number: int, offset: int, size: int) -> None:
        self.both_handles(number, lambda fd: os.pread(fd, size, offset))

    @rule(number=st.integers(0, 7), mode=st.sampled_from([0, 1, 3]), offset=sizes, size=sizes)
    def allocate(self, number: int, mode: int, offset: int, size: int) -> None:
        self.both_handles(number, lambda fd: fallocate(fd, mode, offset, size))

    @rule(number=st.integers(0, 7))
    def look_at(self, number: int) -> None:
        def act(fd: int) -> tuple[int, ...]:
            status = os.fstat(fd)
            return status.st_mode, status.st_nlink, status.st_size, status.st_blocks

        self.both_handles(number, act)

    @rule(name=names)
    def look_at_name(self, name: str) -> None:
        def act(root: Path) -> tuple[int, ...]:
            status = os.stat(root / name)
            return status.st_mode, status.st_nlink

        self.both(act)

    @rule()
    def empty_the_cache(self) -> None:
        """From here on the bytes are the filesystem's, not what the kernel remembers of them."""
        self.served.call(drop_cache)

    @rule(name=names)
    def list_names(self, name: str) -> None:
        self.both(lambda root: sorted(os.listdir(root / name)))


@pytest.mark.requires("root")
def test_every_step_is_as_on_tmpfs(served: Served, tmpfs: Path) -> None:
    class Machine(Twins):
        roots = (served.path, tmpfs)

    Machine.served = served

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=120,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class Inhabitant:
    """One thread: random work in a directory of its own, and a model of what must be there."""

    def __init__(self, root: Path, number: int) -> None:
        self.random = random.Random(number)
        self.place = root / f"thread-{number}"
        self.shared = root / "shared"
        self.counter = root / "counter"
        self.model: dict[str, bytearray] = {}
        self.number = number
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Work; keep what went wrong."""
        try:
            self.place.mkdir()
            for step in range(STEPS):
                self.step(step)
                if step % 10 == 0:
                    self.count()
        except BaseException as failure:  # noqa: BLE001 - the test's thread raises it
            self.failure = failure

    def step(self, step: int) -> None:
        """One piece of work."""
        if not self.model or self.random.random() < 0.3:
            name = f"file-{step}"
            self.model[name] = bytearray(self.random.randbytes(self.random.randrange(20_000)))
            (self.place / name).write_bytes(self.model[name])
            return
        name = self.random.choice(list(self.model))
        path, data = self.place / name, self.model[name]
        match self.random.randrange(6):
            case 0:
                path.unlink()
                del self.model[name]
            case 1:
                path.rename(self.place / f"moved-{step}")
                self.model[f"moved-{step}"] = self.model.pop(name)
            case 2:
                size = self.random.randrange(20_000)
                os.truncate(path, size)
                self.model[name] = data[:size].ljust(size, b"\0")
            case 3:
                patch = self.random.randbytes(500)
                offset = self.random.randrange(len(data) + 1)
                with opened(path, os.O_RDWR) as fd:
                    os.pwrite(fd, patch, offset)
                data[offset : offset + 500] = patch
            case 4:
                assert path.read_bytes() == data
            case _:
                # Out of the directory that others work in, and back.
                other = self.shared / f"{self.number}-{step}"
                path.rename(other)
                assert other.read_bytes() == data
                other.rename(path)

    def count(self) -> None:
        """Add one to what all share, under a lock."""
        with opened(self.counter, os.O_RDWR) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            value = int(os.pread(fd, 20, 0))
            os.pwrite(fd, f"{value + 1:020}".encode(), 0)

    def check(self) -> None:
        """The directory is as the model says."""
        if self.failure is not None:
            raise self.failure
        assert sorted(os.listdir(self.place)) == sorted(self.model)
        for name, data in self.model.items():
            assert (self.place / name).read_bytes() == data
            assert os.stat(self.place / name).st_size == len(data)


def disturb(inside: Inside, times: int) -> None:
    """Have the kernel drop data and attributes while all work."""
    for _ in range(times):
        drop_cache(inside)


def test_sixty_four_threads(served: Served) -> None:
    root = served.path / "stress"
    (root / "shared").mkdir(parents=True)
    (root / "counter").write_bytes(b"%020d" % 0)
    workers = [Inhabitant(root, number) for number in range(THREADS)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    served.call(disturb, 20)
    for thread in threads:
        thread.join()
    for worker in workers:
        worker.check()
    assert int((root / "counter").read_bytes()) == THREADS * (STEPS // 10)
    assert os.listdir(root / "shared") == []
    assert served.call(_held) == 0


def _held(inside: Inside) -> int:
    return int(inside[0].statistics().locks_held)
