# SPDX-License-Identifier: Apache-2.0
"""The files of a folder that are not hidden, read and written by the kernel itself:
``.venv/bin/python examples/passthrough.py FOLDER DIR``.

As root the kernel carries the data of each opened file (``penstock.Mount.statistics()`` counts what
it carries); otherwise, and for small files, ``read`` and ``write`` are asked.
"""

import errno
import itertools
import os
import stat
import sys
from collections.abc import Iterable

import penstock
from penstock import (
    ROOT,
    Attributes,
    Backing,
    Context,
    DirEntry,
    Entry,
    FileHandle,
    FsError,
    InodeTable,
    NodeId,
    OpenReply,
    SetAttr,
    WholeFile,
)


class Visible(penstock.Operations):
    """Regular files only, under their own names."""

    whole_files = "passthrough"

    def __init__(self, folder: str) -> None:
        self.folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.names = InodeTable(b".", root_key=b".")
        self.files: dict[int, int] = {}
        """Descriptors of what is read and written here, by file handle."""
        self.handles = itertools.count(1)

    def attributes(self, name: bytes) -> Attributes:
        if name.startswith(b".") and name != b".":
            raise FsError(errno.ENOENT)
        st = os.stat(name, dir_fd=self.folder, follow_symlinks=False)
        if not (stat.S_ISREG(st.st_mode) or name == b"."):
            raise FsError(errno.ENOENT)
        return Attributes.make(
            st.st_ino, st.st_mode, size=st.st_size, blocks=st.st_blocks, uid=st.st_uid,
            gid=st.st_gid, mtime_ns=st.st_mtime_ns, ctime_ns=st.st_ctime_ns,
        )  # fmt: skip

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Entry:
        attributes = self.attributes(name)
        return Entry.make(self.names.add(name, key=name), attributes)

    def forget(self, nodeid: NodeId) -> None:
        self.names.forget(nodeid)

    def getattr(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None
    ) -> tuple[Attributes, float]:
        return self.attributes(self.names[nodeid]), 1.0

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> tuple[Attributes, float]:
        if (changes.mode, changes.uid, changes.gid) != (None, None, None):
            raise FsError(errno.EPERM, "modes and owners stay as they are")
        if changes.size is not None:
            fd = self.opened(nodeid, os.O_RDWR)
            try:
                os.ftruncate(fd, changes.size)
            finally:
                os.close(fd)
        return self.getattr(ctx, nodeid, None)

    def readdir(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterable[DirEntry]:
        with os.scandir(self.folder) as found:
            files = [each for each in found if each.is_file(follow_symlinks=False)]
        shown = sorted((each.name, each.inode()) for each in files if each.name[0] != ".")
        rows = [(".", ROOT, 4), ("..", ROOT, 4), *((name, ino, 8) for name, ino in shown)]
        entries = [
            DirEntry(os.fsencode(name), ino, at, kind)
            for at, (name, ino, kind) in enumerate(rows, 1)
        ]
        return entries[offset:]

    # Data

    def opened(self, nodeid: NodeId, flags: int) -> int:
        return os.open(self.names[nodeid], flags | os.O_NOFOLLOW, dir_fd=self.folder)

    def open(self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool) -> OpenReply:
        access = os.O_RDWR if flags & os.O_ACCMODE else os.O_RDONLY
        fd = self.opened(nodeid, access | flags & os.O_APPEND)
        fh = FileHandle(next(self.handles))
        self.files[fh] = fd
        return OpenReply(fh, whole=WholeFile(Backing(fd), os.fstat(fd).st_size))

    def carried(self, nodeid: NodeId, fh: FileHandle) -> None:
        os.close(self.files.pop(fh))

    def release(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        flags: int,
        release_flags: int,
        lock_owner: int,
    ) -> None:
        if fh in self.files:
            os.close(self.files.pop(fh))

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
        return Backing(self.files[fh])

    def write(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        data: memoryview,
        flags: int,
        write_flags: int,
        lock_owner: int | None,
    ) -> int:
        return os.pwrite(self.files[fh], data, offset)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: passthrough.py FOLDER DIR")
    try:
        visible = Visible(sys.argv[1])
        penstock.run(visible, sys.argv[2], ready=lambda _: print("mounted", flush=True))
    except OSError as error:
        sys.exit(f"passthrough.py: {error.filename or sys.argv[2]}: {error.strerror}")
