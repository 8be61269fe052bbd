# SPDX-License-Identifier: Apache-2.0
"""What a memory filesystem may use: a budget of bytes and inodes.

Invariant: never more in use than the limits. Not thread-safe: callers hold the filesystem's lock.
"""

from __future__ import annotations

import errno

from penstock.fs import FsError

__all__ = ["Space"]


class Space:
    """A budget.

    Args:
        limit: bytes of file data, symlink targets and extended attributes.
        inodes: how many inodes, the root included.
    """

    def __init__(self, limit: int, inodes: int) -> None:
        self.limit = limit
        self.inodes = inodes
        self.used = 0
        self.inodes_used = 0

    def take(self, size: int) -> None:
        """Use ``size`` bytes more (fewer, if negative).

        Raises:
            FsError: ENOSPC; nothing has changed then.
        """
        if size > 0 and self.used + size > self.limit:
            raise FsError(errno.ENOSPC, f"{self.used} of {self.limit} bytes are in use")
        self.used += size

    def take_inode(self) -> None:
        """Use one inode more.

        Raises:
            FsError: ENOSPC.
        """
        if self.inodes_used >= self.inodes:
            raise FsError(errno.ENOSPC, f"all {self.inodes} inodes are in use")
        self.inodes_used += 1

    def give_inode(self) -> None:
        """One inode is free again."""
        self.inodes_used -= 1
