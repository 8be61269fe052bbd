# SPDX-License-Identifier: Apache-2.0
"""The lens: a private EROFS instance whose only content is where files lie in an image.

EROFS can say of a file that its chunks lie on *another* device. So the broker keeps one instance
for each image, mounted nowhere, whose other device is that image; each file of the image that is
opened becomes an inode of it. Opened, that inode is a regular file whose reads, readahead, page
cache and mappings are the kernel's own, and a backing file for FUSE.

Invariants
    - Everything that is written here is made of integers that were checked: what a server says of a
      file must be in ascending order, in whole blocks, and inside the window of the image.
    - Nothing of an inode is changed once it can be opened, and no place is used twice.

Facts about EROFS (fs/erofs)
    - Inodes are read when they are first asked for, by number, which need not be in a directory. So
      they can be added while it is mounted.
    - With a link count of 0 an inode leaves the kernel's cache with its last user.
    - Where the chunks of a file lie is read whenever a page of it is: it must stay there as long as
      the file is open, which it is as long as it is mapped. A mapping by way of FUSE holds the
      backing file and not the FUSE file, of which RELEASE is sent before: so nobody is told when it
      ends. But a lease for writing is granted only to who alone has the file open (F_SETLEASE, by
      the file's owner).
    - What a chunk may be long is any power of two that divides each border of an extent. The longer
      the fewer are looked up, and the faster it reads.
    - The instance's own file can be a regular one only where the filesystem has ``read_folio``,
      which tmpfs and overlayfs have not (ENOTBLK); the image may be on any. All of it lies in
      regular files or all of it on block devices. On files it takes no O_DIRECT.
    - It reads its devices block by block, and asks for no part of a sector: whatever of it lies on
      a device with larger sectors than its blocks is EIO, and mounting it tells nothing of that.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import os
import stat
import struct
from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from penstock.abi.mount import MountAttr
from penstock.abi.process import NOBODY
from penstock.broker.protocol import Extent
from penstock.formats.erofs.format import (
    DEVICE_SLOT_SIZE,
    MAX_BLOCK_BITS,
    MIN_BLOCK_BITS,
    NID_UNIT,
    NULL_BLOCK,
    SUPER_MAGIC,
    SUPERBLOCK_OFFSET,
    ChunkFormat,
    DeviceSlot,
    Dirent,
    ExtendedInode,
    FileType,
    Incompat,
    Layout,
    Superblock,
    inode_format,
)
from penstock.formats.layout import struct_of
from penstock.sys import mount as sysmount
from penstock.sys.files import fallocate
from penstock.sys.handles import open_handle
from penstock.sys.loop import attach_loop, sector_size

__all__ = ["MAX_BYTES", "MAX_CHUNKS", "Lens", "LensFile", "block_bits_of"]

MAX_CHUNKS: Final = 1 << 18
"""Of one file: with 4 KiB blocks, a file of 1 GiB of which no two blocks lie together."""
MAX_BYTES: Final = 1 << 28
"""Of all files that are there at one time: what a server can have written to the disk."""

_META_BYTES: Final = 1 << 40
_PAGE: Final = 4096
_META_BLOCK: Final = 1
_DEVICE_SLOT: Final = 9
_ROOT: Final = _PAGE
_FIRST: Final = 2 * _PAGE
_HANDLE_TYPE: Final = 0x81
"""FILEID_INO64_GEN with the number's upper half first, as fs/erofs/super.c has it."""
_HANDLE: Final = struct.Struct("=Ii III")
"""``struct file_handle``: its length and type, then what EROFS makes of it."""
_INDEXES: Final = int(ChunkFormat.INDEXES)
_CHUNKED: Final = inode_format(Layout.CHUNK_BASED, extended=True)
_INLINE: Final = inode_format(Layout.FLAT_INLINE, extended=True)
_INODE: Final = struct_of(ExtendedInode).pack
_HOLE: Final = 0xFFFF | NULL_BLOCK << 32
_DEVICE: Final = 1 << 16
_MAX_CHUNK_BITS: Final = 31
_LOOKED_AT: Final = 3
"""Files that are on their way out, at a time."""
_FALLOC_PUNCH: Final = 1 | 2
_PLACES: Final = ("/var/tmp", "/tmp", "/run")  # noqa: S108 - the file has no name there
_BDI: Final = "/sys/class/bdi"
_RETRY: Final = frozenset({errno.ENOTBLK, errno.EINVAL, errno.EOPNOTSUPP})


