# SPDX-License-Identifier: Apache-2.0
"""Loop devices: a file as a block device; and what can be asked of any block device.

Facts about loop devices (drivers/block/loop.c)
    - With LO_FLAGS_AUTOCLEAR the device lets its file go when the last one that has it open closes
      it; a mounted filesystem counts as one. So nothing has to be detached, whoever dies.
    - Between asking for a free number and taking it another may take it: EBUSY, and one asks again.

Specification: include/uapi/linux/loop.h, include/uapi/linux/fs.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from typing import Final

__all__ = ["attach_loop", "sector_size"]

_CTL_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_CONFIG: Final = struct.Struct("=II 232s 64x")
_INFO: Final = struct.Struct("=QQQQQIIII 64s 64s 32s 16x")
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_TRIES: Final = 16
_BLKSSZGET: Final = 0x1268


def attach_loop(fd: int, *, block_size: int, writable: bool, offset: int = 0) -> int:
    """Make a file a block device, for as long as somebody has that open.

    Args:
        fd: the file; stays the caller's.
        block_size: of the device, bytes.
        writable: whether it can be written to.
        offset: where in the file the device begins.

    Returns:
        A descriptor of the device.

    Raises:
        OSError: EPERM, ENOENT (no loop devices here), EBUSY (all are taken).
    """
    flags = _AUTOCLEAR | (0 if writable else _READ_ONLY)
    info = _INFO.pack(0, 0, 0, offset, 0, 0, 0, 0, flags, b"penstock", b"", b"")
    config = _CONFIG.pack(fd, block_size, info)
    access = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(_TRIES):
            number = fcntl.ioctl(control, _CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", access)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY or attempt == _TRIES - 1:
                    raise
            else:
                return device
    finally:
        os.close(control)
    raise AssertionError


def sector_size(fd: int) -> int:
    """Bytes of a block device's logical sectors.

    Raises:
        OSError: ENOTTY: it is none.
    """
    size = bytearray(4)
    fcntl.ioctl(fd, _BLKSSZGET, size)
    return int.from_bytes(size, sys.byteorder)
