# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for messages of the FUSE protocol.

They read the declarations of :mod:`penstock.wire`, but know by themselves what a name may be and
which numbers must agree, so that a codec cannot be wrong in the same way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, get_args, get_origin

from hypothesis import strategies as st

from penstock.abi.layout import is_layout
from penstock.wire import Extensions, WireError

__all__ = ["bodies", "encodable", "extensions", "garbage", "mutations", "outcome", "structures"]

names = st.binary(min_size=1, max_size=300).map(
    lambda raw: raw.replace(b"\0", b"n").replace(b"/", b"s")
)
long_names = st.integers(1, 4095).map(lambda length: b"x" * length)
strings = st.binary(max_size=300).map(lambda raw: raw.replace(b"\0", b"n"))
data = st.one_of(st.binary(max_size=200), st.just(bytes(range(256)) * 32))


def numbers(code: str) -> st.SearchStrategy[Any]:
    """Values of one struct code."""
    if code.endswith("s"):
        size = struct.calcsize(code)
        return st.binary(min_size=size, max_size=size)
    bits = struct.calcsize("<" + code) * 8
    if code.islower():
        return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
    return st.integers(0, (1 << bits) - 1)


def structures(cls: Any) -> st.SearchStrategy[Any]:
    """Values of a layout, nested ones included."""
    parts = [
        structures(hint) if is_layout(hint) else numbers(get_args(hint)[1])
        for hint in cls.__annotations__.values()
    ]
    return st.builds(cls, *parts)


def extensions() -> st.SearchStrategy[Extensions]:
    """Security contexts and groups."""
    contexts = st.lists(st.tuples(names, st.binary(max_size=60)), max_size=31)
    groups = st.lists(st.integers(0, 0xFFFF_FFFF), max_size=9)
    return st.builds(Extensions, contexts.map(tuple), groups.map(tuple))


def _field(name: str, hint: Any) -> st.SearchStrategy[Any]:
    if is_layout(hint):
        return structures(hint)
    if hint is Extensions:
        return extensions()
    if name in {"items", "nodeids", "iovecs"}:
        kind = hint if get_origin(hint) is tuple else get_args(hint)[0]
        item = get_args(kind)[0]
        one = structures(item) if is_layout(item) else numbers(get_args(item)[1])
        return st.lists(one, max_size=20).map(tuple)
    if "name" in get_args(hint):
        return st.one_of(names, long_names)
    return strings if "string" in get_args(hint) else data


def encodable(message: Any) -> Any:
    """The message with lengths and counts in its fixed structure made right."""
    kind = type(message).__name__
    for field, count in (
        ("items", "count"),
        ("nodeids", "count"),
        ("data", "in_size" if kind == "Ioctl" else "size"),
        ("value", "size"),
        ("name", "namelen"),
    ):
        counted = hasattr(message, field) and hasattr(getattr(message, "arg", None), count)
        if counted and not (field == "data" and kind.endswith("Reply") and kind != "NotifyReply"):
            length = len(getattr(message, field))
            message = message._replace(arg=message.arg._replace(**{count: length}))
    if kind == "IoctlRetryReply":
        arg = message.arg._replace(in_iovs=0, out_iovs=len(message.iovecs))
        message = message._replace(arg=arg._replace(flags=arg.flags | 4))
    elif kind == "IoctlReply":
        message = message._replace(arg=message.arg._replace(flags=message.arg.flags & ~4))
    return message


def bodies(cls: Any) -> st.SearchStrategy[Any]:
    """Messages of a class that can be encoded."""
    parts = [_field(name, hint) for name, hint in cls.__annotations__.items()]
    return st.builds(cls, *parts).map(encodable)


@st.composite
def mutations(draw: st.DrawFn, message: bytes) -> bytes:
    """The message with a few bytes changed, cut off, put in or repeated; never its first four."""
    raw = bytearray(message)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(4, max(4, len(raw))))
        what = draw(st.integers(0, 3))
        if what == 0 and place < len(raw):
            raw[place] = draw(st.sampled_from([0, 1, 7, 31, 32, 47, 255, raw[place] ^ 1]))
        elif what == 1:
            del raw[max(place, 16) :]
        elif what == 2:
            raw[place:place] = draw(st.binary(min_size=1, max_size=9))
        else:
            raw[place:place] = raw[place : place + draw(st.integers(1, 16))]
    return bytes(raw)


def garbage() -> st.SearchStrategy[bytes]:
    """Any bytes, often with many zeros and other small numbers."""
    small = st.lists(st.sampled_from([0, 0, 0, 1, 8, 16, 32, 255]), max_size=200).map(bytes)
    return st.one_of(st.binary(max_size=300), small)


def outcome(decode: Callable[..., Any], *args: Any) -> Any:
    """What a decoder makes of hostile bytes: its result, or the WireError; all else escapes."""
    try:
        return decode(*args)
    except WireError as error:
        text = str(error)
    assert "\n" not in text
    assert 0 < len(text) < 500
    return WireError(text)
