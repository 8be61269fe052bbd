# SPDX-License-Identifier: Apache-2.0
"""Notifications: messages a server sends unasked, with ``unique`` 0 and ``error`` = the code.

They are valid once INIT is answered. The return value of the ``write`` is the kernel's answer. A
notification must not be sent by the thread that answers a request holding the same inode or
directory: the kernel would wait for the answer.
"""

from enum import IntEnum, IntFlag
from typing import NamedTuple

from penstock.abi.layout import layout, s64, u32, u64


class NotifyCode(IntEnum):
    """``enum fuse_notify_code``."""

    POLL = 1
    """Events changed on a polled file."""
    INVAL_INODE = 2
    """Forget attributes, and cached data of a range."""
    INVAL_ENTRY = 3
    """Forget a name."""
    STORE = 4
    """Put data in the page cache."""
    RETRIEVE = 5
    """Send what the page cache has; the answer is a NOTIFY_REPLY request."""
    DELETE = 6
    """Forget a name whose inode was removed."""
    RESEND = 7
    """Send again all requests that are not answered (7.40)."""
    INC_EPOCH = 8
    """Revalidate all names (7.44)."""
    PRUNE = 9
    """Drop unused inodes (7.45)."""


class InvalEntryFlag(IntFlag):
    """``NotifyInvalEntryOut.flags``."""

    EXPIRE_ONLY = 1 << 0
    """Look the name up again at its next use, but keep it (7.38)."""


@layout
class NotifyPollOut(NamedTuple):
    """``struct fuse_notify_poll_wakeup_out``."""

    kh: u64
    """From :class:`PollIn`."""


@layout
class NotifyInvalInodeOut(NamedTuple):
    """``off`` < 0: attributes alone; ``len`` <= 0: up to the end of the file."""

    ino: u64
    """A node id."""
    off: s64
    len: s64


@layout
class NotifyInvalEntryOut(NamedTuple):
    """A name of ``namelen`` bytes and a NUL follow."""

    parent: u64
    namelen: u32
    flags: u32
    """:class:`InvalEntryFlag`."""


@layout
class NotifyDeleteOut(NamedTuple):
    """A name of ``namelen`` bytes and a NUL follow."""

    parent: u64
    child: u64
    namelen: u32
    padding: u32


@layout
class NotifyStoreOut(NamedTuple):
    """``size`` bytes of data follow."""

    nodeid: u64
    offset: u64
    size: u32
    padding: u32


@layout
class NotifyRetrieveOut(NamedTuple):
    notify_unique: u64
    """Chosen by the server, repeated in the header of the NOTIFY_REPLY."""
    nodeid: u64
    offset: u64
    size: u32
    padding: u32


@layout
class NotifyRetrieveIn(NamedTuple):
    """Body of a NOTIFY_REPLY request; ``size`` bytes of data follow."""

    dummy1: u64
    offset: u64
    size: u32
    dummy2: u32
    dummy3: u64
    dummy4: u64


@layout
class NotifyPruneOut(NamedTuple):
    """``count`` node ids of 8 bytes follow."""

    count: u32  # type: ignore[assignment]  # the kernel's name, not tuple.count
    padding: u32
    spare: u64
