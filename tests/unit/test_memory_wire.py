# SPDX-License-Identifier: Apache-2.0
"""The memory filesystem driven message by message, without a kernel: every operation, both ways.

Each scenario is a conversation. Together they use every opcode, which the last test checks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
from collections.abc import Callable
from typing import Any

import pytest

from penstock.abi.fuse import (
    AccessIn,
    BatchForgetIn,
    BmapIn,
    CopyFileRangeIn,
    CreateIn,
    FallocateIn,
    Fattr,
    FileLock,
    FlushIn,
    ForgetIn,
    ForgetOne,
    FsyncIn,
    GetattrIn,
    GetxattrIn,
    InitFlag,
    InterruptIn,
    IoctlIn,
    LinkIn,
    LkIn,
    LseekIn,
    MkdirIn,
    MknodIn,
    NotifyPollOut,
    NotifyRetrieveIn,
    Opcode,
    OpenIn,
    PollIn,
    ReadIn,
    ReleaseIn,
    RemovemappingIn,
    RemovemappingOne,
    Rename2In,
    RenameIn,
    SetattrIn,
    SetupmappingIn,
    SetxattrIn,
    StatxIn,
    SyncfsIn,
    WriteIn,
)
from penstock.fs import NodeId
from penstock.testing import MemoryFilesystem
from penstock.wire import (
    REQUESTS,
    Extensions,
    decode_direntplus,
    decode_dirents,
    decode_notification,
    requests,
)
from tests.support.wireclient import WireClient, fixed

ROOT = 1
NOW = 1_700_000_000_000_000_000
EOF = (1 << 63) - 1
Scenario = Callable[[WireClient, MemoryFilesystem], None]
SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    """Make a function one of the scenarios."""
    SCENARIOS.append(function)
    return function


def make(dax_window: int = 1 << 20) -> MemoryFilesystem:
    """A small filesystem whose clock stands still."""
    return MemoryFilesystem(
        limit=1 << 20, inodes=64, max_links=4, dax_window=dax_window, clock=lambda: NOW
    )


@pytest.mark.parametrize("function", SCENARIOS, ids=lambda function: function.__name__)
def test_scenario(function: Scenario) -> None:
    filesystem = make()
    with WireClient(filesystem) as client:
        function(client, filesystem)


def test_every_opcode_is_used() -> None:
    used: set[int] = set()
    for function in SCENARIOS:
        filesystem = make()
        with WireClient(filesystem) as client:
            function(client, filesystem)
            used |= client.used
    assert used == set(REQUESTS) - {Opcode.CUSE_INIT}


# Short ways to say things


def refused(code: int, client: WireClient, request: Any, nodeid: int = ROOT, uid: int = 0) -> None:
    """The request is answered with an error."""
    with pytest.raises(OSError) as caught:
        client.ask(request, nodeid, uid=uid, gid=uid)
    assert caught.value.errno == code


def create(client: WireClient, name: bytes = b"file", mode: int = 0o644) -> tuple[int, int]:
    """A new file in the root: its node and a handle open for reading and writing."""
    arg = fixed(CreateIn, flags=os.O_RDWR, mode=stat.S_IFREG | mode)
    reply = client.ask(requests.Create(arg, name), ROOT)
    return reply.entry.nodeid, reply.open.fh


def mkdir(client: WireClient, name: bytes, parent: int = ROOT) -> int:
    """A new directory: its node."""
    made = client.ask(requests.Mkdir(fixed(MkdirIn, mode=0o755), name), parent)
    return int(made.entry.nodeid)


def write(client: WireClient, node: int, fh: int, data: bytes, offset: int = 0) -> int:
    """Write; how much was taken."""
    arg = fixed(WriteIn, fh=fh, offset=offset, size=len(data))
    return int(client.ask(requests.Write(arg, memoryview(data)), node).arg.size)


def read(client: WireClient, node: int, fh: int, size: int = 4096, offset: int = 0) -> bytes:
    """Read."""
    arg = fixed(ReadIn, fh=fh, offset=offset, size=size)
    return bytes(client.ask(requests.Read(arg), node).data)


def attributes(client: WireClient, node: int) -> Any:
    """The attributes."""
    return client.ask(requests.Getattr(fixed(GetattrIn)), node).arg.attr


def lookup(client: WireClient, name: bytes, parent: int = ROOT) -> int:
    """The node under a name."""
    return int(client.ask(requests.Lookup(name), parent).entry.nodeid)


def names(client: WireClient, fh: int, node: int = ROOT, offset: int = 0) -> list[bytes]:
    """What READDIR lists."""
    arg = fixed(ReadIn, fh=fh, offset=offset, size=4096)
    data = client.ask(requests.Readdir(arg), node).data
    return [bytes(entry.name) for entry in decode_dirents(data)]


def lock(fh: int, owner: int, kind: int, start: int = 0, end: int = EOF, flags: int = 0) -> LkIn:
    """A lock request's argument."""
    return LkIn(fh, owner, FileLock(start, end, kind, owner), flags, 0)


