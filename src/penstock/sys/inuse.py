# SPDX-License-Identifier: Apache-2.0
"""Whether somebody else may be writing to an image.

The kernel has no such question for a regular file; but what holds an image open for writing is
nearly always a loop device, and those are listed in sysfs. A block device that is mounted, or part
of a volume, refuses to be opened exclusively.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat

__all__ = ["in_use"]


def in_use(fd: int) -> str | None:
    """Who may change an image under whoever reads it, in words; None if nobody is known.

    Args:
        fd: the image, open for reading.
    """
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return _exclusive_holder(fd)
    return _loop_device(status)


def _exclusive_holder(fd: int) -> str | None:
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "mounted, or part of a volume"
    return None


def _loop_device(image: os.stat_result) -> str | None:
    for name in sorted(glob.glob("/sys/block/loop*/loop/backing_file")):
        device = name.split("/")[3]
        with contextlib.suppress(OSError, ValueError):
            backing = os.stat(_line(name))
            same = (backing.st_dev, backing.st_ino) == (image.st_dev, image.st_ino)
            if same and _line(f"/sys/block/{device}/ro") == "0":
                return f"attached to /dev/{device} for writing"
    return None


def _line(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().rstrip("\n")
