# SPDX-License-Identifier: Apache-2.0
"""Structures of kernel interfaces, declared once as annotated tuples.

A structure is a :class:`typing.NamedTuple` whose annotations carry both the Python type, for the
type checker, and the ``struct`` code, for the wire::

    @layout
    class GetattrIn(NamedTuple):
        getattr_flags: u32
        dummy: u32
        fh: u64

Everything else is derived: :func:`struct_of` gives the compiled little-endian ``struct.Struct``,
:func:`unpack` and :func:`pack` move between bytes and the tuple. A field whose type is itself a
layout is nested in place; ``pad(n)`` fields are not needed, padding is a named field as it is in
the kernel's headers, so that a layout lists every byte.

Invariants: no implicit alignment (every format starts with ``<``), no I/O, no ctypes.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final, NamedTuple, TypeVar, get_args, get_type_hints

__all__ = [
    "FieldInfo",
    "array",
    "fields_of",
    "is_layout",
    "layout",
    "pack",
    "s32",
    "s64",
    "size_of",
    "struct_of",
    "u8",
    "u16",
    "u32",
    "u64",
    "unpack",
]

u8 = Annotated[int, "B"]
u16 = Annotated[int, "H"]
u32 = Annotated[int, "I"]
u64 = Annotated[int, "Q"]
s32 = Annotated[int, "i"]
s64 = Annotated[int, "q"]

T = TypeVar("T", bound=tuple[Any, ...])


def array(code: str, count: int) -> str:
    """The struct code of a fixed array kept as bytes (``array("I", 11)`` is ``"44s"``).

    Arrays occur in the FUSE interface only as reserved space, so they are kept as one ``bytes``
    field: equal to the kernel's in size and offset, and cheap to carry.
    """
    return f"{struct.calcsize('<' + code) * count}s"


class FieldInfo(NamedTuple):
    """One field of a layout: its name, its offset and size in bytes."""

    name: str
    offset: int
    size: int


class _Layout(NamedTuple):
    struct: struct.Struct
    flat: bool
    """True if no field is itself a layout."""
    parts: tuple[tuple[type[tuple[Any, ...]] | None, int], ...]
    """Per field: its nested layout or None, and how many flat values it takes."""
    fields: tuple[FieldInfo, ...]


_LAYOUTS: Final[dict[type, _Layout]] = {}


def layout(cls: type[T]) -> type[T]:
    """Class decorator: compile the annotations of a NamedTuple into a wire layout."""
    codes: list[str] = []
    parts: list[tuple[type[tuple[Any, ...]] | None, int]] = []
    fields: list[FieldInfo] = []
    offset = 0
    for name, hint in get_type_hints(cls, include_extras=True).items():
        nested = _LAYOUTS.get(hint)
        if nested is not None:
            code = nested.struct.format[1:]
            parts.append((hint, sum(count for _, count in nested.parts)))
        else:
            code = get_args(hint)[1]
            parts.append((None, 1))
        size = struct.calcsize("<" + code)
        fields.append(FieldInfo(name, offset, size))
        offset += size
        codes.append(code)
    compiled = struct.Struct("<" + "".join(codes))
    flat = all(part is None for part, _ in parts)
    _LAYOUTS[cls] = _Layout(compiled, flat, tuple(parts), tuple(fields))
    return cls


def is_layout(cls: object) -> bool:
    """Whether ``cls`` was declared with :func:`layout`."""
    return isinstance(cls, type) and cls in _LAYOUTS


def struct_of(cls: type[tuple[Any, ...]]) -> struct.Struct:
    """The compiled ``struct.Struct`` of a layout; nested layouts are flattened into it."""
    return _LAYOUTS[cls].struct


def size_of(cls: type[tuple[Any, ...]]) -> int:
    """Size of a layout in bytes."""
    return _LAYOUTS[cls].struct.size


def fields_of(cls: type[tuple[Any, ...]]) -> tuple[FieldInfo, ...]:
    """The fields of a layout in order, with offsets and sizes in bytes."""
    return _LAYOUTS[cls].fields


def unpack(cls: type[T], buffer: bytes | bytearray | memoryview, offset: int = 0) -> T:
    """Read one structure.

    Args:
        cls: a layout.
        buffer: the message; must hold ``size_of(cls)`` bytes from ``offset``.
        offset: byte offset of the structure.

    Raises:
        struct.error: the buffer is too short. Callers check lengths first.
    """
    info = _LAYOUTS[cls]
    values = info.struct.unpack_from(buffer, offset)
    return tuple.__new__(cls, values if info.flat else _nest(info, iter(values)))


def _nest(info: _Layout, values: Any) -> tuple[Any, ...]:
    return tuple(
        next(values)
        if part is None
        else tuple.__new__(part, _nest(_LAYOUTS[part], values))
        for part, _ in info.parts
    )


def _flatten(info: _Layout, value: tuple[Any, ...]) -> list[Any]:
    flat: list[Any] = []
    for item, (part, _) in zip(value, info.parts, strict=True):
        if part is None:
            flat.append(item)
        else:
            flat.extend(_flatten(_LAYOUTS[part], item))
    return flat


def pack(value: tuple[Any, ...]) -> bytes:
    """The bytes of one structure.

    Raises:
        struct.error: a value does not fit its field.
    """
    info = _LAYOUTS[type(value)]
    return info.struct.pack(*(value if info.flat else _flatten(info, value)))
