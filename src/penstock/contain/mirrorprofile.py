# SPDX-License-Identifier: Apache-2.0
"""What the server of a directory is left with: as root, and as an ordinary user.

Root's server acts for many users. It has no user namespace, since the capabilities that this takes
mean nothing outside one: the files belong to the first. It stays user 0 and makes what a caller
makes with that caller's fsuid and fsgid; the kernel then takes the capabilities over files out of
effect by itself, which is why that rule is not switched off by a securebit here. No other user's
process can be reached with all this: there are none in its pid namespace.

An ordinary user's server has the user's rights and no more. What a namespace of its own would take
is a user namespace, in which all ids that are not mapped look the same; it would show and keep
wrong owners. So there the files outside are kept from it by Landlock alone, and its filter leaves
calls by which it can learn of their names and attributes, and change modes and times of the user's
own ones (docs/security.md says so).
"""

from __future__ import annotations

import os
from typing import Final

from penstock.contain.filter import LATER
from penstock.contain.mirrorcalls import MIRROR_CALLS, OF_A_USER_CALLS
from penstock.contain.profile import NAMESPACES, Profile
from penstock.servers.mirror.rights import RIGHTS, TRUSTED

__all__ = ["MIRROR_OF_A_USER", "MIRROR_SERVER", "TRUSTED_MIRROR", "mirror_profile"]

_MIB: Final = 1 << 20
_USER_NAMESPACE: Final = "would take a user namespace, in which the owners of files are not known"

MIRROR_SERVER: Final = Profile(
    "mirror",
    memory=2048 * _MIB,  # a million inodes at 300 bytes take 350 MiB with all that Python adds
    address_space=6144 * _MIB,
    descriptors=65536,
    file_size=None,
    calls=MIRROR_CALLS,
    calls_later=LATER,
    namespaces=NAMESPACES - {"user"},
    capabilities=frozenset(right.capability for right in RIGHTS),
    without={"identity": "user 0, who acts for each caller by setfsuid and setfsgid"},
)
"""Serves a directory to many users, as root."""

TRUSTED_MIRROR: Final = MIRROR_SERVER._replace(
    name="mirror with trusted attributes",
    capabilities=MIRROR_SERVER.capabilities | {TRUSTED.capability},
)
"""The same with ``-o trusted``."""

MIRROR_OF_A_USER: Final = MIRROR_SERVER._replace(
    name="mirror of an ordinary user",
    calls=OF_A_USER_CALLS,
    namespaces=frozenset(),
    capabilities=frozenset(),
    without={
        "namespaces": _USER_NAMESPACE,
        "root": f"the caller's: another {_USER_NAMESPACE}",
        "identity": "the caller's: it serves with the caller's own rights",
    },
)
"""Serves a directory with its caller's rights."""


def mirror_profile(*, trusted: bool) -> Profile:
    """The profile of a mirror that this process serves, or has started.

    Args:
        trusted: whether it carries trusted attributes.
    """
    if os.geteuid() != 0:
        return MIRROR_OF_A_USER
    return TRUSTED_MIRROR if trusted else MIRROR_SERVER
