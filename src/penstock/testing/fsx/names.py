# SPDX-License-Identifier: Apache-2.0
"""Operations on names: open, close, create, rename, link, unlink, set times."""

from __future__ import annotations

import os
from typing import Final

from penstock.sys.files import rename2
from penstock.testing.fsx.model import Difference, Slot
from penstock.testing.fsx.operations import SKIPPED, Arguments, Operation, operation
from penstock.testing.fsx.picking import Pick, any_slot, slot_alone
from penstock.testing.fsx.world import World

__all__ = ["EXCHANGE", "NOREPLACE"]

NOREPLACE, EXCHANGE = 1, 2
"""RENAME_*."""

_WAYS: Final = (
    (os.O_RDWR, ""),
    (os.O_RDWR, ""),
    (os.O_RDONLY, ""),
    (os.O_WRONLY, ""),
    (os.O_RDWR | os.O_APPEND, ""),
    (os.O_WRONLY | os.O_APPEND, ""),
    (os.O_RDWR | os.O_DIRECT, "direct"),
    (os.O_RDONLY | os.O_DIRECT, "direct"),
    (os.O_RDWR | os.O_DSYNC, ""),
    (os.O_RDWR | os.O_TRUNC, ""),
    (os.O_RDONLY | os.O_NONBLOCK, ""),
)
"""Flags, and the feature that they need."""
_TIMES: Final = (0, 1, 10**9 + 7, 1_234_567_890_123_456_789)
"""To be set, all of them past: what comes later is newer."""


def _open_args(pick: Pick) -> Arguments | None:
    free = [index for index, slot in enumerate(pick.world.slots) if slot is None]
    index = pick.one(free) if free else pick.below(len(pick.world.slots))
    name = pick.name(None)
    ways = [way for way, (_, need) in enumerate(_WAYS) if not need or pick.world.has(need)]
    way = pick.one(ways)
    return None if index is None or name is None or way is None else (index, name, way)


@operation(10, _open_args, "slot name way")
def open_(world: World, op: Operation) -> object:
    """Open in one of many ways, in the place of what was open there; create what is missing."""
    index, name, way = op.args
    if index >= len(world.slots) or name >= len(world.names):
        return SKIPPED
    flags, need = _WAYS[way]
    if need and not world.has(need):
        return SKIPPED
    world.close_slot(index)
    node = world.find(name)
    fd = os.open(world.path(name), flags | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if node is None:
        node = world.new_node()
        world.set_name(name, node)
    if flags & os.O_TRUNC:
        node.resize(0)
    world.slots[index] = Slot(fd, node, flags)
    size = os.fstat(fd).st_size
    if size != len(node.data):
        raise Difference(f"size after open: {size} instead of {len(node.data)}")
    return f"inode {node.number}, flags {flags:#o}, {size} bytes"


@operation(3, slot_alone(any_slot), "slot")
def close(world: World, op: Operation) -> object:
    """Close a descriptor."""
    if world.slot(op.args[0]) is None:
        return SKIPPED
    world.close_slot(op.args[0])
    return ""


def _name_and_name(pick: Pick) -> Arguments | None:
    name, other = pick.name(), pick.name(None)
    return None if name is None or other is None else (name, other)


@operation(3, _name_and_name, "name other")
def rename(world: World, op: Operation) -> object:
    """Give a file another name, in the place of what was there."""
    name, other = op.args
    node = world.find(name)
    if node is None or other >= len(world.names):
        return SKIPPED
    os.rename(world.path(name), world.path(other))
    if world.find(other) is not node:  # else both names stay, says POSIX
        world.set_name(other, node)
        world.set_name(name, None)
    return f"inode {node.number}"


@operation(1, _name_and_name, "name other", needs="noreplace")
def rename_noreplace(world: World, op: Operation) -> object:
    """Give a file another name, if nothing is there."""
    name, other = op.args
    node = world.find(name)
    if node is None or other >= len(world.names):
        return SKIPPED
    try:
        rename2(world.path(name), world.path(other), NOREPLACE)
    except FileExistsError:
        if world.find(other) is None:
            raise
        return "EEXIST"
    if world.find(other) is not None:
        raise Difference("rename with NOREPLACE replaces")
    world.set_name(other, node)
    world.set_name(name, None)
    return f"inode {node.number}"


@operation(2, _name_and_name, "name other", needs="exchange")
def exchange(world: World, op: Operation) -> object:
    """Have two files take each other's name."""
    node, second = world.find(op.args[0]), world.find(op.args[1])
    if node is None or second is None:
        return SKIPPED
    rename2(world.path(op.args[0]), world.path(op.args[1]), EXCHANGE)
    world.names[op.args[0]], world.names[op.args[1]] = second, node
    return f"inodes {node.number} and {second.number}"


def _taken_and_free(pick: Pick) -> Arguments | None:
    name, other = pick.name(), pick.name(taken=False)
    return None if name is None or other is None else (name, other)


@operation(2, _taken_and_free, "name other", needs="link")
def link(world: World, op: Operation) -> object:
    """Give a file one more name."""
    node = world.find(op.args[0])
    if node is None or op.args[1] >= len(world.names) or world.find(op.args[1]) is not None:
        return SKIPPED
    os.link(world.path(op.args[0]), world.path(op.args[1]))
    world.set_name(op.args[1], node)
    return f"inode {node.number}"


def _taken(pick: Pick) -> Arguments | None:
    name = pick.name()
    return None if name is None else (name,)


@operation(2, _taken, "name")
def unlink(world: World, op: Operation) -> object:
    """Remove a name; what is open stays."""
    node = world.find(op.args[0])
    if node is None:
        return SKIPPED
    os.unlink(world.path(op.args[0]))
    world.set_name(op.args[0], None)
    return f"inode {node.number}, {node.links} links left"


@operation(1, slot_alone(any_slot), "slot")
def futimens(world: World, op: Operation) -> object:
    """Set times; by a later change mtime is new again."""
    slot = world.slot(op.args[0])
    if slot is None:
        return SKIPPED
    world.sync(slot.node)  # else what was stored into a mapping is a change that comes later
    wanted = _TIMES[op.number % len(_TIMES)]
    os.utime(slot.fd, ns=(wanted, wanted))
    got = os.fstat(slot.fd).st_mtime_ns
    if got != wanted:
        raise Difference(f"mtime {got} instead of the {wanted} it was set to")
    slot.node.mtime, slot.node.changed = wanted, 0
    return wanted
