# SPDX-License-Identifier: Apache-2.0
"""A directory behind :class:`Operations`, read-write: its parts put together."""

from __future__ import annotations

import os
from typing import Any

from penstock.fs import Context, FileHandle, NodeId
from penstock.servers.base import Server
from penstock.servers.mirror.directories import DirectoryOperations
from penstock.servers.mirror.locks import LockOperations
from penstock.servers.mirror.names import NameOperations
from penstock.servers.mirror.options import MirrorOptions
from penstock.servers.mirror.rights import powers
from penstock.servers.mirror.source import OpenHandle, Source
from penstock.servers.mirror.xattrs import XattrOperations
from penstock.sys.handles import open_handle

__all__ = ["MirrorServer", "open_mirror"]


class MirrorServer(NameOperations, DirectoryOperations, XattrOperations, LockOperations):
    """Serves one directory. See :func:`open_mirror`."""

    whole_files = "passthrough"

    def flush(self, ctx: Context, nodeid: NodeId, fh: FileHandle, lock_owner: int) -> None:
        self._drop_owner(nodeid, lock_owner)

    def release(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        flags: int,
        release_flags: int,
        lock_owner: int,
    ) -> None:
        self._drop_handle(nodeid, fh, release_flags, lock_owner)
        self._closed(fh)

    def destroy(self) -> None:
        self._drop_all()
        super().destroy()


def open_mirror(
    root: int,
    options: MirrorOptions,
    *,
    handles: bool = True,
    open_handle: OpenHandle = open_handle,
) -> Server:
    """Serve a directory.

    The process's umask becomes 0, so that modes and default ACLs come out as the callers mean them.

    Args:
        root: descriptor of the directory, opened for reading; must stay open as long as the server
            lives. As root: of a private clone of the mount it lies in.
        options: see there.
        handles: False: find inodes by parent and name even where file handles are to be had.
        open_handle: opens a file by its handle; by default the system call does.

    Raises:
        OSError: ENOTDIR; the directory cannot be read.
    """
    source = Source(root, handles=handles, open_handle=open_handle)
    os.umask(0)
    operations = MirrorServer(source, options, powers())
    found = os.fstatvfs(root)
    info: dict[str, Any] = {
        "handles": source.handles,
        "why_no_handles": source.why_no_handles,
        "cache": options.cache,
        "locks": "source" if options.locks else "local",
        "acts_as_caller": operations.acts_as_caller,
    }
    return Server(
        type="mirror",
        operations=operations,
        read_only=options.read_only,
        offset=0,
        length=0,
        block_size=found.f_bsize,
        info=info,
    )