class LensFile(NamedTuple):
    """A file of the lens."""

    fd: int
    """Open for reading; owned by whoever got this."""
    place: int
    """Where its inode lies, for :meth:`Lens.forget`."""
    size: int
    """Bytes of the inode with its chunks."""


def block_bits_of(offset: int, length: int, block_size: int) -> int:
    """The binary logarithm of the blocks that a lens for a window of an image has.

    Args:
        offset: where the window begins, bytes.
        length: bytes of the window.
        block_size: bytes of the filesystem's blocks.

    Raises:
        OSError: EINVAL: it does not begin at a multiple of 512 bytes; EFBIG: the image has more
            blocks than 32 bits can count.
    """
    common = offset | block_size | 1 << MAX_BLOCK_BITS
    bits = (common & -common).bit_length() - 1
    if bits < MIN_BLOCK_BITS:
        raise OSError(errno.EINVAL, "the filesystem does not begin at a multiple of 512 bytes")
    if (offset + length) >> bits >= NULL_BLOCK:
        limit = 1 << bits + 32 - 40
        text = f"the image is over {limit} TiB, with blocks of {1 << bits} bytes"
        raise OSError(errno.EFBIG, text)
    return bits


class Lens:
    """A lens on the window of an image. A context manager.

    Args:
        image: the image, open for reading; stays the caller's.
        offset: where the window begins in it, bytes.
        length: bytes of the window.
        block_size: of the filesystem in it, bytes.
        readahead: bytes that the kernel reads ahead in files; 0 = as it sees fit.

    Raises:
        OSError: EPERM, ENODEV (no EROFS in the kernel), EINVAL (the image is a device with larger
            sectors than the blocks), and what :func:`block_bits_of` raises.
    """

    def __init__(
        self, image: int, offset: int, length: int, block_size: int, *, readahead: int = 0
    ) -> None:
        self._bits = block_bits_of(offset, length, block_size)
        self._begin, self._end = offset, offset + length
        self._next = _FIRST
        self._used = 0
        self._leaving: collections.deque[LensFile] = collections.deque()
        self.on_loop = False
        """Whether it lies on loop devices; only then it takes O_DIRECT."""
        with contextlib.ExitStack() as undo:
            meta = _unlinked_file()
            undo.callback(os.close, meta)
            os.ftruncate(meta, _META_BYTES)
            self._meta = meta
            self._write_head(meta)
            before = _bdis()
            self._mount = self._mounted(meta, image)
            undo.callback(os.close, self._mount)
            path_only = self._mount
            self._root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=path_only)
            undo.pop_all()
        if readahead:
            _set_readahead(_bdis() - before, readahead)

    # The instance

    def _mounted(self, meta: int, image: int) -> int:
        """The instance, mounted nowhere."""
        if stat.S_ISREG(os.fstat(image).st_mode):
            try:
                return _mount_erofs(meta, image)
            except OSError as error:
                if error.errno not in _RETRY:
                    raise
        size = 1 << self._bits
        if stat.S_ISBLK(os.fstat(image).st_mode) and (sector := sector_size(image)) > size:
            text = f"the device has sectors of {sector} bytes, and the blocks are of {size}"
            raise OSError(errno.EINVAL, text)
        with contextlib.ExitStack() as both:
            device = attach_loop(meta, block_size=size, writable=True)
            both.callback(os.close, device)
            if stat.S_ISREG(os.fstat(image).st_mode):
                image = attach_loop(image, block_size=size, writable=False)
                both.callback(os.close, image)
            mounted = _mount_erofs(device, image)
            os.dup2(device, self._meta, inheritable=False)  # what is written goes that way too
        self.on_loop = True
        return mounted

    def _write_head(self, meta: int) -> None:
        """The superblock, the table of devices and a root directory with nothing in it."""
        bits = self._bits
        root = self._number(_ROOT)
        superblock = dict.fromkeys(Superblock._fields, 0)
        superblock.update(
            magic=SUPER_MAGIC,
            block_bits=bits,
            root_nid=root,
            inodes=1,
            blocks=min(_META_BYTES >> bits, NULL_BLOCK),
            meta_blkaddr=_META_BLOCK,
            feature_incompat=Incompat.CHUNKED_FILE | Incompat.DEVICE_TABLE,
            extra_devices=1,
            devt_slotoff=_DEVICE_SLOT,
        )
        names = {"uuid": bytes(16), "volume_name": b"penstock"}
        os.pwrite(
            meta,
            struct_of(Superblock).pack(*Superblock(**superblock | names)),  # type: ignore[arg-type]
            SUPERBLOCK_OFFSET,
        )
        slot = DeviceSlot(b"", self._end + (1 << bits) - 1 >> bits, 0, 0, 0)
        os.pwrite(meta, struct_of(DeviceSlot).pack(*slot), _DEVICE_SLOT * DEVICE_SLOT_SIZE)
        dirent = struct_of(Dirent)
        names_at = 2 * dirent.size
        entries = dirent.pack(root, names_at, FileType.DIRECTORY)
        entries += dirent.pack(root, names_at + 1, FileType.DIRECTORY) + b"..."
        directory = _inode(_INLINE, stat.S_IFDIR | 0o555, len(entries), 0, links=2)
        os.pwrite(meta, directory + entries, _ROOT)

    def _number(self, place: int) -> int:
        return (place - (_META_BLOCK << self._bits)) // NID_UNIT

    # Files

    def put(self, length: int, extents: Sequence[Extent]) -> LensFile:
        """Make a file and open it.

        Args:
            length: bytes of the file.
            extents: where its bytes lie in the image (not the window); what none covers is a hole.

        Raises:
            OSError: EINVAL (they are not in order, not in whole blocks, or not inside the window),
                EFBIG (more chunks than one file may have), ENFILE (than all may have together),
                ENOSPC (the lens is full).
        """
        self._check(length, extents)
        bits = _chunk_bits(length, extents, self._bits)
        count = length + (1 << bits) - 1 >> bits
        if count > MAX_CHUNKS:
            raise OSError(errno.EFBIG, f"the file lies in {count} pieces")
        layout = _INDEXES | bits - self._bits
        inode = _inode(_CHUNKED, stat.S_IFREG | 0o444, length, layout, links=0)
        body = inode + self._indexes(extents, bits, count)
        place = self._next
        if place + len(body) > _META_BYTES:
            raise OSError(errno.ENOSPC, "the lens is full")
        if self._used + len(body) > MAX_BYTES:
            raise OSError(errno.ENFILE, "the files of the lens lie in too many pieces together")
        self._next = place + len(body) + _PAGE - 1 & -_PAGE
        file = LensFile(-1, place, len(body))
        try:
            if os.pwrite(self._meta, body, place) != len(body):
                raise OSError(errno.ENOSPC, "there is no room for the lens")
            fd = self._open(place)
        except OSError:
            self._punch(file)
            raise
        self._used += file.size
        return file._replace(fd=fd)

    def _open(self, place: int) -> int:
        nid = self._number(place)
        handle = _HANDLE.pack(12, _HANDLE_TYPE, nid >> 32, nid & 0xFFFF_FFFF, 0)
        return open_handle(self._root, handle, os.O_RDONLY)

    def _check(self, length: int, extents: Sequence[Extent]) -> None:
        mask = (1 << self._bits) - 1
        begin, end = self._begin, self._end
        position = 0
        if not 0 <= length < 1 << 62:
            raise OSError(errno.EINVAL, "a file of an impossible length")
        for offset, size, address in extents:
            stop = offset + size
            if offset < position or not size or (offset | address) & mask:
                raise OSError(errno.EINVAL, "extents that overlap or are not in whole blocks")
            if stop & mask:
                if stop < length:
                    raise OSError(errno.EINVAL, "an extent that does not end with a block")
                size += -stop & mask
            if address < begin or address + size > end:
                raise OSError(errno.EINVAL, "an extent outside the filesystem")
            position = stop
        if position >= length + mask + 1:
            raise OSError(errno.EINVAL, "an extent behind the end of the file")

    def _indexes(self, extents: Sequence[Extent], bits: int, count: int) -> bytes:
        """The chunk array."""
        indexes = array("Q")
        step = 1 << bits - self._bits + 32
        for offset, size, address in extents:
            first = offset >> bits
            if first >= count:
                break
            if first > len(indexes):
                indexes.extend([_HOLE] * (first - len(indexes)))
            chunks = min(size + (1 << bits) - 1 >> bits, count - first)
            value = (address >> self._bits) << 32 | _DEVICE
            indexes.extend(range(value, value + chunks * step, step))
        indexes.extend([_HOLE] * (count - len(indexes)))
        return indexes.tobytes()

    def forget(self, file: LensFile) -> None:
        """Give back the room of a file, now or when nobody has it open or mapped any more. Its
        place stays unused."""
        self._leaving.append(file)
        for _ in range(min(len(self._leaving), _LOOKED_AT)):
            file = self._leaving.popleft()
            if self._in_use(file):
                self._leaving.append(file)
            else:
                self._used -= file.size
                self._punch(file)

    def _in_use(self, file: LensFile) -> bool:
        """Whether somebody else has a file open; True if that cannot be found out."""
        try:
            fd = self._open(file.place)
        except OSError:
            return True
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(fd)

    def _punch(self, file: LensFile) -> None:
        with contextlib.suppress(OSError):
            fallocate(self._meta, _FALLOC_PUNCH, file.place, file.size + _PAGE - 1 & -_PAGE)

    def close(self) -> None:
        """Close what this holds; files that are open stay usable. Idempotent."""
        for fd in (self._root, self._mount, self._meta):
            if fd >= 0:
                os.close(fd)
        self._root = self._mount = self._meta = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _inode(form: int, mode: int, size: int, union: int, *, links: int) -> bytes:
    return _INODE(*ExtendedInode(form, 0, mode, size, union, 1, NOBODY, NOBODY, 0, 0, links))


