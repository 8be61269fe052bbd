# SPDX-License-Identifier: Apache-2.0
"""The C library through ctypes: one place where a return value becomes an OSError."""

from __future__ import annotations

import ctypes
import os

__all__ = ["call", "libc", "syscall"]

libc = ctypes.CDLL(None, use_errno=True)
"""The process's own C library. Calls through it release the interpreter lock."""


def _check(result: int, name: str, path: str | bytes | None = None) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        where = None if path is None else os.fsdecode(path)
        raise OSError(errno, f"{name}: {os.strerror(errno)}", where)
    return result


def call(name: str, *args: object, path: str | bytes | None = None) -> int:
    """Call a libc function that returns int and sets errno.

    Args:
        name: the function; the words of the error message begin with it.
        args: int, bytes or None (NULL), ctypes values.
        path: named in the error.

    Raises:
        OSError: the call returned a negative value.
    """
    function = getattr(libc, name)
    return _check(function(*args), name, path)


def syscall(number: int, name: str, *args: object, path: str | bytes | None = None) -> int:
    """Call the kernel by number. Integers are passed as long.

    Raises:
        OSError: ENOSYS where the kernel lacks it, and whatever it answers.
    """
    converted = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    function = libc.syscall
    function.restype = ctypes.c_long
    return _check(function(ctypes.c_long(number), *converted), name, path)
