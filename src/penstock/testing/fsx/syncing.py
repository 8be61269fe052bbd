# SPDX-License-Identifier: Apache-2.0
"""Operations that make durable, and that have the kernel forget what it keeps."""

from __future__ import annotations

import os

from penstock.sys.libc import syscall
from penstock.testing.fsx.operations import SKIPPED, Operation, operation
from penstock.testing.fsx.picking import any_slot, slot_alone, slot_and_range
from penstock.testing.fsx.world import World

__all__ = ["sync_range"]

_WAIT_WRITE_WAIT = 7
"""SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER."""


@operation(2, slot_alone(any_slot), "slot")
def fsync(world: World, op: Operation) -> object:
    """Make data and attributes durable."""
    slot = world.slot(op.args[0])
    if slot is None:
        return SKIPPED
    os.fsync(slot.fd)
    slot.node.stores = False
    return ""


@operation(2, slot_alone(any_slot), "slot")
def fdatasync(world: World, op: Operation) -> object:
    """Make data durable."""
    slot = world.slot(op.args[0])
    if slot is None:
        return SKIPPED
    os.fdatasync(slot.fd)
    slot.node.stores = False
    return ""


def sync_range(fd: int, offset: int, length: int) -> None:
    """sync_file_range(2): have a range written, and wait for it."""
    syscall("sync_file_range", fd, offset, length, _WAIT_WRITE_WAIT)


@operation(2, slot_and_range(any_slot), "slot offset length", needs="sync_file_range")
def sync_file_range(world: World, op: Operation) -> object:
    """Have a range of data written."""
    slot = world.slot(op.args[0])
    if slot is None:
        return SKIPPED
    sync_range(slot.fd, op.args[1], op.args[2])
    return ""


@operation(4, slot_and_range(any_slot), "slot offset length")
def forget(world: World, op: Operation) -> object:
    """Drop a range of pages, or all: what is read next comes from the filesystem again."""
    slot = world.slot(op.args[0])
    if slot is None:
        return SKIPPED
    if op.number % 2:
        os.fsync(slot.fd)
        slot.node.stores = False
        os.posix_fadvise(slot.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return "all"
    os.posix_fadvise(slot.fd, op.args[1], op.args[2], os.POSIX_FADV_DONTNEED)
    return ""
