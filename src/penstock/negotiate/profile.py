# SPDX-License-Identifier: Apache-2.0
"""What a kind of filesystem asks of the kernel, known before its server runs.

A contained server has no say in it: its mount is negotiated by the broker with the profile of what
the server was started as.
"""

from __future__ import annotations

from penstock.abi.fuse import InitFlag
from penstock.negotiate.init import Profile, When

__all__ = ["image_profile"]


def image_profile(*, acl: bool = True, idmap: bool = False) -> Profile:
    """A tree that never changes: everything may be cached for ever.

    Args:
        acl: whether the kernel enforces POSIX ACLs.
        idmap: whether the mount may be idmapped. Then the kernel does not say who asks.
    """
    want = InitFlag.EXPORT_SUPPORT | InitFlag.CACHE_SYMLINKS | InitFlag.EXPLICIT_INVAL_DATA
    if acl:
        want |= InitFlag.POSIX_ACL
    if idmap:
        want |= InitFlag.ALLOW_IDMAP
    return Profile(want, has=frozenset({When.READDIRPLUS}))
