# SPDX-License-Identifier: Apache-2.0
"""The source directory: finding and opening its inodes again, beneath its root and nowhere else.

A node is found by the name it was seen under last, in its parent's descriptor, and counts only if
what is there now has its number and was born when it was; else by its handle, which holds wherever
the file was moved to within the directory. Names go first because they are cheap when the kernel's
caches are cold, and because whoever opens handles may be another process.

How it stays beneath the root
    - A name is one component and is never followed, so a directory's descriptor and a name lead
      to nothing but an entry of that directory.
    - Descriptors of directories come from openat2(2) with RESOLVE_BENEATH, NO_SYMLINKS and NO_XDEV,
      one component at a time, or from a connectable handle, which the kernel opens only
      beneath the descriptor of the root.
    - What is mounted on a name of the source is refused (EXDEV) where the root is no private clone;
      in a clone of the directory's own mount nothing is mounted on anything.
    - ``..`` is never used as a way: it may lead out of a directory that was moved away.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable
from typing import Final

from penstock.fs import ROOT, FsError, NodeId
from penstock.servers.mirror.descriptors import Descriptors, Held
from penstock.servers.mirror.nodes import NO_HANDLE, NodeTable, birth_of, handle_names, parts
from penstock.sys.atcalls import MOUNT_ROOT, StatxTuple, look, openat_beneath, statx
from penstock.sys.handles import encode_handle, open_handle

__all__ = ["OpenHandle", "Source"]

OpenHandle = Callable[[int, bytes, int], int]
""":func:`penstock.sys.handles.open_handle`, or something that does the same."""

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_REPLACED: Final = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO})
"""What opening a regular file never answers: it is absent, a symlink, or a fifo or socket."""
_DEEPEST: Final = 4096
_MASK: Final = 0
_ATTRIBUTES: Final = 2
_MODE: Final = 6
_INO: Final = 7
_BORN: Final = 13
_DEVICE: Final = 21


class Source:
    """The directory and what is known of its inodes.

    Args:
        root: descriptor of the directory; stays the caller's.
        handles: whether to try file handles.
        open_handle: opens one; in a sandbox somebody else does, who is asked.
    """

    def __init__(
        self, root: int, *, handles: bool = True, open_handle: OpenHandle = open_handle
    ) -> None:
        self.root = root
        self._open_handle = open_handle
        found = statx(root)
        if not stat.S_ISDIR(found[_MODE]):
            raise FsError(errno.ENOTDIR, "the source is no directory")
        self.nodes = NodeTable(found[_DEVICE], found[_INO])
        self._root_held = Held(os.dup(root))
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        kept = 512 if limit == resource.RLIM_INFINITY else min(512, max(16, limit // 8))
        self.directories = Descriptors(kept)
        self.removed = Descriptors(64)
        """Directories that were removed while the kernel knew them: somebody may be in them."""
        self.why_no_handles = self._try_handles() if handles else "switched off"

    @property
    def handles(self) -> bool:
        """Whether inodes are kept as connectable handles."""
        return not self.why_no_handles

    def close(self) -> None:
        """Close all descriptors. Idempotent."""
        self.directories.clear()
        self.removed.clear()
        self._root_held.close()

    def _try_handles(self) -> str:
        """Why handles cannot be used, empty if they can."""
        try:
            handle = encode_handle(self.root, b".")
            os.close(self._open_handle(self.root, handle, os.O_PATH | os.O_DIRECTORY))
        except OSError as error:
            return error.strerror or str(error)
        return ""

    # Names

    def lookup(self, directory: Held, name: bytes) -> StatxTuple | None:
        """What is under a name; None if nothing is.

        Raises:
            FsError: EXDEV: another filesystem is mounted there.
        """
        found = look(directory.fd, name)
        if found is not None and found[_ATTRIBUTES] & MOUNT_ROOT:
            raise FsError(errno.EXDEV, f"something is mounted on {name!r}")
        return found

    def handle(self, directory: Held, name: bytes, ino: int) -> bytes:
        """The handle of the inode that was just found under a name.

        Raises:
            FsError: ESTALE: another inode has taken the name.
        """
        if self.why_no_handles:
            return NO_HANDLE
        handle = encode_handle(directory.fd, name)
        right = handle_names(handle, ino)
        if right is None:
            right = statx(directory.fd, name)[_INO] == ino
        if not right:
            raise FsError(errno.ESTALE, f"{name!r} has just been replaced")
        return handle

    # Directories

    def directory(self, nodeid: int) -> Held:
        """An O_PATH descriptor of a directory.

        Raises:
            OSError: ESTALE, ENOTDIR.
        """
        if nodeid == ROOT:
            return self._root_held
        held = self.directories.get(nodeid) or self.removed.get(nodeid)
        return held if held is not None else self._open_directory(nodeid)

    def _open_directory(self, nodeid: int) -> Held:
        record = self.nodes.record(nodeid)
        parent, _, handle, _ = parts(record)
        if self.why_no_handles or parent == ROOT or self.directories.get(parent) is not None:
            return self._walk_to(nodeid)
        try:
            fd = self._opened_by_handle(handle, _DIRECTORY)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return self._walk_to(nodeid)
        return self._keep(nodeid, fd)

    def _walk_to(self, nodeid: int) -> Held:
        """Down to a directory from the nearest ancestor that is open, by names."""
        below: list[int] = []
        at = nodeid
        held = None
        while held is None:
            below.append(at)
            if len(below) > _DEEPEST:
                raise FsError(errno.ELOOP, f"node {nodeid} is deeper than {_DEEPEST} directories")
            at = parts(self.nodes.record(at))[0]
            held = self._root_held if at == ROOT else self.directories.get(at)
        while below:
            held = self._step(held, below.pop())
        return held

    def _step(self, above: Held, nodeid: int) -> Held:
        _, birth, handle, name = parts(self.nodes.record(nodeid))
        try:
            fd = self._with_room(above.fd, name, _DIRECTORY)
            if self._is(statx(fd), nodeid, birth):
                return self._keep(nodeid, fd)
            os.close(fd)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise
        if self.why_no_handles:
            raise FsError(errno.ESTALE, f"directory {nodeid} is not at {name!r} any more")
        return self._keep(nodeid, self._opened_by_handle(handle, _DIRECTORY))

    def _keep(self, nodeid: int, fd: int) -> Held:
        held = Held(fd)
        self.directories.put(nodeid, held)
        return held

    # Any inode

    def _is(self, found: StatxTuple, nodeid: int, birth: int) -> bool:
        """Whether statx has found this node: its number, and the time at which it was born, so that
        it is not another inode which has got the number since."""
        return (
            self.nodes.id_of(found[_DEVICE], found[_INO]) == nodeid
            and birth_of(found[_MASK], found[_BORN], found[_BORN + 1]) == birth
        )

    def by_name(self, nodeid: int) -> tuple[Held, bytes, StatxTuple] | None:
        """Where a node is, if it is where it was last seen. (Its dentry is warm then.)"""
        parent, birth, handle, name = parts(self.nodes.record(nodeid))
        if not name:
            return None
        try:
            directory = self.directory(parent)
            found = look(directory.fd, name)
            if found is None or not self._is(found, nodeid, birth):
                return None
            if not birth and handle != NO_HANDLE and encode_handle(directory.fd, name) != handle:
                return None
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
                raise
            return None
        return directory, name, found

    def stat(self, nodeid: int) -> StatxTuple:
        """What statx says of a node that is not open.

        Raises:
            OSError: ESTALE: it is gone.
        """
        if nodeid == ROOT:
            return statx(self._root_held.fd)
        held = self.directories.get(nodeid) or self.removed.get(nodeid)
        if held is not None:
            return statx(held.fd)
        place = self.by_name(nodeid)
        if place is not None:
            return place[2]
        fd = self.open(nodeid, _NODE, looked=True)
        try:
            return statx(fd)
        finally:
            os.close(fd)

    def node(self, nodeid: int) -> Held:
        """An O_PATH descriptor of any node."""
        if nodeid == ROOT:
            return self._root_held
        held = self.directories.get(nodeid) or self.removed.get(nodeid)
        return held if held is not None else Held(self.open(nodeid, _NODE))

    def open(self, nodeid: int, flags: int, *, looked: bool = False) -> int:
        """Open a node; the descriptor is the caller's.

        Args:
            nodeid: which.
            flags: as open(2).
            looked: whether it was looked for by name just now.

        Raises:
            OSError: ESTALE: it is gone; and open(2)'s.
        """
        if nodeid == ROOT:
            return openat_beneath(self._root_held.fd, b".", flags)
        held = self.directories.get(nodeid) or self.removed.get(nodeid)
        if held is not None:
            return openat_beneath(held.fd, b".", flags)
        return self.opened(nodeid, flags, looked=looked)[0]

    def opened(self, nodeid: int, flags: int, *, looked: bool = False) -> tuple[int, StatxTuple]:
        """Open what is no directory; the descriptor, and what statx says of it."""
        if not looked:
            try:
                return self._open_by_name(nodeid, flags)
            except OSError as error:
                if error.errno != errno.ESTALE or self.why_no_handles:
                    raise
        if self.why_no_handles:
            raise FsError(errno.ESTALE, f"node {nodeid} is not where it was last seen")
        fd = self._opened_by_handle(parts(self.nodes.record(nodeid))[2], flags)
        return fd, statx(fd)

    def _open_by_name(self, nodeid: int, flags: int) -> tuple[int, StatxTuple]:
        place = self.by_name(nodeid)
        if place is None:
            raise FsError(errno.ESTALE, f"node {nodeid} is not where it was last seen")
        directory, name, _ = place
        # Whatever has been put there since is not to block; of a regular file it means nothing.
        flags |= 0 if flags & os.O_PATH else os.O_NONBLOCK
        try:
            fd = self._with_room(directory.fd, name, flags)
        except OSError as error:
            if error.errno in _REPLACED:
                raise FsError(errno.ESTALE, f"{name!r} has just been replaced") from error
            raise
        found = statx(fd)
        if not self._is(found, nodeid, parts(self.nodes.record(nodeid))[1]):
            os.close(fd)
            raise FsError(errno.ESTALE, f"{name!r} has just been replaced")
        return fd, found

    def _with_room(self, directory: int, name: bytes, flags: int) -> int:
        try:
            return openat_beneath(directory, name, flags)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            self.directories.drop_half()
            return openat_beneath(directory, name, flags)

    def _opened_by_handle(self, handle: bytes, flags: int) -> int:
        try:
            return self._open_handle(self.root, handle, flags)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            self.directories.drop_half()
            return self._open_handle(self.root, handle, flags)

    def forget(self, nodeid: NodeId) -> None:
        """The kernel knows a node no more."""
        self.nodes.forget(nodeid)
        self.directories.pop(nodeid)
        self.removed.pop(nodeid)
