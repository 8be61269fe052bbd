# SPDX-License-Identifier: Apache-2.0
"""Identifiers that pass between the kernel, the session and a filesystem."""

from __future__ import annotations

from typing import Final, NamedTuple, NewType

__all__ = ["ROOT", "Context", "Creation", "FileHandle", "NodeId", "Unique"]

NodeId = NewType("NodeId", int)
"""Names an inode to the kernel. Made by the filesystem (any u64 but 0; the root is 1), owned by
the kernel from the first :class:`Entry` that carries it until ``forget``. Not ``st_ino``."""

FileHandle = NewType("FileHandle", int)
"""Names an open file description. Made by ``open``, ``create``, ``opendir`` or ``tmpfile`` (any
u64), dies with ``release`` or ``releasedir``. 0 where the filesystem does not open files."""

Unique = NewType("Unique", int)
"""Names one request on a connection. Made by the kernel, dies with the reply."""

ROOT: Final = NodeId(1)


class Context(NamedTuple):
    """Who asks."""

    unique: Unique
    uid: int
    """Effective (filesystem) uid of the caller. Once ALLOW_IDMAP was negotiated, 0xFFFFFFFF (as is
    gid) in all requests but those that make an inode."""
    gid: int
    pid: int
    """Numbered in the pid namespace of the process that made the mount; 0 for the kernel."""


class Creation(NamedTuple):
    """What a request that makes an inode says beside name and mode."""

    umask: int = 0
    """The caller's umask; to be applied by the filesystem only if DONT_MASK was negotiated."""
    groups: tuple[int, ...] = ()
    """The caller's supplementary group that matters here (the parent's), if there is one."""
    security: tuple[tuple[bytes, bytes], ...] = ()
    """Security contexts to be set on the new inode: (xattr name, value)."""
