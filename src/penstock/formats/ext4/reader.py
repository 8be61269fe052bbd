# SPDX-License-Identifier: Apache-2.0
"""An ext2, ext3 or ext4 image, read.

:class:`Ext4Reader` joins the modules of this package. It only ever reads; a dirty journal is
replayed in memory, as a map of blocks through which everything is seen.

What it raises, whatever the image: :class:`CorruptImage` (with :class:`BadChecksum`),
:class:`UnsupportedFeature`, and the ``OSError`` of the source. Each call makes a bounded number of
steps and keeps a bounded amount of memory. It may be used by several threads at once.

Encrypted trees: attributes can be read; names and content answer ENOKEY, as the kernel does without
the key. Directories that ignore case: names are matched byte for byte, since case folding needs the
kernel's Unicode tables; a name that differs in case is not found.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from penstock.formats.errors import BadChecksum, CorruptImage, UnsupportedFeature
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.changes import DirectoryChanges
from penstock.formats.ext4.directory import (
    FEW_BLOCKS,
    INDEXED_PATIENCE,
    DirRecord,
    find_linear,
    known_names,
    read_directory,
)
from penstock.formats.ext4.format import Compat, Incompat, InodeFlag, MmpBlock, State
from penstock.formats.ext4.groups import GroupTable
from penstock.formats.ext4.htree import BrokenIndex, find_indexed
from penstock.formats.ext4.inline import find_inline, read_inline, read_inline_directory
from penstock.formats.ext4.inode import Inode, InodeTable
from penstock.formats.ext4.journal import ReplayResult, replay
from penstock.formats.ext4.journalfile import open_journal
from penstock.formats.ext4.mapping import Extent, ExtentKind, file_extents, seek
from penstock.formats.ext4.overlay import Overlay
from penstock.formats.ext4.statfs import FsCounts, count_space
from penstock.formats.ext4.superblock import Superblock, parse_superblock
from penstock.formats.ext4.volume import JOURNAL_MAGIC, Volume
from penstock.formats.ext4.xattr import list_xattrs, read_xattr, read_xattrs
from penstock.formats.layout import unpack
from penstock.formats.source import BlockSource

__all__ = ["EncryptedContent", "Ext4Reader"]

_ATTEMPTS: Final = 3
_ENCRYPT: Final = int(InodeFlag.ENCRYPT)
_EA_INODE: Final = int(InodeFlag.EA_INODE)
_INDEX: Final = int(InodeFlag.INDEX)
_INDEX_AND_CASEFOLD: Final = _INDEX | int(InodeFlag.CASEFOLD)
_INLINE_DATA: Final = int(InodeFlag.INLINE_DATA)


class EncryptedContent(UnsupportedFeature):
    """Names or content that are ciphertext (ENOKEY)."""

    errno = errno.ENOKEY


class Ext4Reader:
    """An open image.

    Args:
        source: the image, or the partition of one.
        replay: see the filesystem as it is after its journal has been replayed; False sees it as
            it lies on disk, which may be inconsistent.
        verify: check metadata checksums, where the filesystem has them.
        cache_size: bytes of metadata to keep, about.

    Raises:
        CorruptImage, UnsupportedFeature, OSError: it cannot be read.
    """

    def __init__(
        self,
        source: BlockSource,
        *,
        replay: bool = True,
        verify: bool = True,
        cache_size: int = 16 << 20,
    ) -> None:
        self.source = source
        self.journal: ReplayResult | None = None
        self.warnings: list[str] = []
        """What a user should know of the image, a line each."""
        self.superblock: Superblock = _read_superblock(source, verify=verify)
        self.block_size: int = self.superblock.block_size
        self._volume = Volume(
            source, self.superblock, verify=verify, cache_size=cache_size // 4 * 3
        )
        self._groups = GroupTable(self._volume)
        self._inodes = InodeTable(self._volume, self._groups, cache_size // 4)
        self._directories: Mapping[int, DirectoryChanges] = {}
        """By inode, what fast commits changed of the names in a directory."""
        if self.superblock.needs_recovery:
            if replay:
                self._replay(verify=verify, cache_size=cache_size)
            else:
                self.warnings.append("the journal has not been replayed: files may be out of date")
        self._xattr_space = self.block_size * self.superblock.cluster_ratio // 512
        self._counts: FsCounts | None = None
        self._warn()

    def _replay(self, *, verify: bool, cache_size: int) -> None:
        """See the image through its journal from now on."""
        volume = self._volume
        if not self.superblock.compat & Compat.HAS_JOURNAL:
            self.warnings.append("needs recovery but has no journal: files may be out of date")
            return
        journal = open_journal(volume, self._inodes)
        self.journal = replay(self.superblock, journal, volume.blocks_count)
        self.warnings += self.journal.warnings
        volume.set_map(self.journal.map)
        block, offset = divmod(fmt.SUPERBLOCK_OFFSET, self.block_size)
        data = volume.read_run(block, 1)[offset : offset + fmt.SUPERBLOCK_SIZE]
        self.superblock = parse_superblock(data, self.source.size, verify=verify)
        if self.superblock.block_size != self.block_size:
            raise CorruptImage("the superblock in the journal has another block size")
        volume.set_superblock(self.superblock)
        self._groups = GroupTable(volume)
        self._inodes = InodeTable(volume, self._groups, cache_size // 4)
        if self.journal.fast_commit is not None:
            overlay = Overlay(self.journal.fast_commit, self.superblock, self._inodes.raw)
            self._inodes.set_overlay(overlay)
            self._directories = overlay.directories
            volume.ranges = overlay.ranges
            volume.parsed.clear()

    def read_block(self, block: int) -> bytes:
        """One block as it is after replay.

        Raises:
            CorruptImage: there is no such block.
        """
        return self._volume.read_block(block)

    def inode(self, ino: int) -> Inode:
        """An inode that a name can lead to.

        Raises:
            CorruptImage: it is bad, free (then ``errno`` is ESTALE), or not meant for users.
        """
        if ino < self.superblock.first_ino and ino != fmt.ROOT_INO:
            raise CorruptImage(f"inode {ino} is reserved, no name may lead to it")
        inode = self._inodes.inode(ino)
        if inode.flags & _EA_INODE:
            raise CorruptImage(f"inode {ino} holds an extended attribute, no name may lead to it")
        return inode

    def lookup(self, directory: Inode, name: bytes) -> int | None:
        """The inode number under ``name``; None if there is none.

        Raises:
            NotADirectoryError: ``directory`` is none.
            EncryptedContent: its names are ciphertext.
            CorruptImage: it is bad.
        """
        self._check_directory(directory)
        changes = self._directories.get(directory.ino)
        if changes is not None:
            return changes.find(name, lambda: self._find(directory, name))
        return self._find(directory, name)

    def _find(self, directory: Inode, name: bytes) -> int | None:
        """As :meth:`lookup`, in the blocks of the directory."""
        if directory.flags & _INLINE_DATA:
            return find_inline(self._volume, self._inodes, directory, name)
        indexed = directory.flags & _INDEX_AND_CASEFOLD == _INDEX  # folded names are hashed
        if indexed and directory.size > FEW_BLOCKS * self.block_size:
            names = known_names(self._volume, directory, INDEXED_PATIENCE)
            if names is not None:
                return names.get(name)
            try:
                return find_indexed(self._volume, directory, name)
            except BrokenIndex:
                return find_linear(self._volume, directory, name)
        return find_linear(self._volume, directory, name)

    def readdir(self, directory: Inode, cookie: int = 0) -> Iterator[DirRecord]:
        """The entries of a directory after position ``cookie`` (0 = all), ``.`` and ``..`` too.

        Raises:
            NotADirectoryError: ``directory`` is none.
            EncryptedContent: its names are ciphertext.
            CorruptImage: it is bad; after the entries before the bad place.
        """
        self._check_directory(directory)
        changes = self._directories.get(directory.ino)
        if changes is not None:
            return changes.records(partial(self._entries, directory), cookie, self._type_of)
        return self._entries(directory, cookie)

    def _type_of(self, ino: int) -> int:
        """``DT_*`` of an inode."""
        return int.from_bytes(self._inodes.raw(ino)[:2], "little") >> 12

    def _entries(self, directory: Inode, cookie: int) -> Iterator[DirRecord]:
        """As :meth:`readdir`, in the blocks of the directory."""
        if directory.flags & _INLINE_DATA:
            return read_inline_directory(self._volume, self._inodes, directory, cookie)
        return read_directory(self._volume, directory, cookie)

    def extents(self, inode: Inode, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """Where the bytes of a file lie.

        Args:
            inode: the file.
            start: first byte.
            end: exclusive; None = the file's size. What lies beyond the size is told when it is
                asked for.

        Returns:
            Extents in order and without gaps, found one by one as they are asked for.

        Raises:
            EncryptedContent: the content is ciphertext.
            CorruptImage: the map of the file is bad.
        """
        if inode.flags & _ENCRYPT:
            raise EncryptedContent(f"inode {inode.ino}: content is encrypted")
        return file_extents(self._volume, inode, start, inode.size if end is None else end)

    def seek(self, inode: Inode, start: int, data: bool) -> int | None:
        """The first byte from ``start`` on that is data, or that is a hole.

        Args:
            inode: the file.
            start: byte to begin at; from the file's size on there is nothing to find.
            data: look for data; False = for a hole, which the end of a file is too.

        Returns:
            None if there is none.

        Raises:
            EncryptedContent: the content is ciphertext.
            CorruptImage: the map of the file is bad.
        """
        if inode.flags & _ENCRYPT:
            raise EncryptedContent(f"inode {inode.ino}: content is encrypted")
        return seek(self._volume, inode, start, data=data) if start < inode.size else None

    def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes of a file from ``offset``, cut at its size.

        Raises:
            EncryptedContent: the content is ciphertext.
            CorruptImage: the map of the file is bad.
        """
        end = min(offset + length, inode.size)
        pieces = []
        pread = self.source.pread
        for at, size, kind, address in self.extents(inode, offset, end):
            if kind == ExtentKind.MAPPED:
                pieces.append(pread(size, address))
            elif kind == ExtentKind.ESCAPED:
                # Only the block's first four bytes differ, and the extent may begin among them.
                head = JOURNAL_MAGIC[at % self.block_size :][:size]
                pieces.append(head + pread(size, address)[len(head) :])
            elif kind == ExtentKind.INLINE:
                pieces.append(read_inline(self._inodes, inode)[at : at + size])
            else:
                pieces.append(bytes(size))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readlink(self, inode: Inode) -> bytes:
        """The target of a symlink.

        Raises:
            OSError: EINVAL, it is none.
            EncryptedContent: the target is ciphertext.
            CorruptImage: it is bad.
        """
        if not inode.is_symlink:
            raise OSError(errno.EINVAL, f"inode {inode.ino} is not a symlink")
        if inode.flags & _ENCRYPT:
            raise EncryptedContent(f"inode {inode.ino}: target is encrypted")
        if self._is_fast_symlink(inode):
            target = inode.block[: inode.size]
        elif inode.size > self.block_size:
            raise CorruptImage(f"inode {inode.ino}: symlink of {inode.size} bytes")
        else:
            target = self.read(inode, 0, inode.size)
        target = target.split(b"\0", 1)[0]
        if not target:
            raise CorruptImage(f"inode {inode.ino}: symlink without a target")
        return target

    def _is_fast_symlink(self, inode: Inode) -> bool:
        """Whether the target is in the inode: short, and no block is in use but for xattrs."""
        if inode.size >= fmt.N_BLOCKS_BYTES or inode.flags & _INLINE_DATA:
            return False
        attributes = self._xattr_space if inode.file_acl else 0
        return inode.blocks512 <= attributes

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """All extended attributes that users can see, by full name.

        ACLs have the format of getxattr(2), version 2.

        Raises:
            CorruptImage: they are bad.
        """
        return read_xattrs(self._volume, self._inodes, inode)

    def listxattr(self, inode: Inode) -> list[bytes]:
        """Full names of the extended attributes that users can see.

        Raises:
            CorruptImage: they are bad.
        """
        return list_xattrs(self._volume, self._inodes, inode)

    def getxattr(self, inode: Inode, name: bytes) -> bytes | None:
        """One extended attribute by full name; None if there is none.

        Raises:
            CorruptImage: it is bad.
        """
        return read_xattr(self._volume, self._inodes, inode, name)

    def statfs(self) -> FsCounts:
        """Space and inodes, as the kernel counts them."""
        if self._counts is None:
            self._counts = count_space(self.superblock, self._groups, self._journal_blocks())
        return self._counts

    def _journal_blocks(self) -> int:
        if not self.superblock.journal_inum:
            return 0
        try:
            return self._inodes.inode(self.superblock.journal_inum).size // self.block_size
        except CorruptImage:
            return 0

    def _check_directory(self, inode: Inode) -> None:
        if inode.mode & 0o170000 != stat.S_IFDIR:
            raise NotADirectoryError(errno.ENOTDIR, f"inode {inode.ino} is not a directory")
        if inode.flags & _ENCRYPT:
            raise EncryptedContent(f"directory inode {inode.ino}: names are encrypted")

    def _warn(self) -> None:
        """Say what a user should know."""
        sb = self.superblock
        if sb.raw.state & State.ERROR:
            self.warnings.append("the filesystem has errors on record: run e2fsck")
        if sb.incompat & Incompat.MMP:
            self._warn_in_use(sb.raw.mmp_block)

    def _warn_in_use(self, block: int) -> None:
        """Multiple mount protection: whoever has the filesystem mounted marks this block."""
        try:
            mmp = unpack(MmpBlock, self._volume.read_block(block))
        except CorruptImage as error:
            self.warnings.append(f"multiple mount protection cannot be read: {error}")
            return
        if mmp.magic == fmt.MMP_MAGIC and mmp.seq != fmt.MMP_CLEAN:
            node = mmp.nodename.split(b"\0", 1)[0].decode("utf-8", "replace")
            what = "being checked by e2fsck" if mmp.seq == fmt.MMP_FSCK else "mounted"
            self.warnings.append(
                f"the filesystem seems to be {what} elsewhere (by {node!r}): what is read may "
                "change at any time"
            )


def _read_superblock(source: BlockSource, *, verify: bool) -> Superblock:
    """The superblock; read again if its checksum is bad, since somebody may be writing it."""
    if source.size < fmt.SUPERBLOCK_OFFSET + fmt.SUPERBLOCK_SIZE:
        raise CorruptImage(
            f"not an ext4 filesystem: an image of {source.size} bytes holds no superblock"
        )
    for _ in range(_ATTEMPTS - 1):
        data = source.pread(fmt.SUPERBLOCK_SIZE, fmt.SUPERBLOCK_OFFSET)
        try:
            return parse_superblock(data, source.size, verify=verify)
        except BadChecksum:
            continue
    data = source.pread(fmt.SUPERBLOCK_SIZE, fmt.SUPERBLOCK_OFFSET)
    return parse_superblock(data, source.size, verify=verify)
