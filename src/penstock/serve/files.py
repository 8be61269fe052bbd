# SPDX-License-Identifier: Apache-2.0
"""Backing files of a mount that is served by its author's own process: nobody to ask, and nobody to
distrust."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from typing import Final

from penstock.broker.backings import Backings
from penstock.broker.lens import Lens, LensFile
from penstock.broker.protocol import Extent
from penstock.fs import Mapping, MappingType

__all__ = ["OwnBackings"]

_MAPPED: Final = MappingType.MAPPED


class OwnBackings:
    """The session's :class:`Backings`, registered from this process. Safe from any thread.

    Args:
        lens: where the files lie in an image; None: they are files elsewhere. Owned from here on.
    """

    def __init__(self, lens: Lens | None) -> None:
        self._lens = lens
        self._backings: Backings | None = None
        self._files: dict[int, LensFile] = {}
        self._lock = threading.Lock()

    def start(self, device: int) -> None:
        """The connection is there; its descriptor stays the caller's."""
        self._backings = Backings(device, superblock_read_only=False)

    def register(self, node: int, fd: int) -> int:
        """See :class:`penstock.session.Backings`."""
        with self._lock:
            return self._known(node) or self._there.add(node, fd)

    def map(self, node: int, length: int, mappings: Sequence[Mapping]) -> int:
        """See :class:`penstock.session.Backings`."""
        with self._lock:
            known = self._known(node)
            if known:
                return known
            if self._lens is None:
                raise OSError(errno.EOPNOTSUPP, "there is no lens")
            extents = [Extent(m.offset, m.length, m.addr) for m in mappings if m.type is _MAPPED]
            file = self._lens.put(length, extents)
            try:
                number = self._there.add(node, file.fd)
            except OSError:
                os.close(file.fd)
                self._lens.forget(file)
                raise
            os.close(file.fd)
            self._files[node] = file
            return number

    def release(self, node: int) -> None:
        """See :class:`penstock.session.Backings`."""
        with self._lock:
            self._there.release(node)
            file = self._files.pop(node, None)
            if file is not None and self._lens is not None:
                self._lens.forget(file)

    def settle(self) -> None:
        """Nothing was put off."""

    @property
    def _there(self) -> Backings:
        if self._backings is None:
            raise OSError(errno.ENOTCONN, "there is no connection yet")
        return self._backings

    def _known(self, node: int) -> int:
        return self._there.known(node)

    @property
    def registered(self) -> int:
        """Backing files at present."""
        return 0 if self._backings is None else self._backings.statistics().registered

    def close(self) -> None:
        """The connection ends. Idempotent."""
        if self._backings is not None:
            self._backings.close()
        if self._lens is not None:
            self._lens.close()
