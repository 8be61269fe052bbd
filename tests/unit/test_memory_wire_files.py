# SPDX-License-Identifier: Apache-2.0
"""The memory filesystem message by message: data, space, locks, polls, the DAX window."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct

import pytest

from penstock.abi.fuse import (
    BmapIn,
    CopyFileRangeIn,
    FallocateIn,
    Fattr,
    FileLock,
    FlushIn,
    FsyncIn,
    InitFlag,
    InterruptIn,
    IoctlIn,
    LseekIn,
    MkdirIn,
    NotifyPollOut,
    NotifyRetrieveIn,
    Opcode,
    OpenIn,
    PollIn,
    ReadIn,
    ReleaseIn,
    RemovemappingIn,
    RemovemappingOne,
    SetattrIn,
    SetupmappingIn,
    StatxIn,
    SyncfsIn,
    WriteIn,
)
from penstock.fs import NodeId
from penstock.testing import MemoryFilesystem
from penstock.wire import (
    decode_notification,
    requests,
)
from tests.support.conversation import (
    EOF,
    ROOT,
    Scenario,
    attributes,
    converse,
    create,
    lock,
    lookup,
    make,
    read,
    refused,
    write,
)
from tests.support.wireclient import WireClient, fixed

SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    """Make a function one of the scenarios."""
    SCENARIOS.append(function)
    return function


@scenario
def data(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)
    assert write(client, node, fh, b"hello world") == 11
    assert read(client, node, fh) == b"hello world"
    assert read(client, node, fh, 3, 6) == b"wor"
    assert read(client, node, fh, 3, 100) == b""
    opened = client.ask(requests.Open(fixed(OpenIn, flags=os.O_RDWR | os.O_TRUNC)), node).arg
    assert read(client, node, opened.fh) == b""
    arg = fixed(WriteIn, fh=fh, offset=0, size=2, flags=os.O_APPEND)
    write(client, node, fh, b"1234")
    client.ask(requests.Write(arg, memoryview(b"56")), node)
    assert read(client, node, fh) == b"123456"
    refused(errno.EBADF, client, requests.Read(fixed(ReadIn, fh=99, size=1)), node)
    refused(errno.EISDIR, client, requests.Open(fixed(OpenIn)), ROOT)
    arg = fixed(WriteIn, fh=fh, offset=EOF, size=2)
    refused(errno.EFBIG, client, requests.Write(arg, memoryview(b"ab")), node)


@scenario
def space_runs_out(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)
    assert write(client, node, fh, b"x" * (1 << 20)) == 1 << 20
    arg = fixed(WriteIn, fh=fh, offset=1 << 20, size=1)
    refused(errno.ENOSPC, client, requests.Write(arg, memoryview(b"x")), node)
    refused(errno.ENOSPC, client, requests.Symlink(b"link", b"target"))
    free = client.ask(requests.Statfs(), ROOT).arg
    assert (free.blocks, free.bfree, free.bavail) == (256, 0, 0)
    sizes = fixed(SetattrIn, valid=Fattr.SIZE, size=(1 << 20) - 8192)
    client.ask(requests.Setattr(sizes), node)
    assert write(client, node, fh, b"y" * 20_000, (1 << 20) - 8192) == 8192, "what fits"
    client.ask(requests.Setattr(fixed(SetattrIn, valid=Fattr.SIZE)), node)
    assert filesystem.statistics().bytes_used == 0


@scenario
def sparse_files(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)

    def allocate(mode: int, offset: int, length: int) -> requests.Fallocate:
        arg = fixed(FallocateIn, fh=fh, offset=offset, length=length, mode=mode)
        return requests.Fallocate(arg)

    def seek(offset: int, whence: int) -> requests.Lseek:
        return requests.Lseek(fixed(LseekIn, fh=fh, offset=offset, whence=whence))

    write(client, node, fh, b"x" * 8192, 8192)
    assert client.ask(seek(0, os.SEEK_DATA), node).arg.offset == 8192
    assert client.ask(seek(9000, os.SEEK_HOLE), node).arg.offset == 16384
    refused(errno.ENXIO, client, seek(16384, os.SEEK_DATA), node)
    refused(errno.EINVAL, client, seek(0, os.SEEK_SET), node)
    client.ask(allocate(0, 0, 20_000), node)
    assert attributes(client, node).size == 20_000
    assert attributes(client, node).blocks == 5 * 8
    client.ask(allocate(3, 8192, 4096), node)
    assert attributes(client, node).blocks == 4 * 8
    client.ask(allocate(0x10, 12_288, 10), node)
    assert read(client, node, fh, 20, 12_288) == bytes(10) + b"x" * 10
    client.ask(allocate(0x11, 40_960, 4096), node)
    assert attributes(client, node).size == 20_000
    client.ask(allocate(0x10, 40_960, 4096), node)
    assert attributes(client, node).size == 45_056
    refused(errno.EOPNOTSUPP, client, allocate(0x20, 0, 4096), node)
    refused(errno.ENOSPC, client, allocate(0, 0, 1 << 50), node)
    refused(errno.EINVAL, client, allocate(0, 0, 0), node)
    bmap = requests.Bmap(BmapIn(2, 4096, 0))
    assert client.ask(bmap, node).arg.block == 0
    assert client.ask(requests.Bmap(BmapIn(3, 4096, 0)), node).arg.block > 0
    refused(errno.EINVAL, client, requests.Bmap(BmapIn(0, 3000, 0)), node)


@scenario
def copying_ranges(client: WireClient, filesystem: MemoryFilesystem) -> None:
    one, fh_one = create(client, b"one")
    two, fh_two = create(client, b"two")
    write(client, one, fh_one, b"0123456789")
    arg = CopyFileRangeIn(fh_one, 2, two, fh_two, 1, 5, 0)
    assert client.ask(requests.CopyFileRange(arg), one).arg.size == 5
    assert read(client, two, fh_two) == b"\x0023456"
    arg = CopyFileRangeIn(fh_one, 8, two, fh_two, 6, 1 << 40, 0)
    assert client.ask(requests.CopyFileRange64(arg), one).arg.bytes_copied == 2
    assert read(client, two, fh_two) == b"\x002345689"
    overlapping = CopyFileRangeIn(fh_one, 0, one, fh_one, 3, 5, 0)
    refused(errno.EINVAL, client, requests.CopyFileRange64(overlapping), one)
    refused(errno.EINVAL, client, requests.CopyFileRange64(arg._replace(flags=1)), one)


@scenario
def durability(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)
    client.ask(requests.Fsync(fixed(FsyncIn, fh=fh)), node)
    client.ask(requests.Fsync(fixed(FsyncIn, fh=fh, fsync_flags=1)), node)
    client.ask(requests.Syncfs(SyncfsIn(0)), ROOT)
    assert filesystem.statistics().syncs == {"fsync": 1, "fdatasync": 1, "syncfs": 1}


@scenario
def controls(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)

    def ioctl(cmd: int, data: bytes = b"", out: int = 0) -> requests.Ioctl:
        arg = fixed(IoctlIn, fh=fh, cmd=cmd, in_size=len(data), out_size=out)
        return requests.Ioctl(arg, memoryview(data))

    get_flags, set_flags, version = 0x80086601, 0x40086602, 0x80087601
    get_xattr, set_attr = 0x801C581F, 0x401C5820
    assert bytes(client.ask(ioctl(get_flags, out=8), node).data) == bytes(4)
    assert len(client.ask(ioctl(version, out=8), node).data) == 4
    client.ask(ioctl(set_flags, struct.pack("<I", 0x10)), node)
    refused(errno.EPERM, client, requests.Unlink(b"file"))
    refused(errno.EPERM, client, requests.Open(fixed(OpenIn, flags=os.O_WRONLY)), node)
    refused(errno.EPERM, client, ioctl(set_flags, bytes(4)), node, uid=5)
    seen = client.ask(requests.Statx(fixed(StatxIn, sx_mask=0xFFF)), node).arg.stat
    assert seen.attributes == 0x10
    client.ask(ioctl(set_attr, struct.pack("<5I8x", 0x40, 0, 0, 77, 0)), node)
    answer = struct.unpack("<5I8x", client.ask(ioctl(get_xattr, out=28), node).data)
    assert answer == (0x40, 0, 0, 77, 0)
    refused(errno.EOPNOTSUPP, client, ioctl(set_flags, struct.pack("<I", 1 << 30)), node)
    refused(errno.EINVAL, client, ioctl(set_flags, b"x"), node)
    refused(errno.ENOTTY, client, ioctl(0x1234), node)


@scenario
def append_only(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)
    arg = fixed(IoctlIn, fh=fh, cmd=0x40086602, in_size=4)
    client.ask(requests.Ioctl(arg, memoryview(struct.pack("<I", 0x20))), node)
    client.ask(requests.Open(fixed(OpenIn, flags=os.O_WRONLY | os.O_APPEND)), node)
    for flags in (os.O_WRONLY, os.O_WRONLY | os.O_APPEND | os.O_TRUNC):
        refused(errno.EPERM, client, requests.Open(fixed(OpenIn, flags=flags)), node)
    refused(errno.EPERM, client, requests.Setattr(fixed(SetattrIn, valid=Fattr.SIZE)), node)


@scenario
def polling(client: WireClient, filesystem: MemoryFilesystem) -> None:
    filesystem.wakeup = client.transport.session.notifier.poll_wakeup
    node, fh = create(client)
    ready = select.POLLIN | select.POLLOUT
    ask = requests.Poll(PollIn(fh, 77, 1, ready))
    assert client.ask(ask, node).arg.revents == select.POLLOUT
    write(client, node, fh, b"")
    assert client.transport.notifications == []
    write(client, node, fh, b"more")
    (message,) = client.transport.notifications
    assert tuple(decode_notification(message)) == (NotifyPollOut(77),)
    assert client.ask(ask, node).arg.revents == ready
    read(client, node, fh)
    assert client.ask(ask, node).arg.revents == select.POLLOUT
    client.ask(requests.Setattr(fixed(SetattrIn, valid=Fattr.SIZE, size=100)), node)
    assert len(client.transport.notifications) == 2
    client.ask(ask, node)
    client.ask(requests.Release(fixed(ReleaseIn, fh=fh)), node)
    client.ask(requests.Setattr(fixed(SetattrIn, valid=Fattr.SIZE, size=200)), node)
    assert len(client.transport.notifications) == 2, "the handle is closed"


@scenario
def locks(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)
    client.ask(requests.Setlk(lock(fh, 1, fcntl.F_WRLCK, 10, 19)), node)
    refused(errno.EAGAIN, client, requests.Setlk(lock(fh, 2, fcntl.F_RDLCK, 0, 10)), node)
    found = client.ask(requests.Getlk(lock(fh, 2, fcntl.F_RDLCK)), node).arg.lk
    assert found == FileLock(10, 19, fcntl.F_WRLCK, 1)
    found = client.ask(requests.Getlk(lock(fh, 2, fcntl.F_RDLCK, 20, 30)), node).arg.lk
    assert found.type == fcntl.F_UNLCK
    request = requests.Setlkw(lock(fh, 2, fcntl.F_WRLCK))
    waiting, reply = client.send(request, node)
    assert reply is None
    assert filesystem.statistics().locks_waiting == 1
    client.ask(requests.Setlk(lock(fh, 1, fcntl.F_UNLCK)), node)
    client.decode(Opcode.SETLKW, request, client.transport.wait_reply(waiting))
    assert filesystem.statistics().locks_held == 1
    client.ask(requests.Flush(fixed(FlushIn, fh=fh, lock_owner=2)), node)
    assert filesystem.statistics().locks_held == 0


@scenario
def flocks(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)
    other = client.ask(requests.Open(fixed(OpenIn)), node).arg.fh
    client.ask(requests.Setlk(lock(fh, 1, fcntl.F_WRLCK, flags=1)), node)
    client.ask(requests.Setlk(lock(other, 2, fcntl.F_WRLCK)), node)
    request = requests.Setlkw(lock(other, 2, fcntl.F_WRLCK, flags=1))
    waiting, reply = client.send(request, node)
    assert reply is None
    release = fixed(ReleaseIn, fh=fh, release_flags=2, lock_owner=1)
    client.ask(requests.Release(release), node)
    client.decode(Opcode.SETLKW, request, client.transport.wait_reply(waiting))


@scenario
def interrupted_wait(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)
    client.ask(requests.Setlk(lock(fh, 1, fcntl.F_WRLCK)), node)
    request = requests.Setlkw(lock(fh, 2, fcntl.F_WRLCK))
    waiting, _ = client.send(request, node)
    client.send(requests.Interrupt(InterruptIn(waiting)), unique=waiting | 1)
    with pytest.raises(InterruptedError):
        client.decode(Opcode.SETLKW, request, client.transport.wait_reply(waiting))
    assert filesystem.statistics().locks_waiting == 0


@scenario
def dax_window(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)
    arg = fixed(SetupmappingIn, fh=fh, foffset=4096, len=8192, flags=3, moffset=65536)
    client.ask(requests.Setupmapping(arg), node)
    assert filesystem.mappings(NodeId(node)) == {65536: (4096, 8192, 3)}
    beyond = arg._replace(moffset=(1 << 20) - 4096)
    refused(errno.EINVAL, client, requests.Setupmapping(beyond), node)

    def remove(moffset: int) -> requests.Removemapping:
        return requests.Removemapping(RemovemappingIn(1), (RemovemappingOne(moffset, 8192),))

    refused(errno.EINVAL, client, remove(0), node)
    client.ask(remove(65536), node)
    assert filesystem.mappings(NodeId(node)) == {}


@scenario
def retrieved_data(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, _ = create(client)
    pending = client.transport.session.notifier.retrieve(NodeId(node), 0, 100)
    (message,) = client.transport.notifications
    (asked,) = decode_notification(message)
    assert (asked.nodeid, asked.offset, asked.size) == (node, 0, 100)
    arg = fixed(NotifyRetrieveIn, offset=0, size=4)
    answer = requests.NotifyReply(arg, memoryview(b"data"))
    got: list[bytes | None] = []
    pending.then(lambda value, _error: got.append(value))
    client.send(answer, node, unique=asked.notify_unique)
    assert got == [b"data"]


def test_without_a_window_nothing_is_mapped() -> None:
    with WireClient(make(dax_window=0)) as client:
        node, fh = create(client)
        arg = fixed(SetupmappingIn, fh=fh, len=4096)
        refused(errno.ENOSYS, client, requests.Setupmapping(arg), node)
        one = (RemovemappingOne(0, 4096),)
        refused(errno.ENOSYS, client, requests.Removemapping(RemovemappingIn(1), one), node)


def test_the_umask_is_the_kernels_where_that_was_agreed() -> None:
    offered = 0x7FFF_FFFF & ~InitFlag.DONT_MASK
    with WireClient(make(), offered) as client:
        arg = fixed(MkdirIn, mode=0o777, umask=0o077)
        entry = client.ask(requests.Mkdir(arg, b"directory"), ROOT).entry
        assert entry.attr.mode & 0o777 == 0o777


def test_a_filesystem_can_be_connected_again() -> None:
    filesystem = make()
    with WireClient(filesystem) as client:
        node, fh = create(client, b"kept")
        write(client, node, fh, b"content")
        gone, _ = create(client, b"gone")
        client.ask(requests.Unlink(b"gone"), ROOT)
        client.ask(requests.Setlk(lock(fh, 1, fcntl.F_WRLCK)), node)
        del gone
    assert filesystem.statistics().inodes_used == 2
    with WireClient(filesystem) as client:
        node = lookup(client, b"kept")
        opened = client.ask(requests.Open(fixed(OpenIn)), node).arg
        assert read(client, node, opened.fh) == b"content"
        client.ask(requests.Setlk(lock(opened.fh, 2, fcntl.F_WRLCK)), node)


@pytest.mark.parametrize("function", SCENARIOS, ids=lambda function: function.__name__)
def test_conversation(function: Scenario) -> None:
    converse(function)
