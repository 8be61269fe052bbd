# SPDX-License-Identifier: Apache-2.0
"""Images made by mke2fs from a tree, read back. (tests/root compares with the kernel's view.)"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.formats.errors import BadChecksum, CorruptImage, UnsupportedFeature
from penstock.formats.ext4.directory import find_linear, known_names
from penstock.formats.ext4.htree import find_indexed
from penstock.formats.ext4.inode import DeletedInode, Inode
from penstock.formats.ext4.mapping import Extent, ExtentKind, find_block
from penstock.formats.ext4.reader import EncryptedContent, Ext4Reader
from tests.support.ext4tree import mounted_tree, reader_tree
from tests.support.images import (
    MIB,
    cached_image,
    copy_image,
    debugfs,
    e2fsck,
    make_image,
    make_tree,
    open_source,
    peek,
    poke,
    session_dir,
)

pytestmark = pytest.mark.requires("mke2fs")

# Block sizes that the kernel mounts only on machines with pages as large.
LARGE_BLOCKS = {
    "8k": ["-b", "8192"],
    "16k": ["-b", "16384", "-O", "inline_data", "-I", "1024"],
    "32k": ["-b", "32768", "-O", "^extents,^64bit"],
    "64k": ["-b", "65536"],
    "64k-no-csum": ["-b", "65536", "-O", "^metadata_csum"],
}


@pytest.fixture(scope="session")
def tree() -> Path:
    """One of each kind of file."""
    return make_tree(session_dir() / "unit-tree", files=600)


@pytest.fixture
def reader(tree: Path) -> Iterator[Ext4Reader]:
    """A plain image of the tree, with an indexed directory."""
    with open_source(
        cached_image(e2fsck_with_indexes, options=["-b", "1024"], tree=tree)
    ) as source:
        yield Ext4Reader(source)


def e2fsck_with_indexes(image: Path) -> None:
    """Make hash trees of large directories."""
    e2fsck(image, "-D")


def find(reader: Ext4Reader, path: str) -> Inode:
    """The inode at a path."""
    inode = reader.inode(2)
    for name in path.split("/"):
        ino = reader.lookup(inode, os.fsencode(name))
        assert ino is not None, path
        inode = reader.inode(ino)
    return inode


@pytest.mark.parametrize("layout", LARGE_BLOCKS)
@pytest.mark.parametrize("indexed", [False, True])
def test_tree_in_large_blocks(layout: str, indexed: bool, tree: Path) -> None:
    build = e2fsck_with_indexes if indexed else None
    image = cached_image(build, size=128 * MIB, options=LARGE_BLOCKS[layout], tree=tree)
    with open_source(image) as source:
        seen = reader_tree(Ext4Reader(source))
    expected = mounted_tree(tree)
    assert seen.keys() == expected.keys() | {b"/lost+found"}
    if "inline_data" in str(LARGE_BLOCKS[layout]):
        del expected[b"/sparse"]  # mke2fs 1.47.0 forgets the hole at its end then
    for path, facts in expected.items():
        ours = seen[path]
        assert (ours.mode, ours.uid, ours.gid, ours.rdev) == (
            facts.mode, facts.uid, facts.gid, facts.rdev,
        ), path  # fmt: skip
        assert ours.content == facts.content, path
        assert ours.xattrs == facts.xattrs, path
        if not stat.S_ISDIR(ours.mode):
            assert (ours.size, ours.links) == (facts.size, facts.links), path


def test_every_cookie_goes_on_where_it_says(reader: Ext4Reader) -> None:
    for path in ("many", "level0"):
        directory = find(reader, path)
        records = list(reader.readdir(directory))
        assert [record.name for record in records[:2]] == [b".", b".."]
        assert len({record.next_cookie for record in records}) == len(records)
        for number, record in enumerate(records, 1):
            following = reader.readdir(directory, record.next_cookie)
            assert list(itertools.islice(following, 3)) == records[number : number + 3]
        assert list(reader.readdir(directory, 1 << 62)) == []


def test_a_cookie_between_entries_goes_on_with_the_next(reader: Ext4Reader) -> None:
    directory = find(reader, "many")
    records = list(reader.readdir(directory))
    for cookie in range(1, 2100, 7):
        expected = [record for record in records if record.next_cookie > cookie]
        assert next(reader.readdir(directory, cookie)) == expected[0]


def test_index_and_blocks_agree(reader: Ext4Reader) -> None:
    directory = find(reader, "many")
    assert directory.flags & 0x1000
    volume = reader._volume
    names = [record.name for record in reader.readdir(directory)]
    for name in [*names, b"no such name", b"file-00001", b"x" * 255]:
        found = find_indexed(volume, directory, name)
        assert found == find_linear(volume, directory, name)
        assert found == reader.lookup(directory, name)


def test_a_directory_that_is_searched_often_is_decoded(reader: Ext4Reader) -> None:
    directory = find(reader, "many")
    records = list(reader.readdir(directory))
    assert directory.size > 8 * reader.block_size
    for record in records[:100]:
        assert reader.lookup(directory, record.name) == record.ino
    names = known_names(reader._volume, directory, 1000)
    assert names == {record.name: record.ino for record in records}
    for name in (b".", b"..", b"no such name"):
        assert reader.lookup(directory, name) == names.get(name)


def test_a_bad_block_does_not_hide_the_others(tree: Path, tmp_path: Path) -> None:
    image = copy_image(
        cached_image(e2fsck_with_indexes, options=["-b", "1024"], tree=tree), tmp_path / "img"
    )
    with open_source(image) as source:
        reader = Ext4Reader(source)
        directory = find(reader, "many")
        records = list(reader.readdir(directory))
        bad = records[300].next_cookie // 1024
        address = find_block(reader._volume, directory, bad) * 1024
    poke(image, address + 9, b"\xee")
    with open_source(image) as source:
        reader = Ext4Reader(source)
        for _ in range(2):
            for record in records:
                block = (record.next_cookie - 1) // 1024
                if block == bad:
                    with pytest.raises(BadChecksum):
                        reader.lookup(directory, record.name)
                else:
                    assert reader.lookup(directory, record.name) == record.ino


def test_a_broken_index_is_done_without(tree: Path, tmp_path: Path) -> None:
    options = ["-b", "1024", "-O", "^metadata_csum"]
    image = copy_image(
        cached_image(e2fsck_with_indexes, options=options, tree=tree), tmp_path / "img"
    )
    with open_source(image) as source:
        reader = Ext4Reader(source)
        directory = find(reader, "many")
        root = find_block(reader._volume, directory, 0) * 1024
    for offset, bad in (
        (0x1C, b"\x77"),  # hash version
        (0x1D, b"\x09"),  # length of the information
        (0x1E, b"\x05"),  # levels
        (0x20, b"\xff\xff"),  # limit
        (0x22, b"\x00\x00"),  # count
        (0x24, b"\xff\xff\xff\x0f"),  # first leaf
        (0x28, b"\xff\xff\xff\xff"),  # hash of the second
    ):
        good = peek(image, root + offset, len(bad))
        poke(image, root + offset, bad)
        with open_source(image) as source:
            reader = Ext4Reader(source)
            directory = find(reader, "many")
            for record in itertools.islice(reader.readdir(directory), 0, None, 40):
                assert reader.lookup(directory, record.name) == record.ino
            assert reader.lookup(directory, b"no such name") is None
        poke(image, root + offset, good)


@pytest.mark.parametrize("block", [0, 1])
def test_bad_checksums_in_directories(block: int, tree: Path, tmp_path: Path) -> None:
    image = copy_image(
        cached_image(e2fsck_with_indexes, options=["-b", "1024"], tree=tree), tmp_path / "img"
    )
    with open_source(image) as source:
        reader = Ext4Reader(source)
        address = find_block(reader._volume, find(reader, "many"), block) * 1024 + 0x30
    poke(image, address, bytes([peek(image, address, 1)[0] ^ 1]))
    with open_source(image) as source:
        reader = Ext4Reader(source)
        with pytest.raises(BadChecksum):
            list(reader.readdir(find(reader, "many")))
        careless = Ext4Reader(source, verify=False)
        assert len(list(careless.readdir(find(careless, "many")))) > 500


def test_what_is_no_directory_is_none(reader: Ext4Reader) -> None:
    file = find(reader, "size100")
    with pytest.raises(NotADirectoryError):
        reader.lookup(file, b"x")
    with pytest.raises(NotADirectoryError):
        reader.readdir(file)
    with pytest.raises(OSError, match="not a symlink"):
        reader.readlink(file)


def test_reads_are_cut_at_the_end(reader: Ext4Reader, tree: Path) -> None:
    for name in ("size0", "size1025", "size65536", "size300001", "sparse"):
        inode = find(reader, name)
        whole = (tree / name).read_bytes()
        for offset in {0, 1, 1023, 1024, 65535, len(whole) - 1, len(whole), len(whole) + 5}:
            for length in (0, 1, 100, 5000, 200000):
                expected = whole[max(offset, 0) : max(offset, 0) + length]
                assert reader.read(inode, max(offset, 0), length) == expected


def test_extents_of_any_range(reader: Ext4Reader) -> None:
    inode = find(reader, "sparse")
    whole = list(reader.extents(inode))
    assert sum(extent.length for extent in whole) == inode.size
    assert {extent.kind for extent in whole} == {ExtentKind.HOLE, ExtentKind.MAPPED}
    for start, end in ((0, 1), (65536, 65537), (1000, 70000), (5 * MIB - 3, 5 * MIB + 3)):
        cut = list(reader.extents(inode, start, end))
        assert cut == _cut(whole, start, end)
    beyond = list(reader.extents(inode, inode.size - 10, inode.size + 100_000))
    assert sum(extent.length for extent in beyond) == 100_010
    assert list(reader.extents(inode, 5, 5)) == []


def _cut(extents: list[Extent], start: int, end: int) -> list[Extent]:
    """The part of a list of extents that is in a range."""
    found = []
    for extent in extents:
        low, high = max(extent.offset, start), min(extent.offset + extent.length, end)
        if low < high:
            address = extent.address + low - extent.offset if extent.address else 0
            found.append(Extent(low, high - low, extent.kind, address))
    return found


def test_blocks_beyond_the_end_are_told_when_asked_for(tmp_path: Path) -> None:
    image = make_image(tmp_path / "img", options=["-b", "1024"])
    file = tmp_path / "file"
    file.write_bytes(b"x" * 3000)
    debugfs(image, f"write {file} file", "fallocate file 0 9")
    with open_source(image) as source:
        reader = Ext4Reader(source)
        inode = find(reader, "file")
        assert inode.size == 3000
        assert reader.read(inode, 0, 9999) == b"x" * 3000
        kinds = [(extent.length, extent.kind) for extent in reader.extents(inode, 0, 20480)]
        assert kinds == [
            (3072, ExtentKind.MAPPED),
            (7168, ExtentKind.UNWRITTEN),
            (10240, ExtentKind.HOLE),
        ]


@pytest.mark.parametrize("features", ["extent", "^extents,^64bit"])
def test_trees_of_every_depth(features: str, tmp_path: Path) -> None:
    # Every second block of a large file: 1 KiB nodes hold 84 extents or 256 pointers.
    image = make_image(tmp_path / "img", size=128 * MIB, options=["-b", "1024", "-O", features])
    file = tmp_path / "file"
    with file.open("wb") as out:
        for index in range(9000):
            out.seek(index * 2048)
            out.write(b"%07d\n" % index)
        for index in (70_000, 80_000):
            out.seek(index * 1024)
            out.write(b"far")
    debugfs(image, f"write {file} file")
    with open_source(image) as source:
        reader = Ext4Reader(source)
        inode = find(reader, "file")
        if features == "extent":
            assert inode.block[6] >= 2, "depth of the extent tree"
        else:
            assert any(inode.block[56:60]), "triple indirect block"
        for index in (0, 1, 83, 84, 85, 4000, 8999):
            assert reader.read(inode, index * 2048, 2048) == (b"%07d\n" % index).ljust(2048, b"\0")
        assert reader.read(inode, 80_000 * 1024, 10) == b"far"
        assert reader.read(inode, 60_000 * 1024, 10) == bytes(10)
        whole = file.read_bytes()
        step = 1 << 20
        for offset in range(0, inode.size, step):
            assert reader.read(inode, offset, step) == whole[offset : offset + step]


def test_inline_files_and_directories(tree: Path, tmp_path: Path) -> None:
    image = cached_image(options=["-b", "4096", "-O", "inline_data", "-I", "512"], tree=tree)
    with open_source(image) as source:
        reader = Ext4Reader(source)
        small = find(reader, "size150")
        assert [extent.kind for extent in reader.extents(small)] == [ExtentKind.INLINE]
        assert reader.read(small, 100, 1000) == (tree / "size150").read_bytes()[100:]
        kinds = [extent.kind for extent in reader.extents(small, 100, 5000)]
        assert kinds == [ExtentKind.INLINE, ExtentKind.HOLE]
        assert reader.xattrs(small) == {}, "system.data is not for users"
        directory = find(reader, "level0")
        assert directory.flags & 0x10000000
        records = list(reader.readdir(directory))
        assert [record.name for record in records] == [b".", b"..", b"level1"]
        assert records[0].ino == directory.ino
        assert records[1].ino == 2
        for number, record in enumerate(records, 1):
            assert list(reader.readdir(directory, record.next_cookie)) == records[number:]
            assert reader.lookup(directory, record.name) == record.ino


def test_inodes_that_are_not_for_users(reader: Ext4Reader, tmp_path: Path) -> None:
    for ino in (0, 1, 7, 8, 10, -1, 1 << 31):
        with pytest.raises(CorruptImage):
            reader.inode(ino)
    free = reader.superblock.inodes_count
    with pytest.raises(DeletedInode) as raised:
        reader.inode(free)
    assert raised.value.errno == errno.ESTALE


@pytest.mark.parametrize("inode_size", [128, 256])
def test_an_inode_with_a_wrong_checksum(inode_size: int, tmp_path: Path) -> None:
    image = make_image(tmp_path / "img", options=["-I", str(inode_size)])
    debugfs(image, "set_inode_field <2> mode 040700")
    with open_source(image) as source:
        reader = Ext4Reader(source)
        assert reader.inode(2).mode == 0o40700
        table = reader._groups.inode_table(0) * reader.block_size
    poke(image, table + inode_size, b"\xc1")  # the low byte of the mode
    with open_source(image) as source:
        with pytest.raises(BadChecksum, match="inode 2"):
            Ext4Reader(source).inode(2)
        assert Ext4Reader(source, verify=False).inode(2).mode == 0o40701


def test_a_bad_descriptor_is_an_error_of_its_group_alone(tmp_path: Path) -> None:
    for features in ("metadata_csum", "^metadata_csum,uninit_bg"):
        options = ["-b", "1024", "-O", f"{features},^flex_bg"]
        image = make_image(tmp_path / "img", options=options)
        with open_source(image) as source:
            size = Ext4Reader(source).superblock.desc_size
        poke(image, 2048 + size + 0x0C, b"\x11")
        with open_source(image) as source:
            reader = Ext4Reader(source)
            assert reader.inode(2).is_dir
            with pytest.raises(BadChecksum, match="group 1"):
                reader.inode(reader.superblock.inodes_per_group + 1)
            assert reader.statfs().free == 0


def test_encrypted_trees(tree: Path, tmp_path: Path) -> None:
    image = copy_image(cached_image(options=["-O", "encrypt"], tree=tree), tmp_path / "img")
    debugfs(image, *(f"set_inode_field {name} flags 0x80800" for name in ("size4096", "many")))
    debugfs(image, "set_inode_field symlink60 flags 0x80800")
    with open_source(image) as source:
        reader = Ext4Reader(source)
        file, directory, link = (find(reader, name) for name in ("size4096", "many", "symlink60"))
        assert file.encrypted
        assert file.size == 4096
        for call in (
            lambda: reader.read(file, 0, 10),
            lambda: reader.extents(file),
            lambda: reader.readdir(directory),
            lambda: reader.lookup(directory, b"x"),
            lambda: reader.readlink(link),
        ):
            with pytest.raises(EncryptedContent) as raised:
                call()
            assert raised.value.errno == errno.ENOKEY
        assert reader.read(find(reader, "size4097"), 0, 9999) == (tree / "size4097").read_bytes()


def test_directories_that_ignore_case(tree: Path, tmp_path: Path) -> None:
    options = ["-b", "1024", "-O", "casefold", "-E", "encoding=utf8"]
    plain = cached_image(e2fsck_with_indexes, options=options, tree=tree)
    image = copy_image(plain, tmp_path / "img")
    debugfs(image, "set_inode_field many flags 0x40081000")
    with open_source(image) as source:
        reader = Ext4Reader(source)
        directory = find(reader, "many")
        record = list(reader.readdir(directory))[300]
        assert reader.lookup(directory, record.name) == record.ino
        assert reader.lookup(directory, record.name.upper()) is None


def test_symlinks(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "img", options=["-b", "1024"])
    debugfs(image, "symlink fast short", f"symlink slow {'s' * 200}", "symlink empty x")
    debugfs(image, "set_inode_field empty size 0", "set_inode_field slow size 2000")
    with open_source(image) as source:
        reader = Ext4Reader(source)
        assert reader.readlink(find(reader, "fast")) == b"short"
        for name in ("empty", "slow"):
            with pytest.raises(CorruptImage, match="symlink"):
                reader.readlink(find(reader, name))


def test_sizes_beyond_what_the_format_can_map(tmp_path: Path) -> None:
    image = make_image(tmp_path / "img", options=["-b", "1024"])
    debugfs(image, f"write {__file__} file", "set_inode_field file size 0x7fffffffffffffff")
    with open_source(image) as source:
        reader = Ext4Reader(source)
        with pytest.raises(CorruptImage, match="size"):
            find(reader, "file")


def test_the_cache_is_bounded(tree: Path) -> None:
    image = cached_image(e2fsck_with_indexes, options=["-b", "1024"], tree=tree)
    with open_source(image) as source:
        small = Ext4Reader(source, cache_size=20_000)
        large = Ext4Reader(source)
        assert reader_tree(small) == reader_tree(large)
        for cache in (small._volume._cache, small._inodes._runs, small._volume.parsed):
            assert cache._weight <= 70_000


def test_blocks(reader: Ext4Reader) -> None:
    assert reader.read_block(1)[0x38:0x3A] == struct.pack("<H", 0xEF53)
    for block in (-1, reader.superblock.blocks_count, 1 << 60):
        with pytest.raises(CorruptImage):
            reader.read_block(block)


def test_journals_out_of_reach(tmp_path: Path) -> None:
    image = make_image(tmp_path / "img")
    # needs_recovery, and the journal on another device.
    debugfs(
        image,
        "feature needs_recovery",
        "set_super_value journal_inum 0",
        "set_super_value journal_dev 1",
    )
    with open_source(image) as source:
        with pytest.raises(UnsupportedFeature, match="another device"):
            Ext4Reader(source)
        unreplayed = Ext4Reader(source, replay=False)
        assert unreplayed.inode(2).is_dir
        assert "not been replayed" in unreplayed.warnings[0]


def test_the_journal_is_found_by_the_backup_of_its_inode(tmp_path: Path) -> None:
    image = make_image(tmp_path / "img")
    debugfs(image, "feature needs_recovery")
    with open_source(image) as source:
        healthy = Ext4Reader(source)
        table = healthy._groups.inode_table(0) * healthy.block_size
    assert healthy.journal is not None
    poke(image, table + 7 * 256, b"\xff" * 128)
    with open_source(image) as source:
        assert Ext4Reader(source).journal is not None
    debugfs(image, "set_super_value jnl_backup_type 0")
    with open_source(image) as source, pytest.raises(BadChecksum):
        Ext4Reader(source)
