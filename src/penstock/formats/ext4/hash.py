# SPDX-License-Identifier: Apache-2.0
"""The hashes of indexed directories.

Names are turned into 32-bit words, four characters each with the first one highest; whether a
character above 127 is negative depends on the machine that made the filesystem, and is on record in
the superblock.

Specification: Documentation/filesystems/ext4/directory.rst (Hash Tree Directories); MD4 is RFC 1320
(here with 24 instead of 48 steps), TEA is Wheeler and Needham's.
"""

from __future__ import annotations

import struct
from typing import Final

from penstock.formats.ext4.format import HashVersion

__all__ = ["name_hash", "unsigned_version"]

_M: Final = 0xFFFF_FFFF
_DEFAULT_SEED: Final = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_END_OF_DIRECTORY: Final = 0xFFFF_FFFE
"""Means the end of a directory elsewhere, so no name may have it."""
_TEA_DELTA: Final = 0x9E3779B9

_MD4_ROUNDS: Final = (
    (0, (0, 1, 2, 3, 4, 5, 6, 7), (3, 7, 11, 19)),
    (0x5A827999, (1, 3, 5, 7, 0, 2, 4, 6), (3, 5, 9, 13)),
    (0x6ED9EBA1, (3, 7, 2, 6, 1, 5, 0, 4), (3, 9, 11, 15)),
)
"""Of each round: the constant, the order of words, the rotations."""


def unsigned_version(version: int) -> int:
    """The variant of a hash that takes characters as unsigned."""
    return version + 3 if version <= HashVersion.TEA else version


def name_hash(name: bytes, version: int, seed: bytes) -> int | None:
    """The hash of a name, its lowest bit clear.

    Args:
        name: 1 to 255 bytes.
        version: :class:`HashVersion`, the unsigned variants included.
        seed: ``s_hash_seed``, 16 bytes; zeros stand for the seed of MD4.

    Returns:
        None if the version is not known.
    """
    words = struct.unpack("<4I", seed) if any(seed) else _DEFAULT_SEED
    if version in {HashVersion.HALF_MD4, HashVersion.HALF_MD4_UNSIGNED}:
        value = _half_md4(name, words, signed=version == HashVersion.HALF_MD4)
    elif version in {HashVersion.TEA, HashVersion.TEA_UNSIGNED}:
        value = _tea(name, words, signed=version == HashVersion.TEA)
    elif version in {HashVersion.LEGACY, HashVersion.LEGACY_UNSIGNED}:
        value = _legacy(name, signed=version == HashVersion.LEGACY)
    else:
        return None
    value &= ~1
    return value if value != _END_OF_DIRECTORY else _END_OF_DIRECTORY - 2


def _words(name: bytes, start: int, count: int, *, signed: bool) -> list[int]:
    """``count`` words of a name from byte ``start`` on; what is missing is made of its length."""
    remaining = len(name) - start
    pad = (remaining & 0xFF) * 0x01010101
    chunk = name[start : start + 4 * count]
    if not signed or chunk.isascii():
        whole = len(chunk) // 4
        words = list(struct.unpack_from(f">{whole}I", chunk))
        if len(words) < count:
            value = pad
            for byte in chunk[4 * whole :]:
                value = (byte + (value << 8)) & _M
            words.append(value)
    else:
        words = []
        for at in range(0, len(chunk), 4):
            value = pad
            for byte in chunk[at : at + 4]:
                value = (byte - ((byte & 0x80) << 1) + (value << 8)) & _M
            words.append(value)
    words += [pad] * (count - len(words))
    return words


def _half_md4(name: bytes, seed: tuple[int, ...], *, signed: bool) -> int:
    a, b, c, d = seed
    for start in range(0, len(name), 32):
        words = _words(name, start, 8, signed=signed)
        a0, b0, c0, d0 = a, b, c, d
        for number, (constant, order, rotations) in enumerate(_MD4_ROUNDS):
            for step, index in enumerate(order):
                if number == 0:
                    mixed = d ^ (b & (c ^ d))
                elif number == 1:
                    mixed = (b & c) + ((b ^ c) & d)
                else:
                    mixed = b ^ c ^ d
                value = (a + mixed + words[index] + constant) & _M
                shift = rotations[step & 3]
                a, b, c, d = d, (value << shift | value >> (32 - shift)) & _M, b, c
        a, b, c, d = (a + a0) & _M, (b + b0) & _M, (c + c0) & _M, (d + d0) & _M
    return b


def _tea(name: bytes, seed: tuple[int, ...], *, signed: bool) -> int:
    x, y = seed[:2]
    for start in range(0, len(name), 16):
        a, b, c, d = _words(name, start, 4, signed=signed)
        x0, y0 = x, y
        total = 0
        for _ in range(16):
            total = (total + _TEA_DELTA) & _M
            x = (x + (((y << 4) + a) ^ (y + total) ^ ((y >> 5) + b))) & _M
            y = (y + (((x << 4) + c) ^ (x + total) ^ ((x >> 5) + d))) & _M
        x, y = (x + x0) & _M, (y + y0) & _M
    return x


def _legacy(name: bytes, *, signed: bool) -> int:
    previous, value = 0x37ABE8F9, 0x12A3FE2D
    for byte in name:
        if signed:
            byte -= (byte & 0x80) << 1
        mixed = (previous + (value ^ (byte * 7152373 & _M))) & _M
        if mixed & 0x8000_0000:
            mixed -= 0x7FFF_FFFF
        previous, value = value, mixed & _M
    return (value << 1) & _M
