# SPDX-License-Identifier: Apache-2.0
"""Whole files by way of a session: what opens, closes and forgets them, and what undoes that."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from penstock.abi.fuse import (
    BatchForgetIn,
    CreateIn,
    FOpen,
    ForgetIn,
    ForgetOne,
    OpenIn,
    ReleaseIn,
)
from penstock.datapath import Paths, WholeFiles
from penstock.fs import (
    Attributes,
    Backing,
    Context,
    Entry,
    FileHandle,
    Mapped,
    NodeId,
    OpenReply,
    Operations,
    WholeFile,
)
from penstock.session import Reply
from penstock.wire import requests
from tests.support.iomodes import KeptFiles
from tests.support.wireclient import WireClient, fixed

LARGE = 1 << 20
LIMIT = 5
GIVEN = FOpen.KEEP_CACHE | FOpen.NOFLUSH | FOpen.PARALLEL_DIRECT_WRITES


class Told(Operations):
    """One file, 2, that is at once every name in the root; and what this was told of it."""

    whole_files = "passthrough"

    def __init__(self, *, forgettable: bool = True) -> None:
        self.told: list[tuple[str, int]] = []
        self.next = 100
        self.fault = ""
        self.whole: Callable[[], WholeFile | None] = lambda: WholeFile(Backing(7), LARGE)
        self.forgettable = forgettable

    def _reply(self) -> OpenReply:
        self.next += 1
        return OpenReply(FileHandle(self.next), GIVEN, 0, self.whole())

    def _entry(self) -> Entry:
        return Entry.make(2, Attributes.make(2, 0o100644))

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Entry:
        return self._entry()

    def open(self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool) -> OpenReply:
        return self._reply()

    def create(self, *_: Any) -> tuple[Entry, OpenReply]:
        return self._entry(), self._reply()

    def tmpfile(self, *_: Any) -> tuple[Entry, OpenReply]:
        return self._entry(), self._reply()

    def read(self, ctx: Context, nodeid: NodeId, fh: FileHandle, *_: Any) -> bytes:
        self.told.append(("read", fh))
        raise TypeError("a fault")

    def carried(self, nodeid: NodeId, fh: FileHandle) -> None:
        self.told.append(("carried", fh))
        if self.fault == "carried":
            raise RuntimeError("a fault")

    def release(self, ctx: Context, nodeid: NodeId, fh: FileHandle, *_: Any) -> None:
        self.told.append(("release", fh))

    def forget(self, nodeid: NodeId) -> None:
        self.told.append(("forget", nodeid))


class Dialogue:
    """A session, its filesystem, and the registry behind it."""

    def __init__(self, filesystem: Told) -> None:
        self.filesystem = filesystem
        self.registry = KeptFiles(LIMIT)
        self.files = WholeFiles("passthrough", self.registry)
        self.paths = Paths("passthrough", files=self.files)
        self.client = WireClient(filesystem, datapaths=self.paths, carries=True)

    def open(self, flags: int = os.O_RDWR) -> Any:
        return self.client.ask(requests.Open(fixed(OpenIn, flags=flags)), 2).arg

    def create(self) -> Any:
        return self.client.ask(requests.Create(fixed(CreateIn, flags=os.O_RDWR), b"x"), 1).open

    def tmpfile(self) -> Any:
        arg = fixed(CreateIn, flags=os.O_RDWR)
        return self.client.ask(requests.Tmpfile(arg, b""), 1).open

    def release(self, fh: int) -> None:
        self.client.ask(requests.Release(fixed(ReleaseIn, fh=fh)), 2)

    def opens(self) -> int:
        inode = self.files._inodes.get(2)
        return 0 if inode is None else inode.opens


@pytest.fixture
def dialogue() -> Iterator[Dialogue]:
    made = Dialogue(Told())
    with made.client:
        yield made


def test_opened_created_and_nameless(dialogue: Dialogue) -> None:
    """All in one way, and closed one by one."""
    made = [dialogue.open(), dialogue.create(), dialogue.tmpfile(), dialogue.open(os.O_RDONLY)]
    assert {reply.open_flags & FOpen.PASSTHROUGH for reply in made} == {FOpen.PASSTHROUGH}
    assert not any(reply.open_flags & FOpen.KEEP_CACHE for reply in made)
    assert len({reply.backing_id for reply in made}) == 1
    assert dialogue.filesystem.told == [("carried", reply.fh) for reply in made]
    assert dialogue.opens() == 4
    for left, reply in zip((3, 2, 1, 0), made, strict=True):
        dialogue.release(reply.fh)
        assert dialogue.opens() == left
    assert dialogue.registry.live == {2: made[0].backing_id}


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("forgettable", [False, True])
def test_forgotten(batch: bool, forgettable: bool) -> None:
    """Also where the filesystem is not told."""
    dialogue = Dialogue(Told(forgettable=forgettable))
    with dialogue.client as client:
        client.ask(requests.Lookup(b"x"), 1)
        fh = dialogue.open().fh
        dialogue.release(fh)
        assert dialogue.registry.live
        if batch:
            some = (ForgetOne(2, 1), ForgetOne(3, 9))
            client.send(requests.BatchForget(fixed(BatchForgetIn, count=2), some))
        else:
            client.send(requests.Forget(fixed(ForgetIn, nlookup=1)), 2)
        assert not dialogue.registry.live
        assert (("forget", 2) in dialogue.filesystem.told) == forgettable


def test_forgotten_while_it_is_open(dialogue: Dialogue) -> None:
    """As the kernel may say of an inode of before, a little late."""
    fh = dialogue.open().fh
    dialogue.client.ask(requests.Lookup(b"x"), 1)
    dialogue.client.send(requests.Forget(fixed(ForgetIn, nlookup=1)), 2)
    assert dialogue.registry.live
    dialogue.release(fh)
    assert dialogue.registry.live


def test_a_fault_of_the_filesystem(dialogue: Dialogue) -> None:
    """When it is told that a file is carried: the opening has not been."""
    dialogue.filesystem.fault = "carried"
    for opening in (dialogue.open, dialogue.create, dialogue.tmpfile):
        dialogue.filesystem.told.clear()
        with pytest.raises(OSError) as caught:
            opening()
        assert caught.value.errno == errno.EIO
        assert dialogue.filesystem.told == [
            ("carried", dialogue.filesystem.next),
            ("release", dialogue.filesystem.next),
        ]
        assert dialogue.opens() == 0


def test_an_answer_that_cannot_be_written(dialogue: Dialogue) -> None:
    """Is no opening: its handle is closed, and the file can be opened otherwise."""
    dialogue.filesystem.next = (1 << 64) + 5
    for opening in (dialogue.open, dialogue.create, dialogue.tmpfile):
        with pytest.raises(OSError) as caught:
            opening()
        assert caught.value.errno == errno.EIO
        assert dialogue.filesystem.told[-1] == ("release", dialogue.filesystem.next)
        assert dialogue.opens() == 0


def test_a_fault_when_a_small_file_is_sent_along() -> None:
    """Hurts nobody: the file is open, and who reads it hears of the fault."""
    dialogue = Dialogue(Told())
    dialogue.files = WholeFiles("passthrough", dialogue.registry)
    dialogue.paths = Paths("auto", files=dialogue.files)
    dialogue.filesystem.whole = lambda: WholeFile(Backing(7), 100)
    with WireClient(dialogue.filesystem, datapaths=dialogue.paths, carries=True) as client:
        arg = fixed(OpenIn, flags=os.O_RDONLY)
        assert client.ask(requests.Open(arg), 2).arg.open_flags == GIVEN
        assert dialogue.filesystem.told == [("read", dialogue.filesystem.next)]
        assert dialogue.opens() == 1


def test_an_error_of_the_choice_closes_the_file(dialogue: Dialogue) -> None:
    def damaged() -> Mapped | None:
        raise ValueError("damage")

    dialogue.filesystem.whole = lambda: WholeFile(damaged, LARGE)
    with pytest.raises(OSError) as caught:
        dialogue.open()
    assert caught.value.errno == errno.EIO
    assert dialogue.filesystem.told == [("release", dialogue.filesystem.next)]
    assert dialogue.opens() == 0


def test_a_reply_that_did_not_arrive(dialogue: Dialogue) -> None:
    """Is as if there had been none."""
    session = dialogue.client.transport.session
    seen: list[Reply] = []
    handle = session.handle

    def watched(*args: Any) -> Reply | None:
        reply = handle(*args)
        assert reply is not None
        seen.append(reply)
        return reply

    session.handle = watched  # type: ignore[method-assign, assignment]
    for opening in (dialogue.open, dialogue.create, dialogue.tmpfile):
        fh = opening().fh
        assert dialogue.opens() == 1
        session.undelivered(seen[-1])
        assert dialogue.opens() == 0
        assert dialogue.filesystem.told[-2 if opening != dialogue.open else -1][0] in {
            "release", "forget",
        }  # fmt: skip
        assert ("release", fh) in dialogue.filesystem.told


def test_where_the_kernel_does_not_carry(dialogue: Dialogue) -> None:
    """Without the bit in INIT nothing is registered."""
    client = WireClient(dialogue.filesystem, datapaths=dialogue.paths)
    with client:
        reply = client.ask(requests.Open(fixed(OpenIn, flags=os.O_RDWR)), 2).arg
    assert not reply.open_flags & FOpen.PASSTHROUGH
    assert dialogue.registry.asked == {}
