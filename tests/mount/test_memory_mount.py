# SPDX-License-Identifier: Apache-2.0
"""The memory filesystem on a real mount: waiting, interrupts, notifications, faults, the end."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import queue
import select
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.fs import ROOT, Context, FileHandle, NodeId
from penstock.fs.types import Unique
from penstock.serve import MountOptions
from penstock.sys.libc import call
from penstock.testing import MemoryFilesystem
from penstock.testing.posix import Peer
from penstock.testing.posix.calls import fallocate, opened
from tests.support.mounts import Inside, Served, serve_in_process

WORKERS = 2
SECONDS = 20.0
ENDED = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.EINTR, errno.EIO}
SERVER = Context(Unique(0), 0, 0, 0)


class Watched(MemoryFilesystem):
    """Says what it was asked, and keeps the kernel's caches for an hour."""

    def __init__(self) -> None:
        super().__init__(timeout=3600.0)
        self.forgotten: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.polled: queue.SimpleQueue[int] = queue.SimpleQueue()

    def forget(self, nodeid: NodeId) -> None:
        """Note it."""
        super().forget(nodeid)
        self.forgotten.put(nodeid)

    def poll(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, kh: int, flags: int, events: int
    ) -> int:
        """Note who waits."""
        ready = super().poll(ctx, nodeid, fh, kh, flags, events)
        if flags and not ready:
            self.polled.put(kh)
        return ready

    def readlink(self, ctx: Context, nodeid: NodeId) -> bytes:
        """Has a fault in it."""
        raise ValueError("an error of the author's")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A mount with fewer workers than some tests have waiters."""
    with serve_in_process(Watched, tmp_path, MountOptions(workers=WORKERS)) as mounted:
        yield mounted


# What tests have done in the serving process: behind the kernel's back


def node_of(inside: Inside, name: str) -> NodeId:
    """The node under a name of the root."""
    entry = inside[0].lookup(SERVER, ROOT, name.encode())
    return NodeId(entry.nodeid)


def overwrite(inside: Inside, name: str, data: bytes) -> None:
    """Change a file's data without the kernel."""
    filesystem = inside[0]
    node = node_of(inside, name)
    fh = filesystem.open(SERVER, node, os.O_RDWR, False).fh
    filesystem.write(SERVER, node, fh, 0, memoryview(data), 0, 0, None)
    filesystem.release(SERVER, node, fh, 0, 0, 0)


def rename(inside: Inside, old: str, new: str) -> None:
    """Move a name of the root without the kernel."""
    inside[0].rename(SERVER, ROOT, old.encode(), ROOT, new.encode(), 0)


def unlink(inside: Inside, name: str) -> None:
    """Remove a name of the root without the kernel."""
    inside[0].unlink(SERVER, ROOT, name.encode())


def notify(inside: Inside, what: str, *args: object) -> None:
    """Send a notification."""
    getattr(inside[1].notifier, what)(*args)


def retrieve(inside: Inside, node: int, size: int) -> bytes:
    """What the kernel has cached of a file."""
    got: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    inside[1].notifier.retrieve(NodeId(node), 0, size).then(lambda value, _error: got.put(value))
    data = got.get(timeout=SECONDS)
    assert data is not None
    return data


def next_forgotten(inside: Inside) -> int:
    """Wait for a node to be forgotten."""
    return int(inside[0].forgotten.get(timeout=SECONDS))


def next_polled(inside: Inside) -> None:
    """Wait for somebody to wait."""
    inside[0].polled.get(timeout=SECONDS)


def wait_waiting(inside: Inside, count: int) -> bool:
    """Wait until so many lock requests wait."""
    return bool(inside[0].wait_waiting_locks(count, SECONDS))


def log(inside: Inside) -> list[str]:
    """What was logged."""
    return inside[2]


def lazily_unmount(inside: Inside) -> None:
    """Unmount although files are open."""
    inside[1].unmount(lazy=True)


# Waiting


