# SPDX-License-Identifier: Apache-2.0
"""A run: operations chosen or given, carried out one after the other, contents looked at between.

The choices depend on the seed, the settings and the features of the filesystem, and on nothing
else: the same command makes the same run.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import time
from bisect import bisect
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from penstock.testing.fsx.model import Difference, Mapping, Node, Slot
from penstock.testing.fsx.operations import KINDS, SKIPPED, Operation
from penstock.testing.fsx.picking import Pick
from penstock.testing.fsx.probe import probe, unit_of
from penstock.testing.fsx.world import Settings, World, label

__all__ = ["LOGGED", "Failure", "Outcome", "Step", "run"]

LOGGED: Final = 50
"""Operations that a report shows."""
_KEPT: Final = 100_000
"""Operations that are kept to be tried again; of longer runs none."""


class Step(NamedTuple):
    """One operation of the log."""

    operation: Operation
    where: str
    """The inode and descriptor, as they were before."""
    result: object


@dataclass(frozen=True)
class Failure:
    """Where the filesystem and the model differ."""

    number: int
    """Of the operation; one past the last if it was found at the end."""
    error: Difference | OSError
    steps: tuple[Step, ...]
    """The last operations, the failing one last."""
    made: tuple[Operation, ...]
    """All operations of the run up to there; none of a long run."""
    related: tuple[Operation, ...] = ()
    """Those of them that touch an inode that the last one touches."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    settings: Settings
    features: dict[str, str | None]
    done: int
    """Operations carried out."""
    counts: dict[str, int]
    """How often each kind was carried out, those that made no sense left out."""
    seconds: float
    failure: Failure | None
    checks: int = 0
    """How often whole contents were compared."""


@dataclass
class _Progress:
    """What is told of a run that may end anywhere."""

    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=LOGGED))
    counts: Counter[str] = field(default_factory=Counter)
    made: list[Operation] = field(default_factory=list)
    touched: list[set[int]] = field(default_factory=list)
    """For each operation made, the inodes it touches."""
    done: int = 0
    checks: int = 0


def choices(world: World, settings: Settings) -> Iterator[Operation]:
    """Operations, each chosen when it is asked for."""
    rng = random.Random(settings.seed)
    pick = Pick(world, rng)
    kinds = [kind for kind in KINDS.values() if all(map(world.has, kind.needs))]
    bounds = list(itertools.accumulate(kind.weight for kind in kinds))
    number = 0
    while number < settings.operations:
        kind = kinds[bisect(bounds, rng.random() * bounds[-1])]
        arguments = kind.choose(pick)
        if arguments is None and any(world.slots):
            continue
        number += 1
        if arguments is None:
            kind = KINDS["open"]
            arguments = kind.choose(pick) or ()
        yield Operation(number, kind.name, arguments)


