# SPDX-License-Identifier: Apache-2.0
"""The checksums of disk formats: CRC-32C (Castagnoli) and CRC-16 (ANSI, reflected).

Two conventions for CRC-32C are in use, and both are here:

* :func:`crc32c` inverts before and after, as libraries do: ``crc32c(b, crc32c(a))`` is the checksum
  of ``a + b``, and ``crc32c(b"123456789")`` is E3069283.
* :func:`raw_crc32c` does neither, as ext4 and jbd2 define theirs: ``raw(seed, x)`` is
  ``~crc32c(x, ~seed)``.

Loops that checksum thousands of small structures stay with :func:`crc32c` and keep their seeds
inverted, which saves two inversions a call.

The work is done by the ``crc32c`` package (0.1 µs for an inode). Where it has no build for the
platform, a table in Python takes over, about a hundred times slower; that is logged once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import Any, Final

__all__ = ["crc16", "crc32c", "crc32c_table", "raw_crc32c"]

Bytes = bytes | bytearray | memoryview

_ALL_ONES: Final = 0xFFFF_FFFF
_CASTAGNOLI: Final = 0x82F6_3B78
_ANSI: Final = 0xA001


def _make_table(polynomial: int) -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (polynomial if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C_TABLE: Final = _make_table(_CASTAGNOLI)
_CRC16_TABLE: Final = _make_table(_ANSI)


def crc32c_table(data: Bytes, value: int = 0) -> int:
    """:func:`crc32c` by table: what is used where the ``crc32c`` package is missing."""
    table = _CRC32C_TABLE
    value ^= _ALL_ONES
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ _ALL_ONES


def _choose() -> Callable[[Bytes, int], int]:
    function: Callable[[Bytes, int], int]
    try:
        function = _compiled().crc32c
    except (ImportError, AttributeError):
        try:
            import crc32c as package  # noqa: PLC0415 - optional
        except ImportError:
            logging.getLogger(__name__).warning(
                "the crc32c package is missing: metadata checksums are computed in Python, slowly"
            )
            return crc32c_table
        function = package.crc32c
    return function


def _compiled() -> Any:
    """The package's compiled module alone. The package around it imports a command line and the
    reader of package metadata, which takes longer than all that a mount needs otherwise.

    Raises:
        ImportError: it is not where it is expected.
    """
    package = PathFinder.find_spec("crc32c")
    if package is None or sys.modules.get("crc32c", package) is None:
        raise ImportError
    inner = PathFinder.find_spec("_crc32c", package.submodule_search_locations)
    if inner is None or inner.loader is None:
        raise ImportError
    module = inner.loader.create_module(inner)
    inner.loader.exec_module(module)  # type: ignore[arg-type]
    return module


crc32c: Callable[..., int] = _choose()
"""``crc32c(data, value=0)``: CRC-32C with both inversions; ``value`` continues an earlier one."""


def raw_crc32c(seed: int, data: Bytes) -> int:
    """CRC-32C of ``data`` from ``seed`` without any inversion (ext4's and jbd2's convention)."""
    return crc32c(data, seed ^ _ALL_ONES) ^ _ALL_ONES


def crc16(seed: int, data: Bytes) -> int:
    """CRC-16 (polynomial A001 reflected, no inversion), as ext4's ``gdt_csum`` uses it."""
    table = _CRC16_TABLE
    for byte in data:
        seed = table[(seed ^ byte) & 0xFF] ^ (seed >> 8)
    return seed
