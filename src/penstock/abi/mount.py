# SPDX-License-Identifier: Apache-2.0
"""Numbers of the mount interface (``linux/mount.h``)."""

from __future__ import annotations

import enum
from typing import Final

__all__ = [
    "AT_EMPTY_PATH",
    "FSMOUNT_CLOEXEC",
    "FSOPEN_CLOEXEC",
    "MOVE_MOUNT_F_EMPTY_PATH",
    "MOVE_MOUNT_T_EMPTY_PATH",
    "OPEN_TREE_CLOEXEC",
    "OPEN_TREE_CLONE",
    "FsconfigCommand",
    "MountAttr",
    "MountFlag",
    "UmountFlag",
]


class FsconfigCommand(enum.IntEnum):
    """``enum fsconfig_command``."""

    SET_FLAG = 0
    SET_STRING = 1
    SET_BINARY = 2
    SET_PATH = 3
    SET_PATH_EMPTY = 4
    SET_FD = 5
    CMD_CREATE = 6
    CMD_RECONFIGURE = 7


class MountAttr(enum.IntFlag):
    """MOUNT_ATTR_*: attributes of one mount, for fsmount(2) and mount_setattr(2)."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    NOATIME = 0x10
    NOSYMFOLLOW = 0x200000


class MountFlag(enum.IntFlag):
    """MS_*: flags of mount(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    NOSYMFOLLOW = 256
    NOATIME = 1024


class UmountFlag(enum.IntFlag):
    """Flags of umount2(2)."""

    FORCE = 1
    DETACH = 2
    EXPIRE = 4
    NOFOLLOW = 8


AT_EMPTY_PATH: Final = 0x1000
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = 0o2000000
