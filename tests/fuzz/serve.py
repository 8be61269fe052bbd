# SPDX-License-Identifier: Apache-2.0
"""Use an image through the server and the protocol, and hold them to their promises.

Each request gets exactly one reply, with its own number, a length that is right, and either a body
that can be decoded or an errno that a filesystem may answer; in less than two seconds of CPU time;
and nothing is logged with a traceback, which is what an unexpected exception leaves.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from typing import Any, Final

from penstock.abi.fuse import (
    GetattrIn,
    GetxattrIn,
    InitIn,
    IoctlIn,
    LseekIn,
    ReadIn,
    StatxIn,
)
from penstock.datapath import Paths
from penstock.formats.errors import FormatError
from penstock.formats.source import FileSource
from penstock.servers.ext4 import Ext4Options
from penstock.servers.ext4.server import open_ext4
from penstock.transport import MemoryTransport
from penstock.wire import (
    WireError,
    decode_direntplus,
    decode_dirents,
    decode_reply,
    encode_request,
    requests,
)
from tests.fuzz.bases import Image
from tests.fuzz.use import SECONDS, BrokenPromise, watchdog

__all__ = ["Kernel", "Served", "opened", "serve"]

_OFFER: Final = InitIn(7, 45, 131072, 0x73FF_FFFB, 0x5FD, bytes(44))
_OPCODES: Final = {cls: opcode for opcode, cls in requests.REQUESTS.items()}
_ERRNOS: Final = frozenset(
    {
        errno.ENOENT, errno.ESTALE, errno.EUCLEAN, errno.EBADMSG, errno.EOPNOTSUPP, errno.ENOKEY,
        errno.EIO, errno.ENODATA, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENXIO,
        errno.ERANGE, errno.ENOTTY, errno.ENOSYS,
    }
)  # fmt: skip
_LISTING: Final = 1 << 20
_READ: Final = 128 * 1024
_MAX_NODES: Final = 60
_MAX_PAGES: Final = 3


class Served(FileSource):
    """An image that is not in a file, as a source that the server takes.

    File data that the server maps is read from a device of zeros.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        self.fd = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        self.offset = 0
        self.size = image.size
        self.before_wait = None

    def pread(self, length: int, offset: int) -> bytes:
        return self.image.pread(length, offset)

    def close(self) -> None:
        os.close(self.fd)


