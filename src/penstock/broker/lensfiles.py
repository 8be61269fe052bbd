# SPDX-License-Identifier: Apache-2.0
"""Backing files that lie in an image: made by a lens, registered, and given up together."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from penstock.broker.backings import Backings
from penstock.broker.lens import Lens, LensFile
from penstock.broker.protocol import Extent

__all__ = ["LensFiles"]


class LensFiles:
    """For one thread at a time.

    Args:
        backings: where they are registered.
        lens: what makes them; None: there can be none.
    """

    def __init__(self, backings: Backings, lens: Lens | None) -> None:
        self._backings = backings
        self._lens = lens
        self._files: dict[int, LensFile] = {}

    def map(self, node: int, length: int, extents: Sequence[Extent]) -> int:
        """The number of an inode's backing file; where it has one already, that one's.

        Args:
            node: the inode.
            length: bytes of the file.
            extents: where they lie in the image.

        Raises:
            OSError: EOPNOTSUPP (there is no lens), EINVAL (there is no inode 0), and what
                :meth:`Lens.put` and :meth:`Backings.add` raise.
        """
        known = self._backings.known(node)
        if known:
            return known
        if self._lens is None:
            raise OSError(errno.EOPNOTSUPP, "there is no lens")
        if node == 0:
            raise OSError(errno.EINVAL, "there is no inode 0")
        file = self._lens.put(length, extents)
        try:
            number = self._backings.add(node, file.fd)
        except OSError:
            os.close(file.fd)
            self._lens.forget(file)
            raise
        os.close(file.fd)
        self._files[node] = file
        return number

    def release(self, node: int) -> None:
        """The inode's backing file is not needed any more, whether or not it lies in the image."""
        self._backings.release(node)
        file = self._files.pop(node, None)
        if file is not None and self._lens is not None:
            self._lens.forget(file)
