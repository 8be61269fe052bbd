# SPDX-License-Identifier: Apache-2.0
"""A real mount of three small files, of which each data path has to bring one.

It is made and served as any filesystem of :func:`penstock.serve.mount` is, by a process of its own,
and read by another. As root both are in a mount namespace that nobody else sees; for ordinary users
``fusermount3`` mounts it, on an empty directory, for the moment it takes; where that is impossible,
a user namespace is tried. Whatever becomes of it, the mount ends with the processes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import tempfile
from typing import Final, NamedTuple

from penstock.abi.capability import Capability
from penstock.abi.fuse import FOpen
from penstock.abi.process import CloneFlag
from penstock.cli.errors import explain
from penstock.cli.probes.base import SECONDS, Attempt, attempt, nameless_file
from penstock.fs import (
    ENDLESS,
    ROOT,
    Attributes,
    Backing,
    Context,
    Entry,
    FileHandle,
    FsError,
    NodeId,
    OpenReply,
    Operations,
    WholeFile,
)
from penstock.serve import MountOptions, mount
from penstock.sys.capabilities import effective
from penstock.sys.fusermount import fusermount_unmount
from penstock.sys.mountinfo import find_mount
from penstock.sys.namespaces import make_mounts_private, unshare

__all__ = ["SMALL", "WHOLE", "TrialMount", "try_mount"]

SMALL: Final = 4 << 10
WHOLE: Final = 256 << 10
"""Long enough for the data paths of large reads and of whole files."""
_ANSWER: Final = 16384
_NAMES: Final = ("copy", "splice", "passthrough")


class TrialMount(NamedTuple):
    """What came of it."""

    how: str
    """How it was mounted, in a few words."""
    failures: dict[str, str]
    """By data path: why it did not bring its file; empty where it did. Empty without a mount."""
    reason: str = ""
    """Why there was no mount of the kind that ``penstock mount`` makes; empty if there was."""
    place: str = ""
    """Where the file lies that the others are made of."""


class _Files(Operations):
    """The directory. Inodes 2, 3 and 4 are the files of :data:`_NAMES`, and all are one file."""

    whole_files = "passthrough"

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.asked = 0
        """Reads of what the kernel should carry without asking."""

    def _attributes(self, nodeid: int) -> Attributes:
        if nodeid == ROOT:
            return Attributes.make(ROOT, stat.S_IFDIR | 0o755, nlink=2)
        size = SMALL if nodeid == ROOT + 1 else WHOLE
        return Attributes.make(
            nodeid, stat.S_IFREG | 0o600, size=size, uid=os.geteuid(), gid=os.getegid()
        )

    def getattr(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None
    ) -> tuple[Attributes, float]:
        return self._attributes(nodeid), ENDLESS

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Entry:
        if parent != ROOT or name.decode() not in _NAMES:
            raise FsError(errno.ENOENT)
        nodeid = ROOT + 1 + _NAMES.index(name.decode())
        return Entry.make(nodeid, self._attributes(nodeid))

    def open(self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool) -> OpenReply:
        if _NAMES[nodeid - ROOT - 1] == "passthrough":
            return OpenReply(FileHandle(0), whole=WholeFile(Backing(self._fd), WHOLE))
        return OpenReply(FileHandle(0), FOpen.DIRECT_IO)  # reads come as long as they are asked

    def read(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        size: int,
        flags: int,
        lock_owner: int | None,
    ) -> Backing:
        self.asked += _NAMES[nodeid - ROOT - 1] == "passthrough"
        return Backing(self._fd)


def try_mount() -> TrialMount:
    """Mount, read, unmount, in the way this user can."""
    private = CloneFlag.NEWNS
    if Capability.SYS_ADMIN in effective():
        found = _try(private)
        return _outcome(found, "a mount in a mount namespace of its own", found.reason)
    found = _try(CloneFlag(0))
    if found.value is not None:
        return _outcome(found, "a mount with fusermount3", "")
    inside = _try(private | CloneFlag.NEWUSER)
    if inside.value is None:
        return _outcome(inside, "mounts with fusermount3 and in a user namespace", found.reason)
    reason = f"works in a user namespace alone, not outside: {found.reason}"
    return _outcome(inside, "a mount in a user namespace", reason)


def _outcome(found: Attempt, way: str, reason: str) -> TrialMount:
    if found.value is None:
        return TrialMount(f"tried: {way}", {}, reason)
    failures, place = found.value
    return TrialMount(f"files read by {way}", failures, reason, place)


def _try(namespaces: CloneFlag) -> Attempt:
    """Mount in new namespaces, on an empty directory; neither it nor a mount stays."""
    try:
        place = tempfile.mkdtemp(prefix="penstock-doctor-")
    except OSError as error:
        return Attempt(None, error.errno or 0, f"no directory to mount on: {explain(error)}")
    try:
        return attempt(lambda: _mounted(place, namespaces), SECONDS)
    finally:
        if find_mount(place) is not None:
            with contextlib.suppress(OSError):
                fusermount_unmount(place, lazy=True)
        with contextlib.suppress(OSError):  # never more than the empty directory
            os.rmdir(place)


def _mounted(place: str, namespaces: CloneFlag) -> tuple[dict[str, str], str]:
    """In a child: what each data path failed by, and where their file lies."""
    if namespaces:
        unshare(namespaces)
        make_mounts_private()
    content = os.urandom(WHOLE)
    with nameless_file() as (file, where):
        file.write(content)
        file.flush()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()  # so that it hears of this process's end
            _serve(place, file.fileno(), theirs)
        theirs.close()
        _answer(ours)
        failures = {name: _use(f"{place}/{name}", name, content) for name in _NAMES}
        if not failures["passthrough"] and os.pread(file.fileno(), SMALL, 0) != _written(content):
            failures["passthrough"] = "what was written is not in the file"
        with contextlib.suppress(BrokenPipeError):  # what it says next is nothing
            ours.send(b"done")
        said = _answer(ours)
        os.waitpid(pid, 0)
    return {name: said[name] or failures[name] for name in _NAMES}, where


def _answer(pipe: socket.socket) -> dict[str, str]:
    """What the server says next.

    Raises:
        OSError: it could not mount.
    """
    answer = pipe.recv(_ANSWER)
    if not answer:
        raise OSError(errno.EIO, "the server of the mount died")
    number, said = json.loads(answer)
    if number is not None:
        raise OSError(number, said)
    return dict(said)


def _use(path: str, name: str, content: bytes) -> str:
    """Read a file and compare; write to it where that needs no server. What failed."""
    expected = content[:SMALL] if name == "copy" else content
    access = os.O_RDWR if name == "passthrough" else os.O_RDONLY
    try:
        fd = os.open(path, access | os.O_CLOEXEC)
        try:
            if os.pread(fd, len(expected), 0) != expected:
                return "what was read is wrong"
            if access == os.O_RDWR and os.pwrite(fd, _written(content), 0) != SMALL:
                return "what was written is incomplete"
        finally:
            os.close(fd)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _written(content: bytes) -> bytes:
    """What is written over the beginning of a file."""
    return content[SMALL : 2 * SMALL]


def _serve(place: str, fd: int, pipe: socket.socket) -> None:
    """The server's process: mount, wait, say which data path carried what, end."""
    try:
        try:
            files = _Files(fd)
            mounted = mount(files, place, MountOptions(source="penstock-doctor"))
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            pipe.send(json.dumps((number, getattr(error, "strerror", None) or str(error))).encode())
            return
        with mounted:
            pipe.send(json.dumps((None, {})).encode())
            pipe.recv(16)
            said = mounted.statistics().datapath
        failures = dict.fromkeys(_NAMES, "")
        for name in "copy", "splice":
            if not said.reads[name].reads:
                failures[name] = said.reasons.get(name, "it carried nothing")
        if not said.opens.get("passthrough"):
            failures["passthrough"] = said.reasons.get("passthrough", "it carried nothing")
        elif files.asked:
            failures["passthrough"] = "the kernel asked for data all the same"
        pipe.send(json.dumps((None, failures)).encode())
    finally:
        os._exit(0)
