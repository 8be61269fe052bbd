# SPDX-License-Identifier: Apache-2.0
"""Operations by the other path, past the filesystem under test.

What is promised there, and tried here:

- what was written through the filesystem is seen underneath at once, what was stored into a mapping
  after fsync;
- what is changed underneath while nobody has the file open through the filesystem is seen there by
  whoever opens it ``settle`` seconds later: content, size, and another file in its place.
"""

from __future__ import annotations

import os
import time

from penstock.testing.fsx.model import Node, compare, payload
from penstock.testing.fsx.operations import SKIPPED, Arguments, Operation, operation
from penstock.testing.fsx.picking import Pick
from penstock.testing.fsx.world import World

__all__: list[str] = []


def _name_and_range(pick: Pick) -> Arguments | None:
    name = pick.name()
    node = None if name is None else pick.world.names[name]
    return None if name is None or node is None else (name, *pick.range(node))


def _changed(world: World, node: Node) -> None:
    node.changed = node.mtime = 0
    if world.settings.settle:
        time.sleep(world.settings.settle)


@operation(6, _name_and_range, "name offset length", needs="underneath")
def read_beneath(world: World, op: Operation) -> object:
    """Read what is there."""
    node = world.find(op.args[0])
    if node is None:
        return SKIPPED
    if node.stores:
        world.sync(node)
    offset, length = op.args[1:]
    fd = os.open(world.below(op.args[0]), os.O_RDONLY | os.O_CLOEXEC)
    try:
        got = os.pread(fd, length, offset)
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    compare(got, node.data[offset : offset + length], offset, "underneath")
    compare(b"%d" % size, b"%d" % len(node.data), 0, "size underneath")
    return len(got)


@operation(1, _name_and_range, "name offset length", needs="underneath")
def write_beneath(world: World, op: Operation) -> object:
    """Write there, when nothing here has the file open."""
    node = world.find(op.args[0])
    if node is None or op.args[1] + op.args[2] > world.settings.size:
        return SKIPPED
    world.sync(node)
    world.let_go(node)
    _, offset, length = op.args
    data = payload(op.number, length)
    fd = os.open(world.below(op.args[0]), os.O_WRONLY | os.O_CLOEXEC)
    try:
        done = os.pwrite(fd, data, offset)
    finally:
        os.close(fd)
    node.write(offset, data)
    _changed(world, node)
    return done


@operation(1, _name_and_range, "name offset length", needs="underneath")
def truncate_beneath(world: World, op: Operation) -> object:
    """Give the file another size there, when nothing here has it open."""
    node = world.find(op.args[0])
    if node is None or op.args[1] > world.settings.size:
        return SKIPPED
    world.sync(node)
    world.let_go(node)
    os.truncate(world.below(op.args[0]), op.args[1])
    node.resize(op.args[1])
    _changed(world, node)
    return op.args[1]


@operation(1, _name_and_range, "name offset length", needs="underneath")
def replace_beneath(world: World, op: Operation) -> object:
    """Put another file in the place of a name there, as editors do."""
    name, _, length = op.args
    node = world.find(name)
    if node is None:
        return SKIPPED
    data = payload(op.number, min(length, world.settings.size))
    fresh = f"{world.beneath}/.fresh"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(fresh, world.below(name))
    world.let_go(node)
    node = world.new_node()
    node.write(0, data)
    world.set_name(name, node)
    _changed(world, node)
    return f"inode {node.number}, {length} bytes"
