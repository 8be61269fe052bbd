# SPDX-License-Identifier: Apache-2.0
"""Backing files: what the kernel does with them, and what is not taken for one."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.broker.backings import Backings
from penstock.broker.protocol import ProtocolError
from penstock.fs import Context, FileHandle, NodeId, Pending
from penstock.sys.mountinfo import mount_id_of
from penstock.sys.tree import clone_tree
from penstock.testing.memory import MemoryFilesystem
from tests.support.mounts import serve_in_process
from tests.support.passthrough import Inside, Passing, Setting, passthrough_mount

CONTENT = b"of the file below\n" * 300
CAPABILITY = "security.capability"
NET_BIND_SERVICE = struct.pack("<5I", 0x0200_0001, 1 << 10, 0, 0, 0)
"""As setcap(8) writes it."""


@pytest.fixture
def source(session_place: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder that everybody may enter, with one file."""
    folder = session_place / f"backings-{tmp_path.name}"
    folder.mkdir(mode=0o755)
    (folder / "file").write_bytes(CONTENT)
    (folder / "mnt").mkdir()
    yield folder
    subprocess.run(["rm", "-r", folder], check=True)


@contextlib.contextmanager
def mounted(source: Path, **setting: object) -> Iterator[Passing]:
    with passthrough_mount(source, source / "mnt", Setting(**setting)) as passing:  # type: ignore[arg-type]
        yield passing


def refused(number: int, function: Callable[..., object], *args: object) -> None:
    with pytest.raises(OSError) as caught:
        function(*args)
    assert caught.value.errno == number, caught.value


def test_content_comes_from_the_backing_file(source: Path) -> None:
    with mounted(source) as passing:
        assert passing.register("file") > 0
        file = passing.path / "file"
        assert file.read_bytes() == CONTENT
        with file.open("r+b") as written:
            written.write(b"by the kernel alone")
        assert (source / "file").read_bytes().startswith(b"by the kernel alone")
        assert "read" not in passing.asked()


def test_one_inode_has_one_number(source: Path) -> None:
    with mounted(source) as passing:
        number = passing.register("file")
        assert passing.register("file") == number
        assert passing.statistics().registered == 1
        assert passing.statistics().opened == 1


def test_released_and_registered_again(source: Path) -> None:
    with mounted(source) as passing:
        first = passing.register("file")
        passing.call(release, "file")
        passing.call(release, "file")
        refused(errno.EIO, (passing.path / "file").read_bytes)
        assert passing.register("file") != first
        assert (passing.path / "file").read_bytes() == CONTENT


def release(inside: Inside, name: str) -> None:
    inside.backings.release(inside.folder.node(name))


def open_descriptors(inside: Inside) -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_kept(source: Path) -> None:
    for number in range(40):
        (source / str(number)).write_bytes(b"x")
    with mounted(source) as passing:
        passing.register("file")
        before = passing.call(open_descriptors)
        for number in range(40):
            passing.register(str(number))
        assert passing.call(open_descriptors) == before
        for number in range(40):
            passing.call(release, str(number))
            refused(errno.EPERM, passing.register, str(number), os.O_RDONLY)
        assert settles(lambda: passing.call(open_descriptors) == before)


def settles(done: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether ``done`` comes true; asked again and again, each time a process answers."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
    return True


@pytest.mark.parametrize("mode", [0o6777, 0o4755 | 0o022, 0o2777])
def test_a_strangers_write_clears_the_bits(source: Path, mode: int) -> None:
    """As a write to the file itself does."""
    native = source / "native"
    for path in (native, source / "file"):
        path.write_bytes(CONTENT)
        path.chmod(mode)
    write_as_nobody(native)
    with mounted(source) as passing:
        passing.register("file")
        write_as_nobody(passing.path / "file")
    assert (source / "file").read_bytes() == b"stranger" + CONTENT[8:]
    assert permissions(source / "file") == permissions(native)
    assert permissions(native) == mode & ~0o6000


def test_roots_registration_would_keep_the_bits(source: Path) -> None:
    """What the test before this one is for."""
    (source / "file").chmod(0o6777)
    with mounted(source, as_root=True) as passing:
        passing.register("file")
        write_as_nobody(passing.path / "file")
    assert permissions(source / "file") == 0o6777


@pytest.mark.parametrize("as_root", [False, True])
def test_a_strangers_write_takes_capabilities_away(source: Path, as_root: bool) -> None:
    """With whatever rights the file was registered."""
    native = source / "native"
    for path in (native, source / "file"):
        path.write_bytes(CONTENT)
        path.chmod(0o777)
        os.setxattr(path, CAPABILITY, NET_BIND_SERVICE)
    write_as_nobody(native)
    with mounted(source, as_root=as_root) as passing:
        passing.register("file")
        write_as_nobody(passing.path / "file")
    assert CAPABILITY not in os.listxattr(native)
    assert CAPABILITY not in os.listxattr(source / "file")


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_as_nobody(path: Path) -> None:
    subprocess.run(
        ["dd", f"of={path}", "conv=notrunc", "status=none"],
        input=b"stranger",
        user="nobody",
        group="nogroup",
        extra_groups=[],
        check=True,
    )


@pytest.mark.requires("loop", "mke2fs", "kernel-ext4")
@pytest.mark.parametrize("as_root", [False, True])
def test_what_is_reserved_for_root_is_not_spent(
    source: Path, tmp_path: Path, as_root: bool
) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "50", image], check=True)
    below = source / "below"
    below.mkdir()
    subprocess.run(["mount", "-o", "loop", image, below], check=True)
    try:
        for name in ("native", "file"):
            (below / name).touch(mode=0o666)
            (below / name).chmod(0o666)
        native = fill_as_nobody(below / "native")
        (below / "native").unlink()
        with passthrough_mount(below, source / "mnt", Setting(as_root=as_root)) as passing:
            passing.register("file")
            through = fill_as_nobody(passing.path / "file")
        assert native < 20 << 20
        assert (through > native + (4 << 20)) if as_root else (abs(through - native) < 2 << 20)
    finally:
        subprocess.run(["umount", below], check=True)


