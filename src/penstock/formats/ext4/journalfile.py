# SPDX-License-Identifier: Apache-2.0
"""The journal of a filesystem as an array of blocks, read from the image as it lies there.

The journal is a file, and not always in one piece. Its inode, or if that is damaged the copy of its
map in the superblock, is read before there is a replayed view of anything.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import Final

from penstock.formats.errors import CorruptImage, UnsupportedFeature
from penstock.formats.ext4.extents import MAPPED
from penstock.formats.ext4.format import EXTENT_MAGIC, N_BLOCKS_BYTES, InodeFlag
from penstock.formats.ext4.inode import Inode, InodeTable
from penstock.formats.ext4.mapping import walk
from penstock.formats.ext4.volume import Volume

__all__ = ["JournalFile", "open_journal"]

_MIN_BLOCKS: Final = 1024
_MAX_PIECES: Final = 1 << 18
"""Of the map of a journal: 1 GiB of blocks of 4 KiB, each of them apart."""


class JournalFile:
    """Blocks of the journal.

    Raises:
        CorruptImage, BadChecksum: its map is bad.
    """

    def __init__(self, volume: Volume, inode: Inode) -> None:
        self.block_size: int = volume.block_size
        self.count: int = min(inode.size // volume.block_size, volume.blocks_count)
        self._source = volume.source
        self._starts = array("Q")
        self._ends = array("Q")
        self._physical = array("Q")
        for piece in walk(volume, inode, 0, self.count):
            if piece.state != MAPPED:
                continue
            if len(self._starts) >= _MAX_PIECES:
                raise CorruptImage(f"journal: its map has more than {_MAX_PIECES} pieces")
            self._starts.append(piece.logical)
            self._ends.append(piece.logical + piece.length)
            self._physical.append(piece.physical)
        self._refuse_overlaps()

    def _refuse_overlaps(self) -> None:
        """A block that is there twice would make a log that is longer than the image."""
        before = 0
        for slot in sorted(range(len(self._physical)), key=self._physical.__getitem__):
            physical = self._physical[slot]
            if physical < before:
                raise CorruptImage(f"journal: block {physical} of the filesystem is twice in it")
            before = physical + self._ends[slot] - self._starts[slot]

    def _find(self, index: int) -> tuple[int, int]:
        """Byte address of a block, and how many adjacent blocks follow from it on."""
        slot = bisect_right(self._starts, index) - 1
        if not 0 <= index < self.count or slot < 0 or index >= self._ends[slot]:
            raise CorruptImage(f"journal: block {index} of {self.count} is not mapped")
        block = self._physical[slot] + index - self._starts[slot]
        return block * self.block_size, self._ends[slot] - index

    def address(self, index: int) -> int:
        """Byte address in the image of journal block ``index``.

        Raises:
            CorruptImage: it is not mapped.
        """
        return self._find(index)[0]

    def read(self, index: int, count: int = 1) -> bytes:
        """``count`` blocks from ``index`` on.

        Raises:
            CorruptImage: one of them is not mapped.
            OSError: the source's.
        """
        pieces = []
        while count > 0:
            address, adjacent = self._find(index)
            step = min(adjacent, count)
            pieces.append(self._source.pread(step * self.block_size, address))
            index += step
            count -= step
        return b"".join(pieces)


def open_journal(volume: Volume, inodes: InodeTable) -> JournalFile:
    """The internal journal.

    Raises:
        CorruptImage, BadChecksum: neither its inode nor the backup of it can be used.
        UnsupportedFeature: it is on another device.
    """
    sb = volume.superblock
    if not sb.journal_inum:
        raise UnsupportedFeature(
            "external journal: the journal needs recovery and lies on another device"
        )
    try:
        return _checked(volume, inodes.inode(sb.journal_inum))
    except CorruptImage:
        backup = sb.jnl_blocks
        if backup is None:
            raise
        return _checked(volume, _inode_of_backup(volume, sb.journal_inum, backup))


def _checked(volume: Volume, inode: Inode) -> JournalFile:
    if not inode.is_regular:
        raise CorruptImage(f"journal: inode {inode.ino} is not a regular file")
    journal = JournalFile(volume, inode)
    if journal.count < _MIN_BLOCKS:
        raise CorruptImage(f"journal: has {journal.count} blocks, expected {_MIN_BLOCKS} or more")
    return journal


def _inode_of_backup(volume: Volume, ino: int, backup: bytes) -> Inode:
    """The journal's inode as the superblock remembers it."""
    block = backup[:N_BLOCKS_BYTES]
    high, low = (int.from_bytes(backup[at : at + 4], "little") for at in (60, 64))
    extents = block[:2] == EXTENT_MAGIC.to_bytes(2, "little")
    return Inode(
        ino=ino, mode=0o100600, uid=0, gid=0, size=low | high << 32, links=1,
        flags=int(InodeFlag.EXTENTS) if extents else 0, generation=0, blocks512=0,
        atime=0, atimensec=0, mtime=0, mtimensec=0, ctime=0, ctimensec=0, crtime=None,
        crtimensec=0, rdev=0, file_acl=0, projid=0, block=block,
        seed=volume.inverted_seed,
    )  # fmt: skip
