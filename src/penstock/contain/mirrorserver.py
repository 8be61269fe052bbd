# SPDX-License-Identifier: Apache-2.0
"""The role of the server of a directory."""

from __future__ import annotations

from typing import Final

from penstock.broker.launch import ServerKind, opens_by_handle
from penstock.broker.protocol import Message, Tree
from penstock.contain.handles import HandleClient
from penstock.contain.mirrorprofile import mirror_profile
from penstock.contain.role import Role
from penstock.servers.base import Server
from penstock.servers.mirror.options import parse_options
from penstock.servers.mirror.server import open_mirror

__all__ = ["mirror_role"]


_HANDLES: Final = 4
"""The socket to the opener, where there is one."""


def _open(message: Message, tree: int | None) -> Server:
    """Opened by names alone where nobody opens files by handle for it."""
    body = message.body
    assert isinstance(body, Tree)
    assert tree is not None
    words = {word.name: word.value for word in body.words}
    read_only = words.pop("ro", None) is not None  # the mount's own word, not the mirror's
    options = parse_options(words, read_only=read_only)
    if not opens_by_handle(ServerKind.MIRROR):
        return open_mirror(tree, options, handles=False)
    return open_mirror(tree, options, open_handle=HandleClient(_HANDLES).open)


def mirror_role(*, trusted: bool) -> Role:
    """Serves the directory that came with HELLO; whose rights it has is known by its user."""
    return Role(mirror_profile(trusted=trusted), Tree, _open)
