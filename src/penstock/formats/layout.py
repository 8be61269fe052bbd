# SPDX-License-Identifier: Apache-2.0
"""On-disk structures, declared once as tables of field, offset and type.

A structure is a :class:`typing.NamedTuple` whose annotations carry the field's ``struct`` code and
its byte offset, as a specification lists them::

    @packed("<", 16)
    class Entry(NamedTuple):
        inode: Annotated[int, at(0x0, "I")]
        name: Annotated[bytes, at(0x8, "8s")]

Gaps are reserved space and are skipped. :func:`unpack` reads one structure, :func:`struct_of` gives
the compiled ``struct.Struct`` for loops.

Invariants: offsets ascend and never overlap (checked at import); no implicit alignment; no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, get_args, get_type_hints

__all__ = ["At", "at", "offset_of", "packed", "size_of", "struct_of", "unpack"]

T = TypeVar("T", bound=tuple[Any, ...])


class At(NamedTuple):
    """Where a field lies and how it is encoded."""

    offset: int
    code: str


_STRUCTS: Final[dict[type, struct.Struct]] = {}
_OFFSETS: Final[dict[type, dict[str, int]]] = {}


def at(offset: int, code: str) -> At:
    """A field of ``struct`` code ``code`` (one value) at byte ``offset``."""
    return At(offset, code)


def packed(order: str, size: int) -> Callable[[type[T]], type[T]]:
    """Class decorator: compile a NamedTuple's annotations.

    Args:
        order: ``"<"`` or ``">"``.
        size: bytes of the whole structure, reserved space at its end included.
    """

    def decorate(cls: type[T]) -> type[T]:
        codes = [order]
        position = 0
        offsets = {}
        for name, hint in get_type_hints(cls, include_extras=True).items():
            field: At = get_args(hint)[1]
            gap = field.offset - position
            if gap < 0:
                raise TypeError(f"{cls.__name__}.{name} overlaps the field before it")
            codes.append(f"{gap}x{field.code}" if gap else field.code)
            offsets[name] = field.offset
            position = field.offset + struct.calcsize(order + field.code)
        if position > size:
            raise TypeError(f"{cls.__name__} is longer than {size} bytes")
        codes.append(f"{size - position}x")
        _STRUCTS[cls] = struct.Struct("".join(codes))
        _OFFSETS[cls] = offsets
        return cls

    return decorate


def struct_of(cls: type[tuple[Any, ...]]) -> struct.Struct:
    """The compiled ``struct.Struct`` of a structure."""
    return _STRUCTS[cls]


def size_of(cls: type[tuple[Any, ...]]) -> int:
    """Size of a structure in bytes."""
    return _STRUCTS[cls].size


def offset_of(cls: type[tuple[Any, ...]], field: str) -> int:
    """Byte offset of a field in its structure."""
    return _OFFSETS[cls][field]


def unpack(cls: type[T], buffer: bytes | bytearray | memoryview, offset: int = 0) -> T:
    """Read one structure.

    Raises:
        struct.error: ``buffer`` does not hold the whole structure. Callers check lengths first.
    """
    return tuple.__new__(cls, _STRUCTS[cls].unpack_from(buffer, offset))
