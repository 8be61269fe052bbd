# SPDX-License-Identifier: Apache-2.0
"""Files that the kernel carries whole: opened so that the kernel never has to answer EIO.

The kernel is a model of its rules (:mod:`tests.support.iomodes`), and opens, closes, forgets and
sends RELEASE in whatever order it may. What is registered is counted, and none of it is lost.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from functools import partial
from typing import Any, NamedTuple

import pytest

from penstock.abi.fuse import (
    FOpen,
)
from penstock.datapath import Paths, WholeFiles
from penstock.datapath import whole as module
from penstock.datapath.whole import IDLE_SECONDS, SMALL, STORED
from penstock.fs import (
    Backing,
    FileHandle,
    FsError,
    Mapped,
    OpenReply,
    WholeFile,
)
from tests.support.iomodes import IoModes, KeptFiles

LARGE = 1 << 20
A_FILE = Backing(7)
GIVEN = FOpen.KEEP_CACHE | FOpen.NOFLUSH | FOpen.PARALLEL_DIRECT_WRITES
KEPT = 3
LIMIT = 5
DIRECT = os.O_DIRECT
SOME_ERRORS = [
    errno.EINVAL, errno.EFBIG, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.ENOSPC,
]  # fmt: skip
NO_MORE = [errno.EOPNOTSUPP, errno.ELOOP, errno.ENOTCONN, errno.EPIPE]


class Clock:
    """A clock that is moved by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The module's clock; few backing files are kept, so that there are too many soon."""
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    monkeypatch.setattr(module, "KEPT", KEPT)
    monkeypatch.setattr(module, "_MADE_ROOM", 2)
    return made


def reply_of(length: int = LARGE, source: Any = A_FILE, *, whole: bool = True) -> OpenReply:
    """What a filesystem answers to an opening."""
    return OpenReply(FileHandle(1), GIVEN, 0, WholeFile(source, length) if whole else None)


def all_of(length: int) -> Mapped | None:
    """All of a file, as holes."""
    return Mapped((), length)


# The model


class Opening(NamedTuple):
    """An opened file, on its way to the kernel, open there, or on its way back."""

    node: int
    number: int


def number_of(reply: OpenReply) -> int:
    return reply.backing_id if reply.flags & FOpen.PASSTHROUGH else 0


