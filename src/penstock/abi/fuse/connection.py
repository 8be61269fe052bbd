# SPDX-License-Identifier: Apache-2.0
"""Structures that set a connection up and steer it: INIT, CUSE_INIT, INTERRUPT.

As in :mod:`penstock.abi.fuse.structs`, fields are the kernel's.
"""

from typing import Annotated, NamedTuple

from penstock.abi.layout import array, layout, u16, u32, u64


@layout
class InitIn(NamedTuple):
    """Kernels before 7.36 send only the first 16 bytes."""

    major: u32
    minor: u32
    max_readahead: u32
    flags: u32
    """Bits 0 to 31 of :class:`InitFlag`."""
    flags2: u32
    """Bits 32 to 63."""
    unused: Annotated[bytes, array("I", 11)]


@layout
class InitOut(NamedTuple):
    """May be sent as its first 8 or 24 bytes; what is missing counts as zero."""

    major: u32
    minor: u32
    max_readahead: u32
    """Bytes."""
    flags: u32
    """Bits 0 to 31 of :class:`InitFlag`."""
    max_background: u16
    congestion_threshold: u16
    max_write: u32
    """Bytes."""
    time_gran: u32
    """Nanoseconds."""
    max_pages: u16
    map_alignment: u16
    """Binary logarithm of bytes."""
    flags2: u32
    """Bits 32 to 63, counted only with INIT_EXT."""
    max_stack_depth: u32
    request_timeout: u16
    """Seconds."""
    unused: Annotated[bytes, array("H", 11)]


@layout
class InterruptIn(NamedTuple):
    unique: u64


@layout
class CuseInitIn(NamedTuple):
    major: u32
    minor: u32
    unused: u32
    flags: u32
    """:class:`CuseFlag`."""


@layout
class CuseInitOut(NamedTuple):
    major: u32
    minor: u32
    unused: u32
    flags: u32
    """:class:`CuseFlag`."""
    max_read: u32
    max_write: u32
    dev_major: u32
    dev_minor: u32
    spare: Annotated[bytes, array("I", 10)]
