# SPDX-License-Identifier: Apache-2.0
"""What a run works on: a directory, the model of it, and what is open.

Facts about mappings
    A page that cannot be had is SIGBUS to whoever touches it. Here mappings are read and stored
    into by the kernel on our behalf, through a file in memory: then it is EFAULT, which can be told
    like any other error, and the fault handlers of the filesystem run just the same.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass
from typing import Final

from penstock.testing.fsx.model import PAGE, Difference, Mapping, Node, Slot, compare

__all__ = ["Settings", "World", "label"]

_NS: Final = 10**9
_SLACK: Final = 50_000_000
"""Nanoseconds by which coarse clocks may be behind fine ones."""


@dataclass(frozen=True)
class Settings:
    """How a run is to be.

    Args:
        operations: how many.
        seed: of all choices.
        files: how many names there are.
        size: bytes of the largest file.
        slots: how many descriptors are open at once; half as many mappings.
        check_every: operations between two looks at whole contents.
        without: features not to use, though they may be there.
        underneath: another path to the same directory, past the filesystem under test.
        settle: seconds until the filesystem must show what was changed underneath.
    """

    operations: int = 20_000
    seed: int = 0
    files: int = 5
    size: int = 256 << 10
    slots: int = 8
    check_every: int = 500
    without: frozenset[str] = frozenset()
    underneath: str | None = None
    settle: float = 0.0


class World:
    """The files of a run, as they are and as they should be.

    Args:
        place: an empty directory for the run.
        settings: as asked for.
        features: of the filesystem; None: it is there, else why not.
        unit: bytes to whose multiples ranges must be aligned to be moved or shared.
        beneath: the same directory by another path, or None.
    """

    def __init__(
        self,
        place: str,
        settings: Settings,
        features: AbstractMapping[str, str | None],
        unit: int,
        beneath: str | None = None,
    ) -> None:
        self.place = place
        self.settings = settings
        self.features = features
        self.unit = unit
        self.beneath = beneath
        self.names: list[Node | None] = [None] * settings.files
        self.slots: list[Slot | None] = [None] * settings.slots
        self.maps: list[Mapping | None] = [None] * (settings.slots // 2)
        self.nodes = 0
        self.buffer = mmap.mmap(-1, settings.size + (128 << 10))
        """Aligned as direct transfers need it."""
        self.scratch = os.memfd_create("fsx", os.MFD_CLOEXEC)
        self.pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def close(self) -> None:
        """Close all that is open, whatever the filesystem says to it."""
        for index in range(len(self.maps)):
            with contextlib.suppress(OSError):
                self.close_map(index)
        for index in range(len(self.slots)):
            with contextlib.suppress(OSError):
                self.close_slot(index)
        for fd in (self.scratch, *self.pipe):
            if fd >= 0:
                os.close(fd)
        self.scratch, self.pipe = -1, (-1, -1)
        self.buffer.close()

    def path(self, name: int) -> str:
        """Where a name is."""
        return f"{self.place}/{label(name)}"

    def below(self, name: int) -> str:
        """The same by the other path."""
        return f"{self.beneath}/{label(name)}"

    def has(self, feature: str) -> bool:
        """Whether the filesystem has it."""
        return self.features.get(feature, "unknown") is None

    def new_node(self) -> Node:
        """Another inode."""
        self.nodes += 1
        return Node(self.nodes)

    def find(self, name: int) -> Node | None:
        """The inode of a name; None too if there is no such name in this run."""
        return self.names[name] if name < len(self.names) else None

    def slot(self, index: int) -> Slot | None:
        """An open descriptor."""
        return self.slots[index] if index < len(self.slots) else None

    def map(self, index: int) -> Mapping | None:
        """A mapping."""
        return self.maps[index] if index < len(self.maps) else None

    def set_name(self, name: int, node: Node | None) -> None:
        """Have a name lead there, and count links."""
        before = self.names[name]
        if before is not None:
            before.links -= 1
        if node is not None:
            node.links += 1
        self.names[name] = node

    def close_slot(self, index: int) -> None:
        """Close a descriptor; what close(2) says counts."""
        slot = self.slots[index]
        self.slots[index] = None
        if slot is not None:
            os.close(slot.fd)

    def close_map(self, index: int) -> None:
        """Unmap."""
        mapping = self.maps[index]
        self.maps[index] = None
        if mapping is not None:
            mapping.memory.close()

    def let_go(self, node: Node) -> None:
        """Close whatever is open of an inode."""
        for index, mapping in enumerate(self.maps):
            if mapping is not None and mapping.node is node:
                self.close_map(index)
        for index, slot in enumerate(self.slots):
            if slot is not None and slot.node is node:
                self.close_slot(index)

    def load(self, mapping: Mapping | mmap.mmap, offset: int, length: int) -> bytes:
        """Bytes out of a mapping."""
        memory = mapping.memory if isinstance(mapping, Mapping) else mapping
        with memoryview(memory) as whole, whole[offset : offset + length] as part:
            done = os.pwrite(self.scratch, part, 0)
        if done != length:
            raise Difference(f"a mapping gives {done} bytes instead of {length}")
        return os.pread(self.scratch, length, 0)

    def store(self, mapping: Mapping | mmap.mmap, offset: int, data: bytes) -> None:
        """Bytes into a mapping."""
        memory = mapping.memory if isinstance(mapping, Mapping) else mapping
        os.pwrite(self.scratch, data, 0)
        with memoryview(memory) as whole, whole[offset : offset + len(data)] as part:
            done = os.preadv(self.scratch, [part], 0)
        if done != len(data):
            raise Difference(f"a mapping takes {done} bytes instead of {len(data)}")

    def sync(self, node: Node) -> None:
        """fsync of whatever descriptor there is."""
        for slot in self.slots:
            if slot is not None and slot.node is node:
                os.fsync(slot.fd)
                break
        else:
            if not node.links:
                return  # a mapping alone is left, and its stores are seen by nobody else
            fd = os.open(self.path(self.names.index(node)), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        node.stores = False

    def check_stat(self, node: Node, status: os.stat_result) -> None:
        """Size, links and time of change are as they must be."""
        size = len(node.data)
        if status.st_size != size:
            raise Difference(f"size of inode {node.number}: {status.st_size} instead of {size}")
        if status.st_nlink != node.links:
            raise Difference(
                f"links of inode {node.number}: {status.st_nlink} instead of {node.links}"
            )
        oldest = max(node.mtime, node.changed) - _SLACK
        if status.st_mtime_ns < oldest:
            raise Difference(
                f"mtime of inode {node.number}: {status.st_mtime_ns / _NS:.3f} is "
                f"{(oldest - status.st_mtime_ns) / _NS:.3f} s too old"
            )
        node.mtime = max(node.mtime, status.st_mtime_ns)

    def check_whole(self, node: Node, fd: int, what: str) -> None:
        """All that can be read from a descriptor is what it should be."""
        unit = max(self.unit, PAGE)
        length = (len(node.data) // unit + 1) * unit
        with memoryview(self.buffer) as view, view[:length] as part:
            count = os.preadv(fd, [part], 0)
            with part[:count] as got:
                compare(got, node.data, 0, what)

    def check_mapping(self, mapping: Mapping, what: str) -> None:
        """What a mapping shows of the file is what it should be."""
        if mapping.reach:
            wanted = mapping.node.data[mapping.start : mapping.start + mapping.reach]
            compare(self.load(mapping, 0, mapping.reach), wanted, mapping.start, what)

    def clean(self) -> None:
        """Close all, and remove the directory, as far as the filesystem lets us."""
        self.close()
        shutil.rmtree(self.place, ignore_errors=True)


def label(name: int) -> str:
    """A name, as a string."""
    return chr(ord("a") + name % 26) + (str(name // 26) if name >= 26 else "")