def test_more_waiters_than_workers_do_not_block_the_unlock(served: Served) -> None:
    path = served.path / "file"
    path.touch()
    peers = [Peer() for _ in range(WORKERS + 4)]
    try:
        with opened(path, os.O_RDWR) as fd:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            handles = [peer.call("open", path, os.O_RDWR) for peer in peers]
            for number, (peer, handle) in enumerate(zip(peers, handles, strict=True), 1):
                peer.start("lock", handle, fcntl.LOCK_EX, 0, 0)
                assert served.call(wait_waiting, number)
            assert served.statistics().session.pending == len(peers)
            fcntl.lockf(fd, fcntl.LOCK_UN)
            for number, (peer, handle) in enumerate(zip(peers, handles, strict=True), 1):
                assert peer.answer() is None, "served in order"
                assert served.call(wait_waiting, len(peers) - number)
                peer.call("lock", handle, fcntl.LOCK_UN, 0, 0)
    finally:
        for peer in peers:
            peer.end()
    assert served.statistics().session.pending == 0


@pytest.mark.parametrize("kind", ["lock", "flock"])
def test_a_waiting_lock_is_interrupted(served: Served, kind: str) -> None:
    path = served.path / "file"
    path.touch()
    words = (fcntl.LOCK_EX, 0, 0) if kind == "lock" else (fcntl.LOCK_EX,)
    with opened(path, os.O_RDWR) as fd, Peer() as peer:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        fcntl.flock(fd, fcntl.LOCK_EX)
        handle = peer.call("open", path, os.O_RDWR)
        peer.start(kind, handle, *words)
        assert served.call(wait_waiting, 1)
        peer.signal()
        with pytest.raises(InterruptedError):
            peer.answer()
        assert served.call(wait_waiting, 0)
        fcntl.lockf(fd, fcntl.LOCK_UN)
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert peer.call(kind, handle, *words) is None
    assert served.requests()["INTERRUPT"] >= 1


def test_a_waiter_that_is_killed_leaves_the_queue(served: Served) -> None:
    path = served.path / "file"
    path.touch()
    with opened(path, os.O_RDWR) as fd, Peer() as killed, Peer() as peer:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        for number, each in enumerate((killed, peer), 1):
            handle = each.call("open", path, os.O_RDWR)
            each.start("lock", handle, fcntl.LOCK_EX, 0, 0)
            assert served.call(wait_waiting, number)
        killed.end()
        assert served.call(wait_waiting, 1)
        fcntl.lockf(fd, fcntl.LOCK_UN)
        assert peer.answer() is None


def test_unmounting_ends_what_waits(served: Served) -> None:
    path = served.path / "file"
    path.touch()
    with Peer() as holder, Peer() as waiter:
        handle = holder.call("open", path, os.O_RDWR)
        holder.call("lock", handle, fcntl.LOCK_EX, 0, 0)
        handle = waiter.call("open", path, os.O_RDWR)
        waiter.start("lock", handle, fcntl.LOCK_EX, 0, 0)
        assert served.call(wait_waiting, 1)
        served.call(lazily_unmount)
        with pytest.raises(OSError) as caught:
            waiter.answer()
        assert caught.value.errno in ENDED
        with pytest.raises(OSError) as caught:
            waiter.call("write", handle, "x", 0)
        assert caught.value.errno in ENDED
    assert served.statistics().session.pending == 0
    assert not path.exists()


def test_a_killed_server_hangs_nobody(tmp_path: Path) -> None:
    with serve_in_process(MemoryFilesystem, tmp_path) as served, Peer() as peer, Peer() as holder:
        (tmp_path / "file").touch()
        handle = holder.call("open", tmp_path / "file", os.O_RDWR)
        holder.call("lock", handle, fcntl.LOCK_EX, 0, 0)
        handle = peer.call("open", tmp_path / "file", os.O_RDWR)
        peer.start("lock", handle, fcntl.LOCK_EX, 0, 0)
        assert served.call(_wait_for_one)
        served.process.kill()
        with pytest.raises(OSError) as caught:
            peer.answer()
        assert caught.value.errno in ENDED
    assert not os.path.ismount(tmp_path)


def _wait_for_one(inside: Inside) -> bool:
    return wait_waiting(inside, 1)


