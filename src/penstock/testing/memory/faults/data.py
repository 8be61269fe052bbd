# SPDX-License-Identifier: Apache-2.0
"""Faults about the bytes of files."""

from __future__ import annotations

import errno
import os
from typing import Any

from penstock.abi.fuse import FallocMode, WriteFlag
from penstock.fs import Context, FileHandle, FsError, NodeId
from penstock.testing.memory import MemoryFilesystem
from penstock.testing.memory.content import BLOCK, Content
from penstock.testing.memory.nodes import Node

__all__ = [
    "AllocationDoesNotGrow",
    "CopiesAreWholeBlocks",
    "CopyLosesAByte",
    "CopyReadsAhead",
    "GapsAreNotZero",
    "HolesAreUnknown",
    "KeepSizeGrows",
    "LargeFilesRepeat",
    "PunchingFreesNothing",
    "PunchingMissesEdges",
    "SizesAreThirtyTwoBits",
    "StoresAreLost",
    "TailsComeBack",
    "TheEndIsNoHole",
    "TruncationFreesNothing",
    "TruncationOnOpenIsIgnored",
    "WritesLoseAByte",
    "ZeroingMissesABlock",
]


class _OtherContent(MemoryFilesystem):
    """Files have another kind of content."""

    content_class: type[Content] = Content

    def _new_node(self, mode: int, uid: int, gid: int, *rest: Any, **more: Any) -> Node:
        node = super()._new_node(mode, uid, gid, *rest, **more)
        if node.content is not None:
            node.content = self.content_class(self._space)
        return node


