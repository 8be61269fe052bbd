# SPDX-License-Identifier: Apache-2.0
"""The identity with which the calling thread makes files, changed often and cheaply.

Facts about setfsuid(2) (beside those of :mod:`penstock.sys.credentials`)
    - Going from 0 to another user takes the capabilities over files out of the effective set of
      this thread alone; capset(2) puts them back, as they stay permitted. Between other users, and
      back to 0, nothing is lost.
    - Signals, ptrace and /proc look at the effective ids, which stay: a caller cannot reach the
      server because it acts with the caller's ids for a moment.
"""

from __future__ import annotations

import errno
import struct
import threading
from ctypes import c_char_p, c_long, c_uint
from typing import Final

from penstock.abi.capability import CAPABILITY_VERSION_3
from penstock.sys.capabilities import effective
from penstock.sys.rawcalls import failed, prototype, raw

__all__ = ["FileIdentity"]

_NO_ID: Final = 0xFFFF_FFFF
_HEADER: Final = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
_DATA: Final = struct.Struct("=6I")


_setfsuid: Final = prototype("setfsuid", c_uint)
_setfsgid: Final = prototype("setfsgid", c_uint)
_capset: Final = prototype("capset", c_char_p, c_char_p)
_setgroups: Final = raw("setgroups", c_long, c_char_p)


class FileIdentity(threading.local):
    """Who the calling thread is to filesystems. Made in the thread that has the capabilities that
    all threads are to keep; each thread begins as what it was started as."""

    def __init__(self, capabilities: frozenset[int] | None = None) -> None:
        kept = effective() if capabilities is None else capabilities
        bits = sum(1 << number for number in kept)
        low, high = bits & 0xFFFF_FFFF, bits >> 32
        self._data = _DATA.pack(low, low, 0, high, high, 0)
        self.user: int = _setfsuid(_NO_ID) & 0xFFFF_FFFF
        self.group: int = _setfsgid(_NO_ID) & 0xFFFF_FFFF
        self.groups: tuple[int, ...] | None = None
        """Supplementary groups, None = those of the process."""

    def become(self, user: int, group: int) -> None:
        """Use files as this user and group, with the capabilities that are kept.

        Raises:
            OSError: EPERM; EINVAL for an id that is none.
        """
        if group != self.group:
            _setfsgid(group)
            self.group = _setfsgid(_NO_ID) & 0xFFFF_FFFF
        if user != self.user:
            before = self.user
            _setfsuid(user)
            self.user = _setfsuid(_NO_ID) & 0xFFFF_FFFF
            if before == 0 and self.user and _capset(_HEADER, self._data):
                raise failed("capset")
        if self.user != user or self.group != group:
            code = errno.EINVAL if _NO_ID in {user, group} else errno.EPERM
            raise OSError(code, f"setfsuid: cannot be user {user}, group {group}")

    def join(self, groups: tuple[int, ...]) -> None:
        """Have these supplementary groups and no others. Raises EPERM."""
        if groups != self.groups:
            if _setgroups(len(groups), struct.pack(f"={len(groups)}I", *groups) or None):
                raise failed("setgroups")
            self.groups = groups
