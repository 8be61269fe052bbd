# SPDX-License-Identifier: Apache-2.0
"""/proc/self/mountinfo: what is mounted where, without touching any mount.

Looking a mount point up by path would send a request into the mounted filesystem, whose server
may be the very thing that hangs. So targets are found here: the path of the mount point's parent
is resolved, its last component is not.

Facts about the table
    - Its order is no order of covering: newer kernels list by the time at which a mount was made,
      and one made detached may be attached on top of another made after it. What covers what is
      told by the parents alone.
    - A mount below one that was covered keeps its line, although no path leads to it any more.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["MountInfo", "find_mount", "mount_id_of", "mounts", "resolve_parent", "topmost"]


class MountInfo(NamedTuple):
    """One line of mountinfo (proc_pid_mountinfo(5))."""

    mount_id: int
    parent_id: int
    major: int
    minor: int
    root: str
    mountpoint: str
    options: str
    fstype: str
    source: str
    super_options: str

    @property
    def user_id(self) -> int | None:
        """The user who made a FUSE mount; None for other filesystems."""
        for word in self.super_options.split(","):
            name, _, value = word.partition("=")
            if name == "user_id" and value.isdecimal():
                return int(value)
        return None


def _unescape(word: str) -> str:
    if "\\" not in word:
        return word
    raw = bytearray()
    data = os.fsencode(word)
    position = 0
    while position < len(data):
        if data[position] == 0x5C and data[position + 1 : position + 4].isdigit():
            raw.append(int(data[position + 1 : position + 4], 8) & 0xFF)
            position += 4
        else:
            raw.append(data[position])
            position += 1
    return os.fsdecode(bytes(raw))


def _parse(line: str) -> MountInfo:
    before, _, after = line.rstrip("\n").partition(" - ")
    ids = before.split(" ")
    fstype, source, super_options = after.split(" ", 2)
    major, _, minor = ids[2].partition(":")
    return MountInfo(
        int(ids[0]), int(ids[1]), int(major), int(minor), _unescape(ids[3]), _unescape(ids[4]),
        ids[5], fstype, _unescape(source), super_options,
    )  # fmt: skip


def mounts() -> list[MountInfo]:
    """All mounts visible to this process, in mount order."""
    with open(
        "/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n"
    ) as lines:
        return [_parse(line) for line in lines]


def mount_id_of(fd: int) -> int:
    """The id of the mount on which a descriptor lies, as the kernel notes it: nobody is asked."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == "mnt_id":
                return int(value)
    return 0


def resolve_parent(path: str) -> str:
    """The absolute path of a mount point without touching the mount point itself.

    ``..`` as last component has no name to split off, and is resolved wholly.
    """
    path = path.rstrip("/") or "/"
    if path == ".":  # which may be a directory of a mount that hangs: the kernel knows its path
        return os.getcwd()
    head, tail = os.path.split(path)
    if tail in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(head or "."), tail)


def find_mount(path: str) -> MountInfo | None:
    """The topmost mount on ``path``, or None; nothing on or below ``path`` is touched."""
    return topmost(mounts(), resolve_parent(path))


def topmost(table: Iterable[MountInfo], target: str) -> MountInfo | None:
    """The mount to which a path leads as its mount point.

    Args:
        table: all mounts.
        target: an absolute path without symbolic links.

    Returns:
        None where nothing is mounted on the path itself, or what is has been covered further up.
    """
    entries = list(table)
    known = {entry.mount_id for entry in entries}
    children: dict[tuple[int, str], MountInfo] = {}
    for entry in entries:
        inside = entry.parent_id in known and entry.parent_id != entry.mount_id
        children[entry.parent_id if inside else _OUTSIDE, entry.mountpoint] = entry
    at, found = _OUTSIDE, None
    for prefix in _prefixes(target):
        found = None
        while (child := children.pop((at, prefix), None)) is not None:
            at, found = child.mount_id, child
    return found


_OUTSIDE = -1
"""Stands for the mount on which the root of this process lies, which the table need not show."""


def _prefixes(path: str) -> Iterator[str]:
    """``/``, ``/a``, ``/a/b`` for ``/a/b``."""
    yield "/"
    words = path.strip("/").split("/")
    for count in range(1, len(words) + 1):
        if words[0]:
            yield "/" + "/".join(words[:count])
