# SPDX-License-Identifier: Apache-2.0
"""The lens, tried on a small image in a nameless file: a file put, read, mapped, registered."""

from __future__ import annotations

import mmap
import os
from typing import Any, Final

from penstock.broker.carriers import try_backing
from penstock.broker.lens import Lens
from penstock.broker.protocol import Extent
from penstock.cli.probes.base import nameless_file

__all__ = ["lens_trial"]

_BLOCK: Final = 4096
_BLOCKS: Final = 8
_LENGTH: Final = 3 * _BLOCK + 100
_EXTENTS: Final = (Extent(0, _BLOCK, 5 * _BLOCK), Extent(2 * _BLOCK, _BLOCK + 100, 2 * _BLOCK))
"""Out of order in the image, with a hole and a tail."""
_DEEPEST: Final = 2


def lens_trial() -> dict[str, Any]:
    """Make a lens on an image, and use it.

    Returns:
        ``place``: the directory of the image; ``loop``: whether it took loop devices; ``depth``:
        how deep its files are stacked, as backing files; ``stage`` and ``reason``: what failed, and
        by what, both empty if all worked.

    Raises:
        OSError: the lens cannot be made.
    """
    with nameless_file() as (image, place):
        content = os.urandom(_BLOCKS * _BLOCK)
        image.write(content)
        image.flush()
        with Lens(image.fileno(), 0, len(content), _BLOCK) as lens:
            file = lens.put(_LENGTH, _EXTENTS)
            try:
                stage, reason, depth = "read", "what was read is wrong", 0
                if _right(file.fd, content):
                    depth, reason = _backing(file.fd)
                    stage = "register" if reason else ""
            finally:
                os.close(file.fd)
            return {
                "place": place,
                "loop": lens.on_loop,
                "depth": depth,
                "stage": stage,
                "reason": reason,
            }


def _right(fd: int, image: bytes) -> bool:
    """Whether a file of the lens has the content that its extents say, read and mapped."""
    expected = bytearray(_LENGTH)
    for offset, length, address in _EXTENTS:
        expected[offset : offset + length] = image[address : address + length]
    with mmap.mmap(fd, _LENGTH, prot=mmap.PROT_READ) as mapped:
        return os.pread(fd, _LENGTH + 1, 0) == expected and mapped[:] == expected


def _backing(fd: int) -> tuple[int, str]:
    """How deep a file is stacked that could be registered, or why none can be."""
    reason = ""
    for depth in range(1, _DEEPEST + 1):
        try:
            try_backing(fd, depth)
        except OSError as error:
            reason = reason or error.strerror or str(error)
        else:
            return depth, ""
    return 0, reason
