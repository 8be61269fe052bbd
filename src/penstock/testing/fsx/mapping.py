# SPDX-License-Identifier: Apache-2.0
"""Operations through memory: shared mappings that live on, and private ones."""

from __future__ import annotations

import mmap
import os

from penstock.testing.fsx.model import PAGE, Difference, Mapping, Slot, compare, payload
from penstock.testing.fsx.operations import SKIPPED, Arguments, Operation, operation
from penstock.testing.fsx.picking import Pick, readable, slot_and_range
from penstock.testing.fsx.world import World

__all__: list[str] = []

_PROT_READ, _PROT_WRITE = mmap.PROT_READ, mmap.PROT_WRITE


def _map_at(pick: Pick) -> Arguments | None:
    found = slot_and_range(_not_empty)(pick)
    return None if found is None else (pick.below(len(pick.world.maps)), *found)


def _not_empty(slot: Slot) -> bool:
    return slot.readable and bool(slot.node.data)


def _window(slot: Slot, offset: int, length: int) -> tuple[int, int]:
    """A range that can be mapped now: it begins at a page and ends inside the file."""
    start = min(offset, len(slot.node.data) - 1) // PAGE * PAGE
    return start, min(max(length, 8 * PAGE), len(slot.node.data) - start)


@operation(4, _map_at, "map slot offset length", needs="mmap")
def mmap_(world: World, op: Operation) -> object:
    """Map a range, for storing too where the descriptor allows it."""
    index, number, offset, length = op.args
    slot = world.slot(number)
    if slot is None or not _not_empty(slot) or index >= len(world.maps):
        return SKIPPED
    _same_size(slot)
    world.close_map(index)
    start, length = _window(slot, offset, length)
    access = _PROT_READ | _PROT_WRITE if slot.writable else _PROT_READ
    memory = mmap.mmap(slot.fd, length, mmap.MAP_SHARED, access, offset=start)
    world.maps[index] = Mapping(memory, slot.node, start, slot.writable)
    return f"{length} at {start}"


def _same_size(slot: Slot) -> None:
    size = os.fstat(slot.fd).st_size
    if size != len(slot.node.data):
        raise Difference(f"size before mapping: {size} instead of {len(slot.node.data)}")


def _inside(pick: Pick, *, store: bool) -> Arguments | None:
    index = pick.mapping(lambda each: bool(each.reach) and (each.writable or not store))
    mapping = None if index is None else pick.world.maps[index]
    if index is None or mapping is None:
        return None
    offset = pick.offset(mapping.reach, mapping.reach - 1)
    return (index, offset, pick.length(mapping.reach - offset))


@operation(8, lambda pick: _inside(pick, store=False), "map offset length", needs="mmap")
def load(world: World, op: Operation) -> object:
    """Look at memory."""
    mapping = world.map(op.args[0])
    if mapping is None or op.args[1] >= mapping.reach:
        return SKIPPED
    offset, length = op.args[1], min(op.args[2], mapping.reach - op.args[1])
    at = mapping.start + offset
    got = world.load(mapping, offset, length)
    compare(got, mapping.node.data[at : at + length], at, "a mapping")
    return length


@operation(8, lambda pick: _inside(pick, store=True), "map offset length", needs="mmap")
def store(world: World, op: Operation) -> object:
    """Store into memory."""
    mapping = world.map(op.args[0])
    if mapping is None or not mapping.writable or op.args[1] >= mapping.reach:
        return SKIPPED
    offset, length = op.args[1], min(op.args[2], mapping.reach - op.args[1])
    data = payload(op.number, length)
    world.store(mapping, offset, data)
    mapping.node.write(mapping.start + offset, data)
    mapping.node.stores = True
    return f"{length} at {mapping.start + offset}"


def _any_map(pick: Pick) -> Arguments | None:
    index = pick.mapping(lambda each: True)
    return None if index is None else (index,)


@operation(3, _any_map, "map", needs="mmap")
def msync(world: World, op: Operation) -> object:
    """Have what was stored written."""
    mapping = world.map(op.args[0])
    if mapping is None:
        return SKIPPED
    mapping.memory.flush()
    return ""


@operation(2, _any_map, "map", needs="mmap")
def discard(world: World, op: Operation) -> object:
    """Forget the mapping's pages, not the file's: they are taken anew from there."""
    mapping = world.map(op.args[0])
    if mapping is None:
        return SKIPPED
    mapping.memory.madvise(mmap.MADV_DONTNEED)
    return ""


@operation(1, _any_map, "map", needs="mmap")
def munmap(world: World, op: Operation) -> object:
    """Unmap."""
    if world.map(op.args[0]) is None:
        return SKIPPED
    world.close_map(op.args[0])
    return ""


@operation(2, slot_and_range(_not_empty), "slot offset length", needs="mmap")
def private(world: World, op: Operation) -> object:
    """Store into a private mapping: the file does not have it, its other pages are the file's."""
    slot = world.slot(op.args[0])
    if slot is None or not _not_empty(slot):
        return SKIPPED
    _same_size(slot)
    start, length = _window(slot, op.args[1], op.args[2])
    wanted = bytes(slot.node.data[start : start + length])
    access = _PROT_READ | _PROT_WRITE
    with mmap.mmap(slot.fd, length, mmap.MAP_PRIVATE, access, offset=start) as memory:
        compare(world.load(memory, 0, length), wanted, start, "a private mapping")
        world.store(memory, 0, payload(op.number, min(length, PAGE)))
    if not slot.direct and readable(slot):
        compare(os.pread(slot.fd, length, start), wanted, start, "after a private store")
    return f"{length} at {start}"