class _WithTails(Content):
    __slots__ = ()

    def truncate(self, size: int) -> None:
        if size <= self.size:
            self._drop(-(-size // BLOCK), None)
        self.size = size


class TailsComeBack(_OtherContent):
    """What was cut off inside a block is back when the file grows again."""

    content_class = _WithTails


class _Greedy(Content):
    __slots__ = ()

    def truncate(self, size: int) -> None:
        if size < self.size:
            self.zero(size, self.size - size)
        self.size = size


class TruncationFreesNothing(_OtherContent):
    """Blocks beyond the new end still take space."""

    content_class = _Greedy


class _WithEdges(Content):
    __slots__ = ()

    def punch(self, offset: int, length: int) -> None:
        self._drop(-(-offset // BLOCK), (offset + length) // BLOCK)


class PunchingMissesEdges(_OtherContent):
    """A punched hole has stale data in the blocks where it begins and ends."""

    content_class = _WithEdges


class _Zeroing(Content):
    __slots__ = ()

    def punch(self, offset: int, length: int) -> None:
        length = min(length, max(0, self.size - offset))
        if length:
            self.write(offset, bytes(length))


class PunchingFreesNothing(_OtherContent):
    """Punching writes zeros."""

    content_class = _Zeroing


class _MissingABlock(Content):
    __slots__ = ()

    def zero(self, offset: int, length: int) -> None:
        self.allocate(offset, length)
        skipped = min(length, BLOCK)
        super().zero(offset + skipped, length - skipped)


class ZeroingMissesABlock(_OtherContent):
    """A range of zeros has stale data in its first block."""

    content_class = _MissingABlock


class _WithoutHoles(Content):
    __slots__ = ()

    def seek(self, offset: int, whence: int) -> int:
        if offset >= self.size:
            raise FsError(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else self.size


class HolesAreUnknown(_OtherContent):
    """A file is data from its beginning to its end."""

    content_class = _WithoutHoles


class _WithoutEnd(Content):
    __slots__ = ()

    def seek(self, offset: int, whence: int) -> int:
        found = super().seek(offset, whence)
        return -(-found // BLOCK) * BLOCK if found == self.size else found


class TheEndIsNoHole(_OtherContent):
    """SEEK_HOLE tells the end of the last block for the end of the file."""

    content_class = _WithoutEnd


class _WithDirtyGaps(Content):
    __slots__ = ()

    def write(self, offset: int, data: bytes | memoryview) -> int:
        if offset > self.size and self.size % BLOCK:
            super().write(self.size, b"?" * min(offset - self.size, -self.size % BLOCK))
        return super().write(offset, data)


class GapsAreNotZero(_OtherContent):
    """A gap before what is written is not zeros."""

    content_class = _WithDirtyGaps


class _Repeating(Content):
    __slots__ = ()

    def read(self, offset: int, length: int) -> bytes:
        data = super().read(offset, length)
        far = 1 << 20
        if offset < far < offset + len(data):
            return data[: far - offset] + super().read(far - 1, len(data) - far + offset)
        return super().read(offset - 1, len(data)) if offset >= far else data


class LargeFilesRepeat(_OtherContent):
    """What lies beyond 1 MiB is read from a byte before."""

    content_class = _Repeating


class WritesLoseAByte(MemoryFilesystem):
    """The last byte of a write that ends at the border of a page is lost."""

    def write(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        data: memoryview,
        *rest: Any,
    ) -> int:
        written = super().write(ctx, nodeid, fh, offset, data, *rest)
        if not (offset + written) % BLOCK:
            with self._lock:
                self._content(self._handle(fh).node).write(offset + written - 1, b"\0")
        return written


class StoresAreLost(MemoryFilesystem):
    """What was stored into a mapping is lost when it is written back."""

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
        if write_flags & WriteFlag.CACHE:
            return len(data)
        return super().write(ctx, nodeid, fh, offset, data, flags, write_flags, lock_owner)


class TruncationOnOpenIsIgnored(MemoryFilesystem):
    """O_TRUNC leaves what is there."""

    def open(self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool) -> Any:
        return super().open(ctx, nodeid, flags & ~os.O_TRUNC, kill_suidgid)


class SizesAreThirtyTwoBits(MemoryFilesystem):
    """Sizes beyond 4 GiB lose their high bits."""

    def _resize(self, node: Node, size: int) -> list[int]:
        return super()._resize(node, size & 0xFFFF_FFFF)


class KeepSizeGrows(MemoryFilesystem):
    """Allocating beyond the end makes the file longer though it must not."""

    def fallocate(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, length: int, mode: int
    ) -> None:
        if mode == FallocMode.KEEP_SIZE:
            mode = 0
        super().fallocate(ctx, nodeid, fh, offset, length, mode)


class AllocationDoesNotGrow(MemoryFilesystem):
    """Allocating beyond the end does not make the file longer."""

    def fallocate(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int, length: int, mode: int
    ) -> None:
        if not mode:
            mode = int(FallocMode.KEEP_SIZE)
        super().fallocate(ctx, nodeid, fh, offset, length, mode)


class _Copying(MemoryFilesystem):
    """copy_file_range as a method of a few arguments."""

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
        start, size = self._range(offset_in, length)
        copied = super().copy_file_range(
            ctx, nodeid_in, fh_in, start, nodeid_out, fh_out, offset_out, size, flags
        )
        self._copied(fh_out, offset_out, copied)
        return copied

    def _range(self, offset: int, length: int) -> tuple[int, int]:
        return offset, length

    def _copied(self, fh: FileHandle, offset: int, copied: int) -> None:
        """After the copy."""


class CopyReadsAhead(_Copying):
    """copy_file_range reads one byte too far ahead."""

    def _range(self, offset: int, length: int) -> tuple[int, int]:
        return offset + 1, length


class CopyLosesAByte(_Copying):
    """copy_file_range loses its last byte and does not say so."""

    def _copied(self, fh: FileHandle, offset: int, copied: int) -> None:
        if copied:
            with self._lock:
                self._content(self._handle(fh).node).write(offset + copied - 1, b"\0")


class CopiesAreWholeBlocks(_Copying):
    """copy_file_range cuts what it copies to whole blocks, and says it copied all."""

    def _copied(self, fh: FileHandle, offset: int, copied: int) -> None:
        spare = copied % BLOCK
        if copied > BLOCK and spare:
            with self._lock:
                self._content(self._handle(fh).node).write(offset + copied - spare, bytes(spare))
