# SPDX-License-Identifier: Apache-2.0
"""The role of the server of a directory."""

from __future__ import annotations

from penstock.broker.protocol import Message, Tree
from penstock.contain.mirrorprofile import mirror_profile
from penstock.contain.role import Role
from penstock.servers.base import Server
from penstock.servers.mirror.options import parse_options
from penstock.servers.mirror.server import open_mirror

__all__ = ["mirror_role"]


def _open(message: Message, tree: int | None) -> Server:
    body = message.body
    assert isinstance(body, Tree)
    assert tree is not None
    words = {word.name: word.value for word in body.words}
    read_only = words.pop("ro", None) is not None  # the mount's own word, not the mirror's
    return open_mirror(tree, parse_options(words, read_only=read_only))


def mirror_role(*, trusted: bool) -> Role:
    """Serves the directory that came with HELLO; whose rights it has is known by its user."""
    return Role(mirror_profile(trusted=trusted), Tree, _open)
