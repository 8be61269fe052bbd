# SPDX-License-Identifier: Apache-2.0
"""/proc/self/mountinfo: what is mounted where, without touching any mount.

Looking a mount point up by path would send a request into the mounted filesystem, whose server
may be the very thing that hangs. So targets are found here: the path of the mount point's parent
is resolved, its last component is not.
"""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["MountInfo", "find_mount", "mounts", "resolve_parent"]


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


def resolve_parent(path: str) -> str:
    """The absolute path of a mount point without touching the mount point itself.

    ``.`` and ``..`` as last component have no name to split off, and are resolved wholly.
    """
    path = path.rstrip("/") or "/"
    head, tail = os.path.split(path)
    if tail in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(head or "."), tail)


def find_mount(path: str) -> MountInfo | None:
    """The topmost mount on ``path``, or None; nothing on or below ``path`` is touched."""
    target = resolve_parent(path)
    found = None
    for entry in mounts():
        if entry.mountpoint == target:
            found = entry
    return found
