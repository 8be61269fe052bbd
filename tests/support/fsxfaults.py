# SPDX-License-Identifier: Apache-2.0
"""A memory filesystem with one fault at a time, each of a kind that real filesystems have had.

:data:`FAULTS` names them; :func:`plant` is called in the serving process.
"""

from __future__ import annotations

import os
from typing import Final

from penstock.abi.fuse import FallocMode, WriteFlag
from penstock.fs import (
    Attributes,
    Context,
    Entry,
    FileHandle,
    NodeId,
    OpenReply,
    SetAttr,
)
from penstock.testing import MemoryFilesystem
from penstock.testing.memory.content import BLOCK
from tests.support.mounts import Inside

__all__ = ["FAULTS", "Faulty", "plant"]

FAULTS: Final[dict[str, str]] = {
    "tail": "what was cut off inside a block is back when the file grows again",
    "punch": "a hole has stale data in the blocks where it begins and ends",
    "zero-stale": "a range of zeros has stale data in its first block",
    "copy-source": "copy_file_range reads one byte too far ahead",
    "copy-target": "copy_file_range loses its last byte and says it did not",
    "stores": "what was stored into a mapping is lost when it is written back",
    "append": "what is appended goes one byte beyond the end",
    "gap": "a gap before what is written is not zeros",
    "write-page": "the last byte of a write that ends at a page border is lost",
    "read-far": "what lies beyond 128 KiB is read from the page before",
    "direct-end": "a direct read that ends with the file loses its last byte",
    "keep-size": "allocating beyond the end makes the file grow though it must not",
    "no-grow": "allocating beyond the end does not make the file grow",
    "hole": "SEEK_DATA passes over the first block of data",
    "unlinked": "a file without a name loses its content",
    "renamed": "a file that takes the place of another loses its last byte",
    "links": "a second name does not count",
    "o-trunc": "O_TRUNC leaves what is there",
    "mtime": "a write leaves the time of change",
    "nanoseconds": "times lose their nanoseconds",
}
"""Name → what is wrong."""

_FAR: Final = 128 << 10


