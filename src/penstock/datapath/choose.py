# SPDX-License-Identifier: Apache-2.0
"""Which data path carries what, and why not another.

Whole files are carried by the kernel where there is somebody to register them: the ``lens`` for
what lies in an image, ``passthrough`` for what is a file elsewhere (``whole.py`` decides which).
What has to be read takes one of two paths that need nothing but /dev/fuse:

``copy``
    the server reads into memory and writes the reply: two system calls, two copies.
``splice``
    image → pipe → /dev/fuse: four system calls and more, one copy in the kernel, none here.

So small reads are cheaper by copy, large ones by splice; where they cross is
:data:`SPLICE_FROM`, measured with ``make bench``. ``auto`` decides per read by its length.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from penstock.datapath.ranges import file_ranges
from penstock.datapath.whole import SMALL, WholeFiles
from penstock.fs import Backing, Mapped, OpenReply
from penstock.session import FileBody, FileRange

__all__ = ["SPLICE_FROM", "WORDS", "DataPathStatistics", "PathStatistics", "Paths"]

SPLICE_FROM: Final = 128 << 10
"""Reads of at least so many bytes go by splice under ``auto``."""

WORDS: Final = ("auto", "copy", "splice", "lens", "passthrough")
"""The words that ``-o datapath=`` takes."""

_WHOLE: Final = {
    "passthrough": "takes files to pass through to, and CAP_SYS_ADMIN to register them",
    "lens": "takes an image, and CAP_SYS_ADMIN to mount the EROFS instance and register its files",
}
_NOT_HERE: Final = {
    "reflink": "takes a read-write mount of an image on XFS or btrfs; images are mounted read-only",
    "iomap": "takes a kernel with the FUSE iomap extension",
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
    opens: dict[str, int]
    """Opened files by the path that carries them; empty where files are not opened one by one."""


class Paths:
    """The session's :class:`DataPaths`.

    Args:
        word: one of :data:`WORDS`.
        files: what carries whole files, None if nothing does.
        reasons: why other paths for whole files are not there.
        splice_refused: why splice cannot work here, None if it can.

    Raises:
        ValueError: an unknown word, or splice was asked for and is impossible.
    """

    def __init__(
        self,
        word: str = "auto",
        *,
        files: WholeFiles | None = None,
        reasons: Mapping[str, str] = {},
        splice_refused: str | None = None,
    ) -> None:
        if word in _WHOLE and files is None:
            raise ValueError(f"datapath={word}: {reasons.get(word, _WHOLE[word])}")
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
        self._files = files
        self._reasons = _WHOLE | _NOT_HERE | dict(reasons)
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

    def opened(self, nodeid: int, flags: int, reply: OpenReply) -> OpenReply:
        return reply if self._files is None else self._files.opened(nodeid, flags, reply)

    def stored(self, nodeid: int, reply: OpenReply) -> int:
        return 0 if self._files is None else self._files.stored(nodeid, reply)

    def released(self, nodeid: int) -> None:
        if self._files is not None:
            self._files.released(nodeid)

    def forgotten(self, nodeid: int) -> None:
        if self._files is not None:
            self._files.forgotten(nodeid)

    def content(self, data: Mapped, devices: Sequence[int]) -> FileBody:
        return FileBody(file_ranges(data, 0, devices), data.length, splice=False, exact=True)

    def idle(self) -> None:
        if self._files is not None:
            self._files.idle()

    def sweep(self) -> None:
        """Give up what has not been used for long."""
        if self._files is not None:
            self._files.sweep()

    def refuse_splice(self, reason: str) -> None:
        """Splice has failed on this mount: use copy from now on, remembering why."""
        self._splice_refused = reason
        self._set_threshold()

    def statistics(self) -> DataPathStatistics:
        """A snapshot; from any thread."""
        with self._lock:
            copied, spliced = self._reads[False], self._reads[True]
            reads = {"copy": PathStatistics(*copied), "splice": PathStatistics(*spliced)}
        read_by, reasons = self._read_by()
        reasons = {name: text for name, text in self._reasons.items() if text} | reasons
        files = self._files
        if files is None:
            return DataPathStatistics(read_by, reasons, reads, {})
        opens = {files.path: files.carried, read_by: files.read}
        reasons.pop(files.path, None)
        if files.refusal:
            reasons[files.path] = files.refusal
            return DataPathStatistics(read_by, reasons, reads, opens)
        why = f"{files.path} carries files without asking"
        if files.refused:
            why += f"; {files.refused} could not be: {files.why_refused}"
        if self._word == "auto":
            why += f"; what is under {SMALL[files.path] >> 10} KiB is read"
        for name in ("splice", "copy"):
            reasons[name] = why if name == read_by else reasons[name]
        return DataPathStatistics(files.path, reasons, reads, opens)

    def _read_by(self) -> tuple[str, dict[str, str]]:
        """The path of what is read, and why not the other."""
        if self._splice_refused or self._word == "copy":
            return "copy", {"splice": self._splice_refused or "datapath=copy was asked for"}
        if self._word == "splice":
            return "splice", {"copy": "datapath=splice was asked for"}
        text = f"carries reads under {SPLICE_FROM >> 10} KiB: they need fewer system calls so"
        return "splice", {"copy": text}