class Slow(MemoryFilesystem):
    """Reads wait for something outside, and say so before."""

    says_so = True

    def __init__(self) -> None:
        super().__init__()
        self.reading = threading.Event()
        self.go_on = threading.Event()

    def read(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        size: int,
        flags: int,
        lock_owner: int | None,
    ) -> bytes:
        """Wait until told to go on."""
        assert self.before_wait is not None
        if self.says_so:
            self.before_wait()
        self.reading.set()
        assert self.go_on.wait(SECONDS)
        return super().read(ctx, nodeid, fh, offset, size, flags, lock_owner)


def _reading(inside: Inside) -> bool:
    return bool(inside[0].reading.wait(SECONDS))


def _go_on(inside: Inside) -> None:
    inside[0].go_on.set()


class Silent(Slow):
    """Reads wait, and do not say so."""

    says_so = False


@pytest.mark.parametrize("slow", [Slow, Silent])
def test_others_are_served_while_one_waits(slow: type[Slow], tmp_path: Path) -> None:
    options = MountOptions(workers=WORKERS)
    with serve_in_process(slow, tmp_path, options) as served, Peer() as peer:
        (tmp_path / "file").write_bytes(b"x" * 10)
        handle = peer.call("open", tmp_path / "file", os.O_RDONLY)
        peer.start("read", handle, 10, 0)
        assert served.call(_reading)
        for number in range(20):
            (tmp_path / f"other-{number}").mkdir()
        served.call(_go_on)
        assert peer.answer() == "x" * 10


def test_umount_ends_the_server(tmp_path: Path) -> None:
    with serve_in_process(MemoryFilesystem, tmp_path) as served:
        (tmp_path / "file").touch()
        subprocess.run(["umount", tmp_path], check=True)
        assert served.call(_ended)
    assert served.process.returncode == 0


def _ended(inside: Inside) -> bool:
    return inside[1].wait(SECONDS)


def test_polling_hears_that_a_file_grows(served: Served) -> None:
    (served.path / "file").write_bytes(b"old")
    with opened(served.path / "file", os.O_RDONLY | os.O_NONBLOCK) as fd:
        waiter = select.poll()
        waiter.register(fd, select.POLLIN)
        assert os.read(fd, 10) == b"old"
        assert waiter.poll(0) == []
        served.call(_drain_polled)
        found: list[tuple[int, int]] = []
        thread = threading.Thread(target=lambda: found.extend(waiter.poll(SECONDS * 1000)))
        thread.start()
        served.call(next_polled)
        served.call(overwrite, "file", b"old and new")
        thread.join()
        assert found == [(fd, select.POLLIN)]
        assert os.read(fd, 100) == b" and new"
        assert waiter.poll(0) == []


def _drain_polled(inside: Inside) -> None:
    while not inside[0].polled.empty():
        inside[0].polled.get()


# Notifications, seen through the kernel


def test_invalidated_data_is_read_again(served: Served) -> None:
    path = served.path / "file"
    path.write_bytes(b"one")
    assert path.read_bytes() == b"one"
    served.call(overwrite, "file", b"two")
    assert path.read_bytes() == b"one", "the kernel cannot know"
    served.call(notify, "inval_inode", served.call(node_of, "file"))
    assert path.read_bytes() == b"two"
    served.call(overwrite, "file", b"three")
    served.call(notify, "inval_inode", served.call(node_of, "file"), -1)
    assert path.stat().st_size == 5


def test_invalidated_data_is_seen_in_mappings(served: Served) -> None:
    path = served.path / "file"
    path.write_bytes(b"1" * mmap.PAGESIZE)
    with opened(path) as fd, mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        assert view[:3] == b"111"
        served.call(overwrite, "file", b"222")
        assert view[:3] == b"111"
        served.call(notify, "inval_inode", served.call(node_of, "file"), 0, 0)
        assert view[:4] == b"2221"


def test_invalidated_names_are_looked_up_again(served: Served) -> None:
    (served.path / "old").write_bytes(b"x")
    served.call(rename, "old", "new")
    assert (served.path / "old").exists(), "the kernel cannot know"
    served.call(notify, "inval_entry", ROOT, b"old")
    assert not (served.path / "old").exists()
    assert (served.path / "new").read_bytes() == b"x"


