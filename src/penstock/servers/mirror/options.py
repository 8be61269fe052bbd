# SPDX-License-Identifier: Apache-2.0
"""The ``-o`` words of the mirror: the only place that knows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from penstock.servers.base import ServerOption

__all__ = ["CACHES", "OPTIONS", "MirrorOptions", "parse_options"]

CACHES: Final = ("mirror", "immutable", "none")

OPTIONS: Final = (
    ServerOption(
        "cache",
        "WORD",
        "mirror: what changes underneath shows within a second (the default); immutable: nothing "
        "changes underneath, keep all for ever; none: keep nothing",
    ),
    ServerOption(
        "timeout", "SECONDS", "with cache=mirror, how long names and attributes are kept (1)"
    ),
    ServerOption(
        "locks",
        "WORD",
        "source: locks meet those taken underneath (the default); local: the kernel keeps them, "
        "and closing a file asks nobody",
    ),
    ServerOption("noacl", "", "have permissions decided by modes alone"),
    ServerOption(
        "idmap", "", "allow the mount to be idmapped (then who writes to a file is not known)"
    ),
    ServerOption("uid", "N", "show all files as owned by this user id, and make them as it"),
    ServerOption("gid", "N", "show all files as owned by this group id, and make them as it"),
    ServerOption(
        "trusted", "", "carry trusted.* attributes; the server keeps CAP_SYS_ADMIN for them"
    ),
)

_LARGEST_ID: Final = 0xFFFF_FFFE
_LARGEST_TIMEOUT: Final = 1e9


class MirrorOptions(NamedTuple):
    """Parsed options."""

    cache: str = "mirror"
    timeout: float = 1.0
    """Seconds."""
    locks: bool = True
    """Whether locks are taken on the source."""
    acl: bool = True
    idmap: bool = False
    uid: int | None = None
    gid: int | None = None
    trusted: bool = False
    read_only: bool = False
    """Said by the mount's own ``ro``, which every type has."""


def parse_options(words: Mapping[str, str], *, read_only: bool = False) -> MirrorOptions:
    """Parse the words of :data:`OPTIONS`.

    Args:
        words: word → value, empty for a word without.
        read_only: whether the mount is.

    Raises:
        ValueError: an unknown word, or a value that is not one of it.
    """
    known = {option.name: option for option in OPTIONS}
    for word, value in words.items():
        if word not in known:
            raise ValueError(f"unknown option {word!r} for mirror")
        if value and not known[word].metavar:
            raise ValueError(f"{word}={value}: {word} takes no value")
    cache = _one_of(words, "cache", CACHES)
    if "timeout" in words and cache != "mirror":
        raise ValueError(f"timeout={words['timeout']}: cache={cache} has its own")
    return MirrorOptions(
        cache=cache,
        timeout=_seconds(words, "timeout", 1.0),
        locks=_one_of(words, "locks", ("source", "local")) == "source",
        acl="noacl" not in words,
        idmap="idmap" in words,
        uid=_id(words, "uid"),
        gid=_id(words, "gid"),
        trusted="trusted" in words,
        read_only=read_only,
    )


def _one_of(words: Mapping[str, str], name: str, values: tuple[str, ...]) -> str:
    value = words.get(name, values[0])
    if value not in values:
        raise ValueError(f"{name}={value}: not one of {', '.join(values)}")
    return value


def _seconds(words: Mapping[str, str], name: str, default: float) -> float:
    if name not in words:
        return default
    try:
        seconds = float(words[name])
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LARGEST_TIMEOUT:
        raise ValueError(f"{name}={words[name]}: not a number of seconds")
    return seconds


def _id(words: Mapping[str, str], name: str) -> int | None:
    value = words.get(name)
    if value is None:
        return None
    if not value.isdecimal() or int(value) > _LARGEST_ID:
        raise ValueError(f"{name}={value}: not a number from 0 to {_LARGEST_ID}")
    return int(value)
