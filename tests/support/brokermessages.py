# SPDX-License-Identifier: Apache-2.0
"""Messages between broker and server, made up by hypothesis: right ones, and ruined ones."""

from __future__ import annotations

import string
import struct
from typing import Any

from hypothesis import strategies as st

from penstock.broker import protocol
from penstock.broker.codec import Field, Form, fields_of
from penstock.broker.protocol import Kind, encode

__all__ = ["BODIES", "bodies", "fds_of", "packets", "ruined"]

BODIES: dict[Kind, type[Any]] = {kind: rule.body for kind, rule in protocol._RULES.items()}
_NAME = string.ascii_letters + string.digits + "_.+-"
_PRINTS = st.characters(codec="utf-8").filter(str.isprintable)
_FEW = 8
"""Items of a list, and characters of a text, unless the limit itself is meant."""


def fds_of(kind: Kind) -> range:
    """How many descriptors a message of a kind brings."""
    return protocol._RULES[kind].fds


def _number(field: Field) -> st.SearchStrategy[int]:
    assert field.number is not None
    if field.kind is bool:
        return st.booleans()
    if field.kind is not None:
        return st.sampled_from(list(field.kind))  # type: ignore[call-overload]
    bits = field.number.size * 8
    if field.number.format.endswith("q"):
        return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
    return st.integers(0, (1 << bits) - 1)


def _text(field: Field) -> st.SearchStrategy[str]:
    if field.form is Form.NAME:
        return st.text(_NAME, max_size=min(field.longest, _FEW))
    plain = st.text(_PRINTS, max_size=_FEW)
    if field.form is Form.TEXT:
        plain = st.text(st.characters(codec="utf-8"), max_size=_FEW)
    return plain | st.just("x" * field.longest)


def _value(field: Field) -> st.SearchStrategy[Any]:
    if field.number is not None:
        return _number(field)
    if field.item is str:
        return _text(field)
    item = _value(field.item) if isinstance(field.item, Field) else _body(field.item)
    return st.lists(item, max_size=min(field.longest, _FEW)).map(tuple)


def _body(cls: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(cls, *[_value(field) for field in fields_of(cls)])


def bodies(kind: Kind) -> st.SearchStrategy[Any]:
    """Bodies of a kind, each with what its class allows."""
    return _body(BODIES[kind])


def packets(kind: Kind) -> st.SearchStrategy[bytes]:
    """Packets of a kind."""
    return st.builds(encode, bodies(kind), st.integers(0, 0xFFFF_FFFF))


def _set(packet: bytes, at: int, byte: int) -> bytes:
    at %= max(len(packet), 1)
    return packet[:at] + bytes([byte]) + packet[at + 1 :]


def ruined(packet: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """What may become of a packet: cut, extended, changed, its kind another one, its head alone,
    or any bytes."""
    byte = st.integers(0, 255)
    place = st.integers(0, 1 << 16)
    return st.one_of(
        st.builds(lambda p, n: p[: n % max(len(p), 1)], packet, place),
        st.builds(lambda p, more: p + more, packet, st.binary(min_size=1, max_size=200)),
        st.builds(_set, packet, place, byte),
        st.builds(_flip, packet, place, st.integers(0, 7)),
        st.builds(lambda p, kind: struct.pack("<H", kind) + p[2:], packet, st.integers(0, 40)),
        st.builds(lambda kind, n: struct.pack("<HHI", kind, 0, 0) + b"\xff" * n,
                  st.integers(0, 40), st.integers(0, 3000)),
        st.binary(max_size=300),
    )  # fmt: skip


def _flip(packet: bytes, at: int, bit: int) -> bytes:
    if not packet:
        return packet
    at %= len(packet)
    return _set(packet, at, packet[at] ^ 1 << bit)
