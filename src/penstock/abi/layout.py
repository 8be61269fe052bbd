# SPDX-License-Identifier: Apache-2.0
"""Structures of kernel interfaces, declared once as annotated tuples.

A structure is a :class:`typing.NamedTuple` whose annotations carry both the Python type, for the
type checker, and the ``struct`` code, for the wire::

    @layout
    class GetattrIn(NamedTuple):
        getattr_flags: u32
        dummy: u32
        fh: u64

Everything else is derived when it is first needed: :func:`struct_of` gives the compiled
little-endian ``struct.Struct``, :func:`unpack` and :func:`pack` move between bytes and the tuple.
A field whose type is itself a layout is nested in place; ``pad(n)`` fields are not needed, padding
is a named field as it is in the kernel's headers, so that a layout lists every byte.

Invariants: no implicit alignment (every format starts with ``<``), no I/O, no ctypes.
"""

from __future__ import annotations

import struct
from typing import (
    Annotated,
    Any,
    Final,
    ForwardRef,
    NamedTuple,
    TypeVar,
    get_args,
    get_type_hints,
)

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
    parts: tuple[tuple[type[tuple[Any, ...]] | None, str], ...]
    """Per field: its nested layout or None, and its struct code."""


class _Layouts(dict[type, _Layout]):
    """Layouts compiled so far. A declaration is compiled when it is first used, because there are
    more than a process needs; a subclass of a layout has the layout of its base."""

    def __missing__(self, cls: type) -> _Layout:
        if cls in _DECLARED:
            info = _compiled(cls)
        else:
            base = next((base for base in cls.__mro__ if base in _DECLARED), None)
            if base is None:
                raise KeyError(cls)
            info = self[base]
        self[cls] = info
        return info


_DECLARED: Final[set[type]] = set()
_LAYOUTS: Final = _Layouts()


def layout(cls: type[T]) -> type[T]:
    """Class decorator: the annotations of a NamedTuple are a wire layout."""
    _DECLARED.add(cls)
    return cls


def _compiled(cls: type) -> _Layout:
    parts: list[tuple[type[tuple[Any, ...]] | None, str]] = []
    for hint in _hints(cls).values():
        if hint in _DECLARED:
            parts.append((hint, _LAYOUTS[hint].struct.format[1:]))
        else:
            parts.append((None, get_args(hint)[1]))
    compiled = struct.Struct("<" + "".join(code for _, code in parts))
    return _Layout(compiled, all(part is None for part, _ in parts), tuple(parts))


def _hints(cls: type) -> dict[str, Any]:
    """The annotations; only those that were kept as text need to be evaluated."""
    hints = cls.__annotations__
    if any(isinstance(hint, str | ForwardRef) for hint in hints.values()):
        return get_type_hints(cls, include_extras=True)
    return hints


def is_layout(cls: object) -> bool:
    """Whether ``cls`` was declared with :func:`layout`."""
    return isinstance(cls, type) and cls in _DECLARED


def struct_of(cls: type[tuple[Any, ...]]) -> struct.Struct:
    """The compiled ``struct.Struct`` of a layout; nested layouts are flattened into it."""
    return _LAYOUTS[cls].struct


def size_of(cls: type[tuple[Any, ...]]) -> int:
    """Size of a layout in bytes."""
    return _LAYOUTS[cls].struct.size


def fields_of(cls: type[tuple[Any, ...]]) -> tuple[FieldInfo, ...]:
    """The fields of a layout in order, with offsets and sizes in bytes."""
    fields: list[FieldInfo] = []
    offset = 0
    for name, (_, code) in zip(_hints(cls), _LAYOUTS[cls].parts, strict=True):
        size = struct.calcsize("<" + code)
        fields.append(FieldInfo(name, offset, size))
        offset += size
    return tuple(fields)


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
        next(values) if part is None else tuple.__new__(part, _nest(_LAYOUTS[part], values))
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
    """The bytes of one structure, an instance of a layout or of a subclass of one.

    Raises:
        struct.error: a value does not fit its field.
    """
    info = _LAYOUTS[type(value)]
    return info.struct.pack(*(value if info.flat else _flatten(info, value)))