class World:
    """A kernel, a registry, and one or more processes that serve the mount."""

    def __init__(
        self, path: str, seed: int, clock: Clock, files: type[WholeFiles], count: int
    ) -> None:
        self.draw = random.Random(seed)
        self.clock = clock
        self.path = path
        self.registry = KeptFiles(LIMIT)
        self.registry.error = self.error
        self.registry.closing = self.closing
        self.kernel = IoModes(self.registry)
        direct = DIRECT if path == "lens" else 0
        self.servers = [
            files(path, self.registry, direct=direct, shared=count > 1) for _ in range(count)
        ]
        self.answered: list[tuple[WholeFiles, Opening, OpenReply]] = []
        self.open: list[Opening] = []
        self.closed: list[Opening] = []
        self.odd = {node: self.draw.choice(SOME_ERRORS) for node in range(20, 24)}

    def error(self, node: int) -> int:
        """Some inodes are always refused, some now and then."""
        if len(self.servers) == 1 and node in range(15, 20) and self.draw.random() < 0.3:
            return self.draw.choice(SOME_ERRORS)
        return self.odd.get(node, 0)

    def closing(self, node: int) -> None:
        assert len(self.servers) == 1
        assert not any(opening.node == node for _, opening, _ in self.answered)
        assert not any(
            opening == (node, opening.number) and opening.number for opening in self.open
        )

    def server(self) -> WholeFiles:
        return self.draw.choice(self.servers)

    def step(self) -> None:
        """One thing that may happen."""
        draw = self.draw.random()
        self.server().idle()
        if draw < 0.35:
            self.ask()
        elif draw < 0.6 and self.answered:
            self.deliver()
        elif draw < 0.75 and self.open:
            opening = self.open.pop(self.draw.randrange(len(self.open)))
            self.kernel.close(*opening)
            self.closed.append(opening)
        elif draw < 0.95 and self.closed:
            opening = self.closed.pop(self.draw.randrange(len(self.closed)))
            self.server().released(opening.node)
        elif draw < 0.98:
            self.server().forgotten(self.draw.randrange(25))
        else:
            self.clock.now += self.draw.choice([1, IDLE_SECONDS / 2, IDLE_SECONDS])
            self.server().sweep()

    def ask(self) -> None:
        """OPEN comes."""
        node = self.draw.randrange(1, 25)
        flags = os.O_RDONLY
        length = LARGE if node % 3 else SMALL[self.path] - 1
        if self.path == "lens":
            flags |= self.draw.choice([0, 0, 0, DIRECT])
        else:
            flags |= self.draw.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | DIRECT])
            length += self.draw.choice([0, 1])
        source: Any = Backing(7) if self.path == "passthrough" else partial(all_of, length)
        answer = reply_of(length, source, whole=node % 5 != 0)
        server = self.server()
        try:
            reply = server.opened(node, flags, answer)
        except FsError as error:
            may = flags & DIRECT and (len(self.servers) > 1 or self.anywhere(node))
            if error.errno != errno.EINVAL or not may:
                raise
            return
        assert reply.fh == answer.fh
        assert bool(reply.flags & FOpen.PASSTHROUGH) or reply == answer
        self.answered.append((server, Opening(node, number_of(reply)), reply))

    def anywhere(self, node: int) -> bool:
        rows = [*self.open, *self.closed, *(opening for _, opening, _ in self.answered)]
        return any(opening.node == node for opening in rows)

    def deliver(self) -> None:
        """The kernel gets a reply, or has gone on without it."""
        row = self.answered.pop(self.draw.randrange(len(self.answered)))
        server, opening, reply = row
        if self.draw.random() < 0.2:
            server.released(opening.node)
            return
        self.kernel.open(opening.node, reply)
        self.open.append(opening)

    def end(self) -> None:
        """Everything is closed: what is registered is what is known, and not for long."""
        (server,) = self.servers
        while self.answered:
            self.deliver()
        for opening in self.open:
            self.kernel.close(*opening)
        last, self.open = self.open, []
        for opening in [*last, *self.closed]:
            server.released(opening.node)
        known = {node: inode.backing for node, inode in server._inodes.items()}
        assert known == self.registry.live
        assert len(known) <= KEPT
        assert known.keys() == server._idle.keys()
        self.clock.now += IDLE_SECONDS + 1
        server.sweep()
        assert not self.registry.live
        assert not server._inodes
        assert not server._idle


def play(path: str, seed: int, clock: Clock, files: type[WholeFiles] = WholeFiles) -> World:
    """One story, from the first opening to the end."""
    world = World(path, seed, clock, files, 1)
    for _ in range(400):
        world.step()
    world.end()
    return world


@pytest.mark.parametrize("path", ["lens", "passthrough"])
def test_the_kernel_has_nothing_to_refuse(path: str, clock: Clock) -> None:
    worlds = [play(path, seed, clock) for seed in range(150)]
    assert sum(world.servers[0].carried for world in worlds) > 2000
    assert sum(world.servers[0].read for world in worlds) > 2000
    assert sum(world.registry.asked["release"] for world in worlds) > 500


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes(count: int, clock: Clock) -> None:
    """RELEASE and FORGET come to whichever reads them first, and O_DIRECT to only one."""
    carried = 0
    for seed in range(60):
        world = World("lens", seed, clock, WholeFiles, count)
        world.registry._limit = 100
        for _ in range(400):
            world.step()
        assert not world.registry.asked["release"]
        carried += sum(server.carried for server in world.servers)
    assert carried > 1000


class ChoosesEachTime(WholeFiles):
    """Does not mind what is open."""

    def opened(self, nodeid: int, flags: int, reply: OpenReply) -> OpenReply:
        inode = self._inodes.get(nodeid)
        before, opens = inode, inode.opens if inode is not None else 0
        if before is not None:
            before.opens = 0
        try:
            return super().opened(nodeid, flags, reply)
        finally:
            if before is not None:
                before.opens += opens


class ForgetsWhatIsOpen(WholeFiles):
    """Gives up a backing file that is open."""

    def forgotten(self, nodeid: int) -> None:
        inode = self._inodes.get(nodeid)
        if inode is not None and inode.backing:
            self._idle[nodeid] = inode
        super().forgotten(nodeid)


class KeepsCount(WholeFiles):
    """Does not hear of replies that did not arrive, or not of all."""

    def released(self, nodeid: int) -> None:
        if nodeid % 7:
            super().released(nodeid)


