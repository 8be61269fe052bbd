# SPDX-License-Identifier: Apache-2.0
"""Landlock: a process takes rights from itself that no credential gives back.

Facts about Landlock
    - A right that a ruleset *handles* and no rule grants is forbidden; so forbidding everything
      takes no rule at all.
    - It binds the calling thread and what that starts. Before ABI 8 the other threads of a process
      stay free, so it is done before there are any.
    - It looks at what is *opened*; descriptors that are open already are used as before.
    - With any filesystem right handled, mount(2), pivot_root(2) and the like are refused as well.

Specification: Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import os
import struct

from penstock.abi.landlock import CREATE_RULESET_VERSION, LADDER, Step
from penstock.sys.libc import syscall

__all__ = ["abi_version", "restrict_everything"]


def abi_version() -> int:
    """The version of Landlock's ABI.

    Raises:
        OSError: ENOSYS (not in the kernel), EOPNOTSUPP (not switched on at boot).
    """
    return syscall(
        "landlock_create_ruleset",
        None, 0, CREATE_RULESET_VERSION,
    )  # fmt: skip


def restrict_everything() -> tuple[int, Step]:
    """Forbid this process everything that this kernel's Landlock can forbid.

    Returns:
        The kernel's ABI version, and what was forbidden.

    Raises:
        OSError: ENOSYS, EOPNOTSUPP as above; EPERM without no_new_privs or CAP_SYS_ADMIN.
    """
    version = abi_version()
    step = next(step for step in reversed(LADDER) if step.version <= version)
    attributes = struct.pack("=QQQ", step.fs, step.net, step.scopes)
    ruleset = syscall("landlock_create_ruleset", attributes, step.size, 0)
    try:
        syscall("landlock_restrict_self", ruleset, int(step.flags))
    finally:
        os.close(ruleset)
    return version, step
