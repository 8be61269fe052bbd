# SPDX-License-Identifier: Apache-2.0
"""Operations that give and take space: the modes of fallocate(2)."""

from __future__ import annotations

from penstock.sys.files import fallocate
from penstock.testing.fsx.operations import SKIPPED, Operation, operation
from penstock.testing.fsx.picking import slot_and_range, slot_and_whole_pages, writable
from penstock.testing.fsx.world import World

__all__ = ["COLLAPSE", "INSERT", "KEEP_SIZE", "PUNCH", "ZERO"]

KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32
"""FALLOC_FL_*."""


@operation(4, slot_and_range(writable), "slot offset length", needs="allocate")
def allocate(world: World, op: Operation) -> object:
    """Have space; the file grows to hold it."""
    slot = world.slot(op.args[0])
    if slot is None or not slot.writable:
        return SKIPPED
    _, offset, length = op.args
    fallocate(slot.fd, 0, offset, length)
    slot.node.resize(max(len(slot.node.data), offset + length))
    return len(slot.node.data)


@operation(3, slot_and_range(writable), "slot offset length", needs="allocate-keep")
def allocate_keep(world: World, op: Operation) -> object:
    """Have space, beyond the end too, and leave the size."""
    slot = world.slot(op.args[0])
    if slot is None or not slot.writable:
        return SKIPPED
    fallocate(slot.fd, KEEP_SIZE, op.args[1], op.args[2])
    return len(slot.node.data)


@operation(7, slot_and_range(writable), "slot offset length", needs="punch")
def punch(world: World, op: Operation) -> object:
    """Make a hole."""
    slot = world.slot(op.args[0])
    if slot is None or not slot.writable:
        return SKIPPED
    _, offset, length = op.args
    fallocate(slot.fd, PUNCH | KEEP_SIZE, offset, length)
    slot.node.zero(offset, length)
    return len(slot.node.data)


@operation(4, slot_and_range(writable), "slot offset length", needs="zero")
def zero(world: World, op: Operation) -> object:
    """Zeros; the file grows to hold them."""
    slot = world.slot(op.args[0])
    if slot is None or not slot.writable:
        return SKIPPED
    _, offset, length = op.args
    fallocate(slot.fd, ZERO, offset, length)
    slot.node.zero(offset, length, grow=True)
    return len(slot.node.data)


@operation(3, slot_and_range(writable), "slot offset length", needs="zero-keep")
def zero_keep(world: World, op: Operation) -> object:
    """Zeros, and leave the size."""
    slot = world.slot(op.args[0])
    if slot is None or not slot.writable:
        return SKIPPED
    _, offset, length = op.args
    fallocate(slot.fd, ZERO | KEEP_SIZE, offset, length)
    slot.node.zero(offset, length)
    return len(slot.node.data)


@operation(4, slot_and_whole_pages(writable), "slot offset length", needs="collapse")
def collapse(world: World, op: Operation) -> object:
    """Take whole blocks out of the middle; what follows moves down."""
    slot = world.slot(op.args[0])
    if slot is None or not slot.writable:
        return SKIPPED
    _, offset, length = op.args
    if offset + length >= len(slot.node.data) or (offset | length) % world.unit:
        return SKIPPED
    fallocate(slot.fd, COLLAPSE, offset, length)
    del slot.node.data[offset : offset + length]
    return len(slot.node.data)


@operation(4, slot_and_whole_pages(writable), "slot offset length", needs="insert")
def insert(world: World, op: Operation) -> object:
    """Put whole blocks of zeros into the middle; what follows moves up."""
    slot = world.slot(op.args[0])
    if slot is None or not slot.writable:
        return SKIPPED
    _, offset, length = op.args
    size = len(slot.node.data)
    if offset >= size or size + length > world.settings.size or (offset | length) % world.unit:
        return SKIPPED
    fallocate(slot.fd, INSERT, offset, length)
    slot.node.data[offset:offset] = bytes(length)
    return len(slot.node.data)
