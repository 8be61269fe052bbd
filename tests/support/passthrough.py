# SPDX-License-Identifier: Apache-2.0
"""A mount whose files are files of a folder, which the kernel reads and writes without asking.

The process that serves it plays both parts: the broker's, which answers INIT and keeps the registry
of backing files, and the server's, which answers OPEN with their numbers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from penstock.abi.fuse import FOpen, InitFlag
from penstock.broker import backings as registry
from penstock.broker.attach import open_connection
from penstock.broker.backings import Backings, BackingsStatistics
from penstock.broker.handshake import answer_init
from penstock.broker.options import MountOptions
from penstock.datapath import Paths
from penstock.fs import (
    ROOT,
    Attributes,
    Context,
    Entry,
    FileHandle,
    FsError,
    NodeId,
    OpenReply,
    Operations,
    SetAttr,
)
from penstock.negotiate import Limits, Profile, When
from penstock.session import Session
from penstock.sys.mountinfo import find_mount
from penstock.transport import DevFuse
from tests.support.requirements import PROJECT

__all__ = ["Passing", "Setting", "passthrough_mount"]

R = TypeVar("R")
_SECONDS = 100.0


class Setting(NamedTuple):
    """How to mount.

    Attributes:
        as_root: have files registered as plain root, which the broker never does.
    """

    read_only: bool = False
    limit: int = 4096
    as_root: bool = False
    passthrough: bool = True


class Folder(Operations):
    """The regular files of one folder, each backed by itself."""

    want: int = InitFlag.HANDLE_KILLPRIV_V2

    def __init__(self, source: Path) -> None:
        self.source = source
        self.names: dict[int, Path] = {ROOT: source}
        self.numbers: dict[int, int] = {}
        self.asked: dict[str, int] = {}

    def node(self, name: str) -> int:
        """The inode number that a file of the folder has in the mount: its own."""
        path = self.source / name
        number = path.lstat().st_ino
        self.names[number] = path
        return number

    def _attributes(self, number: int) -> Attributes:
        st = self.names[number].lstat()
        return Attributes.make(
            number, st.st_mode, size=st.st_size, blocks=st.st_blocks, uid=st.st_uid, gid=st.st_gid
        )

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Entry:
        try:
            number = self.node(os.fsdecode(name))
        except OSError as error:
            raise FsError(error.errno or 5) from error
        return Entry.make(number, self._attributes(number), entry_timeout=0, attr_timeout=0)

    def getattr(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None
    ) -> tuple[Attributes, float]:
        return self._attributes(nodeid), 0.0

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> tuple[Attributes, float]:
        """Nothing to be done: the file below has seen to it."""
        self.asked["setattr"] = self.asked.get("setattr", 0) + 1
        if changes.mode is not None:
            self.names[nodeid].chmod(stat.S_IMODE(changes.mode))
        return self._attributes(nodeid), 0.0

    def open(self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool) -> OpenReply:
        return OpenReply(FileHandle(0), FOpen.PASSTHROUGH, self.numbers.get(nodeid, 0))

    def opendir(self, ctx: Context, nodeid: NodeId, flags: int) -> OpenReply:
        return OpenReply(FileHandle(0))

    def read(self, *_: Any) -> bytes:
        """Would mean that the kernel does not go to the backing file."""
        self.asked["read"] = self.asked.get("read", 0) + 1
        return b""


class Inside(NamedTuple):
    """What a function called in the serving process gets."""

    folder: Folder
    backings: Backings
    device: int


class Passing:
    """The mount, and the process that serves it."""

    def __init__(self, path: Path, pipe: Connection[Any, Any]) -> None:
        self.path = path
        self._pipe = pipe

    def call(self, function: Callable[..., R], *args: Any) -> R:
        """Have ``function(inside, *args)`` called in the serving process; raises what it raises."""
        self._pipe.send((function, args))
        if not self._pipe.poll(_SECONDS):
            raise AssertionError("the serving process does not answer")
        error, value = self._pipe.recv()
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def register(self, name: str, flags: int = os.O_RDWR) -> int:
        """Offer a file of the folder, opened with ``flags``, as its backing file."""
        return self.call(_register, name, flags)

    def statistics(self) -> BackingsStatistics:
        return self.call(_statistics)

    def asked(self) -> dict[str, int]:
        """What the kernel has asked the server to do with files' content."""
        return self.call(_asked)


def _register(inside: Inside, name: str, flags: int) -> int:
    node = inside.folder.node(name)
    fd = os.open(inside.folder.source / name, flags | os.O_CLOEXEC)
    number = inside.folder.numbers[node] = inside.backings.register(node, fd)
    return number


def _statistics(inside: Inside) -> BackingsStatistics:
    return inside.backings.statistics()


def _asked(inside: Inside) -> dict[str, int]:
    return inside.folder.asked


@contextlib.contextmanager
def passthrough_mount(source: Path, path: Path, setting: Setting) -> Iterator[Passing]:
    """Mount ``source`` at ``path``, both existing directories; unmounted on leaving."""
    ours, theirs = multiprocessing.Pipe()
    with contextlib.closing(ours):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.passthrough", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=PROJECT,
        )
        theirs.close()
        try:
            passing = Passing(path, ours)
            passing.call(source, path, setting)  # type: ignore[arg-type]
            yield passing
        finally:
            ours.close()
            if find_mount(str(path)) is not None:
                subprocess.run(["umount", "--lazy", path], check=False)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _mount(
    source: Path, path: Path, setting: Setting, undo: contextlib.ExitStack
) -> tuple[Inside, DevFuse]:
    options = MountOptions(read_only=setting.read_only, allow_other=True, workers=1)
    attachment = open_connection(str(path), options)
    folder = Folder(source)
    has = {When.PASSTHROUGH} if setting.passthrough else set()
    found = []

    def shake_hands() -> None:
        profile = Profile(folder.want, has=frozenset(has))
        found.append(answer_init(attachment.fd, Limits(), profile))

    attachment.create(shake_hands)
    if setting.as_root:
        registry.become_nobody = lambda *also: None
    backings = Backings(attachment.fd, superblock_read_only=setting.read_only, limit=setting.limit)
    undo.callback(backings.close)
    transport = DevFuse(attachment.fd, workers=1)
    session = Session(folder, sink=transport, datapaths=Paths("copy"))
    undo.callback(transport.close)
    transport.attach(session)
    session.adopt(found[0])
    transport.start()
    attachment.attach()
    return Inside(folder, backings, attachment.fd), transport


def main() -> None:
    """Mount what is asked for, and do as told until the other end is closed."""
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    with contextlib.ExitStack() as undo:
        source, (path, setting) = pipe.recv()
        try:
            inside, transport = _mount(source, path, setting, undo)
        except Exception as error:  # noqa: BLE001 - the test is to see it
            pipe.send((error, None))
            return
        pipe.send((None, None))
        with contextlib.suppress(EOFError):
            while True:
                function, args = pipe.recv()
                try:
                    pipe.send((None, function(inside, *args)))
                except Exception as error:  # noqa: BLE001 - the test is to see it
                    pipe.send((error, None))
        transport.ended.wait(20)


if __name__ == "__main__":
    main()