def _chunk_bits(length: int, extents: Sequence[Extent], least: int) -> int:
    """The binary logarithm of the largest chunks that every border of an extent divides."""
    borders = 0
    for offset, size, _ in extents:
        borders |= offset
        if offset + size < length:
            borders |= offset + size
    bits = max(length - 1, 1).bit_length()
    if borders:
        bits = min(bits, (borders & -borders).bit_length() - 1)
    return max(least, min(bits, least + _MAX_CHUNK_BITS))


def _unlinked_file() -> int:
    """A file without a name, on a disk where possible."""
    failure: OSError | None = None
    for place in _PLACES:
        try:
            return os.open(place, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except OSError as error:
            failure = failure or error
    raise failure or OSError(errno.ENOENT, "there is no place for temporary files")


def _mount_erofs(meta: int, image: int) -> int:
    context = sysmount.fsopen("erofs")
    try:
        sysmount.fsconfig_string(context, "source", f"/proc/self/fd/{meta}")
        sysmount.fsconfig_string(context, "device", f"/proc/self/fd/{image}")
        sysmount.fsconfig_flag(context, "ro")
        sysmount.fsconfig_create(context)
        attributes = MountAttr.RDONLY | MountAttr.NOSUID | MountAttr.NODEV | MountAttr.NOEXEC
        return sysmount.fsmount(context, attributes)
    except OSError as error:
        said = sysmount.fsopen_log(context)
        raise OSError(error.errno, f"{error.strerror}{f' ({said})' if said else ''}") from error
    finally:
        os.close(context)


def _bdis() -> set[str]:
    """The instances of EROFS that the kernel lists, in files; which is which it does not say."""
    try:
        return {name for name in os.listdir(_BDI) if name.startswith("erofs-")}
    except OSError:
        return set()


def _set_readahead(instances: set[str], size: int) -> None:
    """Have the kernel read ahead so many bytes on the one instance that is new."""
    if len(instances) == 1:
        name = f"{_BDI}/{instances.pop()}/read_ahead_kb"
        with contextlib.suppress(OSError), open(name, "w", encoding="ascii") as file:
            file.write(str(size >> 10))
