# SPDX-License-Identifier: Apache-2.0
"""Opened files that the kernel carries whole: which, and under which number.

A file is either *carried* (every opening of it names its backing file) or *read* (READ and WRITE
come to the filesystem). Which of the two is chosen when a file is opened that nobody has open, and
holds until nobody has it open any more.

Facts about opening (fs/fuse/iomode.c, passthrough.c; violations make open(2) fail with EIO)
    - An inode that is open in one way cannot be opened in the other.
    - All openings of an inode that is carried must name the same backing file.
    - FOPEN_PASSTHROUGH goes with DIRECT_IO, PARALLEL_DIRECT_WRITES and NOFLUSH alone; and with
      DIRECT_IO reads and writes are sent all the same, so that is taken away: the kernel keeps
      nothing of a file that it carries but what belongs to the backing file.
    - RELEASE is sent when the kernel itself has let the file go; so what is open here is open
      there, and a file that nobody has open here may be opened either way.
    - A backing file pins what it is: a deleted file's blocks, an image's inode.

Small files are read: one request brings all of one, and the kernel may keep it, where a backing
file takes a message to the broker first. That costs more than it saves, up to :data:`SMALL`.
"""

from __future__ import annotations

import collections
import errno
import threading
import time
from itertools import islice
from typing import Final

from penstock.abi.fuse import FOpen
from penstock.fs import Backing, FsError, OpenReply, WholeFile
from penstock.session import Backings

__all__ = ["IDLE_SECONDS", "KEPT", "MOST_MAPPINGS", "SMALL", "WholeFiles"]

SMALL: Final = {"lens": 128 << 10, "passthrough": 64 << 10}
"""Files of fewer bytes are read, if they are opened for reading only and the data path was not
asked for by name. Measured (docs/performance.md)."""
KEPT: Final = 3072
"""Backing files that stay registered although nobody has them open: opening them again costs no
message."""
STORED: Final = 16 << 10
"""A file of at most so many bytes is sent along when it is opened for the first time, which saves
the request for it."""
MOST_MAPPINGS: Final = 1 << 16
"""A file that lies in more pieces is read."""
IDLE_SECONDS: Final = 60.0
"""They are given up after so long."""

_MOMENTS: Final = 40
"""Some 50 µs, where a worker looks for requests."""
_GONE: Final = frozenset({errno.EOPNOTSUPP, errno.ELOOP, errno.ENOTCONN, errno.EPIPE})
"""What says that no file of this mount can be carried."""
_ALLOWED: Final = int(FOpen.NOFLUSH)
_PASSTHROUGH: Final = int(FOpen.PASSTHROUGH)
_ACCESS: Final = 3

_KEEP_CACHE: Final = int(FOpen.KEEP_CACHE)
_MOST_STORED: Final = 1 << 18
_MOST_REFUSED: Final = 1 << 16
_MADE_ROOM: Final = 64


class _Inode:
    """What is known of an inode that is open, or has a backing file."""

    __slots__ = ("backing", "carried", "opens", "used")

    def __init__(self) -> None:
        self.opens = 0
        self.backing = 0
        self.carried = False
        self.used = 0.0


