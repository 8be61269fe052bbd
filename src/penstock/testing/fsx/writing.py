# SPDX-License-Identifier: Apache-2.0
"""Operations that write by descriptor, change sizes, and copy between files."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from typing import Final

from penstock.testing.fsx.model import PAGE, Difference, Slot, payload
from penstock.testing.fsx.operations import SKIPPED, Operation, operation
from penstock.testing.fsx.picking import Pick, plain_slot, slot_and_range, writable
from penstock.testing.fsx.reading import aligned
from penstock.testing.fsx.world import World

__all__ = ["clone_range"]

_PIPE: Final = 16 * PAGE
_RWF_APPEND: Final = getattr(os, "RWF_APPEND", 0x10)
_FICLONERANGE: Final = 0x4020940D
_CLONE: Final = struct.Struct("=qQQQ")


def _writer(world: World, op: Operation) -> Slot | None:
    slot = world.slot(op.args[0])
    return slot if slot is not None and slot.writable else None


def _count(what: str, done: int, wanted: int) -> int:
    if done != wanted:
        raise Difference(f"{what}: {done} bytes instead of {wanted}")
    return done


def _wrote(slot: Slot, began: int, offset: int, data: bytes) -> None:
    slot.node.write(offset, data)
    slot.node.changed = began


def _room(world: World, offset: int, data: bytes) -> bool:
    return offset + len(data) <= world.settings.size


@operation(16, slot_and_range(writable), "slot offset length")
def pwrite(world: World, op: Operation) -> object:
    """Write at an offset; a descriptor to append with takes no notice of it."""
    slot = _writer(world, op)
    if slot is None:
        return SKIPPED
    offset, length = aligned(slot, op.args[1], op.args[2])
    if slot.append:
        offset = len(slot.node.data)
    data = payload(op.number, length)
    if not _room(world, offset, data):
        return SKIPPED
    began = time.time_ns()
    if slot.direct:
        with memoryview(world.buffer) as view, view[:length] as part:
            part[:] = data
            done = os.pwritev(slot.fd, [part], offset)
    else:
        done = os.pwrite(slot.fd, data, op.args[1])
    _wrote(slot, began, offset, data)
    return _count("pwrite", done, length)


def _undirect(slot: Slot) -> bool:
    return slot.writable and not slot.direct


@operation(6, slot_and_range(_undirect), "slot offset length")
def write(world: World, op: Operation) -> object:
    """Write at the position, which moves; a descriptor to append with moves to the end first."""
    slot = _writer(world, op)
    if slot is None or slot.direct:
        return SKIPPED
    _, offset, length = op.args
    if op.number % 2:
        slot.position = os.lseek(slot.fd, offset, os.SEEK_SET)
    at = len(slot.node.data) if slot.append else slot.position
    data = payload(op.number, length)
    if not _room(world, at, data):
        return SKIPPED
    began = time.time_ns()
    done = os.write(slot.fd, data)
    _wrote(slot, began, at, data)
    slot.position = at + length
    position = os.lseek(slot.fd, 0, os.SEEK_CUR)
    if position != slot.position:
        raise Difference(f"position {position} instead of {slot.position} after a write")
    return f"{_count('write', done, length)} at {at}"


@operation(4, slot_and_range(_undirect), "slot offset length")
def pwritev(world: World, op: Operation) -> object:
    """Write from several buffers; by flags also durably, or to the end whatever the offset."""
    slot = _writer(world, op)
    if slot is None or slot.direct:
        return SKIPPED
    _, offset, length = op.args
    flags = (0, os.RWF_DSYNC, _RWF_APPEND)[op.number % 3]
    if flags == _RWF_APPEND and not world.has("rwf-append"):
        flags = 0
    at = len(slot.node.data) if slot.append or flags == _RWF_APPEND else offset
    data = payload(op.number, length)
    if not _room(world, at, data):
        return SKIPPED
    third = length // 3
    parts = [data[:third], data[third : third + 1], data[third + 1 :]]
    began = time.time_ns()
    done = os.pwritev(slot.fd, parts, offset, flags)
    _wrote(slot, began, at, data)
    return f"{_count('pwritev', done, length)} at {at}, flags {flags:#x}"


def _no_append(slot: Slot) -> bool:
    return slot.writable and not slot.direct and not slot.append


@operation(3, slot_and_range(_no_append), "slot offset length", needs="splice")
def splice_write(world: World, op: Operation) -> object:
    """Splice out of a pipe."""
    slot = _writer(world, op)
    if slot is None or not _no_append(slot):
        return SKIPPED
    _, offset, length = op.args
    data = payload(op.number, min(length, _PIPE))
    if not _room(world, offset, data):
        return SKIPPED
    began = time.time_ns()
    os.write(world.pipe[1], data)
    done = 0
    while done < len(data):
        count = os.splice(world.pipe[0], slot.fd, len(data) - done, offset_dst=offset + done)
        if not count:
            raise Difference(f"splice takes {done} bytes of {len(data)}")
        done += count
    _wrote(slot, began, offset, data)
    return done


def _slot_and_size(pick: Pick) -> tuple[int, ...] | None:
    index = pick.slot(writable)
    slot = None if index is None else pick.world.slots[index]
    if index is None or slot is None:
        return None
    return (index, pick.offset(len(slot.node.data), pick.world.settings.size))


@operation(8, _slot_and_size, "slot size")
def ftruncate(world: World, op: Operation) -> object:
    """Cut an open file off, or make it longer."""
    slot = _writer(world, op)
    if slot is None or op.args[1] > world.settings.size:
        return SKIPPED
    size, before = op.args[1], len(slot.node.data)
    began = time.time_ns()
    os.ftruncate(slot.fd, size)
    slot.node.resize(size)
    if size != before:
        slot.node.changed = began
    return f"{before} to {size}"


def _name_and_size(pick: Pick) -> tuple[int, ...] | None:
    name = pick.name()
    node = None if name is None else pick.world.names[name]
    if name is None or node is None:
        return None
    return (name, pick.offset(len(node.data), pick.world.settings.size))


@operation(3, _name_and_size, "name size")
def truncate(world: World, op: Operation) -> object:
    """The same by name."""
    node = world.find(op.args[0])
    if node is None or op.args[1] > world.settings.size:
        return SKIPPED
    size, before = op.args[1], len(node.data)
    began = time.time_ns()
    os.truncate(world.path(op.args[0]), size)
    node.resize(size)
    if size != before:
        node.changed = began
    return f"{before} to {size}"


def _from_and_to(pick: Pick) -> tuple[int, ...] | None:
    source, target = pick.slot(_source), pick.slot(plain_slot)
    if source is None or target is None:
        return None
    slot = pick.world.slots[source]
    assert slot is not None
    offset, length = pick.range(slot.node)
    if pick.rng.random() < 0.3:
        unit = pick.world.unit
        offset, length = offset // unit * unit, -(-length // unit) * unit
        to = pick.offset(len(slot.node.data), pick.world.settings.size) // unit * unit
    else:
        to = pick.offset(len(slot.node.data), pick.world.settings.size)
    length = max(0, min(length, pick.world.settings.size - to))
    return (source, offset, target, to, length)


def _source(slot: Slot) -> bool:
    return slot.readable and not slot.direct


@operation(8, _from_and_to, "slot offset slot_to to length", needs="copy_file_range")
def copy_file_range(world: World, op: Operation) -> object:
    """Copy within a file or between two, as much as the filesystem copies at once."""
    source, target = world.slot(op.args[0]), world.slot(op.args[2])
    if source is None or target is None or not _source(source) or not plain_slot(target):
        return SKIPPED
    _, offset, _, to, length = op.args
    if to + length > world.settings.size:
        return SKIPPED
    there = max(0, min(length, len(source.node.data) - offset))
    overlaps = source.node is target.node and abs(offset - to) < there
    try:
        done = os.copy_file_range(source.fd, target.fd, length, offset, to)
    except OSError as error:
        if overlaps and error.errno == errno.EINVAL:
            return "EINVAL"
        raise
    if overlaps:
        raise Difference("copy_file_range takes ranges that overlap")
    if not bool(there) <= done <= there:
        raise Difference(f"copy_file_range: {done} bytes instead of {there}")
    if done:
        target.node.write(to, bytes(source.node.data[offset : offset + done]))
    return done


def clone_range(target: int, source: int, offset: int, length: int, to: int) -> None:
    """FICLONERANGE: have the target share a range of the source; length 0: up to its end."""
    fcntl.ioctl(target, _FICLONERANGE, _CLONE.pack(source, offset, length, to))


def _units_from_and_to(pick: Pick) -> tuple[int, ...] | None:
    source, target = pick.slot(_source), pick.slot(plain_slot)
    slot = None if source is None else pick.world.slots[source]
    if source is None or target is None or slot is None:
        return None
    offset, length = pick.pages(slot.node)
    return (source, offset, target, pick.pages(slot.node)[0], length)


@operation(6, _units_from_and_to, "slot offset slot_to to length", needs="clone")
def clone(world: World, op: Operation) -> object:
    """Share whole blocks within a file or between two."""
    source, target = world.slot(op.args[0]), world.slot(op.args[2])
    if source is None or target is None or not _source(source) or not plain_slot(target):
        return SKIPPED
    _, offset, _, to, length = op.args
    unit = world.unit
    length = min(length, (len(source.node.data) - offset) // unit * unit)
    same = source.node is target.node and abs(offset - to) < length
    if length <= 0 or same or to + length > world.settings.size or offset % unit or to % unit:
        return SKIPPED
    clone_range(target.fd, source.fd, offset, length, to)
    target.node.write(to, bytes(source.node.data[offset : offset + length]))
    return length
