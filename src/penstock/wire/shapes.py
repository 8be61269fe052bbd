# SPDX-License-Identifier: Apache-2.0
"""Codecs made from declarations: the body of a message is a NamedTuple, its annotations the shape.

A body is at most one fixed structure (a layout of :mod:`penstock.abi.layout`), then any of:

- ``Name``: a name in a directory and a NUL;
- ``String``: other bytes and a NUL;
- ``Payload``: bytes up to the end of the message;
- ``Annotated[Payload, "size"]``: the same, and ``arg.size`` is their number (so for names);
- ``tuple[L, ...]``: records of layout or number ``L`` up to the end; ``arg.count`` is their number,
  or the sum of other fields, when ``Annotated`` with their names;
- ``Extensions``: what follows the names of a request that makes an inode.

From a declaration one closure per direction is derived when the message is first met; the shapes
that carry the load (a structure alone, a name alone, a structure and data) have closures of their
own.

Invariants: a decoder raises :class:`WireError` and nothing else, whatever the bytes; it copies
names and never data; it reads nothing outside ``buffer[start:size]``. What it accepts, the encoder
writes back byte for byte, except for padding within extensions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, TypeVar, get_args, get_origin

from penstock.abi.fuse.opcodes import NAME_MAX
from penstock.abi.layout import is_layout, pack, size_of, struct_of, unpack
from penstock.wire.errors import WireError
from penstock.wire.extensions import Extensions, decode_extensions, encode_extensions

__all__ = [
    "Buffer",
    "Decoder",
    "Encoder",
    "Name",
    "Payload",
    "String",
    "Table",
    "decoder",
    "encoder",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

Name = Annotated[bytes, "name"]
"""A name in a directory: not empty, no "/", at most 4095 bytes. "." and ".." are names."""
String = Annotated[bytes, "string"]
"""Bytes without a NUL, at most 4095."""
Payload = Annotated[bytes | memoryview, "data"]
"""Data; decoded, it is a view into the message."""

Decoder: TypeAlias = Callable[[Buffer, int, int], Any]
"""``(buffer, size of the message, total_extlen) -> body``."""
Encoder: TypeAlias = Callable[[Any], tuple[bytes, int]]
"""``body -> (its bytes, total_extlen)``."""

_Key = TypeVar("_Key")
_Codec = TypeVar("_Codec")

_new: Final = tuple.__new__


class _Field(NamedTuple):
    """What an annotation asks for."""

    kind: str
    """"arg", "name", "string", "data", "items" or "extensions"."""
    counters: tuple[int, ...] = ()
    """Indices of the fields of ``arg`` whose sum is the length of this one."""
    item: Any = None
    """The layout of "arg", the layout or struct code of "items"."""


def _fields(cls: type) -> tuple[_Field, ...]:
    """Read the annotations of a message."""
    fields: list[_Field] = []
    names: tuple[str, ...] = ()
    for hint in cls.__annotations__.values():
        if is_layout(hint):
            fields.append(_Field("arg", (), hint))
            names = hint._fields
        elif hint is Extensions:
            fields.append(_Field("extensions"))
        else:
            kind, item = "items", None
            counters: Any = ("count",)
            origin: Any = get_origin(hint)
            if origin is Annotated:
                hint, *counters = get_args(hint)
                origin = get_origin(hint)
            if origin is tuple:
                item = get_args(hint)[0]
                item = item if is_layout(item) else get_args(item)[1]
            else:
                kind, *counters = counters
            fields.append(_Field(kind, tuple(map(names.index, counters)), item))
    return tuple(fields)


def _reader(cls: Any) -> Callable[[Buffer, int], Any]:
    """``unpack`` of one layout, as fast as it can be."""
    if any(is_layout(hint) for hint in cls.__annotations__.values()):
        return lambda buffer, offset: unpack(cls, buffer, offset)
    unpack_from = struct_of(cls).unpack_from
    return lambda buffer, offset: _new(cls, unpack_from(buffer, offset))


def decoder(cls: Any, title: str, start: int, shortest: int | None = None) -> Decoder:
    """The function that decodes the body of one message.

    Args:
        cls: the message.
        title: its name, for errors.
        start: bytes of header before the body.
        shortest: the fixed structure may be cut to as many bytes as this, its missing fields are
            zero; or be longer than is known here. None: it has exactly its size.
    """
    fields = _fields(cls)
    if shortest is not None:
        return _lenient_decoder(cls, title, start, fields[0].item, shortest)
    kinds = tuple(field.kind for field in fields)
    if kinds in {(), ("arg",)}:
        return _fixed_decoder(cls, title, start, fields[0].item if fields else None)
    if kinds == ("name",):
        return _name_decoder(cls, title, start)
    if kinds == ("arg", "data"):
        return _data_decoder(cls, title, start, *fields)
    return _sequence_decoder(cls, title, start, fields)


def _fixed_decoder(cls: Any, title: str, start: int, arg: Any) -> Decoder:
    if arg is None:
        empty = cls()

        def decode_empty(_buffer: Buffer, size: int, _extlen: int) -> Any:
            if size != start:
                raise _wrong_size(title, size - start, "0")
            return empty

        return decode_empty
    end = start + size_of(arg)
    read = _reader(arg)

    def decode(buffer: Buffer, size: int, _extlen: int) -> Any:
        if size != end:
            raise _wrong_size(title, size - start, f"{end - start} ({arg.__name__})")
        return _new(cls, (read(buffer, start),))

    return decode


def _lenient_decoder(cls: Any, title: str, start: int, arg: Any, shortest: int) -> Decoder:
    full = size_of(arg)

    def decode(buffer: Buffer, size: int, _extlen: int) -> Any:
        length = size - start
        if length < shortest:
            raise _wrong_size(title, length, f"{shortest} or more ({arg.__name__})")
        raw = bytes(buffer[start : start + full])
        return cls(unpack(arg, raw + bytes(full - len(raw))))

    return decode


def _name_decoder(cls: Any, title: str, start: int) -> Decoder:
    def decode(buffer: Buffer, size: int, _extlen: int) -> Any:
        raw = bytes(buffer[start:size])
        last = size - start - 1
        if raw.find(0) != last or last < 1 or last > NAME_MAX or b"/" in raw:
            name, end = _string(buffer, start, size, title)
            raise _bad_name(title, name) if end == size else _trailing(title, size - end)
        return _new(cls, (raw[:last],))

    return decode


def _data_decoder(cls: Any, title: str, start: int, head: _Field, data: _Field) -> Decoder:
    arg = head.item
    counter = data.counters[0] if data.counters else None
    data_start = start + size_of(arg)
    read = _reader(arg)

    def decode(buffer: Buffer, size: int, _extlen: int) -> Any:
        if size < data_start:
            raise _wrong_size(title, size - start, f"{data_start - start} or more")
        value = read(buffer, start)
        if counter is not None and value[counter] != size - data_start:
            raise _wrong_count(title, value, data.counters, size - data_start)
        return _new(cls, (value, memoryview(buffer)[data_start:size]))

    return decode


def _sequence_decoder(cls: Any, title: str, start: int, fields: tuple[_Field, ...]) -> Decoder:
    def decode(buffer: Buffer, size: int, extlen: int) -> Any:
        position = start
        values: list[Any] = []
        for kind, counters, item in fields:
            value: Any
            if kind == "arg":
                end = position + size_of(item)
                if end > size:
                    raise _wrong_size(title, size - start, f"{end - start} or more")
                value = unpack(item, buffer, position)
            elif kind in {"name", "string"}:
                value, end = _string(buffer, position, size, title)
                if kind == "name" and (not value or b"/" in value):
                    raise _bad_name(title, value)
                if counters:
                    _check_count(title, values[0], counters, len(value))
            elif kind == "extensions":
                value, end = _extensions(buffer, position, size, extlen, title), size
            else:
                value, end = memoryview(buffer)[position:size], size
                if kind == "items":
                    value = _items(value, item, title)
                if counters:
                    _check_count(title, values[0], counters, len(value))
            values.append(value)
            position = end
        if position != size:
            raise _trailing(title, size - position)
        return _new(cls, values)

    return decode


def _string(buffer: Buffer, position: int, size: int, title: str) -> tuple[bytes, int]:
    """The bytes up to a NUL, and the position behind it."""
    raw = bytes(buffer[position : min(size, position + NAME_MAX + 1)])
    length = raw.find(0)
    if length < 0:
        raise WireError(
            f"{title}: no NUL in the {len(raw)} bytes at {position}, where a string of at most "
            f"{NAME_MAX} bytes was expected"
        )
    return raw[:length], position + length + 1


def _items(area: memoryview, item: Any, title: str) -> tuple[Any, ...]:
    fixed = struct.Struct("<" + item) if isinstance(item, str) else struct_of(item)
    if len(area) % fixed.size:
        raise _wrong_size(f"{title}, records", len(area), f"a multiple of {fixed.size}")
    records = fixed.iter_unpack(area)
    if isinstance(item, str):
        return tuple(value for (value,) in records)
    return tuple(_new(item, values) for values in records)


def _extensions(buffer: Buffer, position: int, size: int, extlen: int, title: str) -> Extensions:
    # Kernels before 7.38 send security contexts but leave total_extlen zero.
    if extlen and extlen * 8 != size - position:
        raise _wrong_size(f"{title}, extensions", size - position, f"total_extlen = {extlen * 8}")
    return decode_extensions(memoryview(buffer)[position:size], title)


def encoder(cls: Any, title: str) -> Encoder:
    """The function that encodes the body of one message; the inverse of :func:`decoder`."""
    fields = _fields(cls)

    def encode(value: Any) -> tuple[bytes, int]:
        parts: list[Any] = []
        extlen = 0
        try:
            for (kind, counters, item), part in zip(fields, value, strict=True):
                if counters:
                    _check_count(title, value[0], counters, len(part))
                if kind == "arg":
                    parts.append(pack(part))
                elif kind in {"name", "string"}:
                    parts.append(_terminated(part, title, name=kind == "name"))
                elif kind == "extensions":
                    raw = encode_extensions(part, title)
                    extlen = len(raw) // 8
                    parts.append(raw)
                else:
                    parts.append(_joined(item, part) if kind == "items" else part)
        except struct.error as error:
            raise WireError(f"{title}: a value does not fit its field: {error}") from error
        return b"".join(parts), extlen

    return encode


def _joined(item: Any, values: tuple[Any, ...]) -> bytes:
    if isinstance(item, str):
        return struct.pack(f"<{len(values)}{item}", *values)
    return b"".join(map(pack, values))


def _terminated(value: bytes, title: str, *, name: bool) -> bytes:
    if len(value) > NAME_MAX or 0 in value or (name and (not value or b"/" in value)):
        raise _bad_name(title, value)
    return value + b"\0"


class Table(dict[_Key, _Codec]):
    """Codecs by operation or class, made when first asked for; None for an unknown key.

    Args:
        make: derives the codec of a key, or returns None.
    """

    def __init__(self, make: Callable[[_Key], _Codec]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: _Key) -> _Codec:
        codec = self._make(key)
        # Unknown keys come from outside; remembering them would let the table grow.
        if codec is not None:
            self[key] = codec
        return codec


def _wrong_size(title: str, size: int, expected: str) -> WireError:
    return WireError(f"{title}: {size} bytes where {expected} were expected")


def _trailing(title: str, size: int) -> WireError:
    return WireError(f"{title}: {size} bytes behind the end of the message")


def _bad_name(title: str, name: bytes) -> WireError:
    return WireError(
        f"{title}: {name[:64]!r} is no name: 1 to {NAME_MAX} bytes without NUL or slash expected"
    )


def _check_count(title: str, arg: Any, counters: tuple[int, ...], found: int) -> None:
    if sum(arg[index] for index in counters) != found:
        raise _wrong_count(title, arg, counters, found)


def _wrong_count(title: str, arg: Any, counters: tuple[int, ...], found: int) -> WireError:
    said = " + ".join(f"{arg._fields[index]} {arg[index]}" for index in counters)
    return WireError(f"{title}: {type(arg).__name__} says {said}, but {found} came")
