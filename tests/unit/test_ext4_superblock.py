# SPDX-License-Identifier: Apache-2.0
"""What an image must have to be opened, and what it is told when it does not."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from penstock.formats.crc import raw_crc32c
from penstock.formats.errors import BadChecksum, CorruptImage, UnsupportedFeature
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.reader import Ext4Reader
from penstock.formats.ext4.superblock import Superblock, parse_superblock
from penstock.formats.layout import offset_of
from tests.support.hostile import MemorySource
from tests.support.images import MIB, cached_image, copy_image, open_source, peek, poke, run

pytestmark = pytest.mark.requires("mke2fs")

SIZE = 64 * MIB


def _bytes(*options: str) -> bytearray:
    return bytearray(peek(cached_image(size=SIZE, options=options), 1024, 1024))


def _change(data: bytearray, field: str, code: str, value: int) -> bytes:
    """Set a field and make the checksum right again."""
    struct.pack_into("<" + code, data, offset_of(fmt.RawSuperblock, field), value)
    struct.pack_into("<I", data, 0x3FC, raw_crc32c(0xFFFFFFFF, bytes(data[:0x3FC])))
    return bytes(data)


def _dumpe2fs(image: Path) -> dict[str, str]:
    lines = run("dumpe2fs", "-h", image).splitlines()
    return {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}


@pytest.mark.parametrize(
    "options",
    [
        ("-b", "1024"),
        ("-b", "4096", "-L", "a label", "-U", "c0ffee00-1234-4321-8888-deadbeef0001"),
        ("-O", "metadata_csum_seed,orphan_file,inline_data"),
        ("-O", "^64bit,^metadata_csum,uninit_bg"),
        ("-O", "bigalloc", "-C", "32768", "-b", "4096"),
        ("-O", "meta_bg,^resize_inode", "-b", "1024"),
        ("-O", "mmp,quota,project,ea_inode,large_dir,verity,casefold,encrypt"),
    ],
)
def test_says_what_dumpe2fs_says(options: tuple[str, ...]) -> None:
    image = cached_image(size=SIZE, options=options)
    told = _dumpe2fs(image)
    sb = parse_superblock(peek(image, 1024, 1024), SIZE)
    assert sorted(sb.features) == sorted(told["Filesystem features"].split())
    assert sb.uuid_text == told["Filesystem UUID"]
    assert sb.label == told["Filesystem volume name"].replace("<none>", "")
    assert sb.block_size == int(told["Block size"])
    assert sb.blocks_count == int(told["Block count"])
    assert sb.inodes_count == int(told["Inode count"])
    assert sb.inode_size == int(told["Inode size"])
    assert sb.blocks_per_group == int(told["Blocks per group"])
    assert sb.inodes_per_group == int(told["Inodes per group"])
    assert sb.first_ino == int(told["First inode"])
    assert sb.first_data_block == int(told["First block"])
    assert sb.journal_inum == int(told["Journal inode"])
    assert sb.cluster_ratio * sb.block_size == int(told.get("Cluster size", told["Block size"]))
    if sb.metadata_csum and "Checksum seed" in told:
        assert sb.seed == int(told["Checksum seed"], 16)


@pytest.mark.parametrize(
    ("field", "code", "value", "says"),
    [
        ("magic", "H", 0x1234, "not an ext4 filesystem"),
        ("log_block_size", "I", 7, "log_block_size"),
        ("inode_size", "H", 200, "inode_size"),
        ("inode_size", "H", 64, "inode_size"),
        ("inode_size", "H", 0, "inode_size"),
        ("desc_size", "H", 0, "desc_size"),
        ("desc_size", "H", 96, "desc_size"),
        ("desc_size", "H", 2048, "desc_size"),
        ("blocks_per_group", "I", 0, "blocks_per_group"),
        ("blocks_per_group", "I", 0xFFFFFFFF, "blocks_per_group"),
        ("inodes_per_group", "I", 0, "inodes_per_group"),
        ("inodes_per_group", "I", 0x10000, "inodes_per_group"),
        ("inodes_count", "I", 77, "inodes_count"),
        ("first_data_block", "I", 1 << 30, "first_data_block"),
        ("blocks_count_lo", "I", 0, "blocks_count"),
        ("blocks_count_hi", "I", 1 << 20, "blocks_count"),
        ("first_ino", "I", 2, "first_ino"),
    ],
)
def test_refuses_numbers_that_contradict_each_other(
    field: str, code: str, value: int, says: str
) -> None:
    with pytest.raises(CorruptImage, match=says):
        parse_superblock(_change(_bytes(), field, code, value), SIZE)


@pytest.mark.parametrize(
    ("bits", "name"),
    [
        (fmt.Incompat.COMPRESSION, "compression"),
        (fmt.Incompat.DIRDATA, "dirdata"),
        (fmt.Incompat.JOURNAL_DEV, "external journal"),
        (1 << 27, "incompat 0x8000000"),
    ],
)
def test_refuses_features_by_name(bits: int, name: str) -> None:
    data = _bytes()
    old = struct.unpack_from("<I", data, 0x60)[0]
    with pytest.raises(UnsupportedFeature, match=name):
        parse_superblock(_change(data, "feature_incompat", "I", old | bits), SIZE)


def test_reads_despite_unknown_features_that_matter_to_writers_only() -> None:
    data = _bytes()
    old = struct.unpack_from("<I", data, 0x64)[0]
    sb = parse_superblock(_change(data, "feature_ro_compat", "I", old | 1 << 30), SIZE)
    assert "rocompat 0x40000000" in sb.features


def test_refuses_what_it_cannot_know() -> None:
    with pytest.raises(UnsupportedFeature, match="revision"):
        parse_superblock(_change(_bytes(), "rev_level", "I", 2), SIZE)
    with pytest.raises(UnsupportedFeature, match="checksum type"):
        parse_superblock(_change(_bytes(), "checksum_type", "B", 2), SIZE)


def test_checksum() -> None:
    data = _bytes()
    data[0x88] ^= 1
    with pytest.raises(BadChecksum, match="superblock"):
        parse_superblock(bytes(data), SIZE)
    assert isinstance(parse_superblock(bytes(data), SIZE, verify=False), Superblock)


def test_revision_0_has_fixed_sizes() -> None:
    image = cached_image(size=8 * MIB, options=("-r", "0"), fs_type="ext2")
    sb = parse_superblock(peek(image, 1024, 1024), 8 * MIB)
    assert (sb.inode_size, sb.first_ino) == (128, 11)
    with open_source(image) as source:
        reader = Ext4Reader(source)
        assert reader.lookup(reader.inode(2), b"lost+found") == 11


@pytest.mark.parametrize("size", [0, 1023, 2047, 2048, 4096, 1 << 20, SIZE - 1])
def test_truncated_images(size: int) -> None:
    data = peek(cached_image(size=SIZE), 0, size)
    with pytest.raises(CorruptImage, match="truncated" if size >= 2048 else "no superblock"):
        Ext4Reader(MemorySource(data))


def test_a_torn_superblock_is_read_again() -> None:
    data = bytearray(cached_image(size=SIZE).read_bytes())
    good = bytes(data[1024:2048])
    data[1024 + 0x30] ^= 1

    class Mounted(MemorySource):
        """Somebody else writes the superblock while it is read."""

        reads = 0

        def pread(self, length: int, offset: int) -> bytes:
            self.reads += 1
            if self.reads == 2:
                self.data[1024:2048] = good  # type: ignore[index]
            return super().pread(length, offset)

    source = Mounted(data)
    assert Ext4Reader(source).inode(2).is_dir
    assert source.reads > 2


def test_copies_of_the_superblock(tmp_path: Path) -> None:
    def groups(*options: str) -> list[int]:
        image = cached_image(size=SIZE, options=("-b", "1024", "-g", "512", *options))
        sb = parse_superblock(peek(image, 1024, 1024), SIZE)
        found = []
        for group in range(sb.groups):
            block = peek(image, sb.group_first_block(group) * 1024, 1024)
            assert sb.has_super(group) == (block[0x38:0x3A] == b"\x53\xef"), group
            found += [group] if sb.has_super(group) else []
        return found

    assert groups()[:9] == [0, 1, 3, 5, 7, 9, 25, 27, 49]
    assert len(groups("-O", "sparse_super2,^resize_inode")) == 3
    assert len(groups("-O", "^sparse_super,^resize_inode")) == 128


def test_warnings(tmp_path: Path) -> None:
    def warnings(*options: str, at: int = 0, value: bytes = b"") -> list[str]:
        image = copy_image(cached_image(size=SIZE, options=options), tmp_path / "img")
        poke(image, at or 1024, value)
        with open_source(image) as source:
            return Ext4Reader(source, verify=False).warnings

    assert warnings() == []
    assert warnings("-O", "mmp") == []
    assert "e2fsck" in warnings(at=1024 + 0x3A, value=b"\x03\x00")[0]
    sb = parse_superblock(bytes(_bytes("-O", "mmp")), SIZE)
    block = sb.raw.mmp_block * sb.block_size
    assert "elsewhere" in warnings("-O", "mmp", at=block + 4, value=b"\x01\0\0\0")[0]
    assert "checked" in warnings("-O", "mmp", at=block + 4, value=b"\x50\x4d\x4d\xe2")[0]
