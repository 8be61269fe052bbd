# SPDX-License-Identifier: Apache-2.0
"""Which data path carries a read, and why not another.

Two paths need nothing but /dev/fuse:

``copy``
    the server reads into memory and writes the reply: two system calls, two copies.
``splice``
    image → pipe → /dev/fuse: four system calls and more, one copy in the kernel, none here.

So small reads are cheaper by copy, large ones by splice; where they cross is
:data:`SPLICE_FROM`, measured with ``make bench``. ``auto`` decides per read by its length.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from penstock.datapath.ranges import file_ranges
from penstock.fs import Backing, Mapped
from penstock.session import FileBody, FileRange

__all__ = ["SPLICE_FROM", "WORDS", "DataPathStatistics", "PathStatistics", "ReadPaths"]

SPLICE_FROM: Final = 128 << 10
"""Reads of at least so many bytes go by splice under ``auto``."""

WORDS: Final = ("auto", "copy", "splice")
"""The words that ``-o datapath=`` takes."""

_NOT_HERE: Final = {
    "passthrough": "needs files to pass through to, and CAP_SYS_ADMIN to register them",
    "lens": "needs CAP_SYS_ADMIN to mount the EROFS instance, which this version does not",
    "reflink": "needs CAP_SYS_ADMIN, a read-write mount, and an image on XFS or btrfs",
    "iomap": "needs a kernel with the FUSE iomap extension",
}


@dataclass(frozen=True, slots=True)
class PathStatistics:
    """Reads carried by one data path."""

    reads: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DataPathStatistics:
    """A snapshot: the path in use, why not the others, what each has carried."""

    datapath: str
    reasons: dict[str, str]
    reads: dict[str, PathStatistics]


class ReadPaths:
    """The session's :class:`DataPaths`: copy and splice.

    Args:
        word: ``auto``, ``copy`` or ``splice``.
        splice_refused: why splice cannot work here, None if it can.

    Raises:
        ValueError: an unknown word, or splice was asked for and is impossible.
    """

    def __init__(self, word: str = "auto", *, splice_refused: str | None = None) -> None:
        if word not in WORDS:
            reason = _NOT_HERE.get(word)
            raise ValueError(
                f"datapath={word}: {reason}"
                if reason
                else f"datapath={word}: not one of {', '.join(WORDS)}"
            )
        if word == "splice" and splice_refused:
            raise ValueError(f"datapath=splice: {splice_refused}")
        self._word = word
        self._splice_refused = splice_refused
        self._lock = threading.Lock()
        self._reads = {False: [0, 0], True: [0, 0]}
        self._set_threshold()

    def _set_threshold(self) -> None:
        if self._word == "copy" or self._splice_refused:
            self._splice_from = 1 << 62
        else:
            self._splice_from = 0 if self._word == "splice" else SPLICE_FROM

    def mapped(self, data: Mapped, offset: int, devices: Sequence[int]) -> FileBody:
        return self._body(file_ranges(data, offset, devices), data.length, exact=True)

    def backing(self, data: Backing, offset: int, size: int) -> FileBody:
        return self._body((FileRange(data.fd, offset, size),), size, exact=False)

    def _body(self, ranges: tuple[FileRange, ...], length: int, *, exact: bool) -> FileBody:
        splice = length >= self._splice_from and length > 0
        with self._lock:
            row = self._reads[splice]
            row[0] += 1
            row[1] += length
        return FileBody(ranges, length, splice, exact)

    def refuse_splice(self, reason: str) -> None:
        """Splice has failed on this mount: use copy from now on, remembering why."""
        self._splice_refused = reason
        self._set_threshold()

    def statistics(self) -> DataPathStatistics:
        """A snapshot; from any thread."""
        with self._lock:
            copied, spliced = self._reads[False], self._reads[True]
            reads = {"copy": PathStatistics(*copied), "splice": PathStatistics(*spliced)}
        reasons = dict(_NOT_HERE)
        if self._word == "auto" and not self._splice_refused:
            used = "splice"
            reasons["copy"] = (
                f"carries reads under {SPLICE_FROM >> 10} KiB: they need fewer system calls so"
            )
        elif self._word == "splice" and not self._splice_refused:
            used = "splice"
            reasons["copy"] = "datapath=splice was asked for"
        else:
            used = "copy"
            reasons["splice"] = self._splice_refused or "datapath=copy was asked for"
        return DataPathStatistics(used, reasons, reads)
