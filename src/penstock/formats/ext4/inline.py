# SPDX-License-Identifier: Apache-2.0
"""Files and directories kept in their inode.

The first 60 bytes are in ``i_block``, the rest is the value of the attribute ``system.data`` in the
same inode. A directory kept so has no entries for ``.`` and ``..``: its first four bytes are the
inode of its parent, and two chains of entries follow, one in each place.

Specification: Documentation/filesystems/ext4/inlinedata.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from penstock.formats.errors import CorruptImage
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.directory import DirRecord, decode_entries
from penstock.formats.ext4.inode import Inode, InodeTable
from penstock.formats.ext4.volume import Volume
from penstock.formats.ext4.xattr import inode_entries

__all__ = ["find_inline", "read_inline", "read_inline_directory"]

_DT_DIR: Final = 4
_ENTRIES_AT: Final = 4
_AFTER_DOT: Final = 1
"""Position between ``.`` and ``..``, which take no bytes of their own."""


def read_inline(inodes: InodeTable, inode: Inode) -> bytes:
    """The whole content of an inline file or directory, ``inode.size`` bytes.

    Raises:
        CorruptImage: it is bad.
        OSError: the source's.
    """
    rest = b""
    if inode.size > fmt.N_BLOCKS_BYTES:
        for entry in inode_entries(inodes, inode):
            if entry.prefix == fmt.XATTR_INDEX_SYSTEM and entry.name == b"data":
                rest = entry.value
    content = inode.block + rest
    if len(content) < inode.size:
        raise CorruptImage(
            f"inode {inode.ino}: size is {inode.size}, but {len(content)} bytes are inline"
        )
    return content[: inode.size]


def read_inline_directory(
    volume: Volume, inodes: InodeTable, inode: Inode, cookie: int
) -> Iterator[DirRecord]:
    """The entries of an inline directory from position ``cookie`` on, ``.`` and ``..`` first.

    Raises:
        CorruptImage: it is bad.
        OSError: the source's.
    """
    content = read_inline(inodes, inode).ljust(fmt.N_BLOCKS_BYTES, b"\0")
    what = f"inline directory inode {inode.ino}"
    parent = int.from_bytes(content[:_ENTRIES_AT], "little")
    if not 1 <= parent <= volume.superblock.inodes_count:
        raise CorruptImage(f"{what}: parent inode {parent} does not exist")
    if cookie < _AFTER_DOT:
        yield DirRecord(b".", inode.ino, _DT_DIR, _AFTER_DOT)
    if cookie < _ENTRIES_AT:
        yield DirRecord(b"..", parent, _DT_DIR, _ENTRIES_AT)
    first, second = content[: fmt.N_BLOCKS_BYTES], content[fmt.N_BLOCKS_BYTES :]
    for data, start, position in (
        (first, _ENTRIES_AT, 0),
        (second, 0, fmt.N_BLOCKS_BYTES),
    ):
        for record in decode_entries(volume, what, data, start, position):
            if record.next_cookie > cookie:
                yield record


def find_inline(volume: Volume, inodes: InodeTable, inode: Inode, name: bytes) -> int | None:
    """The inode under ``name`` in an inline directory; None if there is none. Raises as reading."""
    for record in read_inline_directory(volume, inodes, inode, 0):
        if record.name == name:
            return record.ino
    return None
