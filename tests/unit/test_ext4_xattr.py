# SPDX-License-Identifier: Apache-2.0
"""Extended attributes, in every place where they are kept; ACLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.formats.errors import BadChecksum, CorruptImage, FormatError
from penstock.formats.ext4.reader import Ext4Reader
from penstock.formats.ext4.xattr import acl_to_syscall
from tests.support.images import debugfs, make_image, open_source, peek, poke

# u::rw u:1000:rwx g::r m::rwx o::r
ACL_ON_DISK = bytes.fromhex("01000000 01000600 02000700e8030000 04000400 10000700 20000400")
ACL_OF_SYSCALL = bytes.fromhex(
    "0200000001000600ffffffff02000700e803000004000400ffffffff10000700ffffffff20000400ffffffff"
)


def test_acl() -> None:
    assert acl_to_syscall(ACL_ON_DISK) == ACL_OF_SYSCALL
    assert acl_to_syscall(b"\1\0\0\0") == b"\2\0\0\0"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\1\0",
        b"\2\0\0\0",
        ACL_ON_DISK[:-1],
        ACL_ON_DISK[:10],
        b"\1\0\0\0\x03\0\7\0",
        b"\1\0\0\0\x02\0\7\0\1\0",
    ],
)
def test_bad_acls(value: bytes) -> None:
    with pytest.raises(CorruptImage, match="ACL"):
        acl_to_syscall(value)


def _image(tmp_path: Path, *options: str, values: dict[str, bytes]) -> Path:
    """An image with a file ``f`` that has these attributes."""
    image = make_image(tmp_path / "img", options=["-b", "1024", *options])
    commands = [f"write {__file__} f"]
    for number, (name, value) in enumerate(values.items()):
        file = tmp_path / f"value{number}"
        file.write_bytes(value)
        commands.append(f"ea_set -f {file} f {name}")
    debugfs(image, *commands)
    return image


VALUES = {
    "user.small": b"1",
    "user.empty": b"",
    "trusted.t": b"two",
    "security.s": b"three\0",
    "user.block": bytes(range(200)) * 3,
}


@pytest.mark.requires("mke2fs")
@pytest.mark.parametrize("inode_size", ["128", "256", "512"])
@pytest.mark.parametrize("features", ["metadata_csum", "^metadata_csum", "ea_inode"])
def test_in_inode_and_block(inode_size: str, features: str, tmp_path: Path) -> None:
    image = _image(tmp_path, "-I", inode_size, "-O", features, values=VALUES)
    expected = {name.encode(): value for name, value in VALUES.items()}
    with open_source(image) as source:
        reader = Ext4Reader(source)
        inode = reader.inode(reader.lookup(reader.inode(2), b"f") or 0)
        assert inode.file_acl
        assert reader.xattrs(inode) == expected
        assert sorted(reader.listxattr(inode)) == sorted(expected)
        for name, value in expected.items():
            assert reader.getxattr(inode, name) == value
        assert reader.getxattr(inode, b"user.smal") is None
        assert reader.getxattr(inode, b"") is None


@pytest.mark.requires("mke2fs")
def test_values_in_inodes_of_their_own(tmp_path: Path) -> None:
    values = {"user.large": bytes(range(256)) * 4, "user.small": b"x"}  # debugfs: one block
    image = _image(tmp_path, "-O", "ea_inode", values=values)
    with open_source(image) as source:
        reader = Ext4Reader(source)
        inode = reader.inode(reader.lookup(reader.inode(2), b"f") or 0)
        assert reader.xattrs(inode) == {name.encode(): value for name, value in values.items()}
        holder = inode.ino + 1
        with pytest.raises(CorruptImage, match="attribute"):
            reader.inode(holder)
        content = reader._inodes.inode(holder)
        address = next(reader.extents(content)).address
    poke(image, address + 5, bytes([peek(image, address + 5, 1)[0] ^ 1]))
    with open_source(image) as source:
        reader = Ext4Reader(source)
        inode = reader.inode(inode.ino)
        with pytest.raises(BadChecksum, match="attribute value"):
            reader.xattrs(inode)
        assert reader.getxattr(inode, b"user.small") == b"x"
        assert reader.listxattr(inode) != []


@pytest.mark.requires("mke2fs")
def test_a_block_with_a_wrong_checksum(tmp_path: Path) -> None:
    image = _image(tmp_path, values=VALUES)
    with open_source(image) as source:
        reader = Ext4Reader(source)
        inode = reader.inode(reader.lookup(reader.inode(2), b"f") or 0)
    address = inode.file_acl * 1024
    for offset in (0, 8, 0x10, 40, 1023):
        good = peek(image, address + offset, 1)
        poke(image, address + offset, bytes([good[0] ^ 1]))
        with open_source(image) as source, pytest.raises(CorruptImage, match="attribute block"):
            Ext4Reader(source).xattrs(inode)
        poke(image, address + offset, good)


@pytest.mark.requires("mke2fs")
def test_every_damage_to_a_list_is_an_error_or_harmless(tmp_path: Path) -> None:
    image = _image(tmp_path, "-O", "^metadata_csum", values=VALUES)
    with open_source(image) as source:
        reader = Ext4Reader(source)
        inode = reader.inode(reader.lookup(reader.inode(2), b"f") or 0)
    address = inode.file_acl * 1024
    good = peek(image, address, 1024)
    errors = 0
    for offset in range(200):
        for bad in (0x00, 0x7F, 0xFF):
            poke(image, address, good[:offset] + bytes([bad]) + good[offset + 1 :])
            with open_source(image) as source:
                reader = Ext4Reader(source)
                try:
                    assert sum(map(len, reader.xattrs(inode).values())) < 4096
                except FormatError:
                    errors += 1
    assert errors > 20
