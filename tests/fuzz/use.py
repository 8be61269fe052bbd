# SPDX-License-Identifier: Apache-2.0
"""Use an image in every way that the reader has, and hold it to its promises.

Whatever the bytes: each call works or raises a :class:`FormatError` of one line or an ``OSError``
with an errno; takes less than two seconds of CPU time (the medium and other processes are not its
fault); and the memory that the process gains stays below a bound.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

from penstock.formats.errors import FormatError
from penstock.formats.ext4.inode import Inode
from penstock.formats.ext4.reader import Ext4Reader
from penstock.formats.source import BlockSource

__all__ = ["BrokenPromise", "Meter", "peak_growth", "use"]

T = TypeVar("T")
SECONDS: Final = 2.0
"""CPU time of one call."""
_STUCK_SECONDS: Final = 12.0
_MAX_MESSAGE: Final = 400
_ERRNOS: Final = frozenset(
    {errno.EIO, errno.ENOTDIR, errno.EINVAL, errno.EUCLEAN, errno.ENXIO, errno.EISDIR}
)
"""What an ``OSError`` of the reader may say."""

MAX_INODES: Final = 80
_MAX_ENTRIES: Final = 400
_MAX_EXTENTS: Final = 60
_READ: Final = 128 * 1024


class BrokenPromise(AssertionError):
    """A call did what no call may do with any image."""


class Stuck(BaseException):
    """A call does not come back."""


@contextlib.contextmanager
def watchdog(seconds: float = _STUCK_SECONDS) -> Iterator[None]:
    """Interrupt what uses more CPU time than that (in the main thread)."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise Stuck

    before = signal.signal(signal.SIGVTALRM, handle)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


@contextlib.contextmanager
def peak_growth(limit: int = 150 << 20) -> Iterator[None]:
    """Fail if the process grows by more than ``limit`` bytes at any time within."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS:")
    yield
    grown = _status("VmHWM:") - before
    if grown > limit:
        raise BrokenPromise(f"memory grew by {grown >> 20} MiB")


class Meter:
    """Makes calls, and remembers the slowest.

    Args:
        seconds: CPU time that a call may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.limit = seconds
        self.slowest = 0.0
        self.slowest_call = ""
        self.calls = 0
        self.failures = 0

    def call(self, what: str, function: Callable[..., T], *args: Any) -> T | None:
        """The answer; None if the image or the medium was at fault.

        Raises:
            BrokenPromise: it raised something else, or took too long.
        """
        begun = time.thread_time()
        self.calls += 1
        answer = None
        try:
            answer = function(*args)
        except FormatError as error:
            self.failures += 1
            self._check_message(what, error)
        except OSError as error:
            self.failures += 1
            if error.errno not in _ERRNOS:
                raise BrokenPromise(f"{what}: {error!r}") from error
        except BrokenPromise:
            raise
        except Exception as error:
            raise BrokenPromise(f"{what}: {type(error).__name__}: {error}") from error
        except Stuck:
            raise BrokenPromise(f"{what}: does not come back") from None
        taken = time.thread_time() - begun
        if taken > self.slowest:
            self.slowest, self.slowest_call = taken, what
        if taken > self.limit:
            raise BrokenPromise(f"{what}: took {taken:.1f} s")
        return answer

    @staticmethod
    def _check_message(what: str, error: FormatError) -> None:
        text = str(error)
        if not text or len(text) > _MAX_MESSAGE or "\n" in text or not 0 < error.errno < 512:
            raise BrokenPromise(f"{what}: message {text!r}, errno {error.errno}") from error


