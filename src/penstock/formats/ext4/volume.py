# SPDX-License-Identifier: Apache-2.0
"""Blocks of an image: bounds-checked, seen through the replayed journal, cached.

Every other module gets its bytes here. A block whose newest copy lies in the journal is read from
there (see ``journal.py``), so nothing above can see a stale one.

The cache has two generations instead of a least-recently-used list: a hit in the older one moves
to the newer; when the newer is full it becomes the older and the older is dropped. Its steps are
single dictionary operations, so threads share it without a lock; at worst a block is read twice.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from penstock.formats.errors import CorruptImage
from penstock.formats.ext4.format import Incompat
from penstock.formats.ext4.journal import ReplayMap
from penstock.formats.ext4.superblock import Superblock
from penstock.formats.source import BlockSource

if TYPE_CHECKING:
    from penstock.formats.ext4.changes import RangeChanges

__all__ = ["JOURNAL_MAGIC", "Cache", "Volume"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_ALL_ONES: Final = 0xFFFF_FFFF
JOURNAL_MAGIC: Final = b"\xc0\x3b\x39\x98"
"""The first bytes of an escaped block, zeroed in its copy in the log."""


class Cache(Generic[K, V]):
    """A bounded cache of two generations.

    Args:
        limit: the sum of weights that it holds at most.
    """

    __slots__ = ("_half", "_new", "_old", "_weight")

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._new: dict[K, tuple[V, int]] = {}
        self._old: dict[K, tuple[V, int]] = {}
        self._weight = 0

    def get(self, key: K) -> V | None:
        """The value, None if it is not cached."""
        found = self._new.get(key)
        if found is not None:
            return found[0]
        found = self._old.get(key)
        if found is None:
            return None
        self.put(key, *found)
        return found[0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep a value that weighs ``weight`` (bytes)."""
        if self._weight + weight > self._half:
            self._old, self._new, self._weight = self._new, {}, 0
        self._new[key] = (value, weight)
        self._weight += weight

    def clear(self) -> None:
        """Forget everything."""
        self._new, self._old, self._weight = {}, {}, 0


class Volume:
    """An image with its superblock and its replayed journal.

    Args:
        source: the image.
        superblock: its checked superblock.
        verify: check metadata checksums, where the filesystem has them.
        cache_size: bytes of metadata to keep.
    """

    def __init__(
        self, source: BlockSource, superblock: Superblock, *, verify: bool, cache_size: int
    ) -> None:
        self.source = source
        self.map: ReplayMap | None = None
        self.ranges: Mapping[int, RangeChanges] = {}
        """By inode, what fast commits changed of the map of a file."""
        self.verify_checksums = verify
        self._cache: Cache[int, bytes] = Cache(cache_size // 3)
        self.parsed: Cache[tuple[int, int], object] = Cache(cache_size // 3 * 2)
        """Structures decoded from blocks and verified, by (inode, block)."""
        self.superblock = superblock
        self.set_superblock(superblock)

    def set_superblock(self, superblock: Superblock) -> None:
        """Go on with another superblock, the one that the journal holds."""
        self.superblock = superblock
        self.block_size = superblock.block_size
        self.blocks_count = superblock.blocks_count
        self.metadata_csum = self.verify_checksums and superblock.metadata_csum
        self.file_types = bool(superblock.incompat & Incompat.FILETYPE)
        """Whether directory entries record the type of what they name."""
        self.inverted_seed = superblock.seed ^ _ALL_ONES
        """Seed of checksums for :func:`penstock.formats.crc.crc32c`."""

    def set_map(self, replay_map: ReplayMap) -> None:
        """From now on see the image through the journal."""
        self.map = replay_map if len(replay_map) else None
        self._cache.clear()
        self.parsed.clear()

    def check_range(self, block: int, count: int, what: str) -> None:
        """Refuse blocks outside the filesystem.

        Raises:
            CorruptImage: with ``what`` as the thing that names them.
        """
        if not (block > 0 and block + count <= self.blocks_count):
            raise CorruptImage(
                f"{what}: blocks {block} to {block + count - 1} are outside the filesystem of "
                f"{self.blocks_count} blocks"
            )

    def read_block(self, block: int) -> bytes:
        """One block of metadata, from the cache if it is there.

        Raises:
            CorruptImage: the filesystem has no such block.
            OSError: the source's.
        """
        data = self._cache.get(block)
        if data is None:
            if not 0 <= block < self.blocks_count:
                raise CorruptImage(
                    f"block {block} is outside the filesystem of {self.blocks_count} blocks"
                )
            data = self.read_run(block, 1)
            self._cache.put(block, data, self.block_size + 100)
        return data

    def read_run(self, block: int, count: int) -> bytes:
        """Adjacent blocks, uncached. The caller has checked their range.

        Raises:
            OSError: the source's.
        """
        size = self.block_size
        if self.map is None:
            return self.source.pread(count * size, block * size)
        pieces = []
        for address, length, escaped in self.locate(block, count):
            data = self.source.pread(length, address)
            pieces.append(JOURNAL_MAGIC + data[4:] if escaped else data)
        return b"".join(pieces)

    def locate(self, block: int, count: int) -> list[tuple[int, int, bool]]:
        """Where the newest copies of adjacent blocks lie.

        Returns:
            (byte address in the image, length in bytes, escaped) in block order. An escaped
            piece is one block, the first four bytes of which are to be replaced by
            :data:`JOURNAL_MAGIC`.
        """
        size = self.block_size
        replay_map = self.map
        if replay_map is None:
            return [(block * size, count * size, False)]
        pieces = []
        end = block + count
        while block < end:
            moved = replay_map.next_block(block)
            if moved is None or moved >= end:
                moved = end
            if moved > block:
                pieces.append((block * size, (moved - block) * size, False))
            if moved < end:
                found = replay_map.lookup(moved)
                if found is not None:
                    pieces.append((found[0], size, found[1]))
            block = moved + 1
        return pieces
