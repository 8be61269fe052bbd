# SPDX-License-Identifier: Apache-2.0
"""The smallest filesystem: one directory, one file: ``.venv/bin/python examples/hello.py DIR``."""

import errno
import stat
import sys
from collections.abc import Iterable

import penstock
from penstock import ROOT, Attributes, Context, DirEntry, Entry, FileHandle, FsError, NodeId

TEXT = b"Hello from Python.\n"
NODES = {
    ROOT: Attributes.make(ROOT, stat.S_IFDIR | 0o755, nlink=2),
    2: Attributes.make(2, stat.S_IFREG | 0o444, size=len(TEXT)),
}


class Hello(penstock.Operations):
    """What is not defined here answers "not supported", which the kernel understands."""

    def getattr(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None
    ) -> tuple[Attributes, float]:
        return NODES[nodeid], penstock.ENDLESS

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Entry:
        if (parent, name) != (ROOT, b"hello"):
            raise FsError(errno.ENOENT)
        return Entry.make(2, NODES[NodeId(2)])

    def readdir(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterable[DirEntry]:
        names = [(b".", ROOT, 4), (b"..", ROOT, 4), (b"hello", 2, 8)]
        entries = [DirEntry(name, ino, at, kind) for at, (name, ino, kind) in enumerate(names, 1)]
        return entries[offset:]

    def read(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        size: int,
        flags: int,
        lock_owner: int | None,
    ) -> bytes:
        return TEXT[offset : offset + size]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: hello.py DIR")
    try:
        penstock.run(Hello(), sys.argv[1], ready=lambda _: print("mounted", flush=True))
    except OSError as error:
        sys.exit(f"hello.py: {sys.argv[1]}: {error.strerror}")
