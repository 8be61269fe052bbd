# SPDX-License-Identifier: Apache-2.0
"""The JSON in which a contained server says what an image is, read by somebody who does not trust
it: so long, so deep, and of this shape, or it is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from penstock.broker.protocol import ProtocolError

__all__ = ["LONGEST", "parse_description"]

LONGEST: Final = 4 << 20
"""Characters."""

_MOST_ROWS: Final = 4096
_MOST_ITEMS: Final = 256
_LONGEST_TEXT: Final = 4096
_LARGEST_NUMBER: Final = 1 << 64
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_NUMBER: Final = "a number"
_TEXT: Final = "a text"
_OPTIONAL: Final = "a text or null"

_TOP: Final = {"size": _NUMBER, "type": _OPTIONAL, "label": _TEXT, "uuid": _TEXT}
_ROW: Final = {
    "number": _NUMBER, "start": _NUMBER, "size": _NUMBER, "type": _TEXT, "type_name": _TEXT,
    "name": _TEXT, "uuid": _TEXT, "holds": _OPTIONAL, "label": _OPTIONAL,
}  # fmt: skip
_FILESYSTEM: Final = {"type": _TEXT}
_OFTEN: Final = {"size": _NUMBER, "free_bytes": _NUMBER}


def parse_description(text: str) -> dict[str, Any]:
    """Read the description of an image.

    Returns:
        ``size``, ``type``, ``label`` and ``uuid``; perhaps ``partitions`` (rows), ``partition`` (a
        number) and ``filesystem``: names with plain values, lists of them or names with those,
        always with ``type`` and ``warnings``.

    Raises:
        ProtocolError: it is none.
    """
    if len(text) > LONGEST:
        raise ProtocolError(f"a description of more than {LONGEST} characters")
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_refuse, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a description that is no JSON: {error}") from None
    found = _object(value, "the description")
    _fields(found, _TOP, "the description")
    for name in found.keys() - _TOP.keys():
        if name == "partitions":
            for row in _list(found[name], name, _MOST_ROWS):
                _row(row)
        elif name == "partition":
            _check(found[name], _NUMBER, name)
        elif name == "filesystem":
            _filesystem(found[name])
        else:
            raise ProtocolError(f"a description with {name!r} in it")
    return found


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} in it")


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number of too many digits")
    return int(text)


def _row(value: Any) -> None:
    row = _object(value, "a partition")
    _fields(row, _ROW, "a partition")
    if row.keys() != _ROW.keys():
        raise ProtocolError("a partition with more than belongs to it")


def _filesystem(value: Any) -> None:
    found = _object(value, "filesystem")
    _fields(found, _FILESYSTEM, "filesystem")
    _fields(found, {name: kind for name, kind in _OFTEN.items() if name in found}, "filesystem")
    for warning in _list(found.get("warnings"), "warnings", _MOST_ITEMS):
        _check(warning, _TEXT, "a warning")
    for name, item in found.items():
        if isinstance(item, dict):
            for inner, plain in _object(item, name).items():
                _plain(plain, inner)
        else:
            _plain(item, name)


def _plain(value: Any, name: str) -> None:
    """A value without anything inside, or a list of such."""
    for item in _list(value, name, _MOST_ITEMS) if isinstance(value, list) else [value]:
        if isinstance(item, (bool, type(None))):
            continue
        _check(item, _TEXT if isinstance(item, str) else _NUMBER, name)


def _fields(found: Mapping[str, Any], wanted: Mapping[str, str], what: str) -> None:
    for name, kind in wanted.items():
        if name not in found:
            raise ProtocolError(f"{what} without {name}")
        _check(found[name], kind, name)


def _check(value: Any, kind: str, name: str) -> None:
    if kind is _NUMBER:
        good = type(value) is int and -_LARGEST_NUMBER < value < _LARGEST_NUMBER
    else:
        good = isinstance(value, str) and len(value) <= _LONGEST_TEXT
        good = good or (kind is _OPTIONAL and value is None)
    if not good:
        raise ProtocolError(f"{name[:64]!r} is not {kind}, or out of bounds")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > _MOST_ITEMS:
        raise ProtocolError(f"{what[:64]!r} is no object, or too large")
    for name in value:
        if not _NAME.fullmatch(name):
            raise ProtocolError(f"{what[:64]!r} has {name[:64]!r} in it, which is no name")
    return value


def _list(value: Any, what: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ProtocolError(f"{what[:64]!r} is no list, or too long")
    return value
