# SPDX-License-Identifier: Apache-2.0
"""Operations that read by descriptor, and ask where data is."""

from __future__ import annotations

import errno
import os
from typing import Final

from penstock.testing.fsx.model import PAGE, Difference, Slot, compare
from penstock.testing.fsx.operations import SKIPPED, Operation, operation
from penstock.testing.fsx.picking import (
    Pick,
    any_slot,
    readable,
    slot_alone,
    slot_and_range,
)
from penstock.testing.fsx.world import World

__all__ = ["aligned"]

_PIPE: Final = 15 * PAGE
"""Bytes that surely fit into a pipe, however they lie in pages."""


def aligned(slot: Slot, offset: int, length: int) -> tuple[int, int]:
    """The range itself, or for a direct descriptor whole pages around where it begins."""
    if not slot.direct:
        return offset, length
    return offset // PAGE * PAGE, -(-length // PAGE) * PAGE


def _reader(world: World, op: Operation) -> Slot | None:
    slot = world.slot(op.args[0])
    return slot if slot is not None and slot.readable else None


def _undirect(slot: Slot) -> bool:
    return slot.readable and not slot.direct


@operation(14, slot_and_range(readable), "slot offset length")
def pread(world: World, op: Operation) -> object:
    """Read at an offset."""
    slot = _reader(world, op)
    if slot is None:
        return SKIPPED
    offset, length = aligned(slot, op.args[1], op.args[2])
    with memoryview(world.buffer) as view, view[:length] as part:
        count = os.preadv(slot.fd, [part], offset)
        with part[:count] as got:
            compare(got, slot.node.data[offset : offset + length], offset, "pread")
    return count


@operation(4, slot_and_range(_undirect), "slot offset length")
def read(world: World, op: Operation) -> object:
    """Read at the descriptor's position, which moves; now and then put it elsewhere before."""
    slot = _reader(world, op)
    if slot is None or slot.direct:
        return SKIPPED
    _, offset, length = op.args
    if op.number % 2:
        slot.position = offset
        os.lseek(slot.fd, offset, os.SEEK_SET)
    wanted = slot.node.data[slot.position : slot.position + length]
    got = os.read(slot.fd, length)
    compare(got, wanted, slot.position, "read at the position")
    slot.position += len(got)
    position = os.lseek(slot.fd, 0, os.SEEK_CUR)
    if position != slot.position:
        raise Difference(f"position {position} instead of {slot.position} after a read")
    return len(got)


@operation(3, slot_and_range(_undirect), "slot offset length")
def preadv(world: World, op: Operation) -> object:
    """Read into several buffers."""
    slot = _reader(world, op)
    if slot is None or slot.direct:
        return SKIPPED
    _, offset, length = op.args
    first = length // 3
    parts = [bytearray(first), bytearray(1), bytearray(length - first)]
    count = os.preadv(slot.fd, parts, offset)
    got = b"".join(parts)[:count]
    compare(got, slot.node.data[offset : offset + length + 1], offset, "preadv")
    return count


@operation(3, slot_and_range(_undirect), "slot offset length", needs="splice")
def splice_read(world: World, op: Operation) -> object:
    """Splice into a pipe."""
    slot = _reader(world, op)
    if slot is None or slot.direct:
        return SKIPPED
    _, offset, length = op.args
    wanted = slot.node.data[offset : offset + min(length, _PIPE)]
    done = 0
    while done < len(wanted):
        count = os.splice(slot.fd, world.pipe[1], len(wanted) - done, offset_src=offset + done)
        if not count:
            raise Difference(f"splice ends after {done} bytes of {len(wanted)}")
        got = os.read(world.pipe[0], count)
        compare(got, wanted[done : done + count], offset + done, "splice")
        done += count
    return done


@operation(2, slot_and_range(_undirect), "slot offset length", needs="sendfile")
def sendfile(world: World, op: Operation) -> object:
    """Have the kernel copy into another file."""
    slot = _reader(world, op)
    if slot is None or slot.direct:
        return SKIPPED
    _, offset, length = op.args
    wanted = slot.node.data[offset : offset + length]
    os.lseek(world.scratch, 0, os.SEEK_SET)
    done = 0
    while done < len(wanted):
        count = os.sendfile(world.scratch, slot.fd, offset + done, len(wanted) - done)
        if not count:
            raise Difference(f"sendfile ends after {done} bytes of {len(wanted)}")
        done += count
    compare(os.pread(world.scratch, done, 0), wanted, offset, "sendfile")
    return done


@operation(3, slot_and_range(any_slot), "slot offset length", needs="seek")
def seek_data(world: World, op: Operation) -> object:
    """From one offset to the next data, and from there to the next hole: all left out is zero."""
    slot = world.slot(op.args[0])
    if slot is None:
        return SKIPPED
    node, start = slot.node, op.args[1]
    if node.stores and not world.has("seek-sees-stores"):
        world.sync(node)
    size = len(node.data)
    try:
        found = os.lseek(slot.fd, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        slot.position = os.lseek(slot.fd, 0, os.SEEK_CUR)
        _only_zeros(node.data, start, size, "SEEK_DATA finds no data")
        return "ENXIO"
    slot.position = found
    if not start <= found < size:
        raise Difference(f"SEEK_DATA from {start} answers {found} in {size} bytes")
    _only_zeros(node.data, start, found, "SEEK_DATA passes over data")
    hole = slot.position = os.lseek(slot.fd, found, os.SEEK_HOLE)
    # Equal, where the filesystem wrote back in between and found out that there are zeros.
    if not found <= hole <= size:
        raise Difference(f"SEEK_HOLE from data at {found} answers {hole} in {size} bytes")
    _only_zeros(node.data, hole, min(hole + 1, size), "SEEK_HOLE finds data")
    return f"{found} to {hole}"


def _only_zeros(data: bytearray, start: int, end: int, what: str) -> None:
    part = bytes(data[start:end])
    if part.count(0) != len(part):
        compare(bytes(len(part)), part, start, what)


@operation(5, slot_alone(any_slot), "slot")
def fstat(world: World, op: Operation) -> object:
    """What an open file says of itself."""
    slot = world.slot(op.args[0])
    if slot is None:
        return SKIPPED
    status = os.fstat(slot.fd)
    world.check_stat(slot.node, status)
    return status.st_size


def _taken(pick: Pick) -> tuple[int, ...] | None:
    name = pick.name()
    return None if name is None else (name,)


@operation(4, _taken, "name")
def stat(world: World, op: Operation) -> object:
    """What a name says of its file."""
    node = world.find(op.args[0])
    if node is None:
        return SKIPPED
    status = os.stat(world.path(op.args[0]))
    world.check_stat(node, status)
    return status.st_size
