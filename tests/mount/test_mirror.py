# SPDX-License-Identifier: Apache-2.0
"""Mirrors of real directories, mounted: the rules of POSIX, and what happens underneath."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import resource
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.fs import Operations
from penstock.serve import MountOptions
from penstock.servers.mirror.state import MirrorStatistics
from penstock.sys.files import fallocate
from penstock.testing import posix
from tests.support.commands import wait_for
from tests.support.loopfs import NEEDS, loop_filesystem
from tests.support.mirrors import mirror_operations
from tests.support.mounts import Inside, Served, serve_in_process
from tests.support.ordinary import OrdinaryUser

pytestmark = pytest.mark.requires("root")

# What no filesystem in user space is asked for by the kernel, whatever lies underneath.
NOT_CARRIED = {"reflink", "collapse"}
NOBODY = 65534
Mirror = Callable[..., contextlib.AbstractContextManager[Served]]


@pytest.fixture
def place(session_place: Path) -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(dir=session_place) as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def top(place: Path) -> Path:
    """The source."""
    top = place / "source"
    top.mkdir(mode=0o755)
    return top


@contextlib.contextmanager
def mounted(
    top: Path,
    *,
    handles: bool = True,
    descriptors: int = 0,
    seconds: float = 100.0,
    workers: int = 2,
    **words: str,
) -> Iterator[Served]:
    """A mirror of ``top``, mounted beside it."""
    mountpoint = Path(tempfile.mkdtemp(prefix="mirror-", dir=top.parent))
    mountpoint.chmod(0o755)
    factory = functools.partial(_operations, str(top), words, handles, descriptors)
    options = MountOptions(allow_other=True, suid=True, dev=True, workers=workers)
    try:
        with serve_in_process(factory, mountpoint, options, seconds=seconds) as served:
            yield served
    finally:
        mountpoint.rmdir()


def _operations(top: str, words: dict[str, str], handles: bool, descriptors: int) -> Operations:
    if descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    return mirror_operations(top, words, handles)


def statistics(served: Served) -> MirrorStatistics:
    """The mirror's own."""
    return served.call(_statistics)


def _statistics(inside: Inside) -> MirrorStatistics:
    found: MirrorStatistics = inside[0].statistics()
    return found