# Conversations


@scenario
def handshake(client: WireClient, filesystem: MemoryFilesystem) -> None:
    taken = client.init.flags | client.init.flags2 << 32
    for wanted in (
        InitFlag.POSIX_LOCKS,
        InitFlag.FLOCK_LOCKS,
        InitFlag.ATOMIC_O_TRUNC,
        InitFlag.DONT_MASK,
        InitFlag.POSIX_ACL,
        InitFlag.HANDLE_KILLPRIV_V2,
        InitFlag.DO_READDIRPLUS,
    ):
        assert taken & wanted
    client.ask(requests.Destroy())


@scenario
def lookup_and_forget(client: WireClient, filesystem: MemoryFilesystem) -> None:
    refused(errno.ENOENT, client, requests.Lookup(b"file"))
    node, fh = create(client)
    assert lookup(client, b"file") == node
    assert lookup(client, b"..") == ROOT
    assert lookup(client, b".", node) == node
    refused(errno.ENOTDIR, client, requests.Lookup(b"below"), node)
    refused(errno.ENAMETOOLONG, client, requests.Lookup(b"n" * 256))
    client.ask(requests.Release(fixed(ReleaseIn, fh=fh)), node)
    assert filesystem.statistics().nodes_known == 2
    client.send(requests.Forget(ForgetIn(2)), node)
    assert attributes(client, node).nlink == 1
    client.send(requests.Forget(ForgetIn(1)), node)
    assert filesystem.statistics().nodes_known == 1
    refused(errno.ESTALE, client, requests.Getattr(fixed(GetattrIn)), node)
    assert lookup(client, b"file") != node


@scenario
def many_forgets_at_once(client: WireClient, filesystem: MemoryFilesystem) -> None:
    nodes = [create(client, b"%d" % number)[0] for number in range(5)]
    items = tuple(ForgetOne(node, 1) for node in (*nodes[1:], 999))
    client.send(requests.BatchForget(BatchForgetIn(len(items), 0), items))
    assert filesystem.statistics().nodes_known == 2
    assert attributes(client, nodes[0]).nlink == 1


