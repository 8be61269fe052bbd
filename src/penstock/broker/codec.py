# SPDX-License-Identifier: Apache-2.0
"""Bodies of messages to bytes and back, by the declarations of their fields.

A body is a named tuple whose annotations say how each field is written: a number (``u32`` and its
like), one of an enumeration, a text or a list with the most it may hold (:class:`Longest`), a list
of other bodies. So every length, every form of a text and every enumeration is checked in one
place, and a body that was read has only what its class allows.

Texts end in logs, on terminals and in options of mounts. So a name has but letters, digits and a
few signs, and a line nothing that does not print: no escape sequence, line break or comma of a
server's choosing goes anywhere.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

__all__ = ["Cursor", "Field", "Form", "Longest", "ProtocolError", "fields_of", "put", "take"]


class ProtocolError(ValueError):
    """What came is not a message of this protocol, or not one that may come now."""


class Form(enum.Enum):
    """What a text may consist of."""

    NAME = "name"
    """ASCII letters and digits and ``_ . + -``."""
    LINE = "line"
    """Characters that print, on one line."""
    TEXT = "text"
    """Any characters."""


class Longest(NamedTuple):
    """How long a text (bytes of UTF-8) or a list (items) may be, and what a text consists of."""

    most: int
    form: Form = Form.TEXT


class Field(NamedTuple):
    """How one field is written: a number, a text or a list of what ``item`` is."""

    name: str
    number: struct.Struct | None
    kind: Callable[[int], int] | None
    """The enumeration (or ``bool``) that a number is of; None: any number will do."""
    longest: int
    form: Form
    item: Any
    """None for a number; ``str`` for a text; the class or :class:`Field` of a list's items."""


_known: Final[dict[type[Any], tuple[Field, ...]]] = {}


def fields_of(body: type[Any]) -> tuple[Field, ...]:
    """The fields of a body's class, in order."""
    fields = _known.get(body)
    if fields is None:
        hints = get_type_hints(body, include_extras=True)
        fields = _known[body] = tuple(_field(name, hints[name]) for name in body._fields)
    return fields


def _field(name: str, hint: Any) -> Field:
    kind, how = get_args(hint)
    if kind is str:
        return Field(name, None, None, how.most, how.form, str)
    if isinstance(kind, type) and issubclass(kind, int):
        number = struct.Struct("<" + how)
        return Field(name, number, None if kind is int else kind, 0, Form.TEXT, None)
    assert get_origin(kind) is tuple
    item = get_args(kind)[0]
    inner = item if hasattr(item, "_fields") else _field(name, item)
    return Field(name, None, None, how.most, Form.TEXT, inner)


_LENGTH: Final = struct.Struct("<H")
_NAME: Final = re.compile(r"[A-Za-z0-9_.+-]*", re.ASCII)


def _allowed(form: Form, text: str) -> bool:
    if form is Form.NAME:
        return _NAME.fullmatch(text) is not None
    return form is Form.TEXT or text.isprintable()


def _printable(text: str) -> str:
    """The text with what does not print written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def put(packet: bytearray, body: Any) -> None:
    """Append a body. What does not print in a line is escaped; lines and texts too long are cut.

    Raises:
        ValueError: a list or a name is too long, a name has what it must not, a number does not
            fit or is none of its enumeration.
    """
    for field, value in zip(fields_of(type(body)), body, strict=True):
        _put_field(packet, field, value)


def _put_field(packet: bytearray, field: Field, value: Any) -> None:
    if field.number is not None:
        packet += _packed(field, field.number, value)
    elif field.item is str:
        text = _text_bytes(field, value)
        packet += _LENGTH.pack(len(text)) + text
    else:
        if len(value) > field.longest:
            raise ValueError(f"{field.name}: {len(value)} items")
        packet += _LENGTH.pack(len(value))
        for item in value:
            if isinstance(field.item, Field):
                _put_field(packet, field.item, item)
            else:
                put(packet, item)


def _packed(field: Field, form: struct.Struct, value: int) -> bytes:
    try:
        return form.pack(value if field.kind is None else field.kind(value))
    except (struct.error, ValueError) as error:
        raise ValueError(f"{field.name}: {value!r}: {error}") from None


def _text_bytes(field: Field, value: str) -> bytes:
    if field.form is Form.NAME:
        if len(value) > field.longest or not _allowed(Form.NAME, value):
            raise ValueError(f"{field.name}: {value!r} is no name")
    elif field.form is Form.LINE:
        value = _printable(value)
    text = value.encode("utf-8", "backslashreplace")
    if len(text) > field.longest:
        text = text[: field.longest].decode("utf-8", "ignore").encode()
    return text


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

    def length(self, field: Field) -> int:
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
    return body._make([_take_field(cursor, field) for field in fields_of(body)])


def _take_field(cursor: Cursor, field: Field) -> Any:
    if field.number is not None:
        return _take_number(cursor, field, field.number)
    count = cursor.length(field)
    if field.item is str:
        return _take_text(cursor, field, count)
    if isinstance(field.item, Field):
        return tuple(_take_field(cursor, field.item) for _ in range(count))
    return tuple(take(cursor, field.item) for _ in range(count))


def _take_number(cursor: Cursor, field: Field, form: struct.Struct) -> int:
    value = cursor.number(form)
    if field.kind is None:
        return value
    try:
        known = field.kind(value)
    except ValueError:
        known = None
    if known is None or int(known) != value:  # bool() takes any number
        raise ProtocolError(f"{cursor.name}: {field.name} is {value}")
    return known


def _take_text(cursor: Cursor, field: Field, count: int) -> str:
    try:
        text = cursor.bytes(count).decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{cursor.name}: {field.name} is no UTF-8") from None
    if not _allowed(field.form, text):
        raise ProtocolError(f"{cursor.name}: {field.name} is no {field.form.value}")
    return text
