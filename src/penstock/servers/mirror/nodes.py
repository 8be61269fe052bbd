# SPDX-License-Identifier: Apache-2.0
"""What is kept of each inode that the kernel knows: one bytes object in one dictionary.

Node ids are inode numbers of the source, so nothing translates between them; only the root (1),
inodes of subvolumes (which have a device number of their own) and numbers out of range get ids from
a counter. A record is::

    u64 parent node · u32 birth · struct file_handle (u32 bytes, s32 type, bytes) · name

With a 16-byte handle and a name of 20 that is some 100 bytes, and 190 to 250 with its places in
this dictionary and in the session's.

Facts
    - ``birth`` is the lower half of the time of birth in nanoseconds, 0 where the filesystem keeps
      none. Number, birth and name together tell that a node is the one known, without a system
      call; where one is new its handle is asked for.
    - The generation that the kernel is given is a checksum of the handle's own part, which has the
      filesystem's generation. Different generations of a number differ in at most 32 adjacent
      bits, and such a CRC-32 never takes two for one. It must not depend on the parent: the kernel
      takes an inode whose generation changes for another. Where the parts of a handle are not
      known, the birth takes its place.
"""

from __future__ import annotations

import errno
import itertools
import struct
from typing import Final
from zlib import crc32

from penstock.fs import ROOT, FsError

__all__ = ["NO_HANDLE", "NodeTable", "birth_of", "generation_of", "handle_names", "pack", "parts"]

_RECORD: Final = struct.Struct("<QII")
_HEAD: Final = struct.Struct("<QI")
_HEAD_SIZE: Final = 12
_U32: Final = struct.Struct("=I").unpack_from
_U64: Final = struct.Struct("=Q").unpack_from
_TYPE: Final = struct.Struct("=H").unpack_from
_FIRST_ODD: Final = 1 << 62
_KEPT: Final = 4096

NO_HANDLE: Final = bytes(8)
"""A handle of no bytes: for a source that has none."""

_OWN: Final = {0x01: 12, 0x02: 8, 0x81: 12, 0x82: 12, 0x4D: 20, 0x4E: 20, 0x4F: 20}
"""Type of a handle (its lower half) → bytes that are the file's own: FILEID_INO32_GEN (tmpfs: 12
bytes), with parent, XFS's in 64 bits, btrfs's three."""


_WIDE: Final = frozenset({0x81, 0x82})
"""FILEID_INO64_GEN: of XFS, and of FUSE, which has its own node ids there, in another order."""


def pack(parent: int, birth: int, handle: bytes, name: bytes) -> bytes:
    """Make a record."""
    return _HEAD.pack(parent, birth) + handle + name


def parts(record: bytes) -> tuple[int, int, bytes, bytes]:
    """Parent, birth, handle and name of a record."""
    parent, birth, length = _RECORD.unpack_from(record)
    end = _HEAD_SIZE + 8 + length
    return parent, birth, record[_HEAD_SIZE:end], record[end:]


def birth_of(mask: int, seconds: int, nanoseconds: int) -> int:
    """``birth`` from statx's answer."""
    if not mask & 0x800:
        return 0
    return (seconds * 1_000_000_000 + nanoseconds) & 0xFFFF_FFFF


def generation_of(handle: bytes, birth: int) -> int:
    """The generation for the kernel."""
    own = _OWN.get(_TYPE(handle, 4)[0])
    return birth if own is None else crc32(handle[8 : 8 + own])


def handle_names(handle: bytes, ino: int) -> bool | None:
    """Whether the handle is of the inode with this number; None where that cannot be read off."""
    kind = _TYPE(handle, 4)[0]
    length = len(handle) - 8
    if kind not in _OWN or length < 8:
        return None
    if kind in _WIDE:
        return _U64(handle, 8)[0] == ino or None
    if kind > 2:
        return bool(_U64(handle, 8)[0] == ino)
    if length == 12:  # tmpfs: generation, then the number's lower and upper half
        return bool(_U64(handle, 12)[0] == ino)
    return bool(_U32(handle, 8)[0] == ino & 0xFFFF_FFFF)


class NodeTable:
    """Node id → record, for as long as the kernel knows the inode. Safe from any thread: each
    method is one operation on a dictionary, or does no harm when interrupted.

    Args:
        device: of the root, as statx gives it.
        ino: the root's inode number.
    """

    def __init__(self, device: int, ino: int) -> None:
        self._device = device
        self._root = ino
        self._records: dict[int, bytes] = {}
        self._odd: dict[tuple[int, int], int] = {}
        self._odd_keys: dict[int, tuple[int, int]] = {}
        self._odd_ids = itertools.count(_FIRST_ODD)
        self._attic: dict[int, bytes] = {}
        self.get = self._records.get

    def __len__(self) -> int:
        return len(self._records)

    @property
    def odd(self) -> int:
        """How many ids came from the counter."""
        return len(self._odd)

    def id_of(self, device: int, ino: int) -> int:
        """The node id of an inode."""
        if device == self._device:
            if ino == self._root:
                return ROOT
            if 1 < ino < _FIRST_ODD:
                return ino
        key = (device, ino)
        nodeid = self._odd.get(key)
        if nodeid is None:
            nodeid = self._odd.setdefault(key, next(self._odd_ids))
            self._odd_keys[nodeid] = key
        return nodeid

    def put(self, nodeid: int, record: bytes) -> None:
        """Know a node, or know it better."""
        self._records[nodeid] = record

    def record(self, nodeid: int) -> bytes:
        """A record, also of a node that was forgotten not long ago.

        Raises:
            FsError: ESTALE: not known.
        """
        record = self._records.get(nodeid) or self._attic.get(nodeid)
        if record is None:
            raise FsError(errno.ESTALE, f"node {nodeid} is not known")
        return record

    def has_name(self, nodeid: int) -> bool:
        """Whether a node was last seen under a name."""
        record = self._records.get(nodeid)
        return record is not None and len(record) > 20 + record[12]

    def forget(self, nodeid: int) -> None:
        """The kernel knows a node no more. Some are remembered for a while: a file handle that a
        program or an NFS client has kept can then still be opened."""
        record = self._records.pop(nodeid, None)
        if record is None:
            return
        self._attic[nodeid] = record
        if len(self._attic) > _KEPT:
            for oldest in itertools.islice(list(self._attic), _KEPT // 4):
                gone = self._attic.pop(oldest, None)
                if gone is not None and oldest >= _FIRST_ODD and oldest not in self._records:
                    self._odd.pop(self._odd_keys.pop(oldest, (0, 0)), None)