@scenario
def unlinked_file_is_freed_with_its_last_reference(
    client: WireClient, filesystem: MemoryFilesystem
) -> None:
    node, fh = create(client)
    write(client, node, fh, b"x" * 10_000)
    client.ask(requests.Unlink(b"file"), ROOT)
    assert attributes(client, node).nlink == 0
    client.send(requests.Forget(ForgetIn(1)), node)
    assert filesystem.statistics().bytes_used == 3 * 4096
    assert read(client, node, fh, 3) == b"xxx"
    client.ask(requests.Release(fixed(ReleaseIn, fh=fh)), node)
    statistics = filesystem.statistics()
    assert (statistics.bytes_used, statistics.inodes_used) == (0, 1)


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
def inodes_run_out(client: WireClient, filesystem: MemoryFilesystem) -> None:
    for number in range(63):
        client.ask(requests.Mknod(fixed(MknodIn, mode=stat.S_IFREG), b"%d" % number), ROOT)
    refused(errno.ENOSPC, client, requests.Mkdir(fixed(MkdirIn), b"one more"))
    assert client.ask(requests.Statfs(), ROOT).arg.ffree == 0
    client.ask(requests.Unlink(b"7"), ROOT)
    refused(errno.ENOSPC, client, requests.Mkdir(fixed(MkdirIn), b"still known"))
    assert client.ask(requests.Statfs(), ROOT).arg.files == 64


