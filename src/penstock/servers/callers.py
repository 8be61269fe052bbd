# SPDX-License-Identifier: Apache-2.0
"""What a caller may do, where a filesystem decides by it.

Most decisions are the kernel's. One that is not: the names of ``trusted.*`` attributes are listed
to callers with CAP_SYS_ADMIN only, and FUSE hands on what the server lists as it is.
"""

from __future__ import annotations

import re
from typing import Final

from penstock.abi.fuse import INVALID_UIDGID
from penstock.fs import Context

__all__ = ["sees_trusted"]

_CAP_SYS_ADMIN: Final = 1 << 21
_EFFECTIVE: Final = re.compile(rb"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)


def sees_trusted(ctx: Context) -> bool:
    """Whether ``trusted.*`` attributes are listed to the caller.

    A request that comes with no uid (all that make no inode, once ALLOW_IDMAP was negotiated)
    is judged by what procfs says of the caller; where that cannot be read, the answer is no.
    """
    if ctx.uid != INVALID_UIDGID:
        return ctx.uid == 0
    try:
        with open(f"/proc/{ctx.pid}/status", "rb") as file:
            found = _EFFECTIVE.search(file.read())
    except OSError:
        return False
    return found is not None and bool(int(found[1], 16) & _CAP_SYS_ADMIN)
