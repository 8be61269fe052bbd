# SPDX-License-Identifier: Apache-2.0
"""What requests that make an inode carry behind their names.

There are two kinds, told apart by the second number of their 8-byte header: up to 31 it is a count
of security contexts (SECURITY_CTX), 32 says that supplementary groups follow (CREATE_SUPP_GROUP).
Each extension, and each security context within one, is padded to 8 bytes.

An extension that overlaps its neighbour, comes twice or is of another kind is refused: the kernel
sends only kinds that were negotiated.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from penstock.abi.fuse.flags import MAX_NR_SECCTX, ExtType
from penstock.abi.fuse.opcodes import NAME_MAX
from penstock.wire.errors import WireError

__all__ = ["NO_EXTENSIONS", "Extensions", "decode_extensions", "encode_extensions"]

_PAIR: Final = struct.Struct("<II")
"""SecctxHeader, Secctx and ExtHeader alike."""
_HEADER: Final = _PAIR.size
_GROUPS: Final = int(ExtType.GROUPS)
_MAX_EXTLEN: Final = 0xFFFF


class Extensions(NamedTuple):
    """Extensions of a request that makes an inode."""

    security: tuple[tuple[bytes, bytes], ...] = ()
    """Security contexts for the new inode: (attribute name, value)."""
    groups: tuple[int, ...] = ()
    """The caller's supplementary group that matters here: the parent's, if he is a member."""


NO_EXTENSIONS: Final = Extensions()


def decode_extensions(area: memoryview, title: str) -> Extensions:
    """Read the extensions of one request.

    Args:
        area: what follows the names, to the end of the message.
        title: the message, for errors.

    Raises:
        WireError: see the module's text.
    """
    if not area:
        return NO_EXTENSIONS
    raw = bytes(area)
    security: tuple[tuple[bytes, bytes], ...] | None = None
    groups: tuple[int, ...] | None = None
    position = 0
    while position < len(raw):
        if len(raw) - position < _HEADER:
            raise _bad(title, position, f"{len(raw) - position} bytes, a header has {_HEADER}")
        size, kind = _PAIR.unpack_from(raw, position)
        end = position + size
        if size < _HEADER or end > len(raw):
            raise _bad(title, position, f"size {size}, {_HEADER} to {len(raw) - position} fit")
        if kind <= MAX_NR_SECCTX and security is None:
            security = _decode_security(raw, position + _HEADER, end, kind, title)
        elif kind == _GROUPS and groups is None:
            groups = _decode_groups(raw, position + _HEADER, end, title)
        else:
            raise _bad(title, position, f"kind {kind} unknown or repeated")
        position = (end + 7) & ~7
    return Extensions(security or (), groups or ())


def _decode_security(
    raw: bytes, position: int, end: int, count: int, title: str
) -> tuple[tuple[bytes, bytes], ...]:
    contexts: list[tuple[bytes, bytes]] = []
    for _ in range(count):
        if end - position < _HEADER:
            raise _bad(title, position, "a security context without its header")
        size, _padding = _PAIR.unpack_from(raw, position)
        position += _HEADER
        stop = raw.find(0, position, end)
        if stop <= position or stop - position > NAME_MAX:
            raise _bad(title, position, "a security context without a name")
        value = stop + 1
        if size > end - value:
            raise _bad(title, position, f"a security context of {size} bytes, {end - value} fit")
        contexts.append((raw[position:stop], raw[value : value + size]))
        position = (value + size + 7) & ~7
    return tuple(contexts)


def _decode_groups(raw: bytes, position: int, end: int, title: str) -> tuple[int, ...]:
    if end - position < 4:
        raise _bad(title, position, "groups without their number")
    (count,) = struct.unpack_from("<I", raw, position)
    if count > (end - position - 4) // 4:
        raise _bad(title, position, f"{count} groups, {(end - position - 4) // 4} fit")
    return struct.unpack_from(f"<{count}I", raw, position + 4)


def _bad(title: str, position: int, what: str) -> WireError:
    return WireError(f"{title}, extensions: {what} (at {position})")


def encode_extensions(extensions: Extensions, title: str) -> bytes:
    """The bytes of the extensions, a multiple of 8; nothing for an empty kind.

    Raises:
        WireError: they cannot be sent.
        struct.error: a number does not fit.
    """
    security, groups = extensions
    parts: list[bytes] = []
    if security:
        if len(security) > MAX_NR_SECCTX:
            raise WireError(f"{title}: {len(security)} security contexts, at most {MAX_NR_SECCTX}")
        records = [_encode_context(name, value, title) for name, value in security]
        size = _HEADER + sum(map(len, records))
        parts += [_PAIR.pack(size, len(records)), *records]
    if groups:
        body = struct.pack(f"<I{len(groups)}I", len(groups), *groups)
        parts.append(_padded(_PAIR.pack((_HEADER + len(body) + 7) & ~7, _GROUPS) + body))
    raw = b"".join(parts)
    if len(raw) // 8 > _MAX_EXTLEN:
        raise WireError(f"{title}: {len(raw)} bytes of extensions, at most {_MAX_EXTLEN * 8}")
    return raw


def _encode_context(name: bytes, value: bytes, title: str) -> bytes:
    if not name or 0 in name or len(name) > NAME_MAX:
        raise WireError(f"{title}: {name[:64]!r} does not name a security context")
    return _padded(_PAIR.pack(len(value), 0) + name + b"\0" + value)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) & 7)
