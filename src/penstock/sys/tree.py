# SPDX-License-Identifier: Apache-2.0
"""Mounts that are attached nowhere: a directory seen by itself, without what is around it.

Facts about detached mounts (open_tree(2) with OPEN_TREE_CLONE)
    - ``..`` of the root of one leads nowhere, and what is mounted below the directory elsewhere is
      not there.
    - It has attributes of its own. Through a read-only one no mode, owner, time or attribute of a
      file can be changed, by whomever; a device can still be opened for writing through it, since
      that writes nothing to the filesystem.
    - It goes when the descriptor that open_tree(2) gave is closed; what was opened through it
      before stays usable, but a lookup from there fails to cross mounts. Keep it.
    - Making one takes CAP_SYS_ADMIN. In a user namespace it is refused (EINVAL) for a directory
      below which somebody with more rights has mounted something.
"""

from __future__ import annotations

import contextlib
import os
import struct

from penstock.abi.mount import AT_EMPTY_PATH, OPEN_TREE_CLOEXEC, OPEN_TREE_CLONE, MountAttr
from penstock.sys.libc import syscall

__all__ = ["add_attributes", "clone_tree", "open_unchangeable"]

_MOUNT_ATTR = struct.Struct("=QQQQ")
"""struct mount_attr: attr_set, attr_clr, propagation, userns_fd."""


def clone_tree(fd: int) -> int:
    """A detached mount of an open directory, without what is mounted below it; an O_PATH
    descriptor of its root, which keeps it there.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN, EINVAL (see above), ENOSYS.
    """
    return syscall("open_tree", fd, b"", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)


def add_attributes(mount: int, attributes: MountAttr) -> None:
    """Give a mount attributes in addition to those that it has (mount_setattr(2)).

    Raises:
        OSError: EPERM, EINVAL, ENOSYS.
    """
    packed = _MOUNT_ATTR.pack(attributes, 0, 0, 0)
    syscall("mount_setattr", mount, b"", AT_EMPTY_PATH, packed, _MOUNT_ATTR.size)


def open_unchangeable(path: str, flags: int) -> int:
    """Open a device for somebody who may not be trusted with its node: mode, owner and times cannot
    be changed through the descriptor. As usual where the caller may not mount, who then has not
    the right to change them either.

    Raises:
        OSError: it cannot be opened.
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, folder)
        mount = clone_tree(folder)
        opened.callback(os.close, mount)
        add_attributes(mount, MountAttr.RDONLY)
        return os.open(os.path.basename(path), flags | os.O_CLOEXEC, dir_fd=mount)
    return os.open(path, flags | os.O_CLOEXEC)
