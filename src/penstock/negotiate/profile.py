# SPDX-License-Identifier: Apache-2.0
"""What a kind of filesystem asks of the kernel, known before its server runs.

A contained server has no say in it: its mount is negotiated by the broker with the profile of what
the server was started as.
"""

from __future__ import annotations

from penstock.abi.fuse import InitFlag
from penstock.negotiate.init import Profile, When

__all__ = ["image_profile", "mirror_profile"]


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


def mirror_profile(
    *, cache: str = "mirror", acl: bool = True, idmap: bool = False, locks: bool = True
) -> Profile:
    """A directory that is written to, through the mount and underneath.

    The umask is left to the server, because a default ACL takes its place; set-ID bits are
    cleared by the server or the source, whoever writes.

    Args:
        cache: ``mirror``, ``immutable`` or ``none``.
        acl: whether the kernel enforces POSIX ACLs.
        idmap: whether the mount may be idmapped. Then the kernel does not say who writes.
        locks: whether the server takes locks; else the kernel keeps them.
    """
    want = (
        InitFlag.EXPORT_SUPPORT
        | InitFlag.DONT_MASK
        | InitFlag.HANDLE_KILLPRIV_V2
        | InitFlag.CREATE_SUPP_GROUP
    )
    if cache == "none":
        want |= InitFlag.DIRECT_IO_ALLOW_MMAP
    else:
        want |= InitFlag.CACHE_SYMLINKS  # the target of one never changes
        want |= InitFlag.AUTO_INVAL_DATA if cache == "mirror" else InitFlag.EXPLICIT_INVAL_DATA
    if acl:
        want |= InitFlag.POSIX_ACL
    if idmap:
        want |= InitFlag.ALLOW_IDMAP
    refuse = InitFlag(0) if locks else InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
    has = {When.READDIRPLUS, When.LOCKS} if locks else {When.READDIRPLUS}
    return Profile(want, refuse, frozenset(has))
