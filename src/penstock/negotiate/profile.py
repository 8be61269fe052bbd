# SPDX-License-Identifier: Apache-2.0
"""What a kind of filesystem asks of the kernel, known before its server runs.

A contained server has no say in it: its mount is negotiated by the broker with the profile of what
the server was started as.
"""

from __future__ import annotations

from typing import Final

from penstock.abi.fuse import InitFlag
from penstock.negotiate.init import Profile, When

__all__ = ["IMAGE"]


IMAGE: Final = Profile(
    want=InitFlag.EXPORT_SUPPORT
    | InitFlag.POSIX_ACL
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.EXPLICIT_INVAL_DATA,
    has=frozenset({When.READDIRPLUS}),
)
"""A tree that never changes: everything may be cached for ever."""
