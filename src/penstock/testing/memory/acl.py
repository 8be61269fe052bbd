# SPDX-License-Identifier: Apache-2.0
"""POSIX access control lists: what a filesystem owes the kernel that has POSIX_ACL negotiated.

The kernel checks permissions by the ACL; the filesystem keeps ACL and mode in step: it derives the
mode from an ACL that is set, changes the ACL with chmod, and gives the parent's default ACL to what
is made in a directory.

Format (uapi/linux/posix_acl_xattr.h): u32 version 2, then per entry u16 tag, u16 permissions,
u32 id. Specification: POSIX.1e draft 17, section 23; acl(5).
"""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from penstock.fs import FsError

__all__ = ["ACCESS", "DEFAULT", "chmod", "inherit", "mode_of", "parse"]

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_VERSION: Final = 2

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_ORDER: Final = (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER)


class _Entry(NamedTuple):
    tag: int
    perm: int
    id: int


def parse(value: bytes) -> list[_Entry]:
    """Decode and check an ACL.

    Raises:
        FsError: EINVAL unless it is a well-formed and complete ACL.
    """
    body = len(value) - _HEADER.size
    if body <= 0 or body % _ENTRY.size or _HEADER.unpack_from(value)[0] != _VERSION:
        raise FsError(errno.EINVAL, "not an ACL of version 2")
    entries = [_Entry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :])]
    tags = [entry.tag for entry in entries]
    single = all(tags.count(tag) == 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER))
    named = _USER in tags or _GROUP in tags
    ordered = all(t in _ORDER for t in tags) and tags == sorted(tags, key=_ORDER.index)
    if not (single and ordered and tags.count(_MASK) in ({1} if named else {0, 1})):
        raise FsError(errno.EINVAL, "the ACL's entries are incomplete or out of order")
    if any(entry.perm > 7 for entry in entries):
        raise FsError(errno.EINVAL, "the ACL has unknown permission bits")
    return entries


def _pack(entries: list[_Entry]) -> bytes:
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _find(entries: list[_Entry], tag: int) -> _Entry | None:
    return next((entry for entry in entries if entry.tag == tag), None)


def _perm(entries: list[_Entry], tag: int) -> int:
    entry = _find(entries, tag)
    return entry.perm if entry is not None else 0


def mode_of(value: bytes) -> tuple[int, bool]:
    """The permission bits that an access ACL means, and whether they say all that it says (then
    it need not be kept)."""
    entries = parse(value)
    group = _MASK if _find(entries, _MASK) is not None else _GROUP_OBJ
    bits = _perm(entries, _USER_OBJ) << 6 | _perm(entries, group) << 3 | _perm(entries, _OTHER)
    return bits, len(entries) == 3


def chmod(value: bytes, mode: int) -> bytes:
    """An access ACL after chmod(2): the mask, if there is one, takes the group's bits."""
    entries = parse(value)
    return _pack(_apply(entries, mode))


def _apply(entries: list[_Entry], mode: int) -> list[_Entry]:
    group = _MASK if _find(entries, _MASK) is not None else _GROUP_OBJ
    bits = {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
    return [entry._replace(perm=bits.get(entry.tag, entry.perm)) for entry in entries]


def inherit(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """What a new inode gets from its directory's default ACL.

    Args:
        default: the directory's default ACL.
        mode: as asked for by the caller; the umask does not count here.

    Returns:
        The new mode, and the access ACL unless the mode says it all.
    """
    entries = parse(default)
    allowed, plain = mode_of(default)
    kept = mode & (allowed | ~0o777)
    return kept, None if plain else _pack(_apply(entries, kept))