class KeepsFlags(WholeFiles):
    """Lets the kernel keep pages, which does not go with passthrough."""

    def opened(self, nodeid: int, flags: int, reply: OpenReply) -> OpenReply:
        answer = super().opened(nodeid, flags, reply)
        return answer._replace(flags=answer.flags | reply.flags)


@pytest.mark.parametrize("fault", [ChoosesEachTime, ForgetsWhatIsOpen, KeepsCount, KeepsFlags])
def test_the_model_finds_faults(fault: type[WholeFiles], clock: Clock) -> None:
    """What the tests above are worth."""

    def all_stories() -> None:
        for path in ("passthrough", "lens"):
            for seed in range(20):
                play(path, seed, clock, fault)

    with pytest.raises(AssertionError):
        all_stories()


def test_from_several_threads() -> None:
    """All at once, each opening and closing what the others open and close too."""
    registry = KeptFiles(LIMIT)
    kernel = IoModes(registry)
    files = WholeFiles("passthrough", registry)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        mine: list[Opening] = []
        try:
            for _ in range(1500):
                if draw.random() < 0.5 and len(mine) < 10:
                    node = draw.randrange(12)
                    length = LARGE if node % 3 else 1
                    flags = draw.choice([os.O_RDONLY, os.O_RDWR])
                    reply = files.opened(node, flags, reply_of(length))
                    kernel.open(node, reply)
                    mine.append(Opening(node, number_of(reply)))
                elif mine:
                    opening = mine.pop(draw.randrange(len(mine)))
                    kernel.close(*opening)
                    files.released(opening.node)
                if draw.random() < 0.05:
                    files.sweep()
                    files.forgotten(draw.randrange(12))
            for opening in mine:
                kernel.close(*opening)
                files.released(opening.node)
        except BaseException as error:  # noqa: BLE001 - the test is to see it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert {node: inode.backing for node, inode in files._inodes.items()} == registry.live
    assert len(registry.live) <= KEPT


# One thing at a time


@pytest.fixture
def registry() -> KeptFiles:
    return KeptFiles(LIMIT)


@pytest.fixture
def files(registry: KeptFiles) -> WholeFiles:
    return WholeFiles("passthrough", registry)


def opens(files: WholeFiles, node: int = 1, flags: int = os.O_RDWR, **words: Any) -> int:
    """Open a file; the number of its backing file, 0 = it is read."""
    return number_of(files.opened(node, flags, reply_of(**words)))


@pytest.mark.parametrize("code", NO_MORE)
def test_what_says_that_no_file_can_be_carried(
    files: WholeFiles, registry: KeptFiles, code: int
) -> None:
    registry.error = lambda node: code
    assert opens(files, 1) == opens(files, 2) == 0
    assert registry.asked["register"] == 1
    assert files.refusal == "it is refused"
    assert files.refused == 0
    statistics = Paths("auto", files=files).statistics()
    assert statistics.reasons["passthrough"] == "it is refused"
    assert statistics.opens == {"passthrough": 0, "splice": 2}


@pytest.mark.parametrize("code", sorted({*SOME_ERRORS, errno.EPERM} - {errno.ENFILE}))
def test_what_says_that_one_file_cannot(files: WholeFiles, registry: KeptFiles, code: int) -> None:
    """It is not asked for again before the kernel has forgotten it."""
    registry.error = lambda node: code if node == 1 else 0
    assert opens(files, 1) == 0
    files.released(1)
    assert opens(files, 1) == 0
    assert opens(files, 2) > 0
    assert registry.asked["register"] == 2
    assert (files.refusal, files.refused, files.why_refused) == ("", 1, "it is refused")
    files.released(1)
    registry.error = lambda node: 0
    files.forgotten(1)
    assert files.refused == 0
    assert opens(files, 1) > 0


def test_too_many_that_are_open(files: WholeFiles, registry: KeptFiles) -> None:
    """What is too much is read, until others have been closed."""
    numbers = [opens(files, node) for node in range(1, LIMIT + 3)]
    assert all(numbers[:LIMIT])
    assert not any(numbers[LIMIT:])
    assert files.refused == 0
    files.released(LIMIT + 1)
    files.released(1)
    assert opens(files, LIMIT + 1) > 0
    assert len(registry.live) == LIMIT
    assert 1 not in registry.live


def test_those_unused_longest_are_given_up(files: WholeFiles, registry: KeptFiles) -> None:
    for node in (1, 2, 3, 4, 5):
        opens(files, node)
    for node in (5, 1, 3, 2, 4):
        files.released(node)
    assert set(registry.live) == {3, 2, 4}
    opens(files, 3)
    files.released(3)
    opens(files, 9)
    files.released(9)
    assert set(registry.live) == {4, 3, 9}


