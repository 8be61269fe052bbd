# SPDX-License-Identifier: Apache-2.0
"""System calls on a hot path: prototypes made once, failures made into exceptions where they occur.

:func:`penstock.sys.libc.call` looks its function up and converts arguments by their types at each
call, which is fine for what is called once. A prototype costs half a microsecond less.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from ctypes import c_long
from functools import partial
from typing import Any, Final, TypeAlias

from penstock.abi.syscalls import COMMON, SYSCALLS
from penstock.sys.libc import libc

__all__ = ["RawCall", "failed", "get_errno", "prototype", "raw"]

RawCall: TypeAlias = Callable[..., int]
"""Answers a negative number where the call failed; the reason is :func:`get_errno`'s."""

get_errno: Final = ctypes.get_errno
_NUMBERS: Final = SYSCALLS.get(os.uname().machine, COMMON)


def prototype(name: str, *argtypes: Any, restype: Any = ctypes.c_int) -> RawCall:
    """A function of the C library. (``libc[name]`` makes a new object each time, so the types are
    nobody else's.)"""
    function: Any = libc[name]
    function.argtypes = argtypes
    function.restype = restype
    return function  # type: ignore[no-any-return]


def raw(name: str, *argtypes: Any) -> RawCall:
    """A call of the kernel by its number; ENOSYS where that is not known."""
    number = _NUMBERS.get(name)
    if number is None:
        return _absent
    return partial(prototype("syscall", c_long, *argtypes, restype=c_long), number)


def _absent(*_args: object) -> int:
    ctypes.set_errno(errno.ENOSYS)
    return -1


def failed(name: str, path: bytes = b"") -> OSError:
    """The exception for the call of this thread that has just failed."""
    code = ctypes.get_errno()
    return OSError(code, f"{name}: {os.strerror(code)}", os.fsdecode(path) if path else None)