def drop_caches() -> None:
    """Have the kernel forget all inodes that it can: theirs underneath, too."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2", encoding="ascii")


def expire() -> None:
    """Let what the kernel keeps of a mirror run out."""
    time.sleep(1.1)


def the_rules(top: Path, **how: object) -> None:
    """Every case that holds on the source holds on the mirror of it."""
    with mounted(top, **how) as served:  # type: ignore[arg-type]
        native = top / "native"
        native.mkdir()
        absent = {*posix.probe(native), *NOT_CARRIED}
        failed = [
            each for each in posix.run(served.path, posix.CASES, without=absent) if each.error
        ]
        really = [
            each
            for each in failed
            if all(other.error is None for other in posix.run(native, [each.case]))
        ]
        assert not really, [f"{each.case.name}: {each.error}" for each in really]
        assert statistics(served).open == 0


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.requires(*NEEDS[n])) for n in NEEDS]
)
def test_the_rules_of_posix_hold(place: Path, name: str) -> None:
    with loop_filesystem(name, place) as top:
        source = top / "source"
        source.mkdir(mode=0o755)
        the_rules(source)


def test_the_rules_hold_without_handles(top: Path) -> None:
    the_rules(top, handles=False)


def test_the_rules_hold_on_tmpfs(place: Path) -> None:
    top = place / "tmpfs"
    top.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "tmpfs", top], check=True)
    try:
        (top / "source").mkdir()
        the_rules(top / "source")
    finally:
        subprocess.run(["umount", top], check=True)


# What happens underneath


@pytest.mark.parametrize("handles", [True, False])
def test_inodes_are_found_when_the_kernel_has_forgotten_them(top: Path, handles: bool) -> None:
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "file").write_text("content")
    with mounted(top, handles=handles) as served:
        path = os.open(served.path / "a" / "b" / "file", os.O_PATH)
        directory = os.open(served.path / "a" / "b", os.O_RDONLY)
        drop_caches()
        expire()
        assert os.fstat(path).st_size == 7
        assert Path(f"/proc/self/fd/{path}").read_text(encoding="ascii") == "content"
        assert os.listdir(directory) == ["file"]
        os.mkdir("new", dir_fd=directory)
        assert (top / "a" / "b" / "new").is_dir()
        os.close(path)
        os.close(directory)


def test_inodes_are_found_where_they_were_moved_to(top: Path) -> None:
    (top / "a" / "b").mkdir(parents=True)
    (top / "c").mkdir()
    (top / "a" / "b" / "file").write_text("content")
    with mounted(top) as served:
        if not statistics(served).handles:
            pytest.skip("no handles here")
        path = os.open(served.path / "a" / "b" / "file", os.O_PATH)
        directory = os.open(served.path / "a" / "b", os.O_RDONLY)
        (top / "a" / "b" / "file").rename(top / "a" / "b" / "other")
        (top / "a").rename(top / "c" / "a")
        drop_caches()
        expire()
        assert os.fstat(path).st_size == 7
        assert os.listdir(directory) == ["other"]
        # To another directory, and forgotten: its handle names the old one.
        (top / "c" / "a" / "b" / "other").rename(top / "elsewhere")
        drop_caches()
        expire()
        with contextlib.suppress(OSError):
            os.fstat(path)
        assert (served.path / "elsewhere").read_text(encoding="ascii") == "content"
        drop_caches()
        assert os.fstat(path).st_size == 7
        os.close(path)
        os.close(directory)


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_file_without_name_stays_as_long_as_it_is_open(top: Path, size: int) -> None:
    (top / "file").write_bytes(b"x" * size)
    with mounted(top) as served:
        with open(served.path / "file", "r+b", buffering=0) as file:
            (served.path / "file").unlink()
            drop_caches()
            expire()
            assert os.fstat(file.fileno()).st_nlink == 0
            assert len(file.read()) == size
            os.ftruncate(file.fileno(), 10)
            os.fsync(file.fileno())
            fallocate(file.fileno(), 0, 0, 20)
            os.fchmod(file.fileno(), 0o600)
            fcntl.lockf(file.fileno(), fcntl.LOCK_EX)
            assert os.fstat(file.fileno()).st_size == 20
        wait_for(lambda: statistics(served).open == 0, "RELEASE")


def test_a_removed_directory_can_still_be_looked_at(top: Path) -> None:
    with mounted(top) as served:
        (served.path / "d").mkdir()
        path = os.open(served.path / "d", os.O_PATH)
        (served.path / "d").rmdir()
        expire()
        assert stat.S_ISDIR(os.fstat(path).st_mode)
        os.close(path)


def test_changes_underneath_show(top: Path) -> None:
    with mounted(top, timeout="0.2") as served:
        file = served.path / "file"
        assert not file.exists()
        (top / "file").write_text("one")
        assert file.read_text(encoding="ascii") == "one"
        for text in ("two", "three", "3", ""):
            (top / "file").write_text(text)
            assert file.read_text(encoding="ascii") == text
        (top / "file").unlink()
        time.sleep(0.3)
        assert not file.exists()


def test_nothing_is_kept_where_that_was_asked_for(top: Path) -> None:
    (top / "file").write_text("one")
    with mounted(top, cache="none") as served, (served.path / "file").open("rb") as file:
        for text in ("one", "three", "four!"):
            (top / "file").write_text(text)
            assert (served.path / "file").stat().st_size == len(text)
            assert os.pread(file.fileno(), 9, 0) == text.encode()


def test_an_immutable_tree_is_asked_for_once(top: Path) -> None:
    for number in range(20):
        (top / f"file {number}").write_text("content")
    with mounted(top, cache="immutable") as served:

        def walk() -> None:
            for name in os.listdir(served.path):
                (served.path / name).lstat()

        walk()
        before = served.requests()
        expire()
        walk()
        after = served.requests()
        assert after.get("LOOKUP") == before.get("LOOKUP")
        assert after.get("READDIRPLUS") == before.get("READDIRPLUS")


def test_a_mount_on_top_is_not_entered(top: Path) -> None:
    (top / "d").mkdir()
    (top / "d" / "covered").touch()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", top / "d"], check=True)
    try:
        with mounted(top) as served:
            assert os.listdir(served.path) == ["d"]
            with pytest.raises(OSError, match="cross-device"):
                os.listdir(served.path / "d")
    finally:
        subprocess.run(["umount", top / "d"], check=True)


def test_locks_meet_those_underneath(top: Path) -> None:
    (top / "file").touch()
    with mounted(top) as served, (served.path / "file").open("r+b") as here:
        with (top / "file").open("r+b") as there:
            fcntl.flock(there, fcntl.LOCK_EX)
            with pytest.raises(BlockingIOError):
                fcntl.flock(here, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waiter = subprocess.Popen(["flock", "--exclusive", served.path / "file", "true"])
            with pytest.raises(subprocess.TimeoutExpired):
                waiter.wait(0.2)
        assert waiter.wait(10) == 0
        fcntl.lockf(here, fcntl.LOCK_EX)
        with (top / "file").open("r+b") as there, pytest.raises(BlockingIOError):
            fcntl.lockf(there, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_who_waits_for_a_lock_can_be_killed(top: Path) -> None:
    (top / "file").touch()
    with mounted(top) as served, (top / "file").open("r+b") as there:
        fcntl.flock(there, fcntl.LOCK_EX)
        waiter = subprocess.Popen(["flock", "--exclusive", served.path / "file", "true"])
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.wait(0.2)
        waiter.kill()
        waiter.wait(10)
        fcntl.flock(there, fcntl.LOCK_UN)
        fcntl.flock(there, fcntl.LOCK_EX)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.requires(*NEEDS[n])) for n in ("xfs", "btrfs")]
)
def test_a_copy_shares_its_extents(place: Path, name: str) -> None:
    size = 12 << 20
    with loop_filesystem(name, place) as top:
        source = top / "source"
        source.mkdir()
        with mounted(source) as served:
            (served.path / "file").write_bytes(os.urandom(size) + b"tail")
            os.sync()
            before = os.statvfs(top)
            subprocess.run(["cp", "--reflink=auto", "file", "copy"], cwd=served.path, check=True)
            os.sync()
            after = os.statvfs(top)
            assert (source / "copy").read_bytes() == (source / "file").read_bytes()
            taken = (before.f_bfree - after.f_bfree) * before.f_frsize
            assert taken < size // 2
            shown = subprocess.run(
                ["filefrag", "-v", source / "copy"], check=True, capture_output=True, text=True
            ).stdout
            assert "shared" in shown


# Who acts


@pytest.mark.requires("ordinary-user")
def test_what_a_caller_makes_is_the_callers(top: Path, ordinary_user: OrdinaryUser) -> None:
    top.chmod(0o777)
    (top / "shared").mkdir()
    os.chown(top / "shared", 0, 5)
    (top / "shared").chmod(0o2777)
    with mounted(top) as served:
        script = (
            f"cd {served.path}; umask 027; mkdir d; echo text > d/file; ln -s x d/link; "
            "mkfifo d/fifo; cp d/file shared/file; mkdir shared/d; rm -f shared/nothing"
        )
        done = ordinary_user.run(["sh", "-ec", script])
        assert done.returncode == 0, done
        for name in ("d", "d/file", "d/link", "d/fifo"):
            assert (top / name).lstat().st_uid == NOBODY, name
        assert stat.S_IMODE((top / "d").stat().st_mode) == 0o750
        assert stat.S_IMODE((top / "d" / "file").stat().st_mode) == 0o640
        assert (top / "shared" / "file").stat().st_gid == 5
        inherited = (top / "shared" / "d").stat()
        assert inherited.st_gid == 5
        assert inherited.st_mode & stat.S_ISGID
        (served.path / "roots").touch()
        assert (top / "roots").stat().st_uid == 0


@pytest.mark.requires("ordinary-user")
@pytest.mark.parametrize("how", ["echo x >> FILE", "truncate -s 1 FILE"])
def test_a_strangers_write_takes_set_id_bits(
    top: Path, ordinary_user: OrdinaryUser, how: str
) -> None:
    (top / "file").write_text("content")
    (top / "file").chmod(0o6777)
    with mounted(top) as served:
        done = ordinary_user.run(["sh", "-c", how.replace("FILE", str(served.path / "file"))])
        assert done.returncode == 0, done
    assert stat.S_IMODE((top / "file").stat().st_mode) == 0o777


def test_roots_write_keeps_set_id_bits_as_natively(top: Path) -> None:
    (top / "file").write_text("content")
    (top / "file").chmod(0o6777)
    with mounted(top) as served, (served.path / "file").open("a") as file:
        file.write("more")
    assert stat.S_IMODE((top / "file").stat().st_mode) == 0o6777


@pytest.mark.requires("ordinary-user")
def test_a_reserve_for_root_holds(place: Path, ordinary_user: OrdinaryUser) -> None:
    """A stranger's writes stop where they stop natively, whoever carries them."""
    with loop_filesystem("ext4", place, size=64 << 20) as top:
        source = top / "source"
        source.mkdir()
        source.chmod(0o777)
        free = os.statvfs(source)
        assert free.f_bfree - free.f_bavail > 2 << 10
        with mounted(source) as served:
            fill = f"dd if=/dev/zero of={served.path}/fill bs=64k"
            assert ordinary_user.run(["sh", "-c", fill]).returncode != 0
            written = (source / "fill").stat().st_size
        assert written <= free.f_bavail * free.f_frsize