def test_reopening_asks_nobody(files: WholeFiles, registry: KeptFiles, clock: Clock) -> None:
    number = opens(files)
    files.released(1)
    clock.now += IDLE_SECONDS - 1
    files.sweep()
    assert opens(files, flags=os.O_RDONLY) == number
    clock.now += 10 * IDLE_SECONDS
    files.sweep()
    assert opens(files) == number
    assert registry.asked == {"register": 1}


@pytest.mark.parametrize("path", ["lens", "passthrough"])
def test_small_files(registry: KeptFiles, path: str) -> None:
    """Are read, unless they are to be written or the word was said."""
    small = SMALL[path] - 1
    files = WholeFiles(path, registry)
    assert opens(files, 1, os.O_RDONLY, length=small) == 0
    assert opens(files, 2, os.O_RDONLY, length=small + 1) > 0
    assert opens(files, 3, os.O_RDWR, length=small) > 0
    assert opens(files, 1, os.O_RDWR, length=small) == 0, "it is open in the other way"
    everything = WholeFiles(path, registry, everything=True)
    assert opens(everything, 4, os.O_RDONLY, length=0) > 0


def test_what_the_filesystem_cannot_say(registry: KeptFiles) -> None:
    files = WholeFiles("lens", registry)
    assert opens(files, source=lambda: None) == 0
    assert "blocks of its own" in files.why_refused
    assert registry.asked == {}


def test_a_filesystem_that_finds_damage(registry: KeptFiles) -> None:
    """The opening fails, and does not count."""
    files = WholeFiles("lens", registry)

    def damaged() -> Mapped | None:
        raise ValueError("damage")

    with pytest.raises(ValueError, match="damage"):
        opens(files, source=damaged)
    assert not files._inodes
    assert opens(files) > 0


def test_direct_io_through_a_lens(registry: KeptFiles) -> None:
    files = WholeFiles("lens", registry, direct=DIRECT)
    assert opens(files, 1, DIRECT) == 0
    assert opens(files, 1, os.O_RDONLY) == 0
    assert opens(files, 2, os.O_RDONLY) > 0
    with pytest.raises(FsError) as caught:
        opens(files, 2, DIRECT)
    assert caught.value.errno == errno.EINVAL
    for node in (1, 1, 2):
        files.released(node)
    assert opens(files, 1, os.O_RDONLY) > 0
    assert opens(files, 2, DIRECT) == 0


def test_what_was_given_up_is_settled_later(files: WholeFiles, registry: KeptFiles) -> None:
    """When there have been some moments in which nothing was to be done, and once."""
    opens(files)
    files.released(1)
    for _ in range(1000):
        files.idle()
    assert registry.settled == 0
    files.forgotten(1)
    files.idle()
    assert registry.settled == 0
    for _ in range(1000):
        files.idle()
    assert registry.settled == 1


def test_what_is_sent_along(files: WholeFiles) -> None:
    """All of a small file that is opened for the first time, and by nobody else."""

    def sent(node: int, length: int, reply: OpenReply | None = None, *, close: bool = True) -> int:
        given = reply or reply_of(length)
        answer = files.opened(node, os.O_RDONLY, given)
        assert answer == given
        found = files.stored(node, answer)
        if close:
            files.released(node)
        return found

    assert sent(1, 1) == 1
    assert sent(1, 1) == 0
    assert sent(2, STORED) == STORED
    assert sent(3, STORED + 1) == sent(4, 0) == 0
    assert sent(5, 100, reply_of(100)._replace(flags=0)) == 0
    assert sent(6, 100, reply_of(whole=False)) == 0
    files.opened(7, os.O_RDONLY, reply_of(100))
    assert sent(7, 100) == 0
    files.released(7)
    assert sent(7, 100) == 100


def test_nothing_is_sent_along_by_several_processes(registry: KeptFiles) -> None:
    """Each knows only what it has opened itself."""
    files = WholeFiles("lens", registry, shared=True)
    answer = files.opened(1, os.O_RDONLY, reply_of(100))
    assert files.stored(1, answer) == 0


def test_what_was_never_opened(files: WholeFiles, registry: KeptFiles) -> None:
    files.released(1)
    files.forgotten(1)
    files.sweep()
    assert registry.asked == {}
