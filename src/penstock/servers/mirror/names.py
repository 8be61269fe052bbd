# SPDX-License-Identifier: Apache-2.0
"""Names: looking up, making, linking, renaming and removing.

The kernel has checked the caller's permissions, sticky bits included, and keeps others from
changing the directory through this mount meanwhile. What happens underneath at the same time is
met by the calls themselves: none replaces what it was not asked to, none follows a link.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from penstock.fs import (
    ROOT,
    Attributes,
    Context,
    Creation,
    Entry,
    FsError,
    NodeId,
    OpenReply,
)
from penstock.servers.mirror.descriptors import Held
from penstock.servers.mirror.files import FileOperations
from penstock.servers.mirror.nodes import birth_of, generation_of, pack, parts
from penstock.servers.mirror.state import OpenNode
from penstock.sys.atcalls import StatxTuple, link_fd, renameat2, statx
from penstock.sys.handles import encode_own_handle
from penstock.sys.xattrat import has_xattrat

__all__ = ["NameOperations"]

_new: Final = tuple.__new__
_NO_ATTRIBUTES: Final = Attributes(*([0] * 16))
_DEFAULT_ACL: Final = b"system.posix_acl_default"
_RENAME_FLAGS: Final = 7
_EXCHANGE: Final = 2
_MKNOD_TYPES: Final = frozenset(
    {stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
)


class NameOperations(FileOperations):
    """Operations on names."""

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Entry:
        if name in {b".", b".."}:
            return self._relative(parent, name)
        self._check(name)
        directory = self._source.directory(parent)
        found = self._source.lookup(directory, name)
        if found is None:
            valid, nanoseconds = self._absent
            return _new(Entry, (0, 0, valid, 0, nanoseconds, 0, _NO_ATTRIBUTES))
        return self._entry(parent, directory, name, found)

    def _relative(self, nodeid: NodeId, name: bytes) -> Entry:
        """``.`` and ``..``, by which the kernel connects a file handle of its own."""
        if name == b".":
            found = self._stat(nodeid)
            if not found[3] and nodeid not in self._open:
                # Deleted; it is there only because a backing file has not been given up yet.
                raise FsError(errno.ESTALE, f"node {nodeid} has no name and is not open")
        elif nodeid == ROOT:
            raise FsError(errno.ESTALE, "what is above the root is not served")
        else:
            # Only attributes of what is above are looked at; where that is no node that is
            # known as this one's parent, the directory was moved, maybe out of the source.
            found = statx(self._source.directory(nodeid).fd, b"..")
            nodeid = NodeId(self._nodes.id_of(found[21], found[7]))
        return self._again(nodeid, found)

    def _again(self, nodeid: int, found: StatxTuple) -> Entry:
        """The entry of a node that is known, wherever it was found."""
        birth = birth_of(found[0], found[13], found[14])
        generation = 0
        if nodeid != ROOT:
            record = self._nodes.record(nodeid)
            _, known, handle, _ = parts(record)
            if known != birth:
                raise FsError(errno.ESTALE, f"the number {nodeid} is another inode's now")
            self._nodes.put(nodeid, record)
            generation = generation_of(handle, birth)
        valid, nanoseconds = self._split
        attributes = self._attributes(found, nodeid)
        return _new(Entry, (nodeid, generation, valid, valid, nanoseconds, nanoseconds, attributes))

    def readlink(self, ctx: Context, nodeid: NodeId) -> bytes:
        held = self._source.node(nodeid)
        try:
            return os.readlink(b"", dir_fd=held.fd)
        except FileNotFoundError:  # what the kernel says of an empty name that is no symlink
            raise FsError(errno.EINVAL, f"node {nodeid} is no symlink") from None

    # Making

    def symlink(
        self, ctx: Context, parent: NodeId, name: bytes, target: bytes, new: Creation
    ) -> Entry:
        return self._make(ctx, parent, name, new, lambda fd: os.symlink(target, name, dir_fd=fd))

    def mknod(
        self, ctx: Context, parent: NodeId, name: bytes, mode: int, rdev: int, new: Creation
    ) -> Entry:
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        if stat.S_IFMT(mode) not in _MKNOD_TYPES:
            raise FsError(errno.EINVAL, f"mknod makes no inode of mode {mode:o}")
        device = os.makedev((rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00))
        return self._make(
            ctx,
            parent,
            name,
            new,
            lambda fd: os.mknod(name, self._masked(fd, mode, new), device, dir_fd=fd),
        )

    def mkdir(self, ctx: Context, parent: NodeId, name: bytes, mode: int, new: Creation) -> Entry:
        return self._make(
            ctx,
            parent,
            name,
            new,
            lambda fd: _mkdir(fd, name, self._masked(fd, mode, new)),
        )

    def create(
        self, ctx: Context, parent: NodeId, name: bytes, mode: int, flags: int, new: Creation
    ) -> tuple[Entry, OpenReply]:
        self._check(name)
        directory = self._source.directory(parent)
        self._act_as(ctx, new)
        how = self._flags(flags) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(
                name, how, self._masked(directory.fd, mode & 0o7777, new), dir_fd=directory.fd
            )
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # Made underneath since it was looked up. The kernel has not checked whether the caller
            # may open it; told this it looks again, and does.
            raise FsError(errno.ESTALE, f"{name!r} is there now") from None
        held = Held(fd)
        found = statx(fd)
        entry = self._entry(parent, directory, name, found)
        return entry, self._reply(OpenNode(entry[0], flags, held), found)

    def tmpfile(
        self, ctx: Context, parent: NodeId, mode: int, flags: int, new: Creation
    ) -> tuple[Entry, OpenReply]:
        directory = self._source.directory(parent)
        self._act_as(ctx, new)
        how = self._flags(flags) & ~os.O_CREAT | os.O_TMPFILE | os.O_CLOEXEC
        mode = self._masked(directory.fd, mode & 0o7777, new)
        fd = os.open(b".", how, mode, dir_fd=directory.fd)
        held = Held(fd)
        found = statx(fd)
        nodeid = self._nodes.id_of(found[21], found[7])
        birth = birth_of(found[0], found[13], found[14])
        handle = encode_own_handle(fd) if self._source.handles else bytes(8)
        self._renew(nodeid, pack(parent, birth, handle, b""))
        entry = self._again(nodeid, found)
        return entry, self._reply(OpenNode(nodeid, flags, held), found)

    def _make(
        self,
        ctx: Context,
        parent: NodeId,
        name: bytes,
        new: Creation,
        make: Callable[[int], None],
    ) -> Entry:
        self._check(name)
        directory = self._source.directory(parent)
        self._act_as(ctx, new)
        make(directory.fd)
        return self._made(parent, directory, name)

    def _made(self, parent: int, directory: Held, name: bytes) -> Entry:
        found = self._source.lookup(directory, name)
        if found is None:
            raise FsError(errno.ESTALE, f"{name!r} was made, and removed at once")
        return self._entry(parent, directory, name, found)

    def _masked(self, directory: int, mode: int, new: Creation) -> int:
        """The mode to make a file with: less the caller's umask, unless a default ACL takes its
        place. (The server's own umask is 0.)"""
        if not self._umask_is_ours or not mode & new.umask & 0o777:
            return mode
        if self._options.acl and self._has_default_acl(directory):
            return mode
        return mode & ~new.umask

    def _has_default_acl(self, directory: int) -> bool:
        if self._no_acls:
            return False
        refusal = has_xattrat(directory, b".", _DEFAULT_ACL)
        if refusal == errno.EOPNOTSUPP:
            self._no_acls = True
        elif refusal == errno.ENOSYS:
            return self._has_default_acl_by_opening(directory)
        return not refusal

    def _has_default_acl_by_opening(self, directory: int) -> bool:
        """Before Linux 6.13."""
        try:
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            return False
        try:
            os.getxattr(fd, _DEFAULT_ACL)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    # Linking, removing, renaming

    def link(self, ctx: Context, nodeid: NodeId, newparent: NodeId, newname: bytes) -> Entry:
        self._check(newname)
        directory = self._source.directory(newparent)
        self._act_as(ctx)
        place = self._source.by_name(nodeid)
        if place is not None:
            above, name, _ = place
            os.link(
                name, newname, src_dir_fd=above.fd, dst_dir_fd=directory.fd, follow_symlinks=False
            )
        else:
            held = self._held(nodeid) or self._source.node(nodeid)
            link_fd(held.fd, directory.fd, newname)
        found = self._source.lookup(directory, newname)
        if found is None or self._nodes.id_of(found[21], found[7]) != nodeid:
            raise FsError(errno.ESTALE, f"{newname!r} has just been replaced")
        return self._entry(newparent, directory, newname, found)

    def unlink(self, ctx: Context, parent: NodeId, name: bytes) -> None:
        self._check(name)
        directory = self._source.directory(parent)
        if self._open:
            self._pin(directory, name)
        os.unlink(name, dir_fd=directory.fd)

    def rmdir(self, ctx: Context, parent: NodeId, name: bytes) -> None:
        self._check(name)
        directory = self._source.directory(parent)
        nodeid = self._about_to_go(directory, name)
        os.rmdir(name, dir_fd=directory.fd)
        self._went(nodeid)

    def _about_to_go(self, directory: Held, name: bytes) -> int:
        """Have a descriptor of a directory whose name will be gone: who is in it stays in it."""
        found = self._source.lookup(directory, name)
        if found is None or not stat.S_ISDIR(found[6]):
            return 0
        nodeid = self._nodes.id_of(found[21], found[7])
        if self._nodes.get(nodeid) is None:
            return 0
        self._source.directory(nodeid)
        return nodeid

    def _went(self, nodeid: int) -> None:
        held = self._source.directories.pop(nodeid) if nodeid else None
        if held is not None:
            self._source.removed.put(nodeid, held)

    def _pin(self, directory: Held, name: bytes) -> None:
        """If what is about to lose a name is open, and no descriptor is, open one: there is no
        other way to it afterwards."""
        found = self._source.lookup(directory, name)
        if found is None:
            return
        nodeid = self._nodes.id_of(found[21], found[7])
        for node in self._open.get(nodeid, ()):
            if node.held is None:
                self._hold(node)

    def rename(
        self,
        ctx: Context,
        parent: NodeId,
        name: bytes,
        newparent: NodeId,
        newname: bytes,
        flags: int,
    ) -> None:
        if flags & ~_RENAME_FLAGS:
            raise FsError(errno.EINVAL, f"rename flags {flags:#x}")
        self._check(name)
        self._check(newname)
        old = self._source.directory(parent)
        new = self._source.directory(newparent)
        gone = 0
        if not flags & _EXCHANGE:
            if self._open:
                self._pin(new, newname)
            gone = self._about_to_go(new, newname)
        if flags:
            self._act_as(ctx)  # a whiteout is the caller's
        renameat2(old.fd, name, new.fd, newname, flags)
        self._went(gone)
        self._moved(newparent, new, newname)
        if flags & _EXCHANGE:
            self._moved(parent, old, name)

    def _moved(self, parent: int, directory: Held, name: bytes) -> None:
        """Keep the new place of what was renamed, and its handle, which has the parent's."""
        try:
            found = self._source.lookup(directory, name)
            if found is not None:
                nodeid = self._nodes.id_of(found[21], found[7])
                if self._nodes.get(nodeid) is not None:
                    self._know(parent, directory, name, found)
        except OSError:
            return  # moved on already; who looks for it finds out


def _mkdir(directory: int, name: bytes, mode: int) -> None:
    os.mkdir(name, mode & 0o7777, dir_fd=directory)
