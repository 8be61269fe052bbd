# SPDX-License-Identifier: Apache-2.0
"""The host that is attacked: what is there to be read, reached, changed and killed.

It is a process of root in namespaces of its own (mounts, network, names, interprocess
communication, process numbers), so that nothing that succeeds reaches the real host. It keeps the
first user namespace: its root is the real root. It listens, has secrets, and plays the broker.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import shutil
import socket
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final, Self

from penstock.abi.mount import MountFlag, UmountFlag
from penstock.broker.handshake import answer_init
from penstock.negotiate import Limits, Profile, When
from penstock.sys import mount
from penstock.sys.devfuse import open_device
from penstock.sys.libc import call
from tests.support import attack_processes
from tests.support.attacks import STRANGER, Facts
from tests.support.syscalls import handle_of

__all__ = ["Host", "Place"]

_SHM_KEY: Final = 0x7065_6E73
_QUEUE: Final = "/attacked"
_ABSTRACT: Final = "attacked"
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IMAGE_BYTES: Final = 1 << 18
_PASSTHROUGH: Final = Profile(0, has=frozenset({When.PASSTHROUGH}))


class Host:
    """The attacked host; a context manager. The process must be in namespaces of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-attacked-", dir="/tmp"))
        self._stack = contextlib.ExitStack()
        self._text = ctypes.create_string_buffer(b"broker's secret", 16)
        self._nonce = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self.folder.rmdir)
            mount.mount("attacked", str(self.folder), "tmpfs", MountFlag(0), "mode=755")
            stack.callback(mount.umount, str(self.folder), UmountFlag.DETACH)
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            socket.sethostname("attacked")
            self._listen(stack)
            _make_tools(self.folder / "tools")
            secret = self.folder / "secret of the broker"
            secret.write_bytes(b"secret")
            self._secret = os.open(secret, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, self._secret)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _listen(self, stack: contextlib.ExitStack) -> None:
        def listener(family: int, kind: int, name: Any) -> socket.socket:
            sock = stack.enter_context(socket.socket(family, kind))
            sock.bind(name)
            if kind == socket.SOCK_STREAM:
                sock.listen(4096)
            return sock

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
        tcp = listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        udp = listener(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        self._ports = tcp.getsockname()[1], udp.getsockname()[1]
        listener(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + _ABSTRACT)
        listener(socket.AF_UNIX, socket.SOCK_STREAM, str(self.folder / "listener"))
        (self.folder / "listener").chmod(0o666)
        call("shmget", _SHM_KEY, ctypes.c_size_t(4096), 0o1600)
        call("mq_open", _QUEUE.encode(), os.O_RDWR | os.O_CREAT, 0o600, None)

    def place(self, needs: frozenset[str], *, broker: int, owner: int, by_broker: bool) -> Place:
        """A place for one attempt.

        Args:
            needs: of the attempt.
            broker: process number of who started the attacker.
            owner: user of the victim and the secret.
            by_broker: hand out what a broker does; else what a server holds that does all itself.
        """
        self._nonce += 1
        facts = {**self._common_facts(), "nonce": self._nonce, "broker": broker}
        return Place(self.folder / str(self._nonce), facts, needs, owner, by_broker=by_broker)

    def _common_facts(self) -> dict[str, Any]:
        """What every attacker is told alike."""
        return {
            "broker_text": ctypes.addressof(self._text),
            "broker_fd": self._secret,
            "tools": str(self.folder / "tools"),
            "tcp": self._ports[0],
            "udp": self._ports[1],
            "abstract": _ABSTRACT,
            "listener": str(self.folder / "listener"),
            "shm": _SHM_KEY,
            "queue": _QUEUE,
        }


class Place:
    """All that is made for one attempt: files, victims, descriptors. A context manager.

    Attributes:
        facts: for the attacker.
        fds: image, and if needed connection and disk; then both ends of a pipe.
    """

    def __init__(
        self,
        folder: Path,
        facts: dict[str, Any],
        needs: frozenset[str],
        owner: int,
        *,
        by_broker: bool,
    ) -> None:
        self.fds: list[int] = []
        self._stack = contextlib.ExitStack()
        self._folder = folder
        self._scratch = ctypes.c_uint64(0)
        with self._stack:
            self._stack.callback(_remove, folder)
            _make_files(folder, owner)
            handle = handle_of(bytes(folder / "secret"))
            self.facts = Facts(
                folder=str(folder),
                shared=str(folder / "shared"),
                broker_scratch=ctypes.addressof(self._scratch),
                handle_type=handle.type,
                handle=handle.data.hex(),
                **self._make(needs, owner, by_broker=by_broker),
                **facts,
            )
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _own(self, *fds: int) -> None:
        for fd in fds:
            self._stack.callback(os.close, fd)
        self.fds += fds

    def _make(self, needs: frozenset[str], owner: int, *, by_broker: bool) -> dict[str, Any]:
        stack, loop, victim, stranger = self._stack, "", 0, 0
        flags = os.O_RDONLY if by_broker else os.O_RDWR
        self._own(os.open(self._folder / "image", flags | os.O_CLOEXEC))
        if "fuse" in needs:
            self._own(_connection(self._folder, stack))
            if by_broker:
                answer_init(self.fds[-1], Limits(), _PASSTHROUGH)
        if "loop" in needs:
            loop = _loop_device(self._folder / "image", stack)
            self._own(os.open(loop, os.O_RDONLY | os.O_CLOEXEC))
        self._own(*os.pipe())
        if "mount" in needs:
            _mount_one_more(self._folder, stack)
        if "victims" in needs:
            victim, stranger = _victim(stack, owner), _victim(stack, STRANGER)
        return {"loop": loop, "victim": victim, "stranger": stranger}


def _make_files(folder: Path, owner: int) -> None:
    """The files of :class:`Facts`."""
    folder.mkdir(mode=0o755)
    for name, mode, user in (
        ("public", 0o666, 0),
        ("secret", 0o600, owner),
        ("foreign", 0o600, STRANGER),
    ):
        (folder / name).write_bytes(name.encode())
        os.chown(folder / name, user, user)
        os.chmod(folder / name, mode)
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "file").write_bytes(b"")
    page = os.sysconf("SC_PAGESIZE")
    image = attack_processes.program().ljust(_IMAGE_BYTES - page, b"\0")
    (folder / "image").write_bytes(image + attack_processes.CODE.ljust(page, b"\0"))
    (folder / "image").chmod(0o700)
    os.chown(folder / "image", owner, owner)


