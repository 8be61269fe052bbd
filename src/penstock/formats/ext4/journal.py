# SPDX-License-Identifier: Apache-2.0
"""Replay of a dirty ext4 journal in memory.

The log of a journal holds newer copies of filesystem blocks. Recovery by the kernel writes them
over the old ones; here nothing is written: :func:`replay` yields a :class:`ReplayMap` from
filesystem block to the place of its newest committed copy in the log, and every read of a block,
of metadata and of file data alike (``data=journal``, ``chattr +j``), goes through that map.

A journal is a ring of transactions with consecutive ids. A transaction is descriptors, each
followed by the copies of the blocks that its tags name, revoke blocks (blocks whose older copies
must not be replayed), and at its end a commit block. Replay therefore goes over the log several
times: find the last committed transaction; gather the tags; gather the revocations; check the
copies.

Facts about damage, as Linux 6.18 treats it, and so this module:

* A log that simply stops (no commit block, or a block that is not of the expected transaction) ends
  there. That is what a crash leaves, and is not damage.
* A block with a wrong checksum in a transaction that has a commit block is damage, unless the
  commit's time is older than that of the transaction before: then it is left over from an earlier
  round of the ring, and the log ends before it.
* A commit block with a wrong checksum is the same, but with ``journal_async_commit`` it is a crash.
* A copy with a wrong checksum is damage.

Damage refuses the mount. Invariants: the image is only read; whatever the bytes are, the result is
a map or one of the errors of :mod:`penstock.formats.errors`; memory is proportional to the *number*
of blocks in the log, never to their content, and every loop ends after one round of the ring.

Specification: Documentation/filesystems/ext4/journal.rst of the Linux kernel.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from penstock.formats.errors import BadChecksum, CorruptImage
from penstock.formats.ext4 import jbd2
from penstock.formats.ext4.fastcommit import FastCommit, read_fast_commit
from penstock.formats.ext4.jbd2 import CommitBlock, Incompat
from penstock.formats.ext4.replaymap import MapBuilder, ReplayMap
from penstock.formats.ext4.superblock import Superblock
from penstock.formats.layout import unpack

__all__ = ["JournalBlocks", "ReplayMap", "ReplayResult", "replay"]

_MAX_REVOKES: Final = 1 << 26
"""Revoke records read from one log: no kernel frees so many metadata blocks in one round of it
(256 GiB of them), and a hostile log must not keep the reader busy."""
_CHUNK: Final = 1 << 20
"""Bytes of copies read at once."""


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


class ReplayResult(NamedTuple):
    """What the journal of an image adds to it."""

    map: ReplayMap
    transactions: int
    """Complete transactions found in the log."""
    fast_commit: FastCommit | None
    """Changes logged after the last of them, or None."""
    warnings: tuple[str, ...]
    """One line each, for a log."""


def replay(superblock: Superblock, journal: JournalBlocks, fs_blocks: int) -> ReplayResult:
    """Read the journal of an image.

    A filesystem that does not need recovery has nothing in its journal, whatever that contains.

    Args:
        superblock: of the image, as it is before replay.
        journal: its journal.
        fs_blocks: blocks of the filesystem; a copy of a later one is corruption.

    Raises:
        CorruptImage, BadChecksum: the journal is damaged (see above).
        UnsupportedFeature: it needs something that this reader does not have.
        OSError: of the source.
    """
    if not superblock.needs_recovery:
        return ReplayResult(ReplayMap(), 0, None, ())
    log = _Log(journal, superblock.block_size, fs_blocks)
    warnings = []
    if log.raw.errno:
        warnings.append(f"the journal was aborted with error {log.raw.errno}: run e2fsck")
    if log.raw.start == 0:
        return ReplayResult(ReplayMap(), 0, None, tuple(warnings))
    found = _scan(log)
    replay_map = _gather(log, found)
    fast = None
    if log.places.fast_first < log.places.fast_last:
        area = range(log.places.fast_first, log.places.fast_last)
        fast = read_fast_commit(map(journal.read, area), found.end, superblock.inode_size)
    return ReplayResult(replay_map, found.transactions, fast, tuple(warnings))


class _Log:
    """The ring of the log. Positions count its blocks from the first one in use, unwrapped."""

    def __init__(self, journal: JournalBlocks, block_size: int, fs_blocks: int) -> None:
        self.journal = journal
        self.block_size = block_size
        self.fs_blocks = fs_blocks
        if journal.count < 1:
            raise CorruptImage("the journal is empty")
        self.raw, self.places = jbd2.parse_journal_superblock(
            journal.read(0), block_size, journal.count
        )
        self.length = self.places.last - self.places.first
        self.tags = jbd2.TagFormat(self.raw.feature_incompat)
        self.checksums = jbd2.Checksums(self.raw.feature_incompat, self.raw.uuid)
        self.tags_end = block_size - self.checksums.tail

    def index(self, position: int) -> int:
        """The journal block at a position."""
        first, last, _, _ = self.places
        index = self.raw.start + position
        return index if index < last else index - last + first

    def read(self, position: int) -> bytes:
        return self.journal.read(self.index(position))

    def address(self, position: int) -> int:
        return self.journal.address(self.index(position))

    def copies(self, position: int, count: int, visit: Callable[[memoryview], None]) -> None:
        """Show ``count`` blocks from ``position`` on to ``visit``, a piece of them at a time."""
        size = self.block_size
        while count:
            index = self.index(position)
            step = min(count, max(1, _CHUNK // size), self.places.last - index)
            visit(memoryview(self.journal.read(index, step)))
            position += step
            count -= step


class _Found:
    """The committed part of a log: where its descriptors and revoke blocks are."""

    def __init__(self) -> None:
        self.descriptors = array("Q")
        self.descriptor_tids = array("I")
        self.revokes = array("Q")
        self.revoke_tids = array("I")
        self.transactions = 0
        self.end = 0
        """Id of the first transaction that is not complete."""

    def cut(self, first_tid: int, end: int) -> None:
        """Drop what belongs to transaction ``end`` and later ones."""
        self.end = end
        self.transactions = _distance(end, first_tid)
        for positions, tids in (
            (self.descriptors, self.descriptor_tids),
            (self.revokes, self.revoke_tids),
        ):
            while tids and _distance(tids[-1], end) >= 0:
                tids.pop()
                positions.pop()


def _distance(tid: int, other: int) -> int:
    """``tid - other``, which wrap around at 2^32."""
    return ((tid - other + 0x8000_0000) & jbd2.TID_MASK) - 0x8000_0000


class _Scan:
    """The first pass: follow the log to its end.

    ``end`` is set by a transaction whose commit block is bad; otherwise the log ends where no
    further block of the expected transaction is found.
    """

    def __init__(self, log: _Log) -> None:
        self.log = log
        self.found = _Found()
        self.tid = log.raw.sequence
        self.end: int | None = None
        self.doubt = False
        """A block of this transaction has a wrong checksum."""
        self.last_time = 0
        self.v1 = bool(log.raw.feature_compat & jbd2.Compat.CHECKSUM)
        self.v1_state = 0

    def run(self) -> _Found:
        log = self.log
        position = 0
        while position < log.length:
            block = log.read(position)
            magic, kind, tid = jbd2.HEADER.unpack_from(block)
            if magic != jbd2.MAGIC or tid != self.tid:
                break
            position += 1
            if kind == jbd2.DESCRIPTOR:
                position = self._descriptor(block, position)
            elif kind == jbd2.REVOKE:
                self._revoke(block, position)
            elif kind != jbd2.COMMIT or not self._commit(block):
                break
        self.found.cut(log.raw.sequence, self.tid if self.end is None else self.end)
        return self.found

    def _descriptor(self, block: bytes, position: int) -> int:
        """Note a descriptor, whose copies begin at ``position``; returns where they end."""
        log = self.log
        if not log.checksums.block_matches(block):
            self.doubt = True
        count = log.tags.count(block, log.tags_end)
        if position + count > log.length:
            return log.length  # overlaps its own beginning: garbage, so the log ends here
        if self.v1:
            self.v1_state = jbd2.v1_checksum(block, self.v1_state)
            log.copies(position, count, self._v1_add)
        self.found.descriptors.append(position)
        self.found.descriptor_tids.append(self.tid)
        return position + count

    def _v1_add(self, data: memoryview) -> None:
        self.v1_state = jbd2.v1_checksum(bytes(data), self.v1_state)

    def _revoke(self, block: bytes, position: int) -> None:
        if not self.log.checksums.block_matches(block):
            self.doubt = True
        self.found.revokes.append(position - 1)
        self.found.revoke_tids.append(self.tid)

    def _commit(self, block: bytes) -> bool:
        """Judge a commit block; False: the log ends here."""
        commit = unpack(CommitBlock, block)
        stale = commit.commit_sec < self.last_time
        if self.doubt:
            if stale:
                return False
            raise BadChecksum(f"journal: a checksum in transaction {self.tid} does not match")
        if self.v1 and self.end is not None:
            raise self._damaged(self.end)
        good = self._v1_matches(commit) if self.v1 else self.log.checksums.commit_matches(block)
        if not good:
            if stale:
                return False
            self.end = self.tid
            if not self.log.raw.feature_incompat & Incompat.ASYNC_COMMIT:
                raise self._damaged(self.tid)
        self.last_time = commit.commit_sec
        self.tid = (self.tid + 1) & jbd2.TID_MASK
        return True

    def _v1_matches(self, commit: CommitBlock) -> bool:
        computed = jbd2.v1_value(self.v1_state)
        self.v1_state = 0
        stored = commit.checksum_type, commit.checksum_size, commit.checksum
        return stored in ((jbd2.CHECKSUM_CRC32, 4, computed), (0, 0, 0))

    @staticmethod
    def _damaged(tid: int) -> BadChecksum:
        return BadChecksum(f"journal: the commit block of transaction {tid} does not match")


def _scan(log: _Log) -> _Found:
    return _Scan(log).run()


def _gather(log: _Log, found: _Found) -> ReplayMap:
    """The second, third and fourth pass: tags, revocations, checksums of copies."""
    builder = MapBuilder()
    for position in found.descriptors:
        block = log.read(position - 1)
        tags = log.tags.tags(block, log.tags_end)
        if max(tags.blocks) >= log.fs_blocks:
            raise CorruptImage(
                f"journal: block {log.index(position - 1)} names a copy of filesystem block "
                f"{max(tags.blocks)}, the filesystem has {log.fs_blocks}"
            )
        builder.add(tags.blocks, position, tags.flags)
    builder.merge()
    revoked = _revoked(log, found, builder.blocks) if found.revokes else {}
    if log.checksums.enabled:
        for position, tid in zip(found.descriptors, found.descriptor_tids, strict=True):
            _verify_copies(log, position, tid, revoked)
    if not revoked:
        return builder.build(log.address, None)

    def keep(block: int, position: int) -> bool:
        last = revoked.get(block)
        if last is None:
            return True
        return (
            _distance(found.descriptor_tids[bisect_right(found.descriptors, position) - 1], last)
            > 0
        )

    return builder.build(log.address, keep)


def _revoked(log: _Log, found: _Found, blocks: array[int]) -> dict[int, int]:
    """The last transaction that revoked each block; only for ``blocks``, which have copies."""
    wanted = frozenset(blocks)
    code = "Q" if log.raw.feature_incompat & Incompat.BIT64 else "I"
    revoked: dict[int, int] = {}
    total = 0
    for position, tid in zip(found.revokes, found.revoke_tids, strict=True):
        block = log.read(position)
        (used,) = jbd2.TAIL.unpack_from(block, jbd2.HEADER.size)
        if used > log.tags_end:
            raise CorruptImage(
                f"journal: block {log.index(position)} is a revoke block of {used} bytes, "
                f"expected at most {log.tags_end}"
            )
        records = array(code)
        size = max(0, used - jbd2.REVOKE_HEADER_SIZE) // records.itemsize * records.itemsize
        records.frombytes(block[jbd2.REVOKE_HEADER_SIZE : jbd2.REVOKE_HEADER_SIZE + size])
        if sys.byteorder == "little":
            records.byteswap()
        total += len(records)
        if total > _MAX_REVOKES:
            raise CorruptImage(f"journal: more than {_MAX_REVOKES} blocks are revoked")
        for number in wanted.intersection(records):
            revoked[number] = tid  # in log order: the last one counts
    return revoked


def _verify_copies(log: _Log, position: int, tid: int, revoked: dict[int, int]) -> None:
    """Check the copies of one descriptor against their tags, unless they are revoked."""
    tags = log.tags.tags(log.read(position - 1), log.tags_end)
    checksum = log.checksums.copy_checksum
    seed = log.checksums.transaction_seed(tid)
    size = log.block_size
    pending = iter(zip(tags.blocks, tags.checksums, strict=True))

    def visit(data: memoryview) -> None:
        for start, (block, stored) in zip(range(0, len(data), size), pending, strict=False):
            if checksum(seed, data[start : start + size]) != stored:
                last = revoked.get(block)
                if last is None or _distance(tid, last) > 0:
                    raise BadChecksum(
                        f"journal: the copy of filesystem block {block} in transaction {tid} "
                        f"does not match its checksum"
                    )

    log.copies(position, len(tags.blocks), visit)