@scenario
def links(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, _ = create(client)
    for number in range(3):
        link = requests.Link(LinkIn(node), b"%d" % number)
        assert client.ask(link, ROOT).entry.attr.nlink == 2 + number
    refused(errno.EMLINK, client, requests.Link(LinkIn(node), b"one more"))
    refused(errno.EEXIST, client, requests.Link(LinkIn(node), b"0"))
    directory = mkdir(client, b"directory")
    refused(errno.EPERM, client, requests.Link(LinkIn(directory), b"name"))
    mkdir(client, b"second")
    refused(errno.EMLINK, client, requests.Mkdir(fixed(MkdirIn), b"third"))
    mkdir(client, b"below", directory)
    refused(errno.EMLINK, client, requests.Rename(RenameIn(ROOT), b"below", b"up"), directory)
    client.ask(requests.Unlink(b"file"), ROOT)
    assert attributes(client, node).nlink == 3


@scenario
def symlinks(client: WireClient, filesystem: MemoryFilesystem) -> None:
    entry = client.ask(requests.Symlink(b"link", b"../target"), ROOT).entry
    assert entry.attr.mode == stat.S_IFLNK | 0o777
    assert entry.attr.size == 9
    assert bytes(client.ask(requests.Readlink(), entry.nodeid).data) == b"../target"
    refused(errno.EINVAL, client, requests.Readlink(), ROOT)
    refused(errno.EEXIST, client, requests.Symlink(b"link", b"x"))
    refused(errno.EINVAL, client, requests.Open(fixed(OpenIn)), entry.nodeid)


@scenario
def creation_carries_extensions(client: WireClient, filesystem: MemoryFilesystem) -> None:
    extensions = Extensions(((b"security.label", b"secret"),), (42,))
    arg = fixed(MknodIn, mode=stat.S_IFCHR | 0o666, rdev=0x103, umask=0o027)
    entry = client.ask(requests.Mknod(arg, b"null", extensions), ROOT, uid=5, gid=6).entry
    assert entry.attr.mode == stat.S_IFCHR | 0o640
    assert (entry.attr.rdev, entry.attr.uid, entry.attr.gid) == (0x103, 5, 6)
    query = requests.Getxattr(GetxattrIn(100, 0), b"security.label")
    assert bytes(client.ask(query, entry.nodeid).data) == b"secret"
    refused(errno.EINVAL, client, requests.Mknod(fixed(MknodIn, mode=stat.S_IFDIR), b"d"))
    refused(errno.EEXIST, client, requests.Mknod(fixed(MknodIn), b"null"))


@scenario
def names_that_no_kernel_sends(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, _ = create(client)
    for name in (b".", b".."):
        refused(errno.EINVAL, client, requests.Mkdir(fixed(MkdirIn), name))
        refused(errno.EINVAL, client, requests.Unlink(name))
        refused(errno.EINVAL, client, requests.Rename(RenameIn(ROOT), b"file", name))
    refused(errno.ENOTDIR, client, requests.Mkdir(fixed(MkdirIn), b"name"), node)
    refused(errno.ESTALE, client, requests.Mkdir(fixed(MkdirIn), b"name"), 12345)


@scenario
def directories_come_and_go(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node = mkdir(client, b"directory")
    mkdir(client, b"below", node)
    assert attributes(client, node).nlink == 3
    refused(errno.ENOTEMPTY, client, requests.Rmdir(b"directory"))
    refused(errno.EISDIR, client, requests.Unlink(b"directory"))
    client.ask(requests.Rmdir(b"below"), node)
    client.ask(requests.Rmdir(b"directory"), ROOT)
    assert attributes(client, node).nlink == 0
    refused(errno.ENOENT, client, requests.Mkdir(fixed(MkdirIn), b"name"), node)
    refused(errno.ENOENT, client, requests.Lookup(b".."), node)
    create(client)
    refused(errno.ENOTDIR, client, requests.Rmdir(b"file"))


@scenario
def listings(client: WireClient, filesystem: MemoryFilesystem) -> None:
    made = {b"name-%d" % number: create(client, b"name-%d" % number)[0] for number in range(20)}
    opened = client.ask(requests.Opendir(fixed(OpenIn)), ROOT).arg
    arg = fixed(ReadIn, fh=opened.fh, size=4096)
    first = list(decode_dirents(client.ask(requests.Readdir(arg), ROOT).data))
    assert [bytes(entry.name) for entry in first] == [b".", b"..", *made]
    for name in (b"name-3", b"name-4", b"name-10"):
        client.ask(requests.Unlink(name), ROOT)
    create(client, b"new")
    rest = names(client, opened.fh, offset=first[5].offset)
    assert rest == [name for name in made if name[5:] not in b"0 1 2 3 4 10".split()] + [b"new"]
    assert names(client, opened.fh, offset=1 << 60) == []
    known = filesystem.statistics().nodes_known
    arg = fixed(ReadIn, fh=opened.fh, size=1000)
    plus = list(decode_direntplus(client.ask(requests.Readdirplus(arg), ROOT).data))
    assert [(bytes(each.dirent.name), each.entry.nodeid) for each in plus] == [
        (b".", 0),
        (b"..", 0),
        (b"name-0", made[b"name-0"]),
        (b"name-1", made[b"name-1"]),
        (b"name-2", made[b"name-2"]),
        (b"name-5", made[b"name-5"]),
    ]
    assert filesystem.statistics().nodes_known == known
    client.ask(requests.Fsyncdir(fixed(FsyncIn, fh=opened.fh)), ROOT)
    client.ask(requests.Releasedir(fixed(ReleaseIn, fh=opened.fh)), ROOT)
    refused(errno.EBADF, client, requests.Readdir(arg), ROOT)
    assert filesystem.statistics().syncs == {"fsyncdir": 1}


@scenario
def renames(client: WireClient, filesystem: MemoryFilesystem) -> None:
    one, _ = create(client, b"one")
    two, _ = create(client, b"two")
    directory = mkdir(client, b"directory")
    client.ask(requests.Rename(RenameIn(directory), b"one", b"moved"), ROOT)
    assert lookup(client, b"moved", directory) == one
    exchange = requests.Rename2(Rename2In(ROOT, 2, 0), b"moved", b"two")
    client.ask(exchange, directory)
    assert (lookup(client, b"two"), lookup(client, b"moved", directory)) == (one, two)
    noreplace = requests.Rename2(Rename2In(ROOT, 1, 0), b"moved", b"two")
    refused(errno.EEXIST, client, noreplace, directory)
    refused(errno.EINVAL, client, requests.Rename2(Rename2In(ROOT, 8, 0), b"two", b"x"))
    refused(errno.EINVAL, client, requests.Rename2(Rename2In(ROOT, 3, 0), b"two", b"moved"))
    into_itself = requests.Rename(RenameIn(directory), b"directory", b"below")
    refused(errno.EINVAL, client, into_itself)
    client.ask(requests.Rename2(Rename2In(ROOT, 4, 0), b"two", b"kept"), ROOT)
    left = client.ask(requests.Lookup(b"two"), ROOT).entry.attr
    assert (left.mode, left.rdev) == (stat.S_IFCHR, 0)


@scenario
def changing_attributes(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client)
    write(client, node, fh, b"content")
    valid = Fattr.MODE | Fattr.UID | Fattr.GID | Fattr.ATIME | Fattr.MTIME | Fattr.SIZE
    arg = fixed(
        SetattrIn,
        valid=valid,
        mode=stat.S_IFREG | 0o600,
        uid=7,
        gid=8,
        size=3,
        atime=-2,
        atimensec=5,
        mtime=100,
        mtimensec=6,
    )
    attr = client.ask(requests.Setattr(arg), node).arg.attr
    assert (attr.mode, attr.uid, attr.gid, attr.size) == (stat.S_IFREG | 0o600, 7, 8, 3)
    assert (attr.atime, attr.atimensec, attr.mtime, attr.mtimensec) == (-2, 5, 100, 6)
    assert attr.ctime == NOW // 10**9
    now = Fattr.ATIME | Fattr.ATIME_NOW | Fattr.MTIME | Fattr.MTIME_NOW
    attr = client.ask(requests.Setattr(fixed(SetattrIn, valid=now)), node).arg.attr
    assert attr.atime == attr.mtime == NOW // 10**9
    refused(errno.EISDIR, client, requests.Setattr(fixed(SetattrIn, valid=Fattr.SIZE)), ROOT)
    reply = client.ask(requests.Statx(fixed(StatxIn, sx_mask=0xFFF)), node).arg.stat
    assert reply.btime.tv_sec == NOW // 10**9
    assert reply.mask & 0x800
    assert (reply.uid, reply.size) == (7, 3)


@scenario
def set_id_bits(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, fh = create(client, mode=0o6755)
    set_xattr(client, node, b"security.capability", b"cap")
    arg = fixed(WriteIn, fh=fh, size=1)
    client.ask(requests.Write(arg, memoryview(b"x")), node)
    assert attributes(client, node).mode & 0o7777 == 0o6755, "root keeps them"
    missing = requests.Getxattr(GetxattrIn(10, 0), b"security.capability")
    refused(errno.ENODATA, client, missing, node)
    client.ask(requests.Write(arg._replace(write_flags=4), memoryview(b"x")), node)
    assert attributes(client, node).mode & 0o7777 == 0o755
    for mode, after in ((0o6755, 0o755), (0o6745, 0o2745)):
        client.ask(requests.Setattr(fixed(SetattrIn, valid=Fattr.MODE, mode=mode)), node)
        kill = fixed(SetattrIn, valid=Fattr.SIZE | Fattr.KILL_SUIDGID, size=0)
        client.ask(requests.Setattr(kill), node)
        assert attributes(client, node).mode & 0o7777 == after
        client.ask(requests.Setattr(fixed(SetattrIn, valid=Fattr.MODE, mode=mode)), node)
        client.ask(requests.Setattr(fixed(SetattrIn, valid=Fattr.UID, uid=9)), node)
        assert attributes(client, node).mode & 0o7777 == after
        client.ask(requests.Setattr(fixed(SetattrIn, valid=Fattr.MODE, mode=mode)), node)
        truncate = fixed(OpenIn, flags=os.O_WRONLY | os.O_TRUNC, open_flags=1)
        client.ask(requests.Open(truncate), node)
        assert attributes(client, node).mode & 0o7777 == after


@scenario
def permissions_by_mode(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, _ = create(client, mode=0o640)
    client.ask(requests.Access(AccessIn(4, 0)), node)
    refused(errno.EACCES, client, requests.Access(AccessIn(1, 0)), node)
    refused(errno.EACCES, client, requests.Access(AccessIn(4, 0)), node, uid=77)
    client.ask(requests.Access(AccessIn(5, 0)), ROOT, uid=77)


def set_xattr(
    client: WireClient, node: int, name: bytes, value: bytes, flags: int = 0, kill: int = 0
) -> None:
    """Set an extended attribute."""
    arg = fixed(SetxattrIn, size=len(value), flags=flags, setxattr_flags=kill)
    client.ask(requests.Setxattr(arg, name, memoryview(value)), node)


@scenario
def extended_attributes(client: WireClient, filesystem: MemoryFilesystem) -> None:
    node, _ = create(client)
    set_xattr(client, node, b"user.a", b"value")
    set_xattr(client, node, b"user.b", b"", flags=1)
    get = requests.Getxattr
    assert client.ask(get(GetxattrIn(0, 0), b"user.a"), node).arg.size == 5
    assert bytes(client.ask(get(GetxattrIn(5, 0), b"user.a"), node).data) == b"value"
    refused(errno.ERANGE, client, get(GetxattrIn(4, 0), b"user.a"), node)
    refused(errno.ENODATA, client, get(GetxattrIn(4, 0), b"user.c"), node)
    assert client.ask(requests.Listxattr(GetxattrIn(0, 0)), node).arg.size == 14
    listed = client.ask(requests.Listxattr(GetxattrIn(14, 0)), node).data
    assert bytes(listed) == b"user.a\0user.b\0"
    refused(errno.ERANGE, client, requests.Listxattr(GetxattrIn(13, 0)), node)
    for flags, name, code in ((1, b"user.a", errno.EEXIST), (2, b"user.c", errno.ENODATA)):
        with pytest.raises(OSError) as caught:
            set_xattr(client, node, name, b"", flags)
        assert caught.value.errno == code
    client.ask(requests.Removexattr(b"user.a"), node)
    refused(errno.ENODATA, client, requests.Removexattr(b"user.a"), node)
    assert filesystem.statistics().bytes_used == len(b"user.b")


@scenario
def access_control_lists(client: WireClient, filesystem: MemoryFilesystem) -> None:
    entries = ((1, 7, -1), (2, 7, 5), (4, 5, -1), (16, 6, -1), (32, 0, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    set_xattr(client, ROOT, b"system.posix_acl_default", acl)
    node, _ = create(client, mode=0o777)
    assert attributes(client, node).mode & 0o777 == 0o760
    client.ask(requests.Setattr(fixed(SetattrIn, valid=Fattr.MODE, mode=0o2740)), node)
    query = requests.Getxattr(GetxattrIn(100, 0), b"system.posix_acl_access")
    assert bytes(client.ask(query, node).data)[28:36] == struct.pack("<HHi", 16, 4, -1)
    set_xattr(client, node, b"system.posix_acl_access", acl, kill=1)
    assert attributes(client, node).mode & 0o7777 == 0o760, "set-group-ID is gone too"


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
def files_without_names(client: WireClient, filesystem: MemoryFilesystem) -> None:
    for flags, linkable in ((os.O_RDWR, True), (os.O_RDWR | os.O_EXCL, False)):
        arg = fixed(CreateIn, flags=flags, mode=0o600)
        reply = client.ask(requests.Tmpfile(arg, b"/"), ROOT)
        node, fh = reply.entry.nodeid, reply.open.fh
        assert attributes(client, node).nlink == 0
        write(client, node, fh, b"x")
        link = requests.Link(LinkIn(node), b"named")
        if linkable:
            assert client.ask(link, ROOT).entry.attr.nlink == 1
        else:
            refused(errno.ENOENT, client, requests.Link(LinkIn(node), b"other"))
            client.ask(requests.Release(fixed(ReleaseIn, fh=fh)), node)
            client.send(requests.Forget(ForgetIn(1)), node)
    assert filesystem.statistics().inodes_used == 2


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


# More than one conversation


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
