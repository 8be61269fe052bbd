# SPDX-License-Identifier: Apache-2.0
"""Bodies of messages to bytes and back, by the declarations of their fields.

A body is a named tuple whose annotations say how each field is written: a number (``u32`` and its
like), a text or a list with the most it may hold (:class:`Longest`), a list of other bodies. So
every length is checked in one place.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

__all__ = ["Cursor", "Longest", "ProtocolError", "put", "take"]


class ProtocolError(ValueError):
    """What came is not a message of this protocol, or not one that may come now."""


class Longest(NamedTuple):
    """How long a text (bytes of UTF-8) or a list (items) may be."""

    most: int


class _Field(NamedTuple):
    """How one field is written: a number, a text or a list of what ``item`` is."""

    name: str
    number: struct.Struct | None
    longest: int
    item: Any
    """None for a number; ``str`` for a text; the class or field of a list's items."""


_known: Final[dict[type[Any], tuple[_Field, ...]]] = {}


def _fields(body: type[Any]) -> tuple[_Field, ...]:
    fields = _known.get(body)
    if fields is None:
        hints = get_type_hints(body, include_extras=True)
        fields = _known[body] = tuple(_field(name, hints[name]) for name in body._fields)
    return fields


def _field(name: str, hint: Any) -> _Field:
    kind, how = get_args(hint)
    if kind is int:
        return _Field(name, struct.Struct("<" + how), 0, None)
    if kind is str:
        return _Field(name, None, how.most, str)
    assert get_origin(kind) is tuple
    item = get_args(kind)[0]
    if hasattr(item, "_fields"):
        return _Field(name, None, how.most, item)
    return _Field(name, None, how.most, _field(name, item))


_LENGTH: Final = struct.Struct("<H")


def put(packet: bytearray, body: Any) -> None:
    """Append a body. Texts that are too long are cut.

    Raises:
        ValueError: a list is too long.
    """
    for field, value in zip(_fields(type(body)), body, strict=True):
        _put_field(packet, field, value)


def _put_field(packet: bytearray, field: _Field, value: Any) -> None:
    if field.number is not None:
        packet += field.number.pack(value)
    elif field.item is str:
        text = value.encode("utf-8", "backslashreplace")
        if len(text) > field.longest:
            text = text[: field.longest].decode("utf-8", "ignore").encode()
        packet += _LENGTH.pack(len(text)) + text
    else:
        if len(value) > field.longest:
            raise ValueError(f"{field.name}: {len(value)} items")
        packet += _LENGTH.pack(len(value))
        for item in value:
            if isinstance(field.item, _Field):
                _put_field(packet, field.item, item)
            else:
                put(packet, item)


class Cursor:
    """Reads a packet from front to back, and not beyond its end."""

    __slots__ = ("name", "packet", "position")

    def __init__(self, packet: bytes, position: int, name: str) -> None:
        self.packet = packet
        self.position = position
        self.name = name

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        end = self.position + count
        if end > len(self.packet):
            raise ProtocolError(f"{self.name}: ends at byte {len(self.packet)}")
        taken = self.packet[self.position : end]
        self.position = end
        return taken

    def number(self, form: struct.Struct) -> int:
        """The next number."""
        (value,) = form.unpack(self.bytes(form.size))
        return int(value)

    def length(self, field: _Field) -> int:
        """The length of a text or list."""
        count = self.number(_LENGTH)
        if count > field.longest:
            raise ProtocolError(f"{self.name}: {field.name} of length {count}")
        return count


def take(cursor: Cursor, body: type[Any]) -> Any:
    """Read a body of this class.

    Raises:
        ProtocolError: it is none.
    """
    return body._make([_take_field(cursor, field) for field in _fields(body)])


def _take_field(cursor: Cursor, field: _Field) -> Any:
    if field.number is not None:
        return cursor.number(field.number)
    count = cursor.length(field)
    if field.item is str:
        try:
            return cursor.bytes(count).decode()
        except UnicodeDecodeError:
            raise ProtocolError(f"{cursor.name}: {field.name} is no UTF-8") from None
    if isinstance(field.item, _Field):
        return tuple(_take_field(cursor, field.item) for _ in range(count))
    return tuple(take(cursor, field.item) for _ in range(count))
