# SPDX-License-Identifier: Apache-2.0
"""Opening what lies below a directory, and nothing else: openat2(2)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import Final

from penstock.sys.libc import syscall

__all__ = ["open_beneath", "open_directory"]

_OPEN_HOW: Final = struct.Struct("=QQQ")
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_NO_OPENAT2: Final = frozenset({errno.ENOSYS, errno.EPERM})
"""What a kernel before 5.6 answers, and a container that does not know the call."""
_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_MAX: Final = 4096


def open_beneath(root: int, names: Sequence[bytes], flags: int, mode: int = 0) -> int:
    """Open what lies below a directory: no link is followed on the way, and nothing leads out.

    Args:
        root: descriptor of the directory.
        names: the way down; each the name of a file, not ``..``, and none = the directory itself.
        flags: as open(2); O_NOFOLLOW and O_CLOEXEC are added.
        mode: of a file that is made.

    Raises:
        OSError: ELOOP or ENOTDIR where a name is a link, and whatever open(2) answers.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    path = b"/".join(names) or b"."
    if len(path) < _PATH_MAX:
        try:
            return _openat2(root, path, flags, mode)
        except OSError as error:
            if error.errno not in _NO_OPENAT2:
                raise
    return _step_by_step(root, names or (b".",), flags, mode)


def open_directory(path: str) -> int:
    """An O_PATH descriptor of a directory, which the caller closes; no link is followed on the way.
    The directory itself is not asked for anything, so it may be a mount that hangs.

    Args:
        path: absolute.

    Raises:
        OSError: ELOOP, ENOTDIR, ENOENT, EACCES.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    root = os.open("/", flags)
    try:
        return open_beneath(root, [name for name in os.fsencode(path).split(b"/") if name], flags)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(root)


def _openat2(root: int, path: bytes, flags: int, mode: int) -> int:
    how = _OPEN_HOW.pack(flags, mode, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
    try:
        return syscall("openat2", root, path, how, len(how))
    except OSError as error:
        code = error.errno or errno.EIO
        raise OSError(code, os.strerror(code), os.fsdecode(path)) from None


def _step_by_step(root: int, names: Sequence[bytes], flags: int, mode: int) -> int:
    """For a path that is too long for one call, and where the call is not to be had."""
    fd = os.dup(root)
    try:
        for name in names[:-1]:
            below = os.open(name, _STEP, dir_fd=fd)
            os.close(fd)
            fd = below
        return os.open(names[-1], flags, mode, dir_fd=fd)
    finally:
        os.close(fd)
