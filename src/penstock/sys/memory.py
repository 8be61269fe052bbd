# SPDX-License-Identifier: Apache-2.0
"""How the C library takes memory."""

from __future__ import annotations

from typing import Final

from penstock.sys.libc import libc

__all__ = ["limit_arenas"]

_M_ARENA_MAX: Final = -8


def limit_arenas(count: int) -> None:
    """Have malloc share so many pools among all threads, instead of one for nearly each.

    A pool reserves 64 MiB of addresses (128 for a moment), used or not. A C library that has no
    such pools has no such limit either.
    """
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, count)
