# SPDX-License-Identifier: Apache-2.0
"""Mirrors for tests: their operations in this process, or mounted by another."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from penstock.fs import ROOT, Context, Creation, NodeId, SetAttr, Unique
from penstock.servers.mirror.options import parse_options
from penstock.servers.mirror.server import MirrorServer, open_mirror

__all__ = ["NEW", "NOTHING", "caller", "find", "mirror_of", "mirror_operations"]

NEW = Creation(0o022, (), ())
NOTHING = SetAttr(None, None, None, None, None, None, None, None, None, kill_suidgid=False)
"""Changes nothing."""


def caller(uid: int | None = None, gid: int | None = None) -> Context:
    """Somebody who asks; this process's user unless said otherwise."""
    return Context(
        Unique(1),
        os.geteuid() if uid is None else uid,
        os.getegid() if gid is None else gid,
        os.getpid(),
    )


def mirror_operations(top: str, words: Mapping[str, str], handles: bool) -> MirrorServer:
    """A mirror's operations; the descriptor of its root is never closed."""
    root = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    operations = open_mirror(root, parse_options(words), handles=handles).operations
    assert isinstance(operations, MirrorServer)
    return operations


@contextlib.contextmanager
def mirror_of(
    top: Path, words: Mapping[str, str] = {}, *, handles: bool = True
) -> Iterator[MirrorServer]:
    """A mirror's operations for a while, with the umask put back."""
    umask = os.umask(0)
    operations = mirror_operations(str(top), words, handles)
    root = operations.source.root
    try:
        yield operations
    finally:
        operations.destroy()
        os.close(root)
        os.umask(umask)


def find(mirror: MirrorServer, path: str) -> NodeId:
    """The node at a path."""
    node = ROOT
    for name in path.split("/"):
        node = NodeId(mirror.lookup(caller(), node, name.encode())[0])
        assert node, name
    return node
