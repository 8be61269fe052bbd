# SPDX-License-Identifier: Apache-2.0
"""Backing files of a mount that is served by its author's own process: nobody to ask, and nobody to
distrust."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from penstock.broker.backings import Backings
from penstock.broker.lens import Lens
from penstock.broker.lensfiles import LensFiles
from penstock.broker.protocol import Extent
from penstock.fs import Mapping, MappingType

__all__ = ["OwnBackings"]

_MAPPED: Final = MappingType.MAPPED


class _Registry(NamedTuple):
    """What there is once there is a connection."""

    backings: Backings
    files: LensFiles


class OwnBackings:
    """The session's :class:`Backings`, registered from this process. Safe from any thread.

    Args:
        lens: where the files lie in an image; None: they are files elsewhere. Owned from here on.
    """

    def __init__(self, lens: Lens | None) -> None:
        self._lens = lens
        self._registry: _Registry | None = None
        self._lock = threading.Lock()

    def start(self, device: int) -> None:
        """The connection is there; its descriptor stays the caller's."""
        backings = Backings(device, superblock_read_only=False)
        self._registry = _Registry(backings, LensFiles(backings, self._lens))

    def register(self, node: int, fd: int) -> int:
        """See :class:`penstock.session.Backings`."""
        with self._lock:
            there = self._there.backings
            return there.known(node) or there.add(node, fd)

    def map(self, node: int, length: int, mappings: Sequence[Mapping]) -> int:
        """See :class:`penstock.session.Backings`."""
        with self._lock:
            extents = [Extent(m.offset, m.length, m.addr) for m in mappings if m.type is _MAPPED]
            return self._there.files.map(node, length, extents)

    def release(self, node: int) -> None:
        """See :class:`penstock.session.Backings`."""
        with self._lock:
            self._there.files.release(node)

    def settle(self) -> None:
        """Nothing was put off."""

    @property
    def _there(self) -> _Registry:
        if self._registry is None:
            raise OSError(errno.ENOTCONN, "there is no connection yet")
        return self._registry

    @property
    def registered(self) -> int:
        """Backing files at present."""
        return 0 if self._registry is None else self._registry.backings.statistics().registered

    def close(self) -> None:
        """The connection ends. Idempotent."""
        if self._registry is not None:
            self._registry.backings.close()
        if self._lens is not None:
            self._lens.close()