def fill_as_nobody(path: Path) -> int:
    """Write until there is no more space; how much there was."""
    done = subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=64k", "conv=notrunc", "status=none"],
        user="nobody",
        group="nogroup",
        extra_groups=[],
        capture_output=True,
        check=False,
    )
    assert b"No space left" in done.stderr
    return path.stat().st_size


# What is no backing file


WORTH_LESS = [os.O_RDONLY, os.O_PATH, os.O_WRONLY, os.O_RDWR | os.O_APPEND]


@pytest.mark.parametrize("flags", WORTH_LESS)
def test_a_descriptor_that_may_do_less_than_the_mount(source: Path, flags: int) -> None:
    """Else a server that can read a file would have others write to it."""
    with mounted(source) as passing:
        refused(errno.EPERM, passing.register, "file", flags)
        assert passing.statistics().registered == 0
        assert passing.statistics().refused == 1


@pytest.mark.parametrize(
    ("flags", "taken"),
    [(os.O_RDONLY, True), (os.O_RDWR, True), (os.O_PATH, False), (os.O_WRONLY, False)],
)
def test_a_superblock_that_is_read_only(source: Path, flags: int, taken: bool) -> None:
    with mounted(source, read_only=True) as passing:
        if not taken:
            refused(errno.EPERM, passing.register, "file", flags)
            return
        passing.register("file", flags)
        assert (passing.path / "file").read_bytes() == CONTENT
        refused(errno.EROFS, os.open, passing.path / "file", os.O_RDWR)


def test_too_many(source: Path) -> None:
    for name in "abc":
        (source / name).write_bytes(name.encode())
    with mounted(source, limit=2) as passing:
        passing.register("a")
        passing.register("b")
        refused(errno.ENFILE, passing.register, "c")
        passing.call(release, "a")
        passing.register("c")
        assert (passing.path / "c").read_bytes() == b"c"


def test_where_passthrough_is_not_negotiated(source: Path) -> None:
    """The kernel's own answer, should the broker ever forget."""
    with mounted(source, passthrough=False) as passing:
        refused(errno.EPERM, passing.register, "file")


@pytest.fixture
def backings() -> Iterator[Backings]:
    """A registry without a connection: whatever it passes on to the kernel is ENOTTY."""
    with (
        open("/dev/null", "rb") as null,
        Backings(null.fileno(), superblock_read_only=False) as registry,
    ):
        yield registry


def test_a_file_that_would_be_passed_on(backings: Backings, tmp_path: Path) -> None:
    refused(errno.ENOTTY, backings.register, 1, os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT))


