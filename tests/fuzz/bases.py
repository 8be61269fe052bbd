# SPDX-License-Identifier: Apache-2.0
"""The sound images that hostile ones are made of, and images as changes to them."""

from __future__ import annotations

import errno
import functools
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["BASES", "CORPUS", "Image", "Patch", "load"]

CORPUS: Final = Path(__file__).resolve().parent.parent / "corpus"
BASES: Final = ("csum", "plain", "inline", "gdt", "dirty")
"""csum: 4 KiB blocks, checksums, extents. plain: ext3 with 1 KiB blocks. inline: inline data.
gdt: descriptors spread over the groups, with their old checksums. dirty: a journal to replay."""


class Patch(NamedTuple):
    """Bytes to put at an offset."""

    offset: int
    data: bytes


@functools.cache
def load(name: str) -> bytes:
    """The bytes of a base."""
    return lzma.decompress((CORPUS / f"{name}.img.xz").read_bytes())


class Image:
    """A base with patches, as the block source of a reader.

    Args:
        base: the bytes of a base.
        patches: later ones win.
        size: bytes; None = the base's. What a larger image has more is zeros.
    """

    def __init__(self, base: bytes, patches: Iterable[Patch] = (), size: int | None = None) -> None:
        self.base = base
        self.patches = list(patches)
        self.size = len(base) if size is None else size

    def pread(self, length: int, offset: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(errno.EIO, f"read of {length} bytes at {offset} of {self.size}")
        end = offset + length
        data = self.base[offset:end]
        if len(data) < length:
            data += bytes(length - len(data))
        if not any(at < end and at + len(new) > offset for at, new in self.patches):
            return data
        mutable = bytearray(data)
        for at, new in self.patches:
            low, high = max(at, offset), min(at + len(new), end)
            if low < high:
                mutable[low - offset : high - offset] = new[low - at : high - at]
        return bytes(mutable)

    def bytes(self) -> bytes:
        """All of it; for images that are not sparse."""
        return self.pread(self.size, 0)
