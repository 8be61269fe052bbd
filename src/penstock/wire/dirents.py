# SPDX-License-Identifier: Apache-2.0
"""Records of directory listings: the data of replies to READDIR and READDIRPLUS.

A record is packed by one call of one ``struct.Struct`` that includes the name and the padding to
8 bytes; there is one such struct per length of name, made when first needed (at most 4095).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from penstock.abi.fuse.opcodes import NAME_MAX
from penstock.abi.fuse.structs import Attr, Dirent, EntryOut
from penstock.abi.layout import size_of, struct_of, unpack
from penstock.wire.errors import WireError
from penstock.wire.shapes import Buffer

__all__ = [
    "DirentPlusRecord",
    "DirentRecord",
    "decode_direntplus",
    "decode_dirents",
    "dirent_size",
    "direntplus_size",
    "pack_dirent",
    "pack_direntplus",
]

_DIRENT_SIZE: Final = size_of(Dirent)
_ENTRY_SIZE: Final = size_of(EntryOut)
_dirent_at: Final = struct_of(Dirent).unpack_from
_NO_ENTRY: Final = (0,) * (6 + len(Attr._fields))

_DIRENT_PACKERS: Final[dict[int, struct.Struct]] = {}
_DIRENTPLUS_PACKERS: Final[dict[int, struct.Struct]] = {}


class DirentRecord(NamedTuple):
    """One name of a listing."""

    name: bytes
    ino: int
    offset: int
    """Cookie of the position after it."""
    type: int
    """DT_*."""


class DirentPlusRecord(NamedTuple):
    """One name of a listing with its inode; ``entry.nodeid`` 0: without."""

    dirent: DirentRecord
    entry: EntryOut


def _packer(table: dict[int, struct.Struct], prefix: str, length: int) -> struct.Struct:
    if not 0 < length <= NAME_MAX:
        raise WireError(f"directory entry: name of {length} bytes, 1 to {NAME_MAX} expected")
    fmt = f"<{prefix}{struct_of(Dirent).format[1:]}{length}s{-length & 7}x"
    packer = table[length] = struct.Struct(fmt)
    return packer


def dirent_size(name_length: int) -> int:
    """Bytes that :func:`pack_dirent` makes for a name of so many bytes."""
    return (_DIRENT_SIZE + name_length + 7) & ~7


def direntplus_size(name_length: int) -> int:
    """Bytes that :func:`pack_direntplus` makes for a name of so many bytes."""
    return _ENTRY_SIZE + dirent_size(name_length)


def pack_dirent(name: bytes, ino: int, offset: int, type: int) -> bytes:
    """A record of READDIR.

    Args:
        name: 1 to 4095 bytes.
        ino: inode number shown to users; the kernel skips a record with 0.
        offset: cookie of the position after this record.
        type: DT_*.

    Raises:
        WireError: the length of the name.
        struct.error: a number does not fit.
    """
    length = len(name)
    packer = _DIRENT_PACKERS.get(length) or _packer(_DIRENT_PACKERS, "", length)
    return packer.pack(ino, offset, length, type, name)


def pack_direntplus(name: bytes, ino: int, offset: int, type: int, entry: EntryOut | None) -> bytes:
    """A record of READDIRPLUS.

    Args:
        name, ino, offset, type: as for :func:`pack_dirent`.
        entry: what LOOKUP would answer, and counts like it; None: nothing is said of the inode.

    Raises:
        WireError: the length of the name.
        struct.error: a number does not fit.
    """
    length = len(name)
    packer = _DIRENTPLUS_PACKERS.get(length)
    if packer is None:
        packer = _packer(_DIRENTPLUS_PACKERS, struct_of(EntryOut).format[1:], length)
    if entry is None:
        return packer.pack(*_NO_ENTRY, ino, offset, length, type, name)
    node, generation, valid, attr_valid, nsec, attr_nsec, attr = entry
    return packer.pack(
        node, generation, valid, attr_valid, nsec, attr_nsec, *attr,
        ino, offset, length, type, name,
    )  # fmt: skip


def decode_dirents(data: Buffer) -> Iterator[DirentRecord]:
    """The records of a reply to READDIR.

    Raises:
        WireError: while iterating: a record is cut short, or its name is none.
    """
    position, size = 0, len(data)
    while position < size:
        record, position = _dirent(data, position, size)
        yield record


def decode_direntplus(data: Buffer) -> Iterator[DirentPlusRecord]:
    """The records of a reply to READDIRPLUS.

    Raises:
        WireError: while iterating: a record is cut short, or its name is none.
    """
    position, size = 0, len(data)
    while position < size:
        if size - position < _ENTRY_SIZE:
            raise _cut(position, size)
        entry = unpack(EntryOut, data, position)
        record, position = _dirent(data, position + _ENTRY_SIZE, size)
        yield DirentPlusRecord(record, entry)


def _dirent(data: Buffer, position: int, size: int) -> tuple[DirentRecord, int]:
    if size - position < _DIRENT_SIZE:
        raise _cut(position, size)
    ino, offset, length, type = _dirent_at(data, position)
    end = position + dirent_size(length)
    if not 0 < length <= NAME_MAX or end > size:
        raise _cut(position, size)
    start = position + _DIRENT_SIZE
    name = bytes(data[start : start + length])
    if 0 in name or b"/" in name:
        raise WireError(f"directory entry at {position}: {name[:64]!r} is no name")
    return DirentRecord(name, ino, offset, type), end


def _cut(position: int, size: int) -> WireError:
    return WireError(
        f"directory entry at {position}: no whole record in the {size - position} bytes left, "
        f"or its name is not of 1 to {NAME_MAX} bytes"
    )