class _Tracebacks(logging.Handler):
    """Remembers what was logged with an exception."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            self.found.append(f"{text}: {record.exc_info[1]!r}")
        elif "\n" in text:
            self.found.append(f"a message of several lines: {text!r}")


@contextlib.contextmanager
def _no_tracebacks() -> Iterator[None]:
    handler = _Tracebacks()
    logger = logging.getLogger("penstock")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
    if handler.found:
        raise BrokenPromise(handler.found[0])


class Kernel:
    """Asks, and judges the answers."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self._unique = 0
        self.answers = 0
        self.error = 0
        """Of the last reply, negative; 0 if it was none."""

    def ask(self, request: Any, nodeid: int) -> Any:
        """The body of the reply; None for an error."""
        self._unique += 2
        message = encode_request(request, unique=self._unique, nodeid=nodeid)
        what = f"{type(request).__name__} of node {nodeid}"
        begun = time.thread_time()
        with watchdog():
            reply = self._transport.call(message)
        taken = time.thread_time() - begun
        if taken > SECONDS:
            raise BrokenPromise(f"{what}: took {taken:.1f} s")
        if reply is None:
            raise BrokenPromise(f"{what}: no reply")
        try:
            header, body = decode_reply(_OPCODES[type(request)], reply)
        except WireError as error:
            raise BrokenPromise(f"{what}: {error}") from error
        if header.unique != self._unique or header.len != len(reply):
            raise BrokenPromise(f"{what}: reply {header}, {len(reply)} bytes")
        if header.error and -header.error not in _ERRNOS:
            raise BrokenPromise(f"{what}: error {header.error}")
        self.error = header.error
        self.answers += not header.error
        return None if header.error else body

    def node(self, nodeid: int) -> list[int]:
        """Everything that can be asked of a node; the nodes that it leads to."""
        found = self.ask(requests.Getattr(GetattrIn(0, 0, 0)), nodeid)
        self.ask(requests.Statx(StatxIn(0, 0, 0, 0, 0xFFF)), nodeid)
        self.ask(requests.Readlink(), nodeid)
        self._attributes(nodeid)
        size = found.arg.attr.size if found is not None else 1 << 20
        for offset in dict.fromkeys((0, size // 2, max(size - 10, 0), size, 1 << 62)):
            self.ask(requests.Read(ReadIn(0, offset, _READ, 0, 0, 0, 0)), nodeid)
            for whence in (3, 4):
                self.ask(requests.Lseek(LseekIn(0, offset, whence, 0)), nodeid)
        for command, space in ((0x80086601, 8), (0x80087601, 8), (0x801C581F, 28)):
            self.ask(requests.Ioctl(IoctlIn(0, 0, command, 0, 0, space), b""), nodeid)
        return self._directory(nodeid)

    def _attributes(self, nodeid: int) -> None:
        listed = self.ask(requests.Listxattr(GetxattrIn(65536, 0)), nodeid)
        names = bytes(listed.data).split(b"\0")[:-1] if listed is not None else []
        for name in (*names[:6], b"user.absent", b"security.capability"):
            if not name:
                raise BrokenPromise(f"Listxattr of node {nodeid}: an empty name")
            self.ask(requests.Getxattr(GetxattrIn(65536, 0), name), nodeid)

    def _directory(self, nodeid: int) -> list[int]:
        nodes: list[int] = []
        names: list[bytes] = []
        position = 0
        for _ in range(_MAX_PAGES):
            arg = ReadIn(0, position, _LISTING, 0, 0, 0, 0)
            reply = self.ask(requests.Readdirplus(arg), nodeid)
            page = list(decode_direntplus(reply.data)) if reply is not None else []
            for (name, _, offset, _), entry in page:
                if offset <= position or b"/" in name or b"\0" in name:
                    raise BrokenPromise(f"Readdirplus of node {nodeid}: {name!r} at {offset}")
                position = offset
                names.append(name)
                if entry.nodeid and name not in {b".", b".."}:
                    nodes.append(entry.nodeid)
            if not page:
                break
        reply = self.ask(requests.Readdir(ReadIn(0, 0, 4096, 0, 0, 0, 0)), nodeid)
        for _ in decode_dirents(reply.data) if reply is not None else ():
            pass
        for name in (*names[:4], *names[-2:], b"absent", b"n" * 255):
            self.ask(requests.Lookup(name), nodeid)
        return nodes


@contextlib.contextmanager
def opened(image: Image, *, verify: bool = True) -> Iterator[Kernel | None]:
    """The kernel's half of a mount of an image; None if it is refused, in one line."""
    source = Served(image)
    try:
        with _no_tracebacks():
            try:
                with watchdog():
                    server = open_ext4(source, Ext4Options(verify=verify))
            except (FormatError, OSError) as error:
                if not str(error) or "\n" in str(error):
                    raise BrokenPromise(f"open: message {str(error)!r}") from error
                yield None
                return
            with MemoryTransport(server.operations, datapaths=Paths("copy")) as transport:
                kernel = Kernel(transport)
                kernel.ask(requests.Init(_OFFER), 0)
                yield kernel
    finally:
        source.close()


def serve(image: Image, *, verify: bool = True) -> int:
    """Open an image as ``penstock mount`` does, and walk it.

    Returns:
        How many requests were answered without an error; 0 if the image is refused.

    Raises:
        BrokenPromise: see above.
    """
    with opened(image, verify=verify) as kernel:
        if kernel is None:
            return 0
        kernel.ask(requests.Statfs(), 1)
        _walk(kernel)
        return kernel.answers


def _walk(kernel: Kernel) -> None:
    seen: set[int] = set()
    queue = [1, 0, 2, 8, 0xFFFF_FFFF, 1 << 63]
    while queue and len(seen) < _MAX_NODES:
        nodeid = queue.pop(0)
        if nodeid not in seen:
            seen.add(nodeid)
            queue += kernel.node(nodeid)
