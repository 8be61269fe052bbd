# SPDX-License-Identifier: Apache-2.0
"""Landlock: a process takes rights from itself that no credential gives back.

Facts about Landlock
    - A right that a ruleset *handles* and no rule grants is forbidden; so forbidding everything
      takes no rule at all.
    - It binds the calling thread and what that starts. Before ABI 8 the other threads of a process
      stay free, so it is done before there are any.
    - It looks at what is *opened*; descriptors that are open already are used as before. Opening
      with O_PATH is not looked at, nor are stat(2), chmod(2), chown(2), utimes(2) and setxattr(2).
    - A rule is for a directory and all below it, however a file there is reached, as long as the
      kernel knows the way up to the directory: a file opened by a handle that says nothing of its
      parent is refused as soon as its dentry has left the cache.
    - With any filesystem right handled, mount(2), pivot_root(2) and the like are refused as well.

Specification: Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from penstock.abi.landlock import (
    CREATE_RULESET_VERSION,
    LADDER,
    RULE_PATH_BENEATH,
    AccessFs,
    Step,
)
from penstock.sys.libc import syscall

__all__ = ["abi_version", "restrict_everything", "restrict_to_tree"]

_PATH_BENEATH: Final = struct.Struct("=Qi")
"""struct landlock_path_beneath_attr, which is packed."""
_NOT_A_FILE_SERVERS: Final = AccessFs.EXECUTE | AccessFs.IOCTL_DEV


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
    return _restrict(None)


def restrict_to_tree(directory: int) -> tuple[int, Step]:
    """The same, but for what a file server does with files beneath a directory: all, except
    executing them and ioctls of devices.

    Args:
        directory: an open descriptor.

    Raises:
        OSError: as above.
    """
    return _restrict(directory)


def _restrict(directory: int | None) -> tuple[int, Step]:
    version = abi_version()
    step = next(step for step in reversed(LADDER) if step.version <= version)
    attributes = struct.pack("=QQQ", step.fs, step.net, step.scopes)
    ruleset = syscall("landlock_create_ruleset", attributes, step.size, 0)
    try:
        if directory is not None:
            rule = _PATH_BENEATH.pack(step.fs & ~_NOT_A_FILE_SERVERS, directory)
            syscall("landlock_add_rule", ruleset, RULE_PATH_BENEATH, rule, 0)
        syscall("landlock_restrict_self", ruleset, int(step.flags))
    finally:
        os.close(ruleset)
    return version, step
