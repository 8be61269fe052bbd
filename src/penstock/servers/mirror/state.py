# SPDX-License-Identifier: Apache-2.0
"""What the parts of the mirror share: the source, open files, who acts, and how answers are made.

Facts about who acts
    - The kernel has checked the caller's permissions against the attributes that we show it. The
      server is not to check them again with less knowledge (it knows one of the caller's groups at
      most), so a server with root's capabilities over files uses them.
    - What a file is made or written as still counts: its owner, a filesystem's reserve for root,
      quotas. So creating and writing happen with the caller's fsuid and fsgid, set for the thread
      when they differ from its last ones, with all the capabilities kept.
    - A server without those capabilities serves with its own user's rights, whoever calls.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from dataclasses import dataclass
from typing import Final

from penstock.abi.fuse import INVALID_UIDGID, FOpen, InitFlag
from penstock.fs import (
    ENDLESS,
    ROOT,
    Attributes,
    Connection,
    Context,
    Creation,
    Entry,
    FileHandle,
    FsError,
    NodeId,
    Operations,
)
from penstock.fs.attributes import split_timeout
from penstock.negotiate import mirror_profile
from penstock.servers.mirror.descriptors import Held
from penstock.servers.mirror.nodes import birth_of, generation_of, pack
from penstock.servers.mirror.options import MirrorOptions
from penstock.servers.mirror.rights import Powers
from penstock.servers.mirror.source import Source
from penstock.sys.atcalls import StatxTuple
from penstock.sys.fsids import FileIdentity

__all__ = ["MirrorStatistics", "OpenNode", "State"]

_new: Final = tuple.__new__
_NO_NAMES: Final = frozenset({b"", b".", b".."})
_TIMEOUTS: Final = {"immutable": ENDLESS, "none": 0.0}
_FLAGS: Final = {"immutable": FOpen.KEEP_CACHE, "none": FOpen.DIRECT_IO}
_RECORD_KEY: Final = 12


@dataclass(frozen=True, slots=True)
class MirrorStatistics:
    """A snapshot of a mirror."""

    nodes: int
    """Inodes the kernel knows, the root aside."""
    open: int
    """Open files and directories."""
    descriptors: int
    """Those of them that take a descriptor here; the kernel carries the others by itself."""
    directories: int
    """Directories whose descriptors are kept."""
    handles: bool
    """Whether inodes are kept as file handles."""


class OpenNode:
    """An open file description of the kernel's, file or directory.

    ``held`` is None while the kernel carries the file's data and nothing else was asked for.
    """

    __slots__ = ("flags", "held", "lock", "nodeid", "pending", "position", "whole")

    def __init__(self, nodeid: int, flags: int, held: Held) -> None:
        self.nodeid = nodeid
        self.flags = flags
        self.held: Held | None = held
        self.whole = True
        """Whether ``held`` was opened as the caller asked (else: for this inode, somehow)."""
        self.lock = threading.Lock()
        self.position = 0
        """Of a directory: where the descriptor stands."""
        self.pending: list[tuple[bytes, int, int, int]] = []
        """Of a directory: entries read and not yet answered, in reverse."""


class State(Operations):
    """The state. See :func:`penstock.servers.mirror.open_mirror`."""

    def __init__(self, source: Source, options: MirrorOptions, powers: Powers) -> None:
        self._source = source
        self._nodes = source.nodes
        self._options = options
        self._powers = powers
        profile = mirror_profile(
            cache=options.cache, acl=options.acl, idmap=options.idmap, locks=options.locks
        )
        self.want = profile.want
        self.refuse = profile.refuse
        self._uid = options.uid
        self._gid = options.gid
        self._squashed = options.uid is not None or options.gid is not None
        self._timeout = _TIMEOUTS.get(options.cache, options.timeout)
        self._split = split_timeout(self._timeout)
        self._open_flags = int(_FLAGS.get(options.cache, 0))
        self._identity = FileIdentity(powers.capabilities) if powers.can_become else None
        self._umask_is_ours = False
        self._handle_ids = itertools.count(1)
        self._files: dict[int, OpenNode] = {}
        self._open: dict[int, list[OpenNode]] = {}
        self._open_lock = threading.Lock()

    @property
    def source(self) -> Source:
        """The directory, and how its inodes are found."""
        return self._source

    @property
    def acts_as_caller(self) -> bool:
        """Whether files are made and written as whoever asks."""
        return self._identity is not None

    def init(self, connection: Connection) -> None:
        self._umask_is_ours = bool(connection.flags & InitFlag.DONT_MASK)

    def destroy(self) -> None:
        self._files.clear()
        self._open.clear()
        self._source.close()

    def forget(self, nodeid: NodeId) -> None:
        self._source.forget(nodeid)

    # Answers

    def _attributes(self, found: StatxTuple, nodeid: int) -> Attributes:
        (
            _, blksize, _, nlink, uid, gid, mode, ino, size, blocks, _,
            atime, atimensec, _, _, ctime, ctimensec, mtime, mtimensec, major, minor, _,
        ) = found  # fmt: skip
        if self._squashed:
            uid = uid if self._uid is None else self._uid
            gid = gid if self._gid is None else self._gid
        rdev = 0
        if major or minor:  # the kernel's 32-bit form
            rdev = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
        return _new(
            Attributes,
            (
                # Of two inodes with one number, in two subvolumes, one shows its node id.
                ino if nodeid in (ino, ROOT) else nodeid,
                size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
                mode, nlink, uid, gid, rdev, blksize, 0,
            ),
        )  # fmt: skip

    def _entry(self, parent: int, directory: Held, name: bytes, found: StatxTuple) -> Entry:
        """Know the inode that was found under a name, and answer it."""
        nodeid, generation = self._know(parent, directory, name, found)
        valid, nanoseconds = self._split
        attributes = self._attributes(found, nodeid)
        return _new(Entry, (nodeid, generation, valid, valid, nanoseconds, nanoseconds, attributes))

    def _know(
        self, parent: int, directory: Held, name: bytes, found: StatxTuple
    ) -> tuple[int, int]:
        """The node of what was found, known from now on, and its generation."""
        nodes = self._nodes
        nodeid = nodes.id_of(found[21], found[7])
        if nodeid == ROOT:
            return nodeid, 0
        birth = birth_of(found[0], found[13], found[14])
        start = pack(parent, birth, b"", b"")
        record = nodes.get(nodeid)
        if record is not None and birth and record.startswith(start):
            # The same inode in the same directory has the same handle.
            end = 20 + record[12]
            handle = record[_RECORD_KEY:end]
            if record[end:] != name:
                nodes.put(nodeid, record[:end] + name)
        else:
            handle = self._source.handle(directory, name, found[7])
            self._renew(nodeid, start + handle + name)
        return nodeid, generation_of(handle, birth)

    def _renew(self, nodeid: int, record: bytes) -> None:
        """Put a record; what was kept of another inode of this number is not this one's."""
        old = self._nodes.get(nodeid)
        if old is not None and old[8:_RECORD_KEY] != record[8:_RECORD_KEY]:
            self._source.directories.pop(nodeid)
            self._source.removed.pop(nodeid)
        self._nodes.put(nodeid, record)

    # Names

    def _check(self, name: bytes) -> None:
        """Raises EINVAL for what is no name of an entry."""
        if name in _NO_NAMES or b"/" in name or b"\0" in name:
            raise FsError(errno.EINVAL, f"{name[:64]!r} is no name")

    # Who acts

    def _act_as(self, ctx: Context, new: Creation | None = None) -> None:
        """Create or write as the caller."""
        identity = self._identity
        if identity is None:
            return
        user, group = ctx.uid, ctx.gid
        if self._squashed:
            user = user if self._uid is None else self._uid
            group = group if self._gid is None else self._gid
        if (user != identity.user or group != identity.group) and user != INVALID_UIDGID:
            identity.become(user, group)
        if new is not None and new.groups and new.groups != identity.groups:
            identity.join(new.groups)

    def _slow(self) -> None:
        """What follows may wait for a disk: another worker is to take requests meanwhile."""
        if self.before_wait is not None:
            self.before_wait()

    # Open files

    def _opened(self, node: OpenNode) -> FileHandle:
        fh = FileHandle(next(self._handle_ids))
        with self._open_lock:
            self._files[fh] = node
            self._open.setdefault(node.nodeid, []).append(node)
        return fh

    def _closed(self, fh: int) -> OpenNode | None:
        with self._open_lock:
            node = self._files.pop(fh, None)
            if node is None:
                return None
            same = self._open.get(node.nodeid)
            if same is not None:
                same.remove(node)
                if not same:
                    del self._open[node.nodeid]
        return node

    def _file(self, fh: int) -> OpenNode:
        """An open file. Raises EBADF."""
        try:
            return self._files[fh]
        except KeyError:
            raise FsError(errno.EBADF, f"{fh} is no open file") from None

    def _held(self, nodeid: int) -> Held | None:
        """A descriptor that is open anyway on a node."""
        for node in self._open.get(nodeid, ()):
            held = node.held
            if held is not None:
                return held
        return None

    def _fd(self, fh: int) -> Held:
        """The descriptor of an open file, opened again where it was closed."""
        node = self._file(fh)
        held = node.held
        if held is None:
            with node.lock:
                held = node.held
                if held is None:
                    flags = node.flags & ~_ONCE
                    held = node.held = Held(self._source.open(node.nodeid, flags))
        return held

    def statistics(self) -> MirrorStatistics:
        """A snapshot; from any thread."""
        return MirrorStatistics(
            nodes=len(self._nodes),
            open=len(self._files),
            descriptors=sum(1 for node in list(self._files.values()) if node.held is not None),
            directories=len(self._source.directories),
            handles=self._source.handles,
        )


_ONCE: Final = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY | os.O_TMPFILE & ~os.O_DIRECTORY
