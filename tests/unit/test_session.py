# SPDX-License-Identifier: Apache-2.0
"""The engine, driven from memory: dispatch, errors, late answers, interrupts, the end."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.abi.fuse import (
    FileLock,
    ForgetIn,
    GetattrIn,
    GetxattrIn,
    InitFlag,
    InitIn,
    InterruptIn,
    LkIn,
    ReadIn,
)
from penstock.datapath import Paths
from penstock.formats.errors import CorruptImage
from penstock.fs import (
    Answer,
    Attributes,
    Context,
    Data,
    DirEntry,
    Entry,
    FileHandle,
    FsError,
    Lock,
    Mapped,
    Mapping,
    MappingType,
    NodeId,
    Operations,
    Pending,
)
from penstock.transport import MemoryTransport
from penstock.wire import decode_reply, encode_request, requests

ATTR = Attributes.make(7, 0o100644, size=10)


class Toy(Operations):
    """Just enough to be asked."""

    def __init__(self) -> None:
        self.forgotten: list[int] = []
        self.waiting: list[Pending[None]] = []
        self.cancelled = 0
        self.destroyed = 0

    def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Answer[Entry]:
        if name == b"missing":
            raise FsError(errno.ENOENT)
        if name == b"broken":
            raise ZeroDivisionError("a bug")
        if name == b"corrupt":
            raise CorruptImage("inode 7: bad")
        if name == b"negative":
            return Entry.make(0, ATTR)
        return Entry.make(7, ATTR)

    def forget(self, nodeid: NodeId) -> None:
        self.forgotten.append(nodeid)

    def getattr(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle | None
    ) -> tuple[Attributes, float]:
        return ATTR, 1.5

    def read(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        offset: int,
        size: int,
        flags: int,
        lock_owner: int | None,
    ) -> Data:
        if offset == 1:
            return b"x" * (size + 1)
        if offset == 2:
            return Mapped((Mapping(0, size + 9, MappingType.HOLE),), size + 1)
        if offset == 3:
            return Mapped((Mapping(0, size + 9, MappingType.HOLE),), size)
        return b"hello"

    def getxattr(self, ctx: Context, nodeid: NodeId, name: bytes) -> bytes:
        return b"0123456789"

    def setlk(
        self,
        ctx: Context,
        nodeid: NodeId,
        fh: FileHandle,
        owner: int,
        lock: Lock,
        flags: int,
        wait: bool,
    ) -> Answer[None]:
        pending: Pending[None] = Pending(self._cancel)
        self.waiting.append(pending)
        return pending

    def _cancel(self) -> None:
        self.cancelled += 1

    def readdir(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterator[DirEntry]:
        for number in range(offset, 1000):
            yield DirEntry(b"name%d" % number, number + 1, number + 1, 8)

    def destroy(self) -> None:
        self.destroyed += 1


class Driver:
    def __init__(self) -> None:
        self.toy = Toy()
        self.transport = MemoryTransport(self.toy, datapaths=Paths())
        self.unique = 0
        offer = InitIn(7, 46, 131072, 0xFFFF_FFFF & ~InitFlag.INIT_RESERVED, 0, bytes(44))
        self.ask(requests.Init(offer))

    def send(self, request: Any, nodeid: int = 1) -> bytes | None:
        self.unique += 2
        return self.transport.call(
            encode_request(request, unique=self.unique, nodeid=nodeid, uid=1, gid=2, pid=3)
        )

    def ask(self, request: Any, nodeid: int = 1) -> Any:
        reply = self.send(request, nodeid)
        assert reply is not None
        opcode = next(o for o, cls in requests.REQUESTS.items() if cls is type(request))
        header, body = decode_reply(opcode, reply)
        assert header.unique == self.unique
        return body if header.error == 0 else header.error


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    with made.transport:
        yield made


def test_answers_and_errnos(driver: Driver) -> None:
    assert driver.ask(requests.Lookup(b"there")).entry.nodeid == 7
    assert driver.ask(requests.Lookup(b"missing")) == -errno.ENOENT
    attr = driver.ask(requests.Getattr(GetattrIn(0, 0, 0)), 7)
    assert (attr.arg.attr_valid, attr.arg.attr_valid_nsec) == (1, 500_000_000)


def test_a_bug_is_eio_and_one_record(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert driver.ask(requests.Lookup(b"broken")) == -errno.EIO
    (record,) = caplog.records
    assert "LOOKUP" in record.getMessage()
    assert "broken" in record.getMessage()
    assert record.exc_info is not None
    assert driver.ask(requests.Lookup(b"there")).entry.nodeid == 7


def test_a_corrupt_image_is_its_errno(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    assert driver.ask(requests.Lookup(b"corrupt")) == -errno.EUCLEAN
    assert "inode 7: bad" in caplog.text


def test_what_is_not_overridden_is_enosys(driver: Driver) -> None:
    assert driver.ask(requests.Readlink()) == -errno.ENOSYS
    assert driver.ask(requests.Statfs()).arg.namelen == 255
    unknown = bytearray(encode_request(requests.Statfs(), unique=100))
    unknown[4:8] = (3999).to_bytes(4, "little")
    reply = driver.transport.call(bytes(unknown))
    assert reply is not None
    assert int.from_bytes(reply[4:8], "little", signed=True) == -errno.ENOSYS


def test_lookups_are_counted_until_forgotten(driver: Driver) -> None:
    driver.ask(requests.Lookup(b"a"))
    driver.ask(requests.Lookup(b"b"))
    driver.ask(requests.Lookup(b"negative"))
    assert driver.transport.session.statistics().nodes == 1
    assert driver.send(requests.Forget(ForgetIn(1)), 7) is None
    assert driver.toy.forgotten == []
    driver.send(requests.Forget(ForgetIn(1)), 7)
    assert driver.toy.forgotten == [7]


def test_an_undelivered_entry_is_not_counted(driver: Driver) -> None:
    message = encode_request(requests.Lookup(b"a"), unique=1000, nodeid=1)
    reply = driver.transport.session.handle(message)
    assert reply is not None
    driver.transport.session.undelivered(reply)
    assert driver.toy.forgotten == [7]


def test_reads_cannot_answer_more_than_was_asked(driver: Driver) -> None:
    def read(offset: int) -> Any:
        return driver.ask(requests.Read(ReadIn(0, offset, 100, 0, 0, 0, 0)), 7)

    assert bytes(read(0).data) == b"hello"
    assert read(1) == -errno.EIO
    assert read(2) == -errno.EIO
    assert bytes(read(3).data) == bytes(100)


def test_xattr_sizes(driver: Driver) -> None:
    reply = driver.send(requests.Getxattr(GetxattrIn(0, 0), b"user.a"), 7)
    assert reply is not None
    assert int.from_bytes(reply[16:20], "little") == 10
    assert driver.ask(requests.Getxattr(GetxattrIn(9, 0), b"user.a"), 7) == -errno.ERANGE
    assert (
        bytes(driver.ask(requests.Getxattr(GetxattrIn(10, 0), b"user.a"), 7).data) == b"0123456789"
    )


def test_readdir_stops_where_the_buffer_ends(driver: Driver) -> None:
    reply = driver.send(requests.Readdir(ReadIn(0, 0, 4096, 0, 0, 0, 0)))
    assert reply is not None
    assert 3900 < len(reply) - 16 <= 4096


def waiting_lock() -> Any:
    return requests.Setlkw(LkIn(0, 1, FileLock(0, 10, 1, 3), 0, 0))


def test_a_late_answer_reaches_its_request(driver: Driver) -> None:
    assert driver.send(waiting_lock(), 7) is None
    unique = driver.unique
    assert driver.transport.session.statistics().pending == 1
    assert driver.toy.waiting[0].complete(None)
    reply = driver.transport.wait_reply(unique)
    assert int.from_bytes(reply[8:16], "little") == unique
    assert int.from_bytes(reply[4:8], "little", signed=True) == 0
    assert not driver.toy.waiting[0].complete(None)
    assert not driver.toy.waiting[0].cancel()
    assert driver.transport.session.statistics().pending == 0


def test_interrupt_cancels_a_late_answer(driver: Driver) -> None:
    driver.send(waiting_lock(), 7)
    target = driver.unique
    driver.send(requests.Interrupt(InterruptIn(target)))
    reply = driver.transport.wait_reply(target)
    assert int.from_bytes(reply[4:8], "little", signed=True) == -errno.EINTR
    assert driver.toy.cancelled == 1


def test_an_interrupt_that_overtakes_its_request(driver: Driver) -> None:
    driver.send(requests.Interrupt(InterruptIn(driver.unique + 4)))
    driver.send(waiting_lock(), 7)
    reply = driver.transport.wait_reply(driver.unique)
    assert int.from_bytes(reply[4:8], "little", signed=True) == -errno.EINTR


def test_the_end_drains_and_destroys_once(driver: Driver) -> None:
    for _ in range(3):
        driver.send(waiting_lock(), 7)
    driver.transport.close()
    driver.transport.close()
    assert driver.toy.cancelled == 3
    assert driver.toy.destroyed == 1
    reply = driver.transport.wait_reply(driver.unique)
    assert int.from_bytes(reply[4:8], "little", signed=True) == -errno.ENODEV


def test_statistics_count_requests_and_errors(driver: Driver) -> None:
    driver.ask(requests.Lookup(b"there"))
    driver.ask(requests.Lookup(b"missing"))
    rows = driver.transport.session.statistics().requests
    assert (rows["LOOKUP"].count, rows["LOOKUP"].errors) == (2, 1)
    assert rows["LOOKUP"].microseconds > 0
    assert rows["INIT"].count == 1


@pytest.mark.parametrize("length", [0, 1, 39, 40, 41])
def test_a_malformed_message_is_survived(driver: Driver, length: int) -> None:
    message = encode_request(requests.Lookup(b"there"), unique=500, nodeid=1)[:length]
    reply = driver.transport.call(message)
    if reply is not None:
        assert int.from_bytes(reply[4:8], "little", signed=True) == -errno.EIO
    assert driver.transport.session.statistics().malformed == 1
    assert driver.ask(requests.Lookup(b"there")).entry.nodeid == 7


def test_a_filesystem_that_fails_while_idle_is_asked_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Toy):
        def idle(self) -> bool:
            raise ZeroDivisionError

    with MemoryTransport(Failing(), datapaths=Paths()) as transport:
        assert not transport.session.idle()
        assert not transport.session.idle()
    assert len(caplog.records) == 1
