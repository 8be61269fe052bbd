# SPDX-License-Identifier: Apache-2.0
"""The memory filesystem message by message: names, directories, attributes."""

from __future__ import annotations

import errno
import os
import stat
import struct

import pytest

from penstock.abi.fuse import (
    AccessIn,
    BatchForgetIn,
    CreateIn,
    Fattr,
    ForgetIn,
    ForgetOne,
    FsyncIn,
    GetattrIn,
    GetxattrIn,
    InitFlag,
    LinkIn,
    MkdirIn,
    MknodIn,
    OpenIn,
    ReadIn,
    ReleaseIn,
    Rename2In,
    RenameIn,
    SetattrIn,
    StatxIn,
    WriteIn,
)
from penstock.testing import MemoryFilesystem
from penstock.wire import (
    Extensions,
    decode_direntplus,
    decode_dirents,
    requests,
)
from tests.support.conversation import (
    NOW,
    ROOT,
    Scenario,
    attributes,
    converse,
    create,
    lookup,
    mkdir,
    names,
    read,
    refused,
    set_xattr,
    write,
)
from tests.support.wireclient import WireClient, fixed

SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    """Make a function one of the scenarios."""
    SCENARIOS.append(function)
    return function


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


@pytest.mark.parametrize("function", SCENARIOS, ids=lambda function: function.__name__)
def test_conversation(function: Scenario) -> None:
    converse(function)
