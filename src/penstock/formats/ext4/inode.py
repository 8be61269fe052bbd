# SPDX-License-Identifier: Apache-2.0
"""Inodes: found in their table, verified, decoded.

This is the hottest code of the reader: a walk decodes every inode once. The table is read in runs
of 64 KiB and kept, one :class:`struct.Struct` takes an inode apart, one tuple holds it.

Specification: Documentation/filesystems/ext4/inodes.rst.
"""

from __future__ import annotations

import errno
import stat
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from penstock.formats.crc import crc32c
from penstock.formats.errors import BadChecksum, CorruptImage
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.format import Incompat, InodeFlag, RawInode, RoCompat
from penstock.formats.ext4.groups import GroupTable
from penstock.formats.ext4.volume import Cache, Volume
from penstock.formats.layout import offset_of, size_of, struct_of

if TYPE_CHECKING:
    from penstock.formats.ext4.overlay import Overlay

__all__ = ["DeletedInode", "Inode", "InodeTable"]

_RUN_SIZE: Final = 65536
_FULL_EXTRA: Final = size_of(RawInode) - fmt.GOOD_OLD_INODE_SIZE
"""``extra_isize`` of an inode that has every field."""
_CRTIME_EXTRA: Final = offset_of(RawInode, "crtime") + 4 - fmt.GOOD_OLD_INODE_SIZE
_CHECKSUM_HI_EXTRA: Final = offset_of(RawInode, "checksum_hi") + 2 - fmt.GOOD_OLD_INODE_SIZE
_ALL_ONES: Final = 0xFFFF_FFFF
_ZERO: Final = b"\0\0"

_unpack: Final = struct_of(RawInode).unpack_from
_pack_u32: Final = struct.Struct("<I").pack
_new: Final = tuple.__new__

_REG: Final = stat.S_IFREG
_CHR: Final = stat.S_IFCHR
_BLK: Final = stat.S_IFBLK
_DEVICES: Final = frozenset({_CHR, _BLK})
_FILE_TYPES: Final = frozenset(
    {_REG, _CHR, _BLK, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK}
)
_HUGE_FILE: Final = int(InodeFlag.HUGE_FILE)
_EXTENTS: Final = int(InodeFlag.EXTENTS)
_INLINE_DATA: Final = int(InodeFlag.INLINE_DATA)
_LATE: Final = 10**9 << 2
"""From here on the nanoseconds of a time are a second or more."""
_SLOW_FLAGS: Final = _HUGE_FILE | _INLINE_DATA


class DeletedInode(CorruptImage):
    """A name or a caller refers to an inode that is free (ESTALE)."""

    errno = errno.ESTALE