# How much it takes


@pytest.mark.parametrize("handles", [True, False])
def test_many_files_take_few_descriptors(top: Path, handles: bool) -> None:
    count, each = 80, 150
    for number in range(count):
        directory = top / f"d{number}"
        directory.mkdir()
        for file in range(each):
            os.mknod(directory / f"file {file}")
    with mounted(top, handles=handles, descriptors=256) as served:
        seen = 0
        for path, _, files in os.walk(served.path):
            for name in files:
                seen += os.lstat(f"{path}/{name}").st_nlink
        assert seen == count * each
        assert statistics(served).nodes >= count * each
        drop_caches()
        for number in range(0, count, 7):
            assert (served.path / f"d{number}" / "file 5").read_bytes() == b""
        assert statistics(served).directories <= 64


@pytest.mark.long
@pytest.mark.parametrize("handles", [True, False])
def test_200_000_files_with_1024_descriptors(top: Path, handles: bool) -> None:
    for number in range(1000):
        directory = top / f"d{number}"
        directory.mkdir()
        for file in range(200):
            os.mknod(directory / f"file {file}")
    with mounted(top, handles=handles, descriptors=1024, seconds=600) as served:
        keep = [os.open(served.path / f"d{number}" / "file 7", os.O_PATH) for number in range(900)]
        for _ in range(2):
            seen = sum(
                os.lstat(f"{path}/{name}").st_nlink
                for path, _, files in os.walk(served.path)
                for name in files
            )
            assert seen == 200_000
            drop_caches()
        for fd in keep:
            assert os.fstat(fd).st_nlink == 1
            os.close(fd)