class _User:
    """One reader in use."""

    def __init__(self, reader: Ext4Reader, meter: Meter) -> None:
        self.reader = reader
        self.meter = meter
        self.children: list[int] = []

    def inode(self, ino: int) -> None:
        """Everything that can be asked of one inode."""
        inode = self.meter.call(f"inode {ino}", self.reader.inode, ino)
        if inode is None:
            return
        self._check(inode)
        self._xattrs(inode)
        if inode.is_symlink:
            target = self.meter.call(f"readlink {ino}", self.reader.readlink, inode)
            if target is not None and (not 0 < len(target) < 4096 or 0 in target):
                raise BrokenPromise(f"readlink {ino}: {len(target)} bytes")
        elif inode.is_dir:
            self._directory(inode)
        if inode.is_regular or inode.is_dir or inode.is_symlink:
            self._content(inode)

    def _check(self, inode: Inode) -> None:
        times = inode.atimensec, inode.mtimensec, inode.ctimensec, inode.crtimensec
        if not (0 <= inode.size < 1 << 63 and max(times) < 10**9 and inode.links > 0):
            raise BrokenPromise(f"inode {inode.ino}: impossible values {inode}")
        if stat.S_IFMT(inode.mode) == 0 or inode.blocks512 >= 1 << 63:
            raise BrokenPromise(f"inode {inode.ino}: impossible values {inode}")

    def _xattrs(self, inode: Inode) -> None:
        ino = inode.ino
        reader = self.reader
        self.meter.call(f"xattrs {ino}", reader.xattrs, inode)
        names = self.meter.call(f"listxattr {ino}", reader.listxattr, inode) or []
        for name in names[:8]:
            if not name or 0 in name or len(name) > 300:
                raise BrokenPromise(f"listxattr {ino}: {name!r}")
            value = self.meter.call(f"getxattr {ino}", reader.getxattr, inode, name)
            if value is not None and len(value) > 1 << 17:
                raise BrokenPromise(f"getxattr {ino}: {len(value)} bytes")
        self.meter.call(f"getxattr {ino}", reader.getxattr, inode, b"user.absent")

    def _directory(self, inode: Inode) -> None:
        ino = inode.ino
        entries = self._list(inode, 0)
        names = [record.name for record in entries]
        self.children += [record.ino for record in entries]
        for name in names[:3] + names[-3:] + [b"absent", b"x", b"n" * 255]:
            self.meter.call(f"lookup {ino} {name!r}", self.reader.lookup, inode, name)
        cookies = [record.next_cookie for record in entries]
        middle = cookies[len(cookies) // 2 :][:1]
        for cookie in (*middle, *cookies[-1:], 1, 13, inode.size - 1, inode.size, 1 << 62):
            if cookie > 0:
                self._list(inode, cookie)

    def _list(self, inode: Inode, cookie: int) -> list[Any]:
        """A request's worth of entries, even when the directory is bad after some of them."""
        found: list[Any] = []

        def read() -> None:
            for record in itertools.islice(self.reader.readdir(inode, cookie), _MAX_ENTRIES):
                found.append(record)  # noqa: PERF402 - kept when it raises

        self.meter.call(f"readdir {inode.ino} from {cookie}", read)
        for record in found:
            if not (0 < len(record.name) < 256 and record.next_cookie > cookie):
                raise BrokenPromise(f"readdir {inode.ino} from {cookie}: {record}")
            if b"/" in record.name or 0 in record.name or not 0 <= record.type < 16:
                raise BrokenPromise(f"readdir {inode.ino}: {record}")
            cookie = record.next_cookie
        return found

    def _content(self, inode: Inode) -> None:
        ino, size = inode.ino, inode.size
        middle = size // 2 & ~0xFFF
        for start in dict.fromkeys((0, middle, max(size - 100, 0), size, size + 5)):
            end = start + (1 << 20)
            self.meter.call(f"extents {ino} from {start}", self._extents, inode, start, end)
            data = self.meter.call(f"read {ino} at {start}", self.reader.read, inode, start, _READ)
            if data is not None and len(data) != max(0, min(_READ, size - start)):
                raise BrokenPromise(f"read {ino} at {start}: {len(data)} bytes of {size}")
        self.meter.call(f"extents {ino}", self._extents, inode, 0, None)
        for data_wanted in (True, False):
            for start in (0, middle):
                self._seek(inode, start, data_wanted)

    def _seek(self, inode: Inode, start: int, data: bool) -> None:
        found = self.meter.call(
            f"seek {inode.ino} from {start}", self.reader.seek, inode, start, data
        )
        if found is not None and not start <= found <= max(inode.size, start):
            raise BrokenPromise(f"seek {inode.ino} from {start}: {found} of {inode.size}")

    def _extents(self, inode: Inode, start: int, end: int | None) -> None:
        position = start
        stop = inode.size if end is None else end
        extents = self.reader.extents(inode, start, end)
        for offset, length, kind, address in itertools.islice(extents, _MAX_EXTENTS):
            if offset != position or length <= 0 or offset + length > stop:
                raise BrokenPromise(f"extents {inode.ino}: {offset}+{length} after {position}")
            if kind in {1, 4} and not 0 < address <= self.reader.source.size - length:
                raise BrokenPromise(f"extents {inode.ino}: {length} bytes at {address}")
            position += length


def use(source: BlockSource, *, verify: bool, meter: Meter | None = None) -> int:
    """Open an image and use it.

    Returns:
        How many calls succeeded; 0 if it cannot be opened.

    Raises:
        BrokenPromise: see above.
    """
    meter = meter or Meter()
    with watchdog():
        reader = meter.call("open", lambda: Ext4Reader(source, verify=verify))
        if reader is None:
            return 0
        counts = meter.call("statfs", reader.statfs)
        if counts is not None and not (0 <= counts.free <= counts.blocks and counts.available >= 0):
            raise BrokenPromise(f"statfs: {counts}")
        for warning in reader.warnings:
            if "\n" in warning or not warning:
                raise BrokenPromise(f"warning {warning!r}")
    user = _User(reader, meter)
    last = reader.superblock.inodes_count
    special = (last, last + 1, 0, 1, 7, 8, -1, 1 << 40)
    seen: set[int] = set()
    queue = [2, *special]
    while queue and len(seen) < MAX_INODES:
        ino = queue.pop(0)
        if ino in seen:
            continue
        seen.add(ino)
        with watchdog():
            user.inode(ino)
        queue += user.children
        user.children.clear()
    return meter.calls - meter.failures