def run(
    directory: str | os.PathLike[str],
    settings: Settings,
    operations: Sequence[Operation] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Run, in a new directory that is removed afterwards.

    Args:
        directory: on the filesystem under test, which another process must serve.
        settings: how many operations, and of which kind.
        operations: these and no others.
        progress: called with the number of operations at each look at whole contents.

    Raises:
        OSError: the directory cannot be used at all.
    """
    place = tempfile.mkdtemp(prefix="fsx-", dir=directory)
    beneath = None
    if settings.underneath is not None:
        beneath = os.path.join(settings.underneath, os.path.basename(place))
    features = probe(place, settings.without)
    features["underneath"] = None if beneath else "no other path was given"
    world = World(place, settings, features, _unit(place), beneath)
    told = _Progress()
    began = time.monotonic()
    failure = None
    number = 0
    try:
        for op in choices(world, settings) if operations is None else operations:
            number = op.number
            _step(world, op, told)
            if told.done % settings.check_every == 0:
                check(world, drop=told.done // settings.check_every % 2 == 1)
                told.checks += 1
                if progress is not None:
                    progress(told.done)
        number += 1
        finish(world)
        told.checks += 1
    except (Difference, OSError) as error:
        failure = _failure(number, error, told)
    finally:
        world.clean()
    return Outcome(
        settings,
        features,
        told.done,
        dict(told.counts),
        time.monotonic() - began,
        failure,
        told.checks,
    )


def _unit(place: str) -> int:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return unit_of(fd)
    finally:
        os.close(fd)


def _step(world: World, op: Operation, told: _Progress) -> None:
    kind = KINDS[op.kind]
    where = _where(world, kind.parameters, op)
    told.done += 1
    touched = _touched(world, kind.parameters, op)
    if told.done <= _KEPT:
        told.made.append(op)
        told.touched.append(touched)
    result: object = "failed"
    try:
        result = kind.act(world, op)
    finally:
        told.steps.append(Step(op, where, result))
        touched |= _touched(world, kind.parameters, op)
    if result is not SKIPPED:
        told.counts[op.kind] += 1


def _failure(number: int, error: Difference | OSError, told: _Progress) -> Failure:
    steps = tuple(told.steps)
    if len(told.made) < told.done or not told.made:
        return Failure(number, error, steps, ())
    last = told.touched[-1]
    pairs = zip(told.made, told.touched, strict=True)
    related = tuple(op for op, touched in pairs if touched & last)
    return Failure(number, error, steps, tuple(told.made), related)


def _touched(world: World, parameters: tuple[str, ...], op: Operation) -> set[int]:
    found = set()
    for parameter, value in zip(parameters, op.args, strict=False):
        holder: Slot | Mapping | None = None
        if parameter in {"name", "other"}:
            node = world.find(value)
            if node is not None:
                found.add(node.number)
        elif parameter in {"slot", "slot_to"}:
            holder = world.slot(value)
        elif parameter == "map":
            holder = world.map(value)
        if holder is not None:
            found.add(holder.node.number)
    return found


def _where(world: World, parameters: tuple[str, ...], op: Operation) -> str:
    found = []
    for parameter, value in zip(parameters, op.args, strict=False):
        if parameter.startswith("slot") and op.kind != "open":
            slot = world.slot(value)
            if slot is not None:
                size = len(slot.node.data)
                found.append(f"inode {slot.node.number} of {size}, flags {slot.flags:#o}")
        elif parameter == "map" and op.kind != "mmap":
            mapping = world.map(value)
            if mapping is not None:
                found.append(f"inode {mapping.node.number} of {len(mapping.node.data)}")
    return "; ".join(found)


def check(world: World, *, drop: bool) -> None:
    """Compare everything by every way there is.

    Args:
        world: what to compare.
        drop: have the kernel forget the files' pages before.
    """
    for name, node in enumerate(world.names):
        if node is None:
            continue
        path = world.path(name)
        world.check_stat(node, os.stat(path))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if drop:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                node.stores = False
            world.check_whole(node, fd, f"content of {label(name)}, inode {node.number}")
        finally:
            os.close(fd)
    for number, slot in enumerate(world.slots):
        if slot is not None:
            world.check_stat(slot.node, os.fstat(slot.fd))
            if slot.readable:
                what = f"content by descriptor {number}, inode {slot.node.number}"
                world.check_whole(slot.node, slot.fd, what)
    for number, mapping in enumerate(world.maps):
        if mapping is not None:
            world.check_mapping(mapping, f"content by mapping {number}")


def finish(world: World) -> None:
    """Compare, close everything, and compare what the directory then holds."""
    check(world, drop=False)
    for index in range(len(world.maps)):
        world.close_map(index)
    for index in range(len(world.slots)):
        world.close_slot(index)
    check(world, drop=True)
    wanted = {label(name) for name, node in enumerate(world.names) if node is not None}
    for place in (world.place, world.beneath):
        if place is not None and set(os.listdir(place)) != wanted:
            raise Difference(f"{place} holds {sorted(os.listdir(place))} and not {sorted(wanted)}")
    if world.beneath is not None:
        for name, node in enumerate(world.names):
            if node is not None:
                _check_beneath(world, name, node)


def _check_beneath(world: World, name: int, node: Node) -> None:
    fd = os.open(world.below(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        world.check_stat(node, os.fstat(fd))
        world.check_whole(node, fd, f"content of {label(name)} underneath")
    finally:
        os.close(fd)