def test_a_deleted_name_is_gone(served: Served) -> None:
    (served.path / "file").touch()
    node = served.call(node_of, "file")
    served.call(unlink, "file")
    assert (served.path / "file").exists()
    served.call(notify, "delete", ROOT, node, b"file")
    assert not (served.path / "file").exists()


def test_an_expired_name_is_asked_for_again(served: Served) -> None:
    (served.path / "file").touch()
    before = served.requests()["LOOKUP"]
    os.stat(served.path / "file")
    assert served.requests()["LOOKUP"] == before
    served.call(notify, "expire_entry", ROOT, b"file")
    os.stat(served.path / "file")
    assert served.requests()["LOOKUP"] == before + 1


def test_stored_data_is_read_without_asking(served: Served) -> None:
    path = served.path / "file"
    path.touch()
    os.truncate(path, 6)
    served.call(notify, "store", served.call(node_of, "file"), 0, b"stored")
    with opened(path) as fd:
        assert os.read(fd, 6) == b"stored"
    assert "READ" not in served.requests()


def test_cached_data_is_retrieved(served: Served) -> None:
    path = served.path / "file"
    path.write_bytes(b"cached")
    assert path.read_bytes() == b"cached"
    node = served.call(node_of, "file")
    assert served.call(retrieve, node, 4096) == b"cached"
    assert served.call(retrieve, node, 3) == b"cac"


def test_notifications_about_the_unknown_say_so(served: Served) -> None:
    for words in (
        ("inval_inode", 12345),
        ("inval_entry", ROOT, b"missing"),
        ("delete", ROOT, 12345, b"missing"),
        ("store", 12345, 0, b"x"),
    ):
        with pytest.raises(FileNotFoundError):
            served.call(notify, *words)
    with pytest.raises(FileNotFoundError):
        served.call(retrieve, 12345, 10)


def test_pruned_inodes_are_forgotten(served: Served) -> None:
    (served.path / "file").touch()
    node = served.call(node_of, "file")
    if not send_new(served, "prune", [node]):
        return
    assert served.call(next_forgotten) == node
    assert (served.path / "file").exists()
    assert served.call(node_of, "file") != node


def test_a_new_epoch_has_all_names_asked_for(served: Served) -> None:
    names = [served.path / f"file-{number}" for number in range(5)]
    for name in names:
        name.touch()
    before = served.requests()["LOOKUP"]
    if not send_new(served, "inc_epoch"):
        return
    for _ in range(2):
        for name in names:
            os.stat(name)
        assert served.requests()["LOOKUP"] == before + len(names)


def send_new(served: Served, what: str, *args: object) -> bool:
    """Send a notification that older kernels refuse with EINVAL; whether it was taken."""
    try:
        served.call(notify, what, *args)
    except OSError as error:
        assert error.errno == errno.EINVAL  # noqa: PT017 - refused properly
        return False
    return True


# Faults, and what the kernel leaves to the filesystem


def test_a_handlers_exception_is_eio_and_the_mount_lives(served: Served) -> None:
    (served.path / "link").symlink_to("target")
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            os.readlink(served.path / "link")
        assert caught.value.errno == errno.EIO
    (served.path / "file").write_bytes(b"alive")
    assert (served.path / "file").read_bytes() == b"alive"
    records = [line for line in served.call(log) if "READLINK" in line]
    assert len(records) == 2
    assert all(line.startswith("ERROR") and line.endswith("ValueError") for line in records)


def handle_of(path: Path) -> bytes:
    """A file handle, as NFS servers use them."""
    buffer = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 136)
    mount_id = ctypes.c_int()
    call("name_to_handle_at", -100, bytes(path), buffer, ctypes.byref(mount_id), 0)
    (size,) = struct.unpack_from("<I", buffer)
    return buffer.raw[: 8 + size]


def open_handle(directory: int, handle: bytes) -> int:
    """Open a file by its handle."""
    return call("open_by_handle_at", directory, ctypes.create_string_buffer(handle), os.O_RDONLY)


