# SPDX-License-Identifier: Apache-2.0
"""Calls on a descriptor of /dev/fuse: its ioctls, and its commands on an io_uring.

The numbers are those of the generic Linux ioctl encoding (x86, ARM, RISC-V, s390).
"""

from enum import IntEnum, IntFlag
from typing import Annotated, Final, NamedTuple

from penstock.abi.layout import array, layout, s32, u16, u32, u64

DEV_IOC_MAGIC: Final = 229

DEV_IOC_CLONE: Final = 0x8004_E500
"""``_IOR(229, 0, u32)``: makes a freshly opened /dev/fuse another channel of a mounted one, whose
descriptor the argument points to."""
DEV_IOC_BACKING_OPEN: Final = 0x4010_E501
"""``_IOW(229, 1, BackingMap)``: registers a file for passthrough, returns its id (7.40)."""
DEV_IOC_BACKING_CLOSE: Final = 0x4004_E502
"""``_IOW(229, 2, u32)``: ends a registration (7.40)."""
DEV_IOC_SYNC_INIT: Final = 0xE503
"""``_IO(229, 3)``: makes mount(2) wait until INIT is answered."""


@layout
class BackingMap(NamedTuple):
    """Argument of DEV_IOC_BACKING_OPEN; flags and padding must be 0."""

    fd: s32
    flags: u32
    padding: u64


class UringCmd(IntEnum):
    """``enum fuse_uring_cmd``: ``cmd_op`` of IORING_OP_URING_CMD on /dev/fuse (7.42)."""

    INVALID = 0
    REGISTER = 1
    """Register buffers and fetch a request."""
    COMMIT_AND_FETCH = 2
    """Send a reply and fetch the next request."""
    ADD_QUEUE = 3
    """Make a queue with flags (7.46)."""
    ADD_BUFPOOL = 4
    """Give a queue a pool of payload buffers (7.46)."""


class UringQueueFlag(IntFlag):
    """``UringCmdReq.flags`` of ADD_QUEUE (7.46)."""

    ZERO_COPY = 1 << 0


class UringEntFlag(IntFlag):
    """``UringEntInOut.flags`` (7.46)."""

    ZERO_COPY = 1 << 0
    """The payload of this request is in the registered buffer."""


URING_IN_OUT_HEADER_SIZE: Final = 128
URING_OP_IN_OUT_SIZE: Final = 128


@layout
class UringCmdReq(NamedTuple):
    """``struct fuse_uring_cmd_req`` up to 7.45: in the command area of the SQE, at byte 48."""

    flags: u64
    commit_id: u64
    """From :class:`UringEntInOut`, when committing."""
    qid: u16
    padding: Annotated[bytes, array("B", 6)]


@layout
class UringCmdReqBufpool(NamedTuple):
    """``struct fuse_uring_cmd_req`` since 7.46, as ADD_BUFPOOL uses it."""

    flags: u64
    commit_id: u64
    qid: u16
    padding: Annotated[bytes, array("B", 6)]
    uaddr: u64
    len: u32
    reserved: u32


@layout
class UringCmdReqZeroCopy(NamedTuple):
    """``struct fuse_uring_cmd_req`` since 7.46, as REGISTER on a zero-copy queue uses it."""

    flags: u64
    commit_id: u64
    qid: u16
    padding: Annotated[bytes, array("B", 6)]
    ent_zero_copy_buf_index: u16
    rest: Annotated[bytes, array("B", 14)]


@layout
class UringEntInOut(NamedTuple):
    """The ring's own part of an entry's header."""

    flags: u64
    """:class:`UringEntFlag`."""
    commit_id: u64
    payload_sz: u32
    """Bytes used of the payload buffer."""
    offset: u32
    """Of the payload within the pool (7.46; padding before)."""
    reserved: u64


@layout
class UringReqHeader(NamedTuple):
    """The header buffer of an entry."""

    in_out: Annotated[bytes, array("B", URING_IN_OUT_HEADER_SIZE)]
    """:class:`InHeader` of the request, :class:`OutHeader` of the reply."""
    op_in: Annotated[bytes, array("B", URING_OP_IN_OUT_SIZE)]
    """The first fixed structure of the request."""
    ring_ent_in_out: UringEntInOut