class WholeFiles:
    """Decides for each opening; from any thread.

    Args:
        path: ``lens`` or ``passthrough``: what carries files here.
        backings: registers them.
        everything: carry small files too.
        direct: the O_DIRECT bit that the path has no use for; 0 = it takes direct I/O.
        shared: whether other processes serve the mount as well. What nobody has open here may be
            open there, so then nothing is ever given up, and nothing that one opening has and
            another has not may decide how a file is opened.
    """

    def __init__(
        self,
        path: str,
        backings: Backings,
        *,
        everything: bool = False,
        direct: int = 0,
        shared: bool = False,
    ) -> None:
        self.path = path
        self.refusal = ""
        """Why no file is carried any more; empty: they are."""
        self._backings = backings
        self._small = 0 if everything else SMALL[path]
        self._direct = direct
        self._shared = shared
        self._inodes: dict[int, _Inode] = {}
        self._idle: collections.OrderedDict[int, _Inode] = collections.OrderedDict()
        self._refused: dict[int, str] = {}
        self._stored: set[int] = set()
        self._lock = threading.Lock()
        self._put_off = 0
        """Idle moments until what was given up is to be released; 0 = nothing was."""
        self.carried = self.read = 0
        """Files opened in either way."""

    def opened(self, nodeid: int, flags: int, reply: OpenReply) -> OpenReply:
        """The answer to an opening, which counts from here on until :meth:`released`.

        Args:
            nodeid: the inode.
            flags: O_* as the caller gave them.
            reply: the filesystem's answer.

        Raises:
            FsError: EINVAL: the file is carried, and cannot be opened with these flags then.
        """
        with self._lock:
            inode = self._inodes.get(nodeid)
            if inode is None:
                inode = _Inode()
            if not inode.opens:
                inode.carried = self._choose(nodeid, inode, flags, reply)
            if inode.carried and flags & self._direct:
                raise FsError(errno.EINVAL, f"{self.path} has no direct I/O")
            inode.opens += 1
            self._inodes[nodeid] = inode
            self._idle.pop(nodeid, None)
            if not inode.carried:
                self.read += 1
                return reply
            self.carried += 1
            return OpenReply(
                reply.fh, reply.flags & _ALLOWED | _PASSTHROUGH, inode.backing, reply.whole
            )

    def stored(self, nodeid: int, reply: OpenReply) -> int:
        """How many bytes of a file that was just opened to send along: all of a small one, the
        first time, if the kernel may keep what it has.

        Nobody else has it open, so nobody waits for a page of it: the kernel would wait for them.
        """
        whole = reply.whole
        if whole is None or not 0 < whole.length <= STORED or not reply.flags & _KEEP_CACHE:
            return 0
        with self._lock:
            inode = self._inodes.get(nodeid)
            if self._shared or nodeid in self._stored or inode is None or inode.opens != 1:
                return 0
            if len(self._stored) >= _MOST_STORED:
                self._stored.clear()
            self._stored.add(nodeid)
        return whole.length

    def _choose(self, nodeid: int, inode: _Inode, flags: int, reply: OpenReply) -> bool:
        """Whether a file that nobody has open is to be carried; its backing file is there then."""
        whole = reply.whole
        if whole is None or self.refusal or nodeid in self._refused:
            return False
        if flags & self._direct and not self._shared:
            return False
        if inode.backing:
            return True
        if whole.length < self._small and flags & _ACCESS == 0:
            return False
        try:
            inode.backing = self._with_room(nodeid, whole)
        except OSError as error:
            self._refuse(nodeid, error)
            return False
        return True

    def _with_room(self, nodeid: int, whole: WholeFile) -> int:
        """Register a backing file; where there are too many, in the place of idle ones."""
        try:
            return self._register(nodeid, whole)
        except OSError as error:
            if error.errno != errno.ENFILE or not self._idle:
                raise
        for idle in list(islice(self._idle, _MADE_ROOM)):
            self._give_up(idle)
        return self._register(nodeid, whole)

    def _register(self, nodeid: int, whole: WholeFile) -> int:
        source = whole.source
        if isinstance(source, Backing):
            return self._backings.register(nodeid, source.fd)
        mapped = source()
        if mapped is None:
            raise FsError(errno.EINVAL, "some of the file is not in blocks of its own")
        return self._backings.map(nodeid, mapped.length, mapped.mappings)

    def _refuse(self, nodeid: int, error: OSError) -> None:
        text = error.strerror or str(error)
        if error.errno in _GONE:
            self.refusal = text
        elif error.errno != errno.ENFILE or self._shared:
            if len(self._refused) >= _MOST_REFUSED and not self._shared:
                self._refused.clear()
            self._refused[nodeid] = text

    def released(self, nodeid: int) -> None:
        """One opening has ended."""
        with self._lock:
            inode = self._inodes.get(nodeid)
            if inode is None or not inode.opens:
                return
            inode.opens -= 1
            if inode.opens or self._shared:
                return
            if not inode.backing:
                del self._inodes[nodeid]
                return
            inode.used = time.monotonic()
            self._idle[nodeid] = inode
            if len(self._idle) > KEPT:
                self._give_up(next(iter(self._idle)))

    def forgotten(self, nodeid: int) -> None:
        """The kernel knows the inode no more."""
        if self._shared:
            return
        with self._lock:
            self._refused.pop(nodeid, None)
            self._stored.discard(nodeid)
            if nodeid in self._idle:
                self._give_up(nodeid)

    def sweep(self) -> None:
        """Give up what has been idle for long."""
        before = time.monotonic() - IDLE_SECONDS
        with self._lock:
            while self._idle:
                nodeid, inode = next(iter(self._idle.items()))
                if inode.used > before:
                    break
                self._give_up(nodeid)
        self._backings.settle()

    def _give_up(self, nodeid: int) -> None:
        del self._idle[nodeid]
        del self._inodes[nodeid]
        self._backings.release(nodeid)
        self._put_off = _MOMENTS

    def idle(self) -> None:
        """No request waits. After some such moments, what was given up is really released."""
        if self._put_off:
            self._put_off -= 1
            if not self._put_off:
                self._backings.settle()

    @property
    def refused(self) -> int:
        """Files that could not be carried."""
        return len(self._refused)

    @property
    def why_refused(self) -> str:
        """Why the last of them could not."""
        with self._lock:
            return next(reversed(self._refused.values()), "")
