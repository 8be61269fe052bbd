# SPDX-License-Identifier: Apache-2.0
"""Where the bytes are: the answers a filesystem can give to a read.

The vocabulary is the kernel's iomap. A filesystem says where data lies; a *data path* moves it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["NULL_ADDR", "Backing", "Data", "Mapped", "Mapping", "MappingType", "WholeFile"]

NULL_ADDR: Final = 0xFFFF_FFFF_FFFF_FFFF
"""The address of a mapping that has none (IOMAP_NULL_ADDR)."""


class MappingType(enum.IntEnum):
    """iomap types (include/linux/iomap.h)."""

    HOLE = 0
    DELALLOC = 1
    MAPPED = 2
    UNWRITTEN = 3
    INLINE = 4


class Mapping(NamedTuple):
    """``length`` bytes of a file from ``offset`` lie at ``addr`` on ``device``.

    HOLE, DELALLOC and UNWRITTEN read as zeros. ``device`` is an index into
    :attr:`Operations.devices`, from 1; 0 where there is none (then ``addr`` is NULL_ADDR).
    """

    offset: int
    length: int
    type: MappingType
    addr: int = NULL_ADDR
    device: int = 0
    flags: int = 0


class Mapped(NamedTuple):
    """The range that was read, as mappings: sorted and without gaps. They may begin before the
    range and end after it: a filesystem may answer each read with all mappings of the file."""

    mappings: tuple[Mapping, ...]
    length: int
    """Bytes to answer from the read's offset: what was asked, cut at end of file."""


class Backing(NamedTuple):
    """The file is another open file, offset for offset."""

    fd: int


Data = bytes | bytearray | memoryview | Mapped | Backing
"""What ``read`` answers. Bytes shorter than asked mean end of file; so does a ``Backing`` file
that ends, and a ``Mapped`` whose ``length`` is less than was asked."""


class WholeFile(NamedTuple):
    """Where all of a file lies: what ``open`` may say, so that a data path can carry the file
    without asking again (passthrough, lens)."""

    source: Backing | Callable[[], Mapped | None]
    """Another file, open now (it stays the filesystem's and may be closed once
    :meth:`Operations.carried` is called or the file is released); or a function that gives the
    mappings of the whole file when they are needed, ``length`` being the file's, or None where it
    cannot be said."""
    length: int
    """Bytes of the file at present: small files are not worth it."""
