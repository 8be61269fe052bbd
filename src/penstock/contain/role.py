# SPDX-License-Identifier: Apache-2.0
"""What a contained server can be: a server of images, or of a directory.

A role is chosen before anything is imported, so that a server loads the modules of its own kind and
no others: each millisecond of that is one of mounting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from penstock.broker.channel import Channel
from penstock.broker.launch import ServerKind
from penstock.broker.protocol import Image, Message, Purpose, Tree
from penstock.contain.profile import Profile
from penstock.servers.base import Server

__all__ = ["Role", "role_of"]


class Role(NamedTuple):
    """A kind of server."""

    profile: Profile
    source: type[Image | Tree]
    """The message that tells it what to serve."""
    open: Callable[[Message, int | None], Server]
    """Opens the filesystem; given that message, and the directory that came with HELLO."""
    others: Mapping[Purpose, Callable[[Channel, Message], None]] = {}
    """What it does for a purpose that takes no opened filesystem; given the same message."""
    serve_stream: Callable[[Channel, Server], None] | None = None
    """What it does for :attr:`Purpose.READ`."""

    @property
    def holds_tree(self) -> bool:
        """Whether it has a directory from the beginning."""
        return self.source is Tree


def role_of(kind: str) -> Role:
    """The role of a server of this kind (a value of :class:`ServerKind`); imports all of it.

    Raises:
        ValueError: there is no such kind.
    """
    wanted = ServerKind(kind)
    if wanted.is_mirror:
        from penstock.contain.mirrorserver import mirror_role  # noqa: PLC0415 - see above

        return mirror_role(trusted=wanted is ServerKind.TRUSTED_MIRROR)
    from penstock.contain.imageserver import IMAGES  # noqa: PLC0415 - as above

    return IMAGES
