# SPDX-License-Identifier: Apache-2.0
"""The C library through ctypes: one place where a return value becomes an OSError."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Mapping
from typing import Final

from penstock.abi.syscalls import COMMON, SYSCALLS

__all__ = ["call", "libc", "syscall"]

libc = ctypes.CDLL(None, use_errno=True)
"""The process's own C library. Calls through it release the interpreter lock."""


_WIDE: Final = sys.maxsize > 1 << 32

_NUMBERS: Final[Mapping[str, int]] = SYSCALLS.get(os.uname().machine, COMMON) if _WIDE else COMMON
"""A 32-bit process has other numbers than its kernel, but for the common ones."""


def _check(result: int, name: str, path: str | bytes | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        where = None if path is None else os.fsdecode(path)
        raise OSError(code, f"{name}: {os.strerror(code)}", where)
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


def syscall(name: str, *args: object, path: str | bytes | None = None) -> int:
    """Call the kernel, for calls that the C library does not have, or does otherwise. Integers are
    passed as long.

    Raises:
        OSError: ENOSYS where the kernel lacks it or the call's number is not known for this
            architecture, and whatever the kernel answers.
    """
    number = _NUMBERS.get(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"{name}: no number is known for it on {os.uname().machine}")
    converted = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    function = libc.syscall
    function.restype = ctypes.c_long
    return _check(function(ctypes.c_long(number), *converted), name, path)
