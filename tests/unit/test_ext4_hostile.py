# SPDX-License-Identifier: Apache-2.0
"""Images that lie: damaged at random, and built to cost as much as they can."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.formats.errors import CorruptImage
from penstock.formats.ext4.hash import name_hash, unsigned_version
from penstock.formats.ext4.htree import BrokenIndex, find_indexed
from penstock.formats.ext4.mapping import find_block
from penstock.formats.ext4.reader import Ext4Reader
from tests.support.hostile import SECONDS, MemorySource, explore
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

LAYOUTS = {
    "plain": (1024, ["-O", "^metadata_csum,^has_journal"]),
    "checksums": (1024, ["-O", "ea_inode,inline_data", "-J", "size=1"]),
    "block-maps": (1024, ["-O", "^extents,^64bit,^has_journal,^metadata_csum"]),
    "4k-meta-bg": (4096, ["-O", "^has_journal,large_dir,meta_bg,^resize_inode"]),
    "bigalloc": (1024, ["-C", "4096", "-O", "bigalloc,^has_journal"]),
}


def indexed(image: Path) -> None:
    """Make hash trees of large directories."""
    e2fsck(image, "-D")


@pytest.fixture(scope="session")
def tree() -> Path:
    """A small tree, with a directory and a file of many pieces."""
    root = make_tree(session_dir() / "hostile-tree", files=60)
    (root / "sparse").unlink()
    (root / "names").mkdir()
    for index in range(500):
        (root / "names" / f"entry-{index}-{'z' * (index % 50)}").touch()
    with (root / "pieces").open("wb") as file:
        for index in range(300):
            file.seek(index * 2048)
            file.write(b"x")
    return root


def _damage(rng: random.Random, data: bytearray, block_size: int, used: list[int]) -> None:
    """Change some bytes of a few blocks: bits, extremes, block numbers, pieces of other blocks."""
    near = [rng.choice(used) for _ in range(rng.choice([1, 3, 20]))]
    for _ in range(rng.choice([1, 2, 5, 20, 100])):
        at = rng.choice(near) * block_size + rng.randrange(block_size)
        if rng.random() < 0.1:
            at = 1024 + rng.randrange(0x300)
        kind = rng.random()
        if kind < 0.4:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 0.6:
            data[at] = rng.choice([0, 1, 127, 128, 255])
        elif kind < 0.8:
            word = rng.choice([0, 0xFFFFFFFF, rng.randrange(1 << 32), rng.choice(used)])
            struct.pack_into("<I", data, at & ~3, word)
        else:
            length = rng.choice([4, 8, 12, 60, 256])
            at = min(at & ~3, len(data) - length)
            start = rng.choice(used) * block_size
            data[at : at + length] = data[start : start + length]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_damage(layout: str, tree: Path) -> None:
    block_size, options = LAYOUTS[layout]
    image = cached_image(
        indexed, size=10 * MIB, options=["-b", str(block_size), *options], tree=tree
    )
    good = image.read_bytes()
    used = [
        block
        for block in range(len(good) // block_size)
        if any(good[block * block_size : block * block_size + 64])
    ]
    rng = random.Random(layout)
    assert explore(MemorySource(good), verify=True) > 50
    readable = 0
    for _ in range(80):
        data = bytearray(good)
        _damage(rng, data, block_size, used)
        readable += explore(MemorySource(data), verify=rng.random() < 0.1)
    assert readable > 1000, "most of the images were refused outright"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncation(layout: str, tree: Path) -> None:
    block_size, options = LAYOUTS[layout]
    image = cached_image(
        indexed, size=10 * MIB, options=["-b", str(block_size), *options], tree=tree
    )
    good = image.read_bytes()
    for size in (0, 100, 1024, 2047, 2048, 5000, 1 << 20, len(good) - 1):
        with pytest.raises(CorruptImage):
            Ext4Reader(MemorySource(good[:size]))


def test_every_bit_of_checksummed_metadata_matters(tree: Path) -> None:
    # Inode 2 and its first directory block: no flip goes unnoticed.
    image = cached_image(options=["-b", "1024"], tree=tree)
    data = bytearray(image.read_bytes())
    reader = Ext4Reader(MemorySource(data))
    inode = reader.inode(2)
    table = reader._groups.inode_table(0) * 1024 + 256
    block = find_block(reader._volume, inode, 0) * 1024
    for start, size in ((table, 256), (block, 1024)):
        for at in range(start, start + size, 3):
            data[at] ^= 0x10
            fresh = Ext4Reader(MemorySource(data))
            with pytest.raises(CorruptImage):
                list(fresh.readdir(fresh.inode(2)))
            data[at] ^= 0x10


def _timed(call: Callable[[], object]) -> None:
    """Call; fail if it took too long."""
    begun = time.perf_counter()
    with contextlib.suppress(CorruptImage):
        call()
    assert time.perf_counter() - begun < SECONDS


def _file_image(tmp_path: Path, *options: str, size: int = 64 * MIB) -> Path:
    """An image with an empty directory ``d`` and a file ``f``, without checksums."""
    image = make_image(tmp_path / "img", size=size, options=["-O", "^metadata_csum", *options])
    debugfs(image, "mkdir d", f"write {__file__} f")
    return image


def _inode_address(image: Path, name: bytes) -> tuple[int, int, int]:
    """Byte address of an inode in the image, of its first block, and the block size."""
    with open_source(image) as source:
        reader = Ext4Reader(source)
        ino = reader.lookup(reader.inode(2), name)
        assert ino is not None
        inode = reader.inode(ino)
        sb = reader.superblock
        group, index = divmod(ino - 1, sb.inodes_per_group)
        table = reader._groups.inode_table(group) * sb.block_size
        first = find_block(reader._volume, inode, 0)
        return table + index * sb.inode_size, first * sb.block_size, sb.block_size


def _set_size(image: Path, inode: int, size: int) -> None:
    poke(image, inode + 4, struct.pack("<I", size & 0xFFFFFFFF))
    poke(image, inode + 0x6C, struct.pack("<I", size >> 32))


def _use_file(image: Path) -> None:
    """Walk a file's extents for a while, and read here and there."""
    with open_source(image) as source:
        reader = Ext4Reader(source)
        inode = reader.inode(reader.lookup(reader.inode(2), b"f") or 0)
        extents = reader.extents(inode)
        for _ in range(20):
            _timed(lambda: next(extents, None))
        for offset in range(0, inode.size, inode.size // 7 + 1):
            _timed(lambda offset=offset: reader.read(inode, offset, MIB))  # type: ignore[misc]


@pytest.mark.parametrize("block_size", [1024, 4096, 65536])
@pytest.mark.parametrize("content", ["itself", "zeros", "last"])
def test_indirect_blocks_that_lead_to_themselves(
    block_size: int, content: str, tmp_path: Path
) -> None:
    options = ["-b", str(block_size), "-O", "^extents,^64bit"]
    image = _file_image(tmp_path, *options)
    inode, first, _ = _inode_address(image, b"f")
    block = first // block_size
    words = block_size // 4
    data = {
        "itself": struct.pack("<I", block) * words,
        "zeros": bytes(block_size),
        "last": bytes(block_size - 4) + struct.pack("<I", block),
    }[content]
    poke(image, first, data)
    poke(image, inode + 0x28 + 4 * 11, struct.pack("<4I", 0, block, block, block))
    _set_size(image, inode, (block_size << 32) - 1)
    _use_file(image)


def test_extent_nodes_that_lead_to_themselves(tmp_path: Path) -> None:
    image = _file_image(tmp_path, "-b", "4096")
    inode, first, size = _inode_address(image, b"f")
    block = first // size
    root = struct.pack("<4HI", 0xF30A, 1, 4, 2, 0) + struct.pack("<IIHH", 0, block, 0, 0)
    poke(image, inode + 0x28, root.ljust(60, b"\0"))
    for depth in (0, 1, 2, 5):
        entries = b"".join(struct.pack("<IIHH", index * 100, block, 0, 0) for index in range(340))
        poke(image, first, struct.pack("<4HI", 0xF30A, 340, 340, depth, 0) + entries)
        _set_size(image, inode, 1 << 40)
        _use_file(image)


def test_a_directory_of_one_block_a_million_times(tmp_path: Path) -> None:
    image = _file_image(tmp_path, "-b", "1024", "-O", "^extents,^64bit")
    inode, first, size = _inode_address(image, b"d")
    _, table, _ = _inode_address(image, b"f")
    block, pointers = first // size, table // size
    poke(image, table, struct.pack("<I", pointers) * 256)
    poke(image, inode + 0x28 + 4 * 12, struct.pack("<3I", pointers, pointers, pointers))
    _set_size(image, inode, (1 << 32) - 1024)
    one = struct.pack("<IHBB", 0, 1024, 0, 0).ljust(1024, b"\0")
    many = struct.pack("<IHBB", 0, 12, 0, 0).ljust(12, b"\0") * 85 + bytes(4)
    name = struct.pack("<IHBB4s", 0, 1024, 4, 0, b"name").ljust(1024, b"\0")
    for content in (one, many, name):
        poke(image, first, content)
        poke(image, table, struct.pack("<I", block) * 256)
        # The single indirect block names the directory's block 256 times; the double one would
        # name blocks of empty entries, which as pointers are holes or lead back.
        poke(image, inode + 0x28 + 4 * 13, struct.pack("<2I", 0, 0))
        poke(image, inode + 0x28, struct.pack("<12I", *[block] * 12))
        with open_source(image) as source:
            reader = Ext4Reader(source)
            directory = reader.inode(reader.lookup(reader.inode(2), b"d") or 0)
            _timed(lambda: list(itertools.islice(reader.readdir(directory), 100)))  # noqa: B023
            _timed(lambda: reader.lookup(directory, b"name"))  # noqa: B023


@pytest.mark.parametrize("content", ["one", "many", "name"])
def test_a_directory_of_extents_without_an_entry(content: str, tmp_path: Path) -> None:
    # An extent tree whose every extent is the same 64 blocks of nothing.
    image = _file_image(tmp_path, "-b", "1024", size=64 * MIB)
    inode, first, size = _inode_address(image, b"d")
    _, node, _ = _inode_address(image, b"f")
    space = 40 * MIB // size
    data = {
        "one": struct.pack("<IHBB", 0, 1024, 0, 0).ljust(1024, b"\0"),
        "many": struct.pack("<IHBB", 0, 12, 0, 0).ljust(12, b"\0") * 84
        + struct.pack("<IHBB", 0, 16, 0, 0).ljust(16, b"\0"),
        "name": struct.pack("<IHBB4s", 0, 1024, 4, 0, b"name").ljust(1024, b"\0"),
    }[content]
    poke(image, space * size, data * 16384)
    leaves = b"".join(struct.pack("<IHHI", i * 16384, 16384, 0, space) for i in range(84))
    poke(image, node, struct.pack("<4HI", 0xF30A, 84, 84, 0, 0) + leaves)
    root = struct.pack("<4HI", 0xF30A, 1, 4, 1, 0) + struct.pack("<IIHH", 0, node // size, 0, 0)
    poke(image, inode + 0x28, root.ljust(60, b"\0"))
    _set_size(image, inode, 84 * 16384 * 1024)
    assert first
    with open_source(image) as source:
        reader = Ext4Reader(source)
        directory = reader.inode(reader.lookup(reader.inode(2), b"d") or 0)
        for call in (
            lambda: next(reader.readdir(directory), None),
            lambda: next(reader.readdir(directory, 1 << 29), None),
            lambda: reader.lookup(directory, b"name"),
            lambda: reader.lookup(directory, b"other"),
        ):
            begun = time.perf_counter()
            with pytest.raises(CorruptImage, match="too"):
                call()
            assert time.perf_counter() - begun < SECONDS


def test_an_index_whose_leaves_all_continue(tree: Path, tmp_path: Path) -> None:
    options = ["-b", "4096", "-O", "^metadata_csum,^has_journal"]
    image = copy_image(cached_image(indexed, options=options, tree=tree), tmp_path / "img")
    with open_source(image) as source:
        reader = Ext4Reader(source)
        directory = reader.inode(reader.lookup(reader.inode(2), b"names") or 0)
        root = find_block(reader._volume, directory, 0) * 4096
        raw = reader.superblock.raw
        version = raw.def_hash_version
        if raw.flags & 2:
            version = unsigned_version(version)
        target = name_hash(b"no such name", version, raw.hash_seed)
        assert target is not None
    limit = (4096 - 32) // 8
    poke(image, root + 0x20, struct.pack("<HHI", limit, limit, 1))
    poke(image, root + 0x28, struct.pack("<II", target | 1, 1) * (limit - 1))
    with open_source(image) as source:
        reader = Ext4Reader(source)

        def search() -> None:
            with pytest.raises(BrokenIndex, match="leaves"):
                find_indexed(reader._volume, directory, b"no such name")

        _timed(search)
        assert reader.lookup(directory, b"no such name") is None


def test_memory_stays_bounded(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for index in range(3000):
        (tree / f"{index:05d}{'n' * 50}").touch()
    image = make_image(tmp_path / "img", options=["-b", "4096", "-N", "20000"], tree=tree)
    with open_source(image) as source:
        tracemalloc.start()
        try:
            reader = Ext4Reader(source, cache_size=MIB // 2)
            root = reader.inode(2)
            count = 0
            for record in reader.readdir(root):
                count += reader.inode(record.ino).links
                reader.lookup(root, record.name)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert count > 3000
    assert peak < 2 * MIB


def test_absurd_counts_of_groups(tmp_path: Path) -> None:
    image = tmp_path / "img"
    make_image(image, options=["-b", "1024", "-O", "^metadata_csum,^resize_inode,^has_journal"])
    blocks = 1 << 31
    with image.open("r+b") as file:
        file.truncate(blocks * 1024)
    groups = (blocks - 1 + 7) // 8
    poke(image, 1024 + 4, struct.pack("<I", blocks))
    poke(image, 1024 + 0x20, struct.pack("<III", 8, 8, 8))
    poke(image, 1024, struct.pack("<I", groups * 8))
    with open_source(image) as source:
        opened: list[Ext4Reader] = []
        _timed(lambda: opened.append(Ext4Reader(source)))
        for reader in opened:
            _timed(reader.statfs)
            for ino in (2, 11, groups * 8 - 1, groups * 4):
                _timed(lambda ino=ino: reader.inode(ino))  # type: ignore[misc]  # noqa: B023
    assert peek(image, 1024 + 0x38, 2) == b"\x53\xef"