@pytest.mark.requires("root")
def test_a_forgotten_file_handle_is_stale(served: Served) -> None:
    path = served.path / "file"
    path.write_bytes(b"content")
    handle = handle_of(path)
    with opened(served.path, os.O_DIRECTORY) as directory:
        fd = open_handle(directory, handle)
        assert os.read(fd, 100) == b"content"
        path.unlink()
        assert os.pread(fd, 100, 0) == b"content", "open: the name is gone, the file is not"
        os.close(fd)
        served.call(next_forgotten)
        with pytest.raises(OSError) as caught:
            open_handle(directory, handle)
        assert caught.value.errno == errno.ESTALE


def small() -> MemoryFilesystem:
    """Room for one mebibyte and ten inodes."""
    return MemoryFilesystem(limit=1 << 20, inodes=10)


def test_a_full_filesystem(tmp_path: Path) -> None:
    with serve_in_process(small, tmp_path):
        with opened(tmp_path / "file", os.O_CREAT | os.O_RDWR) as fd:
            written = sum(os.write(fd, b"x" * 100_000) for _ in range(11))
            assert written == os.fstat(fd).st_size == 1 << 20
            with pytest.raises(OSError) as caught:
                os.write(fd, b"x")
            assert caught.value.errno == errno.ENOSPC
            assert os.statvfs(tmp_path).f_bfree == 0
            os.ftruncate(fd, 0)
            assert os.statvfs(tmp_path).f_bfree == 256
        for number in range(8):
            (tmp_path / str(number)).mkdir()
        with pytest.raises(OSError) as caught:
            (tmp_path / "one more").mkdir()
        assert caught.value.errno == errno.ENOSPC
        assert os.statvfs(tmp_path).f_ffree == 0


def test_zeroing_a_range(served: Served) -> None:
    """FALLOC_FL_ZERO_RANGE, which tmpfs lacks."""
    with opened(served.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"x" * 20_000)
        fallocate(fd, 0x10, 1000, 10_000)
        assert os.pread(fd, 20_000, 0) == b"x" * 1000 + bytes(10_000) + b"x" * 9000
        fallocate(fd, 0x11, 15_000, 50_000)
        assert os.fstat(fd).st_size == 20_000
        fallocate(fd, 0x10, 19_000, 50_000)
        assert os.fstat(fd).st_size == 69_000
        assert os.fstat(fd).st_blocks == -(-69_000 // 4096) * 8


@pytest.mark.requires("root")
def test_inode_flags(served: Served) -> None:
    get_flags, set_flags, nodump, immutable = 0x80086601, 0x40086602, 0x40, 0x10
    path = served.path / "file"
    path.write_bytes(b"x")
    for target in (path, served.path):
        with opened(target) as fd:
            fcntl.ioctl(fd, set_flags, struct.pack("<q", nodump))
            answer = fcntl.ioctl(fd, get_flags, bytes(8))
            assert struct.unpack("<q", answer)[0] == nodump
    with opened(path) as fd:
        assert fcntl.ioctl(fd, 0x80087601, bytes(8)) != bytes(8), "FS_IOC_GETVERSION"
        fcntl.ioctl(fd, set_flags, struct.pack("<q", immutable))
        for change in (
            lambda: path.write_bytes(b"y"),
            lambda: path.chmod(0o600),
            path.unlink,
            lambda: path.rename(served.path / "other"),
        ):
            with pytest.raises(PermissionError):
                change()
        fcntl.ioctl(fd, set_flags, bytes(8))
    path.unlink()


def test_nothing_is_lost_when_all_is_closed(served: Served) -> None:
    """After everything was removed and forgotten, no space is in use."""
    for number in range(50):
        path = served.path / f"directory-{number}"
        path.mkdir()
        (path / "file").write_bytes(b"x" * 10_000)
        os.setxattr(path / "file", "user.name", b"value")
        (path / "link").symlink_to("file")
        (path / "file").unlink()
        (path / "link").unlink()
        path.rmdir()
    seen = {served.call(next_forgotten) for _ in range(150)}
    assert len(seen) == 150
    status = os.statvfs(served.path)
    assert status.f_bfree == status.f_blocks
    assert status.f_files - status.f_ffree == 1
    assert stat.S_ISDIR(os.stat(served.path).st_mode)
