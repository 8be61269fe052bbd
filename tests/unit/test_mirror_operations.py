# SPDX-License-Identifier: Apache-2.0
"""The mirror's operations, called as the session calls them."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from penstock.abi.fuse import FOpen, InitFlag, WriteFlag
from penstock.fs import ENDLESS, ROOT, Backing, Connection, FileHandle, FsError, NodeId
from penstock.negotiate import mirror_profile
from penstock.servers.mirror.server import MirrorServer
from tests.support.mirrors import NEW, NOTHING, caller, find, mirror_of

CREATE = os.O_CREAT | os.O_RDWR
FS_IOC_GETFLAGS = 0x8008_6601
CONNECTION = Connection(45, int(mirror_profile().want), 1 << 20, 256, 1 << 20, 1)


@pytest.fixture(params=["handles", "names"])
def mirror(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MirrorServer]:
    with mirror_of(tmp_path, handles=request.param == "handles") as operations:
        operations.init(CONNECTION)
        yield operations


def made(mirror: MirrorServer, name: bytes = b"file") -> tuple[NodeId, FileHandle]:
    """A new file, open."""
    entry, reply = mirror.create(caller(), ROOT, name, stat.S_IFREG | 0o644, CREATE, NEW)
    return NodeId(entry[0]), reply.fh


def write(mirror: MirrorServer, node: NodeId, fh: FileHandle, data: bytes, at: int = 0) -> int:
    return mirror.write(caller(), node, fh, at, memoryview(data), os.O_RDWR, 0, None)


def listed(mirror: MirrorServer, node: NodeId = ROOT) -> list[bytes]:
    """All names but the dots, by a listing without attributes."""
    fh = mirror.opendir(caller(), node, 0).fh
    names = [entry.name for entry in mirror.readdir(caller(), node, fh, 0)]
    mirror.releasedir(caller(), node, fh, 0)
    assert {b".", b".."} <= set(names)
    return sorted(set(names) - {b".", b".."})


def descriptors(mirror: MirrorServer) -> int:
    """How many descriptors of open files it has."""
    return mirror.statistics().descriptors


def test_a_file_is_made_written_and_read(mirror: MirrorServer, tmp_path: Path) -> None:
    node, fh = made(mirror)
    assert write(mirror, node, fh, b"content") == 7
    assert (tmp_path / "file").read_bytes() == b"content"
    data = mirror.read(caller(), node, fh, 0, 100, 0, None)
    assert isinstance(data, Backing)
    assert os.pread(data.fd, 100, 0) == b"content"
    mirror.fsync(caller(), node, fh, datasync=True)
    mirror.fsync(caller(), node, fh, datasync=False)
    assert mirror.getattr(caller(), node, fh)[0].size == 7


def test_an_open_says_where_the_file_lies(mirror: MirrorServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"four")
    reply = mirror.open(caller(), find(mirror, "file"), os.O_RDONLY, False)
    assert reply.whole is not None
    assert reply.whole.length == 4
    assert isinstance(reply.whole.source, Backing)
    assert os.pread(reply.whole.source.fd, 9, 0) == b"four"


def test_a_file_with_set_id_bits_is_not_given_away(mirror: MirrorServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o4755)
    assert mirror.open(caller(), find(mirror, "file"), os.O_RDONLY, False).whole is None


def test_pages_are_kept_while_nothing_changes(mirror: MirrorServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"four")
    node = find(mirror, "file")
    flags = [mirror.open(caller(), node, os.O_RDONLY, False).flags for _ in range(2)]
    (tmp_path / "file").write_bytes(b"five")
    flags += [mirror.open(caller(), node, os.O_RDONLY, False).flags for _ in range(2)]
    assert [bool(each & FOpen.KEEP_CACHE) for each in flags] == [False, True, False, True]


def test_a_carried_file_costs_no_descriptor_and_is_opened_again(tmp_path: Path) -> None:
    with mirror_of(tmp_path) as mirror:
        if not mirror.source.handles:
            pytest.skip(mirror.source.why_no_handles)
        node, fh = made(mirror)
        write(mirror, node, fh, b"content")
        mirror.carried(node, fh)
        assert descriptors(mirror) == 0
        mirror.fsync(caller(), node, fh, datasync=False)
        assert descriptors(mirror) == 1
        mirror.carried(node, fh)
        assert mirror.lseek(caller(), node, fh, 0, os.SEEK_HOLE) == 7
        mirror.release(caller(), node, fh, 0, 0, 0)
        assert mirror.statistics().open == 0
        assert descriptors(mirror) == 0


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_a_carried_file_that_loses_its_name_is_held(tmp_path: Path, how: str) -> None:
    with mirror_of(tmp_path) as mirror:
        node, fh = made(mirror)
        write(mirror, node, fh, b"content")
        mirror.carried(node, fh)
        if how == "unlink":
            mirror.unlink(caller(), ROOT, b"file")
        else:
            (tmp_path / "other").touch()
            mirror.rename(caller(), ROOT, b"other", ROOT, b"file", 0)
        assert mirror.getattr(caller(), node, None)[0][1:2] == (7,)
        assert mirror.getattr(caller(), node, fh)[0].nlink == 0
        mirror.setattr(caller(), node, NOTHING._replace(size=3))
        assert mirror.getattr(caller(), node, fh)[0].size == 3
        mirror.fallocate(caller(), node, fh, 0, 10, 0)
        again = mirror.open(caller(), node, os.O_RDONLY, False)
        assert mirror.getattr(caller(), node, again.fh)[0].size == 10
        for each in (fh, again.fh):
            mirror.release(caller(), node, each, 0, 0, 0)
        with pytest.raises(OSError) as caught:
            mirror.getattr(caller(), node, None)
        assert caught.value.errno == errno.ESTALE


def test_a_file_without_name_gets_one(mirror: MirrorServer, tmp_path: Path) -> None:
    try:
        entry, reply = mirror.tmpfile(caller(), ROOT, stat.S_IFREG | 0o600, os.O_RDWR, NEW)
    except OSError as error:
        pytest.skip(f"no O_TMPFILE here: {error}")
    node = NodeId(entry[0])
    mirror.carried(node, reply.fh)
    write(mirror, node, reply.fh, b"content")
    assert entry[6].nlink == 0
    assert mirror.link(caller(), node, ROOT, b"named")[0] == node
    assert (tmp_path / "named").read_bytes() == b"content"
    mirror.release(caller(), node, reply.fh, 0, 0, 0)
    assert mirror.getattr(caller(), node, None)[0].size == 7


def test_what_appeared_meanwhile_is_not_opened_unasked(
    mirror: MirrorServer, tmp_path: Path
) -> None:
    """The kernel has not checked who may open it; told ESTALE it looks again."""
    for absent in ("file", "fifo", "link"):
        assert mirror.lookup(caller(), ROOT, absent.encode())[0] == 0
    (tmp_path / "file").write_text("somebody's")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in (b"file", b"fifo", b"link"):
        for flags, code in ((CREATE, errno.ESTALE), (CREATE | os.O_EXCL, errno.EEXIST)):
            with pytest.raises(OSError) as caught:
                mirror.create(caller(), ROOT, name, 0o100644, flags, NEW)
            assert caught.value.errno == code
    assert mirror.statistics().open == 0


def test_appending_is_said_by_each_write(mirror: MirrorServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"four")
    node = find(mirror, "file")
    who = caller()
    append = os.O_WRONLY | os.O_APPEND
    fh = mirror.open(who, node, append, False).fh
    mirror.write(who, node, fh, 0, memoryview(b"56"), append, 0, None)
    assert (tmp_path / "file").read_bytes() == b"four56"
    # Mapped pages that are written back have their own place, whatever descriptor carries them.
    mirror.write(who, node, fh, 0, memoryview(b"F"), append, int(WriteFlag.CACHE), None)
    # fcntl(2) has taken O_APPEND off, or put it on.
    mirror.write(who, node, fh, 1, memoryview(b"O"), os.O_WRONLY, 0, None)
    assert (tmp_path / "file").read_bytes() == b"FOur56"
    fh = mirror.open(who, node, os.O_WRONLY, False).fh
    mirror.write(who, node, fh, 0, memoryview(b"7"), append, 0, None)
    assert (tmp_path / "file").read_bytes() == b"FOur567"


def test_the_sources_own_refusals(mirror: MirrorServer, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    node = find(mirror, "directory")
    with pytest.raises(OSError) as caught:
        mirror.open(caller(), node, os.O_RDONLY, False)
    assert caught.value.errno == errno.EISDIR
    for act, code in (
        (lambda: mirror.mkdir(caller(), ROOT, b"x" * 256, 0o755, NEW), errno.ENAMETOOLONG),
        (lambda: mirror.mkdir(caller(), ROOT, b"directory", 0o755, NEW), errno.EEXIST),
        (lambda: mirror.unlink(caller(), ROOT, b"directory"), errno.EISDIR),
        (lambda: mirror.rename(caller(), ROOT, b"absent", ROOT, b"x", 0), errno.ENOENT),
        (lambda: mirror.rename(caller(), ROOT, b"directory", node, b"x", 0), errno.EINVAL),
        (lambda: mirror.rename(caller(), ROOT, b"directory", ROOT, b"x", 8), errno.EINVAL),
        (lambda: mirror.readlink(caller(), node), errno.EINVAL),
        (lambda: mirror.mknod(caller(), ROOT, b"x", stat.S_IFDIR, 0, NEW), errno.EINVAL),
        (lambda: mirror.setattr(caller(), node, NOTHING._replace(size=1)), errno.EISDIR),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == code


def test_handles_that_are_not_open(mirror: MirrorServer) -> None:
    nobody = FileHandle(12345)
    for act in (
        lambda: mirror.read(caller(), ROOT, nobody, 0, 1, 0, None),
        lambda: mirror.write(caller(), ROOT, nobody, 0, memoryview(b""), 0, 0, None),
        lambda: mirror.fsync(caller(), ROOT, nobody, False),
        lambda: list(mirror.readdir(caller(), ROOT, nobody, 0)),
        lambda: mirror.ioctl(caller(), ROOT, nobody, FS_IOC_GETFLAGS, 0, memoryview(b""), 8, 0),
    ):
        with pytest.raises(FsError) as caught:
            act()
        assert caught.value.errno == errno.EBADF
    mirror.release(caller(), ROOT, nobody, 0, 0, 0)


def test_an_ioctl_that_is_not_passed_on(mirror: MirrorServer) -> None:
    node, fh = made(mirror)
    with pytest.raises(FsError) as caught:
        mirror.ioctl(caller(), node, fh, 0x5401, 0, memoryview(b""), 64, 0)
    assert caught.value.errno == errno.ENOTTY


def test_inode_flags_are_the_sources(mirror: MirrorServer) -> None:
    node, fh = made(mirror)
    try:
        reply = mirror.ioctl(caller(), node, fh, FS_IOC_GETFLAGS, 0, memoryview(b""), 4, 0)
    except OSError as error:
        pytest.skip(f"no flags here: {error}")
    assert len(reply.data) == 4
    flags = struct.pack("<I", struct.unpack("<I", reply.data)[0] | 0x80)  # FS_NOATIME_FL
    mirror.ioctl(caller(), node, fh, 0x4008_6602, 0, memoryview(flags), 0, 0)
    assert mirror.ioctl(caller(), node, fh, FS_IOC_GETFLAGS, 0, memoryview(b""), 4, 0).data == flags


# Directories


def test_a_listing_goes_on_where_it_stopped(mirror: MirrorServer, tmp_path: Path) -> None:
    for number in range(700):
        (tmp_path / f"name {number}").touch()
    fh = mirror.opendir(caller(), ROOT, 0).fh
    names: list[bytes] = []
    offset = 0
    while True:
        taken = list(islice(mirror.readdir(caller(), ROOT, fh, offset), 97))
        if not taken:
            break
        names += [entry.name for entry in taken]
        offset = taken[-1].offset
    assert len(names) == len(set(names)) == 702
    # From the start again, and from a place in between.
    assert len(list(mirror.readdir(caller(), ROOT, fh, 0))) == 702
    middle = list(islice(mirror.readdir(caller(), ROOT, fh, 0), 300))
    assert len(list(mirror.readdir(caller(), ROOT, fh, middle[-1].offset))) == 402


def test_a_listing_with_attributes_leaves_out_what_has_gone(
    mirror: MirrorServer, tmp_path: Path
) -> None:
    for number in range(50):
        (tmp_path / f"name {number}").touch()
    fh = mirror.opendir(caller(), ROOT, 0).fh
    listing = mirror.readdirplus(caller(), ROOT, fh, 0)
    first = list(islice(listing, 10))
    for number in range(50):
        (tmp_path / f"name {number}").unlink()
    rest = list(listing)
    assert rest == [] or all(entry is None for _, entry in rest)
    assert len(first) == 10


def test_an_entry_that_did_not_fit_is_not_known(mirror: MirrorServer, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"name {number}").touch()
    fh = mirror.opendir(caller(), ROOT, 0).fh
    told = 0
    for _, entry in mirror.readdirplus(caller(), ROOT, fh, 0):
        if told == 7:
            break
        told += entry is not None
    assert mirror.statistics().nodes == 7


def test_the_root_has_nothing_above_it_in_listings(mirror: MirrorServer, tmp_path: Path) -> None:
    fh = mirror.opendir(caller(), ROOT, 0).fh
    numbers = {entry.name: entry.ino for entry in mirror.readdir(caller(), ROOT, fh, 0)}
    assert numbers[b".."] == numbers[b"."] == tmp_path.stat().st_ino
    plus = {entry.name: entry.ino for entry, _ in mirror.readdirplus(caller(), ROOT, fh, 0)}
    assert plus[b".."] == tmp_path.stat().st_ino


# Options


def test_timeouts_are_the_caches(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words, seconds in (
        ({}, 1.0),
        ({"timeout": "0.5"}, 0.5),
        ({"cache": "none"}, 0.0),
        ({"cache": "immutable"}, ENDLESS),
    ):
        with mirror_of(tmp_path, words) as mirror:
            entry = mirror.lookup(caller(), ROOT, b"file")
            assert entry[2] + entry[4] / 1e9 == seconds
            assert mirror.getattr(caller(), ROOT, None)[1] == seconds
            absent = mirror.lookup(caller(), ROOT, b"absent")
            assert absent[0] == 0
            assert absent[2] == (seconds if seconds == ENDLESS else 0)


def test_open_flags_are_the_caches(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words, flags in (
        ({"cache": "none"}, FOpen.DIRECT_IO),
        ({"cache": "immutable"}, FOpen.KEEP_CACHE),
        ({"cache": "none", "locks": "local"}, FOpen.DIRECT_IO | FOpen.NOFLUSH),
    ):
        with mirror_of(tmp_path, words) as mirror:
            assert mirror.open(caller(), find(mirror, "file"), 0, False).flags == flags


def test_owners_that_are_shown(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with mirror_of(tmp_path, {"uid": "1234", "gid": "4321"}) as mirror:
        node = find(mirror, "file")
        attributes = mirror.getattr(caller(), node, None)[0]
        assert (attributes.uid, attributes.gid) == (1234, 4321)
        mirror.setattr(caller(), node, NOTHING._replace(uid=1234, gid=4321))
        with pytest.raises(FsError) as caught:
            mirror.setattr(caller(), node, NOTHING._replace(uid=0))
        assert caught.value.errno == errno.EPERM
    assert (tmp_path / "file").stat().st_uid == os.geteuid()


def test_locks_that_the_kernel_keeps(tmp_path: Path) -> None:
    with mirror_of(tmp_path, {"locks": "local"}) as mirror:
        assert mirror.refuse == InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS


def test_umask_and_default_acl(mirror: MirrorServer, tmp_path: Path) -> None:
    mirror.mkdir(caller(), ROOT, b"plain", 0o777, NEW._replace(umask=0o027))
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o750
    default = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, rights, 0xFFFF_FFFF) for tag, rights in ((1, 7), (4, 7), (32, 5))
    )
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", default)
    except OSError as error:
        pytest.skip(f"no ACLs here: {error}")
    mirror.mkdir(caller(), ROOT, b"inherits", 0o777, NEW._replace(umask=0o077))
    assert stat.S_IMODE((tmp_path / "inherits").stat().st_mode) == 0o775
    mirror.mknod(caller(), ROOT, b"file", stat.S_IFREG | 0o666, 0, NEW._replace(umask=0o077))
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o664


def test_names_are_listed(mirror: MirrorServer) -> None:
    mirror.symlink(caller(), ROOT, b"link", b"target", NEW)
    mirror.mkdir(caller(), ROOT, b"directory", 0o755, NEW)
    assert listed(mirror) == [b"directory", b"link"]
    assert mirror.readlink(caller(), find(mirror, "link")) == b"target"
