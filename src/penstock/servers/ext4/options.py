# SPDX-License-Identifier: Apache-2.0
"""The ``-o`` words of ext4: the only place that knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from penstock.servers.base import ServerOption

__all__ = ["OPTIONS", "Ext4Options", "parse_options"]

OPTIONS: Final = (
    ServerOption("partition", "N", "the partition with this number of a GPT or MBR disk image"),
    ServerOption("norecovery", "", "do not replay a dirty journal: show the filesystem as it lies"),
    ServerOption("noload", "", "the same as norecovery"),
    ServerOption("nocheck", "", "do not verify metadata checksums"),
    ServerOption("acl", "", "have the kernel enforce POSIX ACLs (the default)"),
    ServerOption("noacl", "", "show POSIX ACLs, but have permissions decided by modes alone"),
    ServerOption(
        "idmap", "", "allow the mount to be idmapped (then who lists xattrs is not known)"
    ),
    ServerOption("uid", "N", "show all files as owned by this user id"),
    ServerOption("gid", "N", "show all files as owned by this group id"),
)

_LARGEST_ID: Final = 0xFFFF_FFFE


class Ext4Options(NamedTuple):
    """Parsed options."""

    partition: int | None = None
    recovery: bool = True
    verify: bool = True
    acl: bool = True
    idmap: bool = False
    uid: int | None = None
    gid: int | None = None


def parse_options(words: Mapping[str, str]) -> Ext4Options:
    """Parse the words of :data:`OPTIONS`.

    Raises:
        ValueError: an unknown word, or a value that is no number in range.
    """
    known = {option.name for option in OPTIONS}
    for word in words:
        if word not in known:
            raise ValueError(f"unknown option {word!r} for ext4")
    return Ext4Options(
        partition=_number(words, "partition", 1, 1 << 16),
        recovery="norecovery" not in words and "noload" not in words,
        verify="nocheck" not in words,
        acl="noacl" not in words,
        idmap="idmap" in words,
        uid=_number(words, "uid", 0, _LARGEST_ID),
        gid=_number(words, "gid", 0, _LARGEST_ID),
    )


def _number(words: Mapping[str, str], name: str, lowest: int, highest: int) -> int | None:
    value = words.get(name)
    if value is None:
        return None
    if not value.isdecimal() or not lowest <= int(value) <= highest:
        raise ValueError(f"{name}={value}: not a number from {lowest} to {highest}")
    return int(value)