@pytest.mark.parametrize(
    ("flags", "own", "elsewhere"),
    [
        (os.O_RDWR, errno.ENOTTY, errno.ENOTTY),
        (os.O_RDONLY, errno.ENOTTY, errno.EPERM),
        (os.O_WRONLY, errno.ENOTTY, errno.EPERM),
        (os.O_RDWR | os.O_APPEND, errno.ENOTTY, errno.EPERM),
        (os.O_PATH, errno.EPERM, errno.EPERM),
        (os.O_RDONLY | os.O_DIRECTORY, errno.EPERM, errno.EPERM),
    ],
)
def test_a_mount_of_the_servers_own(source: Path, flags: int, own: int, elsewhere: int) -> None:
    """What a server may read and write anyway may be offered however it is opened; ENOTTY is what
    the kernel says to whatever is passed on. The same file by way of another mount may not."""
    name = "." if flags & os.O_DIRECTORY else "file"
    with contextlib.ExitStack() as stack:
        folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, folder)
        mount = clone_tree(folder)
        stack.callback(os.close, mount)
        null = stack.enter_context(open("/dev/null", "rb"))
        number = mount_id_of(mount)
        registry = stack.enter_context(
            Backings(null.fileno(), superblock_read_only=False, own_mount=number)
        )
        refused(own, registry.register, 1, os.open(name, flags, dir_fd=mount))
        refused(elsewhere, registry.register, 1, os.open(name, flags, dir_fd=folder))
        assert registry.statistics().refused == 2


def test_a_mount_without_backing_files(tmp_path: Path) -> None:
    with Backings(-1, superblock_read_only=False, refusal="it is so") as registry:
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        with pytest.raises(OSError, match="it is so") as caught:
            registry.register(1, fd)
        assert caught.value.errno == errno.EOPNOTSUPP


def a_pipe() -> int:
    ends = os.pipe()
    os.close(ends[0])
    return ends[1]


def a_socket() -> int:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()


def a_poll() -> int:
    with select.epoll() as poll:
        return os.dup(poll.fileno())


NO_FILES: dict[str, Callable[[Path], int]] = {
    "a directory": lambda place: os.open(place, os.O_RDONLY),
    "a pipe": lambda place: a_pipe(),
    "a socket": lambda place: a_socket(),
    "an event": lambda place: os.eventfd(0),
    "a poll": lambda place: a_poll(),
    "a memory file": lambda place: os.memfd_create("m"),
    "a device": lambda place: os.open("/dev/zero", os.O_RDWR),
    "the device of FUSE": lambda place: os.open("/dev/fuse", os.O_RDWR),
    "a namespace": lambda place: os.open("/proc/self/ns/mnt", os.O_RDONLY),
    "a process": lambda place: os.pidfd_open(os.getpid()),
}


@pytest.mark.parametrize("name", NO_FILES)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_regular_file(name: str, read_only: bool, tmp_path: Path) -> None:
    with Backings(-1, superblock_read_only=read_only) as registry:
        with pytest.raises(OSError) as caught:
            registry.register(1, NO_FILES[name](tmp_path))
        assert caught.value.errno in {errno.EINVAL, errno.EPERM}
        assert registry.statistics().refused == 1


def test_a_file_of_proc(source: Path) -> None:
    with mounted(source) as passing:
        refused(errno.ELOOP, passing.register, "/proc/self/comm")


def test_a_file_that_is_mounted_elsewhere(backings: Backings, source: Path) -> None:
    """In a mount namespace of its own, where who knows what is what."""
    program = (
        "import array, os, socket, subprocess, sys; "
        "subprocess.run(['mount', '-t', 'tmpfs', 'x', sys.argv[1]], check=True); "
        "fd = os.open(sys.argv[1] + '/file', os.O_RDWR | os.O_CREAT); "
        "socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b'x'], [fd])"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        subprocess.run(
            ["unshare", "--mount", sys.executable, "-c", program, source, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            check=True,
        )
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    refused(errno.EINVAL, backings.register, 1, fd)


def test_no_inode_zero(backings: Backings, source: Path) -> None:
    refused(errno.EINVAL, backings.register, 0, os.open(source / "file", os.O_RDWR))


class NeverFlushed(MemoryFilesystem):
    """Who closes a file here waits."""

    def flush(  # type: ignore[override]  # its base promises to answer at once
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, lock_owner: int
    ) -> Pending[None]:
        return Pending()


def discard_many(backings: Backings) -> None:
    for _ in range(1000):
        backings.discard(os.open("/dev/null", os.O_RDONLY))


def test_a_file_of_a_filesystem_that_hangs(backings: Backings, source: Path) -> None:
    """It is refused, and neither that nor closing it holds anybody up."""
    with serve_in_process(NeverFlushed, source / "mnt", seconds=50) as served:
        made = os.open(served.path / "file", os.O_RDWR | os.O_CREAT)
        begun = time.monotonic()
        for _ in range(5):
            refused(errno.EINVAL, backings.register, 1, os.dup(made))
        backings.discard(made)
        refused(errno.ENOTTY, backings.register, 1, os.open(source / "file", os.O_RDWR))
        assert time.monotonic() - begun < 5
        with pytest.raises(ProtocolError, match="closing"):
            discard_many(backings)
        served.process.kill()
