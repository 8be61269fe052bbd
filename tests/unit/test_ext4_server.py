# SPDX-License-Identifier: Apache-2.0
"""The ext4 server through the wire: node ids, timeouts, options, refusals."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.abi.fuse import (
    INVALID_UIDGID,
    GetattrIn,
    GetxattrIn,
    InitFlag,
    InitIn,
    LseekIn,
    Opcode,
    OpenIn,
    ReadIn,
)
from penstock.datapath import Paths
from penstock.fs import ENDLESS, ROOT
from penstock.servers import UnknownImage, open_server
from penstock.servers.ext4 import parse_options
from penstock.servers.ext4.server import Ext4Server
from penstock.transport import MemoryTransport
from penstock.wire import decode_direntplus, decode_reply, encode_request, requests
from tests.support.images import cached_image, debugfs

OFFER = InitIn(7, 45, 131072, 0x73FF_FFFB, 0x5FD, bytes(44))


def _with_files(image: Path) -> None:
    debugfs(image, *[f"write /etc/hostname file{number}" for number in range(5)])


class Asker:
    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.unique = 0
        self(requests.Init(OFFER), 0)

    def __call__(self, request: Any, nodeid: int = ROOT, uid: int = 0) -> Any:
        self.unique += 2
        message = encode_request(request, unique=self.unique, nodeid=nodeid, uid=uid)
        reply = self.transport.call(message)
        assert reply is not None
        opcode = next(o for o, cls in requests.REQUESTS.items() if cls is type(request))
        header, body = decode_reply(opcode, reply)
        return body if header.error == 0 else header.error


@pytest.fixture
def image() -> Iterator[int]:
    fd = os.open(cached_image(_with_files), os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def ask(image: int) -> Iterator[Asker]:
    server = open_server(image)
    with MemoryTransport(server.operations, datapaths=Paths("copy")) as transport:
        yield Asker(transport)


def listing(ask: Asker, nodeid: int = ROOT) -> dict[bytes, Any]:
    body = ask(requests.Readdirplus(ReadIn(0, 0, 1 << 20, 0, 0, 0, 0)), nodeid)
    return {record.dirent.name: record for record in decode_direntplus(body.data)}


def test_the_root_is_node_one_and_shows_inode_two(ask: Asker) -> None:
    attr = ask(requests.Getattr(GetattrIn(0, 0, 0))).arg.attr
    assert attr.ino == 2
    assert stat.S_ISDIR(attr.mode)
    assert ask(requests.Lookup(b".")).entry.nodeid == ROOT
    assert ask(requests.Lookup(b"..")).entry.nodeid == ROOT


def test_all_may_be_kept_for_ever(ask: Asker) -> None:
    entry = ask(requests.Lookup(b"lost+found")).entry
    assert entry.entry_valid == entry.attr_valid == int(ENDLESS)
    missing = ask(requests.Lookup(b"no such name")).entry
    assert missing.nodeid == 0
    assert missing.entry_valid == int(ENDLESS)


def test_nothing_needs_opening(ask: Asker) -> None:
    assert ask(requests.Opendir(OpenIn(0, 0))) == -errno.ENOSYS
    assert ask(requests.Open(OpenIn(0, 0)), 12) == -errno.ENOSYS


def test_a_listing_counts_no_lookups(ask: Asker) -> None:
    assert listing(ask)
    assert ask.transport.session.statistics().nodes == 0


def test_reserved_and_absent_inodes_are_no_files(ask: Asker) -> None:
    for nodeid in (3, 7, 8, 1 << 40, (1 << 64) - 1):
        assert ask(requests.Getattr(GetattrIn(0, 0, 0)), nodeid) in {-errno.EUCLEAN, -errno.ESTALE}


def test_seek_beyond_the_end_and_with_a_strange_whence(ask: Asker) -> None:
    assert ask(requests.Lseek(LseekIn(0, 1 << 40, 3, 0)), ROOT) == -errno.ENXIO
    assert ask(requests.Lseek(LseekIn(0, 0, 9, 0)), ROOT) == -errno.EINVAL


def test_reading_a_directory_is_refused(ask: Asker) -> None:
    assert ask(requests.Read(ReadIn(0, 0, 4096, 0, 0, 0, 0)), ROOT) == -errno.EISDIR


def test_the_requests_of_a_read_only_tree_are_all_there(ask: Asker) -> None:
    handled = {opcode for opcode in Opcode if opcode in ask.transport.session._rows}
    assert handled == {
        Opcode.LOOKUP, Opcode.GETATTR, Opcode.READLINK, Opcode.OPEN, Opcode.READ, Opcode.RELEASE,
        Opcode.STATFS,
        Opcode.GETXATTR, Opcode.LISTXATTR, Opcode.READDIR, Opcode.READDIRPLUS, Opcode.LSEEK,
        Opcode.IOCTL, Opcode.STATX,
    }  # fmt: skip


def _with_attributes(image: Path) -> None:
    debugfs(image, "ea_set / user.plain 1", "ea_set / trusted.secret 2")


def test_names_of_trusted_attributes_are_for_root_or_where_no_one_knows_who_asks() -> None:
    fd = os.open(cached_image(_with_attributes), os.O_RDONLY)
    try:
        operations = open_server(fd).operations
        with MemoryTransport(operations, datapaths=Paths("copy")) as transport:
            asker = Asker(transport)
            for uid, shown in ((0, True), (1000, False), (INVALID_UIDGID, True)):
                names = asker(requests.Listxattr(GetxattrIn(4096, 0)), ROOT, uid).data
                assert b"user.plain\0" in bytes(names)
                assert (b"trusted.secret\0" in bytes(names)) == shown
    finally:
        os.close(fd)


def test_ownership_can_be_overridden(image: int) -> None:
    server = open_server(image, "ext4", {"uid": "1234", "gid": "5678"})
    with MemoryTransport(server.operations, datapaths=Paths("copy")) as transport:
        attr = Asker(transport)(requests.Getattr(GetattrIn(0, 0, 0))).arg.attr
    assert (attr.uid, attr.gid) == (1234, 5678)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"uid": "-1"}, "uid=-1"),
        ({"partition": "x"}, "partition=x"),
        ({"partition": "0"}, "partition=0"),
        ({"bogus": ""}, "bogus"),
    ],
)
def test_wrong_words(words: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options(words)


@pytest.mark.parametrize(
    ("offset", "magic", "said"),
    [
        (0, b"XFSB", "XFS"),
        (0x10040, b"_BHRfS_M", "Btrfs"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (0, b"hsqs", "SquashFS"),
        (0, b"nothing", "no filesystem that penstock knows"),
    ],
)
def test_other_images_are_named(tmp_path: Path, offset: int, magic: bytes, said: str) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(offset)
        file.write(magic)
    with path.open("rb") as file, pytest.raises(UnknownImage, match=said):
        open_server(file.fileno())


def test_no_partition_where_there_is_no_table(image: int) -> None:
    with pytest.raises(UnknownImage, match="no partition table"):
        open_server(image, None, {"partition": "1"})


def test_words_choose_what_is_negotiated(image: int) -> None:
    acl, idmap = InitFlag.POSIX_ACL, InitFlag.ALLOW_IDMAP
    cases: list[tuple[dict[str, str], int]] = [
        ({}, acl),
        ({"noacl": ""}, 0),
        ({"idmap": ""}, acl | idmap),
    ]
    for words, wanted in cases:
        server = open_server(image, None, words)
        with MemoryTransport(server.operations, datapaths=Paths("copy")) as transport:
            Asker(transport)
            connection = transport.session.connection
            assert connection is not None
            assert connection.flags & (acl | idmap) == wanted


def test_the_next_file_is_prepared_while_no_request_waits(image: int) -> None:
    operations = open_server(image).operations
    assert isinstance(operations, Ext4Server)
    with MemoryTransport(operations, datapaths=Paths("copy")) as transport:
        asker = Asker(transport)
        files = [
            record.entry.nodeid
            for record in listing(asker).values()
            if record.entry is not None and stat.S_ISREG(record.entry.attr.mode)
        ]
        for nodeid in files:
            before = asker(requests.Read(ReadIn(0, 0, 4096, 0, 0, 0, 0)), nodeid).data
            while transport.session.idle():
                pass
            assert asker(requests.Read(ReadIn(0, 0, 4096, 0, 0, 0, 0)), nodeid).data == before
        assert set(files) <= operations._files.keys()
        prepared = operations._files.keys() - set(files)
        assert prepared <= {nodeid + 1 for nodeid in files}
