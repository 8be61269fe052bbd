# SPDX-License-Identifier: Apache-2.0
"""Extended attributes: in the inode, in a block, with values in inodes of their own.

ACLs are stored in a shorter form than the one of getxattr(2) and are converted here.

Specification: Documentation/filesystems/ext4/attributes.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from penstock.formats.crc import crc32c
from penstock.formats.errors import BadChecksum, CorruptImage, UnsupportedFeature
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.extents import MAPPED
from penstock.formats.ext4.format import InodeFlag, XattrBlockHeader, XattrEntry
from penstock.formats.ext4.inode import Inode, InodeTable
from penstock.formats.ext4.mapping import walk
from penstock.formats.ext4.volume import Volume
from penstock.formats.layout import offset_of, size_of, struct_of

__all__ = ["acl_to_syscall", "inode_entries", "list_xattrs", "read_xattr", "read_xattrs"]

_unpack_entry: Final = struct_of(XattrEntry).unpack_from
_ENTRY_SIZE: Final = size_of(XattrEntry)
_HEADER_SIZE: Final = size_of(XattrBlockHeader)
_CHECKSUM_AT: Final = offset_of(XattrBlockHeader, "checksum")
_MAGIC_BYTES: Final = fmt.XATTR_MAGIC.to_bytes(4, "little")
_MAX_TOTAL: Final = 16 << 20
"""Bytes of values that :func:`read_xattrs` gathers at most."""

_ACL_VERSION_DISK: Final = 1
_ACL_VERSION_SYSCALL: Final = 2
_ACL_USER: Final = 0x02
_ACL_GROUP: Final = 0x08
_ACL_SHORT: Final = frozenset({0x01, 0x04, 0x10, 0x20})
_ACL_NO_ID: Final = 0xFFFF_FFFF


class Entry(NamedTuple):
    """An attribute where it is stored."""

    prefix: int
    """Number of the prefix of its name."""
    name: bytes
    """The rest of its name."""
    value: bytes
    """Empty if the value is in an inode of its own."""
    value_inum: int
    """That inode, or 0."""
    value_size: int

    @property
    def full_name(self) -> bytes | None:
        """The name that users see; None if they do not see it, or could not ask for it."""
        prefix = fmt.XATTR_PREFIXES.get(self.prefix)
        if prefix is None or (self.prefix in fmt.XATTR_INDEX_ACLS) == bool(self.name):
            return None
        name = prefix + self.name
        return name if len(name) <= fmt.NAME_MAX else None


def _entries(what: str, area: bytes, first: int, values: int) -> Iterator[Entry]:
    """The entries of a list.

    Args:
        what: names the list in messages.
        area: bytes that hold the list, and the values up to their end.
        first: where the list begins.
        values: where the offsets of values count from.

    Raises:
        CorruptImage: an entry or a value reaches beyond ``area``.
    """
    position = first
    end = len(area)
    while True:
        if position + 4 > end:
            raise CorruptImage(f"{what}: the list of attributes has no end")
        if area[position : position + 4] == b"\0\0\0\0":
            return
        after = position + _ENTRY_SIZE
        if after > end:
            raise CorruptImage(f"{what}: attribute at byte {position} is cut off")
        name_length, index, offset, inum, size, _ = _unpack_entry(area, position)
        name_end = after + name_length
        if name_end > end:
            raise CorruptImage(f"{what}: attribute at byte {position} is cut off")
        if 0 in area[after:name_end]:
            raise CorruptImage(f"{what}: attribute at byte {position} has NUL in its name")
        value = b""
        if not inum:
            start = values + offset
            if size > end or start + size > end:
                raise CorruptImage(
                    f"{what}: value of {size} bytes at byte {offset} is outside of the list"
                )
            value = area[start : start + size]
        elif size > fmt.XATTR_VALUE_MAX:
            raise CorruptImage(f"{what}: value of {size} bytes in inode {inum} is too large")
        yield Entry(index, area[after:name_end], value, inum, size)
        position = (name_end + 3) & ~3


def inode_entries(inodes: InodeTable, inode: Inode) -> Iterator[Entry]:
    """The attributes in an inode.

    Raises:
        CorruptImage: they are bad.
    """
    raw = inodes.raw(inode.ino)
    if len(raw) <= fmt.GOOD_OLD_INODE_SIZE:
        return iter(())
    start = fmt.GOOD_OLD_INODE_SIZE + (raw[128] | raw[129] << 8)
    if start == fmt.GOOD_OLD_INODE_SIZE or raw[start : start + 4] != _MAGIC_BYTES:
        return iter(())
    return _entries(f"inode {inode.ino}", raw, start + 4, start + 4)


def _block_entries(volume: Volume, inode: Inode) -> Iterator[Entry]:
    """The attributes in the block of an inode."""
    block = inode.file_acl
    what = f"inode {inode.ino}: attribute block {block}"
    volume.check_range(block, 1, what)
    data = volume.read_block(block)
    if data[:4] != _MAGIC_BYTES:
        raise CorruptImage(f"{what}: magic is {data[:4].hex()}, expected {_MAGIC_BYTES.hex()}")
    if volume.metadata_csum:
        _verify(volume, what, block, data)
    return _entries(what, data, _HEADER_SIZE, 0)


def _verify(volume: Volume, what: str, block: int, data: bytes) -> None:
    covered = b"".join(
        (struct.pack("<Q", block), data[:_CHECKSUM_AT], bytes(4), data[_CHECKSUM_AT + 4 :])
    )
    value = ~crc32c(covered, volume.inverted_seed) & 0xFFFF_FFFF
    stored = int.from_bytes(data[_CHECKSUM_AT : _CHECKSUM_AT + 4], "little")
    if value != stored:
        raise BadChecksum(f"{what}: checksum {stored:#010x}, computed {value:#010x}")


def _all_entries(volume: Volume, inodes: InodeTable, inode: Inode) -> Iterator[Entry]:
    yield from inode_entries(inodes, inode)
    if inode.file_acl:
        yield from _block_entries(volume, inode)


def _inode_value(volume: Volume, inodes: InodeTable, owner: Inode, entry: Entry) -> bytes:
    """A value that is the content of an inode."""
    inode = inodes.inode(entry.value_inum)
    what = f"inode {owner.ino}: attribute value in inode {inode.ino}"
    if not inode.flags & InodeFlag.EA_INODE or not inode.is_regular:
        raise CorruptImage(f"{what}: that inode holds none")
    if inode.size != entry.value_size:
        raise CorruptImage(f"{what}: size is {inode.size}, expected {entry.value_size}")
    size = volume.block_size
    value = bytearray(entry.value_size)
    end = -(-entry.value_size // size)
    for piece in walk(volume, inode, 0, end):
        if piece.state == MAPPED:
            count = min(piece.length, end - piece.logical)
            at = piece.logical * size
            data = volume.read_run(piece.physical, count)
            value[at : at + len(data)] = data
    del value[entry.value_size :]
    stored = inode.atime & 0xFFFF_FFFF
    computed = ~crc32c(value, volume.superblock.seed ^ 0xFFFF_FFFF) & 0xFFFF_FFFF
    lustre = inode.mtime == owner.ino and inode.generation == owner.generation
    if volume.verify_checksums and stored != computed and not lustre:
        raise BadChecksum(f"{what}: checksum {stored:#010x}, computed {computed:#010x}")
    return bytes(value)


def _value(volume: Volume, inodes: InodeTable, inode: Inode, entry: Entry) -> bytes:
    value = entry.value
    if entry.value_inum:
        value = _inode_value(volume, inodes, inode, entry)
    if entry.prefix in fmt.XATTR_INDEX_ACLS:
        return acl_to_syscall(value)
    return value


def list_xattrs(volume: Volume, inodes: InodeTable, inode: Inode) -> list[bytes]:
    """Full names of the attributes that users can see.

    Raises:
        CorruptImage, BadChecksum: they are bad.
        OSError: the source's.
    """
    names = (entry.full_name for entry in _all_entries(volume, inodes, inode))
    return [name for name in names if name is not None]


def read_xattr(volume: Volume, inodes: InodeTable, inode: Inode, name: bytes) -> bytes | None:
    """The value of one attribute by full name; None if there is none. Raises as the list does."""
    for entry in _all_entries(volume, inodes, inode):
        if entry.full_name == name:
            return _value(volume, inodes, inode, entry)
    return None


def read_xattrs(volume: Volume, inodes: InodeTable, inode: Inode) -> dict[bytes, bytes]:
    """All attributes that users can see, by full name.

    Raises:
        CorruptImage, BadChecksum: they are bad.
        UnsupportedFeature: the values have more than 16 MiB together; :func:`read_xattr` reads
            them one by one.
        OSError: the source's.
    """
    found: dict[bytes, bytes] = {}
    total = 0
    for entry in _all_entries(volume, inodes, inode):
        name = entry.full_name
        if name is None or name in found:
            continue
        total += entry.value_size
        if total > _MAX_TOTAL:
            raise UnsupportedFeature(f"inode {inode.ino}: more than {_MAX_TOTAL} bytes of xattrs")
        found[name] = _value(volume, inodes, inode, entry)
    return found


def acl_to_syscall(value: bytes) -> bytes:
    """A POSIX ACL as getxattr(2) gives it, from its form on disk.

    On disk (version 1) only entries of named users and groups have an id; in the form of the
    system call (version 2) all have one, FFFFFFFF where it means nothing.

    Raises:
        CorruptImage: it is no ACL.
    """
    if len(value) < 4 or int.from_bytes(value[:4], "little") != _ACL_VERSION_DISK:
        raise CorruptImage(f"ACL of {len(value)} bytes: expected version {_ACL_VERSION_DISK}")
    out = [struct.pack("<I", _ACL_VERSION_SYSCALL)]
    position = 4
    while position < len(value):
        tag = int.from_bytes(value[position : position + 2], "little")
        length = 8 if tag in {_ACL_USER, _ACL_GROUP} else 4
        piece = value[position : position + length]
        if len(piece) < length or (length == 4 and tag not in _ACL_SHORT):
            raise CorruptImage(f"ACL of {len(value)} bytes: bad entry at byte {position}")
        out.append(piece if length == 8 else piece + struct.pack("<I", _ACL_NO_ID))
        position += length
    return b"".join(out)
