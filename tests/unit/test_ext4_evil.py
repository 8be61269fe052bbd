# SPDX-License-Identifier: Apache-2.0
"""ext4 images made by hand to loop, to blow up, or to lie about sizes: ``tests/fuzz/evil.py``."""

from __future__ import annotations

import errno
import itertools
from typing import Any

import pytest

from penstock.abi.fuse import ReadIn
from penstock.formats.errors import CorruptImage, FormatError
from penstock.formats.ext4.mapping import ExtentKind
from penstock.formats.ext4.reader import Ext4Reader
from penstock.servers.ext4 import Ext4Options
from penstock.servers.ext4.server import open_ext4
from penstock.wire import decode_direntplus, decode_dirents, requests
from tests.fuzz.bases import Image
from tests.fuzz.edit import Editor
from tests.fuzz.evil import EVIL
from tests.fuzz.serve import Served, opened, serve
from tests.fuzz.use import peak_growth, use


@pytest.mark.parametrize("name", EVIL)
def test_reader_keeps_its_promises(name: str) -> None:
    image = EVIL[name]()
    with peak_growth():
        use(image, verify=True)
        use(image, verify=False)


@pytest.mark.parametrize("name", EVIL)
def test_server_keeps_its_promises(name: str) -> None:
    with peak_growth():
        serve(EVIL[name]())


def reader_of(name: str) -> Ext4Reader:
    return Ext4Reader(EVIL[name]())


@pytest.mark.parametrize(
    "name",
    [
        "extent_node_is_its_own_child",
        "extent_nodes_in_a_circle",
        "extent_nodes_share_their_children",
        "extent_header:depth 65535",
        "extent_header:entries 65535",
        "extent:beyond the device",
        "extent:across the end",
        "extent:overlapping",
        "extent:descending",
        "extent:of no blocks",
        "extent:block zero",
        "inode:file of 2^63-1",
        "inode:attribute block 2^47",
    ],
)
def test_such_a_file_is_corrupt(name: str) -> None:
    """Not merely survived: said to be what it is, while its neighbours can be used."""
    reader = reader_of(name)

    def touch() -> None:
        inode = reader.inode(24)
        list(itertools.islice(reader.extents(inode), 1000))
        reader.xattrs(inode)

    with pytest.raises(CorruptImage):
        touch()
    assert reader.read(reader.inode(12), 0, 16) == b"0123456789abcde\n"


@pytest.mark.parametrize(
    "name",
    [
        "directory_names:slash",
        "directory_names:only slash",
        "directory_names:NUL",
        "entry_length:csum 0/1",
        "entry_length:csum 3/1",
        "entry_length:csum 65535/255",
        "entry_length:csum 12/5",
        "entry_length:plain 8/0",
    ],
)
def test_such_a_directory_is_corrupt(name: str) -> None:
    reader = reader_of(name)
    with pytest.raises(CorruptImage):
        list(reader.readdir(reader.inode(25)))


def test_a_deep_tree_is_no_error_where_it_is_sound() -> None:
    reader = reader_of("extent_tree_of_depth_five_for_one_block")
    first = next(reader.extents(reader.inode(24)))
    assert (first.offset, first.length, first.kind) == (0, 4096, ExtentKind.MAPPED)


@pytest.mark.parametrize(
    "name",
    [name for name in EVIL if name.startswith("hash_tree") and not name.endswith("for one hash")],
)
def test_a_broken_index_hides_no_name(name: str) -> None:
    """The names of leaves that the index did not overwrite are found without it."""
    reader = reader_of(name)
    many = reader.inode(33)
    found = {record.name: record.ino for record in reader.readdir(many)}
    assert len(found) > 50
    for wanted in list(found)[::20]:
        assert reader.lookup(many, wanted) == found[wanted]


def test_searches_for_data_end_in_time_and_never_skip_any() -> None:
    """What comes after very many pieces counts as data, be it unwritten."""
    reader = reader_of("swarm_of_extents:unwritten file")
    inode = reader.inode(24)
    assert reader.seek(inode, 0, data=False) == 0
    found = reader.seek(inode, 0, data=True)
    assert found is not None
    assert 0 < found < inode.size
    mapped = reader_of("pyramid:file of one block")
    assert mapped.seek(mapped.inode(24), 0, data=False) == mapped.inode(24).size


@pytest.mark.parametrize("name", [name for name in EVIL if name.startswith("endless_journal")])
def test_a_journal_is_no_longer_than_the_image(name: str) -> None:
    with pytest.raises(CorruptImage, match="journal"):
        reader_of(name)


@pytest.mark.parametrize("name", [name for name in EVIL if name.startswith("root_inode")])
def test_no_root_no_filesystem(name: str) -> None:
    """What can be listed without error, or answers an error when it is listed, is a root."""
    source = Served(EVIL[name]())
    kept = {"encrypted", "empty", "huge", "without blocks", "all ones", "inline"}
    try:
        if name.split(":")[1] in kept:
            open_ext4(source, Ext4Options())
        else:
            with pytest.raises(FormatError, match=r"inode 2"):
                open_ext4(source, Ext4Options())
    finally:
        source.close()


def test_times_have_nanoseconds_of_one_second() -> None:
    inode = reader_of("inode:times").inode(24)
    assert (inode.atimensec, inode.ctimensec) == (999_999_999, 999_999_999)
    assert inode.atime == -1 + (3 << 32)
    assert inode.mtimensec == Ext4Reader(Editor("csum")).inode(24).mtimensec


def test_names_of_attributes() -> None:
    long = reader_of("attributes:long names")
    assert long.listxattr(long.inode(24)) == [b"user." + b"m" * 250]
    bad = reader_of("attributes:NUL in a name")
    with pytest.raises(CorruptImage, match="NUL"):
        bad.listxattr(bad.inode(24))


def test_vast_images_are_read_where_they_are_sound() -> None:
    """A few groups of very many are all that is touched."""
    reader = reader_of("vast:2^32 blocks")
    assert reader.read(reader.inode(12), 0, 16) == b"0123456789abcde\n"
    with pytest.raises((CorruptImage, OSError)):
        reader.inode(reader.superblock.inodes_count)


@pytest.mark.parametrize("kind", [requests.Readdir, requests.Readdirplus])
def test_names_before_a_bad_block_are_listed(kind: Any) -> None:
    """And only then comes the error, however much was asked for at once."""
    editor = Editor("csum")
    many = editor.inode_at(33) + 0x28
    block = editor.get(many + 20, "I") + 4
    editor.write(block * 4096 + 100, b"!")
    decode: Any = decode_dirents if kind is requests.Readdir else decode_direntplus
    with opened(editor) as kernel:
        assert kernel is not None
        found = []
        position = 0
        while True:
            reply = kernel.ask(kind(ReadIn(0, position, 1 << 20, 0, 0, 0, 0)), 33)
            if reply is None:
                break
            records = [getattr(record, "dirent", record) for record in decode(reply.data)]
            position = records[-1].offset
            found += [record.name for record in records]
        assert kernel.error == -errno.EBADMSG
        assert 30 < len(found) < 150
        assert len(found) == len(set(found))


def test_what_is_outside_the_image_is_the_mediums_fault() -> None:
    image = Image(b"", size=0)
    with pytest.raises(OSError, match="read of 1 bytes") as caught:
        image.pread(1, 0)
    assert caught.value.errno == errno.EIO
