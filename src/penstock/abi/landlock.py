# SPDX-License-Identifier: Apache-2.0
"""Landlock's rights and flags, from ``linux/landlock.h``, and since which ABI there are."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

__all__ = [
    "CREATE_RULESET_VERSION",
    "LADDER",
    "RULE_PATH_BENEATH",
    "AccessFs",
    "AccessNet",
    "Restrict",
    "Scope",
    "Step",
]

CREATE_RULESET_VERSION: Final = 1 << 0
"""landlock_create_ruleset(2): answer with the ABI's version."""

RULE_PATH_BENEATH: Final = 1
"""landlock_add_rule(2): rights beneath a directory."""


class AccessFs(enum.IntFlag):
    """LANDLOCK_ACCESS_FS_*: what can be done with files."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


class AccessNet(enum.IntFlag):
    """LANDLOCK_ACCESS_NET_*."""

    BIND_TCP = 1 << 0
    CONNECT_TCP = 1 << 1


class Scope(enum.IntFlag):
    """LANDLOCK_SCOPE_*: what must not leave the domain."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


class Restrict(enum.IntFlag):
    """LANDLOCK_RESTRICT_SELF_*: whose refusals the audit log shows."""

    LOG_SAME_EXEC_OFF = 1 << 0
    LOG_NEW_EXEC_ON = 1 << 1
    LOG_SUBDOMAINS_OFF = 1 << 2


class Step(NamedTuple):
    """What one version of the ABI can be asked for."""

    version: int
    fs: AccessFs
    net: AccessNet
    scopes: Scope
    size: int
    """Bytes of ``struct landlock_ruleset_attr``."""
    flags: Restrict


def _fs(last: AccessFs) -> AccessFs:
    """All rights up to one."""
    return AccessFs((last << 1) - 1)


_NO_NET: Final = AccessNet(0)
_NET: Final = AccessNet.BIND_TCP | AccessNet.CONNECT_TCP
_NO_SCOPE: Final = Scope(0)
_SCOPES: Final = Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL
_NO_FLAGS: Final = Restrict(0)
_LOG: Final = Restrict.LOG_NEW_EXEC_ON | Restrict.LOG_SUBDOMAINS_OFF

LADDER: Final = (
    Step(1, _fs(AccessFs.MAKE_SYM), _NO_NET, _NO_SCOPE, 8, _NO_FLAGS),
    Step(2, _fs(AccessFs.REFER), _NO_NET, _NO_SCOPE, 8, _NO_FLAGS),
    Step(3, _fs(AccessFs.TRUNCATE), _NO_NET, _NO_SCOPE, 8, _NO_FLAGS),
    Step(4, _fs(AccessFs.TRUNCATE), _NET, _NO_SCOPE, 16, _NO_FLAGS),
    Step(5, _fs(AccessFs.IOCTL_DEV), _NET, _NO_SCOPE, 16, _NO_FLAGS),
    Step(6, _fs(AccessFs.IOCTL_DEV), _NET, _SCOPES, 24, _NO_FLAGS),
    Step(7, _fs(AccessFs.IOCTL_DEV), _NET, _SCOPES, 24, _LOG),
)
"""Everything that each version has, all of it to be forbidden. A refusal is logged once where it
happens; a domain that a server taken over makes of its own can fill no log."""
