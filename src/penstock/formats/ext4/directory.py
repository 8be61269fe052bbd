# SPDX-License-Identifier: Apache-2.0
"""Directories as lists of entries: reading them all, finding one by looking at all.

A directory is a file whose blocks each hold a chain of entries. An indexed one has further blocks
that hold its hash tree; those look like one empty entry to a reader of chains, so that reading a
directory never needs the tree (``htree.py`` does).

Positions (cookies) are bytes from the start of the directory to the entry that comes next, in an
image that does not change as stable as can be. A position that is not the start of an entry goes on
with the next entry after it.

Invariants: names are 1 to 255 bytes without ``/`` and NUL; inode numbers are in range. ``.`` and
``..`` can occur anywhere in a hostile image, as can one name twice: whoever walks a tree goes by
what its own parent is, not by ``..``.

Specification: Documentation/filesystems/ext4/directory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from penstock.formats.crc import crc32c
from penstock.formats.errors import BadChecksum, CorruptImage
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.extents import MAPPED
from penstock.formats.ext4.format import DirEntryHead, InodeFlag
from penstock.formats.ext4.inode import Inode
from penstock.formats.ext4.mapping import walk
from penstock.formats.ext4.volume import Volume
from penstock.formats.layout import struct_of

__all__ = [
    "FEW_BLOCKS",
    "INDEXED_PATIENCE",
    "DirRecord",
    "decode_entries",
    "find_linear",
    "known_names",
    "read_directory",
    "verified_names",
    "verify_tree_node",
]

_INDEX: Final = int(InodeFlag.INDEX)
_RUN_SIZE: Final = 65536
_MIN_REC_LEN: Final = 12
_DX_NODE_ENTRIES: Final = 8
_DX_ROOT_ENTRIES: Final = 0x20
_MAX_SCAN: Final = 1 << 17
"""Units of work for one answer, after which a directory is called corrupt: the bound on what a
hostile one can cost. A unit is a block looked at, or each 4 KiB of a larger one; a block that has
to be taken apart in vain, which does not happen in sound directories, costs one for 32 bytes. So
512 MiB of sound blocks of 4 KiB can follow each other without an entry."""
_EARNED: Final = 8
"""Units that an entry adds to those that are left: one answer may hold thousands of entries."""

FEW_BLOCKS: Final = 8
"""A directory of so many blocks is looked through as fast as its index would be."""

_MAX_DECODED: Final = 1 << 20
"""Bytes of a directory that is kept decoded at most: some 25,000 names, 5 MB of memory."""
_PATIENCE: Final = 8
"""Searches of many blocks, after which taking all of them apart pays."""
INDEXED_PATIENCE: Final = 64
"""The same for searches by index."""
_NEVER: Final = 1 << 60

_unpack: Final = struct_of(DirEntryHead).unpack_from
_DT: Final = fmt.DT_OF_FILE_TYPE
_NO_TYPES: Final = bytes(256)
"""Without the filetype feature the byte means nothing, and Linux leaves a type in it at times."""
_new: Final = tuple.__new__


class DirRecord(NamedTuple):
    """One entry of a directory."""

    name: bytes
    ino: int
    type: int
    """DT_*; 0 where the filesystem does not record it."""
    next_cookie: int
    """Position after this entry; never 0."""


def decode_entries(
    volume: Volume, what: str, data: bytes, start: int, position: int
) -> list[DirRecord]:
    """The entries of a chain.

    Args:
        volume: the filesystem.
        what: names the chain in messages.
        data: bytes that hold it to their end.
        start: where in ``data`` it begins.
        position: of the first byte of ``data`` in the directory.

    Raises:
        CorruptImage: the chain or an entry is bad.
    """
    records: list[DirRecord] = []
    append = records.append
    end = len(data)
    inodes = volume.superblock.inodes_count
    types = _DT if volume.file_types else _NO_TYPES
    wide = end == fmt.MAX_BLOCK_SIZE
    while start < end:
        if start + _MIN_REC_LEN > end:
            raise CorruptImage(f"{what}: entry at byte {start} is cut off by the end of the block")
        ino, length, name_length, kind = _unpack(data, start)
        if length & 3 or (wide and not length):
            length = _wide_length(length) if wide else 0
        after = start + length
        name_end = start + 8 + name_length
        if length < _MIN_REC_LEN or after > end or name_end > after:
            raise CorruptImage(
                f"{what}: entry at byte {start} of length {length} with a name of {name_length} "
                f"bytes does not fit into the {end - start} bytes left"
            )
        if ino:
            name = data[start + 8 : name_end]
            if ino > inodes or not name or 0 in name or 47 in name:
                raise CorruptImage(
                    f"{what}: entry at byte {start}: bad inode {ino} or name {name[:40]!r}"
                )
            append(_new(DirRecord, (name, ino, types[kind], position + after)))
        start = after
    return records


def _wide_length(length: int) -> int:
    """A ``rec_len`` in a block of 64 KiB, which does not fit into 16 bits as it is."""
    if length in {0, 0xFFFF}:
        return fmt.MAX_BLOCK_SIZE
    return (length & 0xFFFC) | (length & 3) << 16


def _is_tree_node(data: bytes, logical: int, inode: Inode) -> bool:
    """Whether a block of a directory is not a leaf, but of its hash tree."""
    if not inode.flags & _INDEX:
        return False
    if logical == 0:
        return True
    ino, length, _, _ = _unpack(data, 0)
    return not ino and length in {len(data), 0, 0xFFFF}


def verify_tree_node(inode: Inode, logical: int, data: bytes) -> None:
    """Check the checksum of a block of a hash tree.

    Raises:
        CorruptImage, BadChecksum: it is bad.
    """
    what = f"directory inode {inode.ino}: index block {logical}"
    entries = _DX_NODE_ENTRIES if logical else _DX_ROOT_ENTRIES
    limit = data[entries] | data[entries + 1] << 8
    count = data[entries + 2] | data[entries + 3] << 8
    tail = entries + 8 * limit
    if tail + 8 > len(data) or count > limit:
        raise CorruptImage(f"{what}: {count} of {limit} entries do not fit into the block")
    covered = b"".join((data[: entries + 8 * count], data[tail : tail + 4], bytes(4)))
    value = ~crc32c(covered, inode.seed) & 0xFFFF_FFFF
    stored = int.from_bytes(data[tail + 4 : tail + 8], "little")
    if value != stored:
        raise BadChecksum(f"{what}: checksum {stored:#010x}, computed {value:#010x}")


def verify_block(inode: Inode, logical: int, data: bytes) -> None:
    """Check the checksum of a block of a directory, be it a leaf or of the tree.

    Raises:
        CorruptImage, BadChecksum: it is bad.
    """
    # A block of the tree may still have the tail of the leaf that it once was: look at that second.
    if _is_tree_node(data, logical, inode):
        verify_tree_node(inode, logical, data)
        return
    tail = len(data) - fmt.DIR_TAIL_SIZE
    if data[tail : tail + 8] != fmt.DIR_TAIL_HEAD:
        raise CorruptImage(f"directory inode {inode.ino}: block {logical} has no checksum")
    value = ~crc32c(memoryview(data)[:tail], inode.seed) & 0xFFFF_FFFF
    stored = int.from_bytes(data[tail + 8 :], "little")
    if value != stored:
        raise BadChecksum(
            f"directory inode {inode.ino}: block {logical}: checksum {stored:#010x}, "
            f"computed {value:#010x}"
        )


class _Work:
    """The work that may still be done for an answer about one directory."""

    __slots__ = ("_inode", "_left")

    def __init__(self, inode: Inode) -> None:
        self._inode = inode
        self._left = _MAX_SCAN

    def look(self, data: bytes, *, in_vain: bool) -> None:
        """Count a block that was looked at.

        Raises:
            CorruptImage: that was too much.
        """
        self.spend(len(data) // 32 if in_vain else max(len(data) >> 12, 1))

    def spend(self, units: int) -> None:
        """Count so many units; raises as :meth:`look`."""
        self._left -= units
        if self._left < 0:
            raise CorruptImage(
                f"directory inode {self._inode.ino}: too many blocks without an entry, or too "
                "large to be searched"
            )

    def earn(self, entries: int) -> None:
        """Entries were found."""
        self._left = min(self._left + entries * _EARNED, _MAX_SCAN)


def _blocks(volume: Volume, inode: Inode, first: int, work: _Work) -> Iterator[tuple[int, bytes]]:
    """The verified blocks of a directory from logical block ``first`` on; holes are skipped."""
    size = volume.block_size
    end = -(-inode.size // size)
    per_run = max(_RUN_SIZE // size, 1)
    verify = volume.metadata_csum
    for piece in walk(volume, inode, first, end):
        if piece.state != MAPPED:
            work.spend(1)
            continue
        logical = max(piece.logical, first)
        stop = min(piece.logical + piece.length, end)
        while logical < stop:
            count = min(per_run, stop - logical)
            physical = piece.physical + logical - piece.logical
            run = volume.read_block(physical) if count == 1 else volume.read_run(physical, count)
            for start in range(0, count * size, size):
                data = run[start : start + size]
                if verify:
                    verify_block(inode, logical, data)
                yield logical, data
                logical += 1


def _is_empty(data: bytes) -> bool:
    """Whether a block is one empty entry, as it is when all its names have been removed."""
    return int.from_bytes(data[4:6], "little") >= len(data) - fmt.DIR_TAIL_SIZE


def read_directory(volume: Volume, inode: Inode, cookie: int) -> Iterator[DirRecord]:
    """The entries of a directory with blocks, from position ``cookie`` on.

    Raises:
        CorruptImage, BadChecksum: it is bad (after the entries before the bad place).
        OSError: the source's.
    """
    size = volume.block_size
    work = _Work(inode)
    for logical, data in _blocks(volume, inode, cookie // size, work):
        position = logical * size
        what = f"directory inode {inode.ino}: block {logical}"
        records = decode_entries(volume, what, data, 0, position)
        if cookie > position:
            records = [record for record in records if record.next_cookie > cookie]
        if records:
            work.earn(len(records))
            yield from records
        else:
            work.look(data, in_vain=not _is_empty(data))


def verified_names(volume: Volume, inode: Inode, logical: int, physical: int) -> dict[bytes, int]:
    """The names in one block of a directory, with their inodes; kept decoded.

    Raises:
        CorruptImage, BadChecksum: the block is bad.
        OSError: the source's.
    """
    key = (inode.ino, physical)
    names = volume.parsed.get(key)
    if not isinstance(names, dict):
        data = volume.read_block(physical)
        if volume.metadata_csum:
            verify_block(inode, logical, data)
        what = f"directory inode {inode.ino}: block {logical}"
        # Where a name is there twice, the first entry counts, as it does for the kernel.
        entries = reversed(decode_entries(volume, what, data, 0, 0))
        names = {record.name: record.ino for record in entries}
        volume.parsed.put(key, names, 300 + 160 * len(names))
    return names


def known_names(volume: Volume, inode: Inode, patience: int) -> dict[bytes, int] | None:
    """All names of a directory, if they are decoded already, or are now for being asked so often.

    Args:
        volume: the filesystem.
        inode: the directory.
        patience: how many searches without this must have been; 0 = decode at once.

    Returns:
        None if the directory is to be searched in another way: not yet asked often enough, too
        large, or bad somewhere (the name may be in a sound block).

    Raises:
        OSError: the source's.
    """
    key = (inode.ino, 0)
    kept = volume.parsed.get(key)
    if isinstance(kept, dict):
        return kept
    searches = kept if isinstance(kept, int) else 0
    if 0 <= searches >= patience and inode.size <= _MAX_DECODED:
        try:
            return _decode_all(volume, inode)
        except CorruptImage:
            searches = -_NEVER
    volume.parsed.put(key, searches + 1, 200)
    return None


def _decode_all(volume: Volume, inode: Inode) -> dict[bytes, int]:
    names: dict[bytes, int] = {}
    for logical, data in _blocks(volume, inode, 0, _Work(inode)):
        what = f"directory inode {inode.ino}: block {logical}"
        for record in decode_entries(volume, what, data, 0, 0):
            names.setdefault(record.name, record.ino)
    volume.parsed.put((inode.ino, 0), names, 300 + 160 * len(names))
    return names


def _scan(volume: Volume, inode: Inode, name: bytes) -> int | None:
    """Look for a name in one block after the other."""
    work = _Work(inode)
    for logical, data in _blocks(volume, inode, 0, work):
        may_be_here = name in data
        work.look(data, in_vain=may_be_here)
        if may_be_here:
            what = f"directory inode {inode.ino}: block {logical}"
            for record in decode_entries(volume, what, data, 0, 0):
                if record.name == name:
                    return record.ino
    return None


def find_linear(volume: Volume, inode: Inode, name: bytes) -> int | None:
    """The inode under ``name``, looking at every block of a directory; None if there is none.

    Small directories are taken apart at once, larger ones when they are searched again and again
    (mke2fs makes large ones without an index); after that a name costs one look into a dictionary.

    Raises:
        CorruptImage, BadChecksum: a block on the way is bad.
        OSError: the source's.
    """
    small = inode.size <= FEW_BLOCKS * volume.block_size
    names = known_names(volume, inode, 0 if small else _PATIENCE)
    return _scan(volume, inode, name) if names is None else names.get(name)
