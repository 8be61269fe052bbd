# SPDX-License-Identifier: Apache-2.0
"""How to mount, and how to keep the servers: the options that are not the filesystem's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Containment", "MountOptions", "Source"]


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Options of one mount; the defaults are the safe ones.

    ``suid`` and ``dev`` are honoured for root only. ``allow_other`` lets other users in, and
    always comes with permission checks by the kernel (``default_permissions``).
    """

    source: str = "penstock"
    """Shown as the device in /proc/mounts."""
    subtype: str = "penstock"
    """Shown as ``fuse.SUBTYPE``."""
    read_only: bool = False
    allow_other: bool = False
    default_permissions: bool = True
    suid: bool = False
    dev: bool = False
    exec: bool = True
    symfollow: bool = True
    workers: int = 2
    """Threads; one of them reads at any time."""
    poll: str | int = "auto"
    """``auto``, ``off``, or microseconds to look for the next request before sleeping."""
    datapath: str = "auto"
    """``auto``, ``copy``, ``splice``, ``lens`` or ``passthrough``."""
    stackable: bool = False
    """Leave room for an overlay on top, even if a data path has to be done without."""
    max_read: int = 0
    """Bytes of the largest read; 0 = as large as the data path allows."""
    max_write: int = 1 << 20
    """Bytes of the largest write. Memory: one such buffer per worker."""
    readahead: int = 1 << 20
    """Bytes that the kernel reads ahead, where the caller may set that (root)."""

    def flags(self) -> list[str]:
        """The mount's flags as words of mount(8)."""
        root = os.geteuid() == 0
        words = ["ro" if self.read_only else "rw"]
        words.append("suid" if self.suid and root else "nosuid")
        words.append("dev" if self.dev and root else "nodev")
        if not self.exec:
            words.append("noexec")
        if not self.symfollow:
            words.append("nosymfollow")
        return words


class Containment(NamedTuple):
    """How the servers are kept, as the user chose."""

    strict: bool = False
    """Refuse to mount if a layer of the sandbox is missing."""
    keep_crashed: bool = False
    """Leave the mount there when its server dies; its users get ENOTCONN."""
    request_timeout: int = 0
    """Seconds in which each request must be answered; 0 = for ever."""
    log_level: int = 20
    """The least important lines that the servers send, as Python's logging numbers them; 10 (debug)
    has one for each request."""


class Source(NamedTuple):
    """What the servers are given."""

    fd: int
    """The image, open for reading, or the directory; stays the caller's."""
    size: int | None
    """Bytes; None: a directory, which the servers have had from the beginning."""
    type: str = ""
    words: tuple[tuple[str, str], ...] = ()