class Inode(NamedTuple):
    """An inode. Times are seconds since 1970 (signed) and nanoseconds, apart."""

    ino: int
    mode: int
    """File type and permissions, as in ``st_mode``."""
    uid: int
    gid: int
    size: int
    """Bytes."""
    links: int
    flags: int
    """:class:`~penstock.formats.ext4.format.InodeFlag` bits."""
    generation: int
    blocks512: int
    """Space in use, in units of 512 bytes, as in ``st_blocks``."""
    atime: int
    atimensec: int
    mtime: int
    mtimensec: int
    ctime: int
    ctimensec: int
    crtime: int | None
    """Birth; None where the inode is too small to hold it."""
    crtimensec: int
    rdev: int
    """Device number in the kernel's encoding: ``(minor & 0xff) | major << 8 |
    (minor & ~0xff) << 12``. 0 unless a device."""
    file_acl: int
    """Block of extended attributes, 0 = none."""
    projid: int
    block: bytes
    """60 bytes: block map, extent root, inline data, short symlink."""
    seed: int
    """Seed of the checksums of this inode's metadata blocks, inverted: the ``value`` of
    :func:`penstock.formats.crc.crc32c`."""

    @property
    def is_dir(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFDIR

    @property
    def is_regular(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFREG

    @property
    def is_symlink(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFLNK

    @property
    def encrypted(self) -> bool:
        """Whether names in it, or its content, are ciphertext."""
        return bool(self.flags & InodeFlag.ENCRYPT)


def _rdev(block: bytes) -> int:
    """The device number in ``i_block``: the old 16-bit form, or the present one after a zero."""
    old = int.from_bytes(block[:4], "little")
    return old & 0xFFFF if old else int.from_bytes(block[4:8], "little")


def _within_second(extra: int) -> int:
    """The extension of a time, its nanoseconds at most those that a second has.

    No writer makes others, and what is above (kernels, libraries) takes them for an error.
    """
    return extra if extra < _LATE else (_LATE - 4) | (extra & 3)


class InodeTable:
    """The inodes of a volume.

    Args:
        volume: where they are.
        groups: its descriptors.
        cache_size: bytes of inode tables to keep.
    """

    def __init__(self, volume: Volume, groups: GroupTable, cache_size: int) -> None:
        sb = volume.superblock
        self._volume = volume
        self._groups = groups
        self._runs: Cache[int, bytes] = Cache(cache_size)
        self._overlay: Overlay | None = None
        self._count = sb.inodes_count
        self._size = sb.inode_size
        self._max_extra = sb.inode_size - fmt.GOOD_OLD_INODE_SIZE
        self._per_group = sb.inodes_per_group
        self._run_shift = (_RUN_SIZE // sb.inode_size).bit_length() - 1
        self._run_mask = (1 << self._run_shift) - 1
        self._runs_per_group = (sb.inodes_per_group >> self._run_shift) + 1
        self._verify = volume.metadata_csum
        self._seed = volume.inverted_seed
        self._acl_mask = 0xFFFF if sb.incompat & Incompat.BIT64 else 0
        self._blocks_mask = 0xFFFF if sb.ro_compat & RoCompat.HUGE_FILE else 0
        self._projects = bool(sb.ro_compat & RoCompat.PROJECT)
        self._huge_shift = sb.block_size.bit_length() - 10
        self._large_dirs = bool(sb.incompat & Incompat.LARGEDIR)
        self._may_inline = bool(sb.incompat & Incompat.INLINE_DATA)
        self._max_size = sb.block_size << 32
        """A logical block number has 32 bits."""

    def raw(self, ino: int) -> bytes:
        """The bytes of an inode, unverified.

        Raises:
            CorruptImage: there is no such inode.
            OSError: the source's.
        """
        if not 1 <= ino <= self._count:
            raise CorruptImage(f"inode {ino} of a filesystem of {self._count} inodes")
        group, index = divmod(ino - 1, self._per_group)
        shift = self._run_shift
        key = group * self._runs_per_group + (index >> shift)
        run = self._runs.get(key)
        if run is None:
            run = self._read_run(group, index >> shift)
            self._runs.put(key, run, len(run) + 100)
        size = self._size
        start = (index & self._run_mask) * size
        return run[start : start + size]

    def _read_run(self, group: int, number: int) -> bytes:
        first = number << self._run_shift
        count = min(self._per_group - first, 1 << self._run_shift)
        block_size = self._volume.block_size
        block = self._groups.inode_table(group) + first * self._size // block_size
        run = self._volume.read_run(block, -(-count * self._size // block_size))
        if self._overlay is not None:
            return self._overlay.patch(group * self._per_group + first + 1, run)
        return run

    def set_overlay(self, overlay: Overlay) -> None:
        """From now on see the inodes as fast commits left them."""
        self._overlay = overlay
        self._runs.clear()

    def inode(self, ino: int) -> Inode:
        """Any inode, special ones too, decoded and verified.

        Raises:
            DeletedInode: it is free.
            CorruptImage, BadChecksum: it is bad, or there is no such inode.
            OSError: the source's.
        """
        raw = self.raw(ino)
        extra = raw[128] | raw[129] << 8 if self._size > 128 else 0
        seed = crc32c(_pack_u32(ino) + raw[0x64:0x68], self._seed)
        if self._verify:
            self._check(ino, raw, extra, seed)
        if extra < _FULL_EXTRA or extra > self._max_extra:
            raw = self._widen(ino, raw, extra)
        (
            mode, uid, size, atime, ctime, mtime, _, gid, links, blocks, flags, _, block,
            generation, file_acl, size_hi, blocks_hi, acl_hi, uid_hi, gid_hi, _, _, _,
            ctime_extra, mtime_extra, atime_extra, crtime, crtime_extra, _, projid,
        ) = _unpack(raw)  # fmt: skip
        if not links:
            raise DeletedInode(f"inode {ino} is not in use")
        kind = mode & 0o170000
        rdev = 0
        if kind == _REG:
            size |= size_hi << 32
        elif kind in _DEVICES:
            rdev = _rdev(block)
        elif self._large_dirs:
            size |= size_hi << 32
        blocks |= (blocks_hi & self._blocks_mask) << 32
        if flags & _SLOW_FLAGS or size > self._max_size or kind not in _FILE_TYPES:
            blocks = self._check_unusual(ino, kind, flags, size, blocks)
        if (
            ctime_extra >= _LATE
            or mtime_extra >= _LATE
            or atime_extra >= _LATE
            or crtime_extra >= _LATE
        ):
            ctime_extra, mtime_extra, atime_extra, crtime_extra = map(
                _within_second, (ctime_extra, mtime_extra, atime_extra, crtime_extra)
            )
        return _new(
            Inode,
            (
                ino, mode, uid | uid_hi << 16, gid | gid_hi << 16, size, links, flags, generation,
                blocks,
                atime + ((atime_extra & 3) << 32), atime_extra >> 2,
                mtime + ((mtime_extra & 3) << 32), mtime_extra >> 2,
                ctime + ((ctime_extra & 3) << 32), ctime_extra >> 2,
                crtime + ((crtime_extra & 3) << 32) if extra >= _CRTIME_EXTRA else None,
                crtime_extra >> 2, rdev, file_acl | (acl_hi & self._acl_mask) << 32,
                projid if self._projects else 0, block, seed,
            ),
        )  # fmt: skip

    def _check(self, ino: int, raw: bytes, extra: int, seed: int) -> None:
        """Compare the checksum of an inode, which covers all of it but the checksum itself."""
        if extra >= _CHECKSUM_HI_EXTRA:
            value = ~crc32c(_ZERO.join((raw[:0x7C], raw[0x7E:0x82], raw[0x84:])), seed) & _ALL_ONES
            stored = raw[0x7C] | raw[0x7D] << 8 | raw[0x82] << 16 | raw[0x83] << 24
        else:
            value = ~crc32c(_ZERO.join((raw[:0x7C], raw[0x7E:])), seed) & 0xFFFF
            stored = raw[0x7C] | raw[0x7D] << 8
        if value != stored and raw.count(0) != len(raw):
            raise BadChecksum(f"inode {ino}: checksum {stored:#x}, computed {value:#x}")

    def _widen(self, ino: int, raw: bytes, extra: int) -> bytes:
        """An inode with zeros for the fields that it is too old to have."""
        if extra & 3 or extra > self._max_extra:
            raise CorruptImage(
                f"inode {ino}: extra_isize is {extra}, expected a multiple of 4 up to "
                f"{self._max_extra}"
            )
        return raw[: 128 + extra].ljust(128 + _FULL_EXTRA, b"\0")

    def _check_unusual(self, ino: int, kind: int, flags: int, size: int, blocks: int) -> int:
        """What few inodes need: flags of special meaning, sizes and types out of range."""
        if kind not in _FILE_TYPES:
            raise CorruptImage(f"inode {ino}: file type {kind:#o} does not exist")
        if size > self._max_size:
            raise CorruptImage(f"inode {ino}: size {size} is beyond the largest, {self._max_size}")
        if flags & _INLINE_DATA and (flags & _EXTENTS or not self._may_inline):
            raise CorruptImage(f"inode {ino}: has the inline data flag, which cannot be here")
        if flags & _HUGE_FILE and self._blocks_mask:
            blocks <<= self._huge_shift
        if flags & _INLINE_DATA and kind == _REG:
            blocks += (size + 511) >> 9  # so that tools do not take the file for a hole (kernel)
        return blocks