def _make_tools(tools: Path) -> None:
    """Programs, some of which have more rights than who executes them."""
    tools.mkdir()
    for name, source, owner, mode in (
        ("true", "true", 0, 0o755),
        ("cat", "cat", 0, 0o755),
        ("set-uid", "id", 0, 0o4755),
        ("set-gid", "id", 0, 0o2755),
        ("set-uid-stranger", "id", STRANGER, 0o4755),
        ("set-uid-cat", "cat", 0, 0o4755),
        ("file-capability", "cat", 0, 0o755),
    ):
        found = shutil.which(source)
        assert found is not None, source
        tool = tools / name
        shutil.copyfile(found, tool)
        os.chown(tool, owner, owner)
        tool.chmod(mode)
    (tools / "secret").write_bytes(b"secret")
    (tools / "secret").chmod(0o600)
    script = tools / "script"
    script.write_text(f"#!{tools}/set-uid-cat {tools}/secret\n", encoding="utf-8")
    script.chmod(0o755)
    # struct vfs_cap_data, revision 2: effective; CAP_DAC_OVERRIDE permitted.
    capability = struct.pack("<5I", 0x0200_0001, 1 << 1, 0, 0, 0)
    os.setxattr(tools / "file-capability", "security.capability", capability)


def _victim(stack: contextlib.ExitStack, uid: int) -> int:
    """A process that waits to be attacked."""
    process = subprocess.Popen(["sleep", "1000"], user=uid, group=uid, extra_groups=[])
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process.pid


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        while True:  # whatever has been mounted there
            mount.umount(str(folder / "shared"), UmountFlag.DETACH)
    shutil.rmtree(folder)


def _loop_device(image: Path, stack: contextlib.ExitStack) -> str:
    """A loop device of the image. It goes with its last descriptor, whatever becomes of us."""
    command = ["losetup", "--find", "--show", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    device = done.stdout.strip()
    stack.callback(os.close, os.open(device, os.O_RDONLY | os.O_CLOEXEC))
    # One of the attempts sets it read-only, which outlives what is attached.
    stack.callback(subprocess.run, ["blockdev", "--setrw", device], check=True)
    subprocess.run(["losetup", "--detach", device], check=True)
    return device


def _connection(folder: Path, stack: contextlib.ExitStack) -> int:
    """A mounted descriptor of /dev/fuse; the mount goes with ``stack``."""
    fd = open_device()
    place = folder / "fuse"
    place.mkdir()
    words = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    mount.mount("attacked", str(place), "fuse.attacked", MountFlag.NOSUID | MountFlag.NODEV, words)
    stack.callback(mount.umount, str(place), UmountFlag.DETACH)
    return fd


def _mount_one_more(folder: Path, stack: contextlib.ExitStack) -> None:
    """A mount for the attacker to take away."""
    place = folder / "mounted"
    place.mkdir()
    mount.mount("attacked", str(place), "tmpfs", MountFlag(0), "size=4k")

    def end() -> None:
        with contextlib.suppress(OSError):
            mount.umount(str(place), UmountFlag.DETACH)

    stack.callback(end)