class Faulty(MemoryFilesystem):
    """Right until a fault is planted."""

    def __init__(self) -> None:
        super().__init__(timeout=0.05)
        self.fault = ""

    def _bytes(self, nodeid: NodeId, offset: int, length: int) -> bytes:
        with self._lock:
            content = self._content(self._table[nodeid])
            return content.read(offset, length).ljust(length, b"\0")

    def _spoil(self, nodeid: NodeId, offset: int, data: bytes) -> None:
        """Write behind the filesystem's back, beyond the end of the file too."""
        with self._lock:
            content = self._content(self._table[nodeid])
            size = content.size
            content.write(offset, data)
            content.size = size

    def open(self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool) -> OpenReply:
        if self.fault == "o-trunc":
            flags &= ~os.O_TRUNC
        return super().open(ctx, nodeid, flags, kill_suidgid)

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
        data = super().read(ctx, nodeid, fh, offset, size, flags, lock_owner)
        if self.fault == "direct-end" and flags & os.O_DIRECT and 0 < len(data) < size:
            return data[:-1]
        if self.fault == "read-far" and offset >= _FAR:
            wrong = super().read(ctx, nodeid, fh, offset - BLOCK, size, flags, lock_owner)
            return wrong[: len(data)]
        return data

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
        length = len(data)
        with self._lock:
            node = self._table[nodeid]
            size, mtime = self._content(node).size, node.mtime_ns
        if self.fault == "stores" and write_flags & WriteFlag.CACHE:
            return length
        if self.fault == "append" and flags & os.O_APPEND and not write_flags & WriteFlag.CACHE:
            flags, offset = flags & ~os.O_APPEND, size + 1
        if self.fault == "write-page" and length > 1 and (offset + length) % BLOCK == 0:
            data = data[:-1]
        super().write(ctx, nodeid, fh, offset, data, flags, write_flags, lock_owner)
        if self.fault == "gap" and offset > size:
            self._spoil(nodeid, size, b"\xff")
        if self.fault == "mtime":
            with self._lock:
                node.mtime_ns = mtime
        return length

    def fallocate(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, length: int, mode: int
    ) -> None:
        end = offset + length
        first = self._bytes(nodeid, offset, min(length, 16))
        last = self._bytes(nodeid, end - 1, 1)
        if self.fault == "keep-size" and mode == FallocMode.KEEP_SIZE:
            mode = 0
        elif self.fault == "no-grow" and mode == 0:
            mode = FallocMode.KEEP_SIZE
        super().fallocate(ctx, nodeid, fh, offset, length, mode)
        if self.fault == "zero-stale" and mode & FallocMode.ZERO_RANGE:
            self._spoil(nodeid, offset, first)
        if self.fault == "punch" and mode & FallocMode.PUNCH_HOLE:
            if offset % BLOCK:
                self._spoil(nodeid, offset, first)
            if end % BLOCK:
                self._spoil(nodeid, end - 1, last)

    def lseek(self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, whence: int) -> int:
        found = super().lseek(ctx, nodeid, fh, offset, whence)
        with self._lock:
            size = self._content(self._table[nodeid]).size
        if self.fault == "hole" and whence == os.SEEK_DATA:
            return min(found + BLOCK, size - 1)
        return found

    def copy_file_range(
        self,
        ctx: Context,
        nodeid_in: NodeId,
        fh_in: FileHandle,
        offset_in: int,
        nodeid_out: NodeId,
        fh_out: FileHandle,
        offset_out: int,
        length: int,
        flags: int,
    ) -> int:
        before = self._bytes(nodeid_out, offset_out + length - 1, 1)
        ahead = 1 if self.fault == "copy-source" else 0
        done = super().copy_file_range(
            ctx, nodeid_in, fh_in, offset_in + ahead, nodeid_out, fh_out, offset_out, length, flags
        )
        if self.fault == "copy-target" and done == length:
            self._spoil(nodeid_out, offset_out + length - 1, before)
        return done

    def setattr(self, ctx: Context, nodeid: NodeId, changes: SetAttr) -> tuple[Attributes, float]:
        tail = b""
        if self.fault == "tail" and changes.size is not None and changes.size % BLOCK:
            tail = self._bytes(nodeid, changes.size, BLOCK - changes.size % BLOCK)
        if self.fault == "nanoseconds" and isinstance(changes.mtime_ns, int):
            changes = changes._replace(mtime_ns=changes.mtime_ns // 1000 * 1000)
        answer = super().setattr(ctx, nodeid, changes)
        if tail and changes.size is not None:
            self._spoil(nodeid, changes.size, tail)
        return answer

    def link(self, ctx: Context, nodeid: NodeId, newparent: NodeId, newname: bytes) -> Entry:
        entry = super().link(ctx, nodeid, newparent, newname)
        if self.fault != "links":
            return entry
        with self._lock:
            node = self._table[nodeid]
            node.nlink = max(1, node.nlink - 1)
            return entry._replace(attr=node.attributes())

    def unlink(self, ctx: Context, parent: NodeId, name: bytes) -> None:
        with self._lock:
            node = self._child(parent, name)[2]
        super().unlink(ctx, parent, name)
        if self.fault == "unlinked":
            with self._lock:
                if not node.nlink and node.content is not None:
                    node.content.punch(0, node.content.size)

    def rename(
        self,
        ctx: Context,
        parent: NodeId,
        name: bytes,
        newparent: NodeId,
        newname: bytes,
        flags: int,
    ) -> None:
        with self._lock:
            node = self._child(parent, name)[2]
            _, children = self._directory(newparent)
            replaces = children.get(newname) not in {None, node}
        super().rename(ctx, parent, name, newparent, newname, flags)
        if self.fault == "renamed" and replaces and not flags:
            with self._lock:
                if node.content is not None and node.content.size:
                    node.content.punch(node.content.size - 1, 1)


def plant(inside: Inside, fault: str) -> None:
    """Have the filesystem in the serving process go wrong in this way from now on; "": not."""
    inside[0].fault = fault
