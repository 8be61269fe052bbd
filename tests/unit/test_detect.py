# SPDX-License-Identifier: Apache-2.0
"""What an image is, by its magic."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.formats.detect import detect
from tests.support.disks import gpt_disk, mbr_disk
from tests.support.hostile import MemorySource
from tests.support.images import MIB, cached_image, make_image, open_source, run

UUID = "c0ffee00-1234-4321-8888-deadbeef0001"


@pytest.mark.requires("mke2fs")
@pytest.mark.parametrize("fs_type", ["ext2", "ext3", "ext4"])
def test_ext(fs_type: str) -> None:
    image = cached_image(size=16 * MIB, options=["-L", "a label", "-U", UUID], fs_type=fs_type)
    with open_source(image) as source:
        assert detect(source) == ("ext4", "a label", UUID)


@pytest.mark.requires("mke2fs")
def test_an_external_journal(tmp_path: Path) -> None:
    image = make_image(tmp_path / "journal", size=16 * MIB, options=["-O", "journal_dev"])
    with open_source(image) as source:
        assert detect(source).type == "jbd"


@pytest.mark.requires("mkfs-xfs")
def test_xfs(tmp_path: Path) -> None:
    image = tmp_path / "xfs"
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    run("mkfs.xfs", "-q", "-L", "xfslabel", "-m", f"uuid={UUID}", image)
    with open_source(image) as source:
        assert detect(source) == ("xfs", "xfslabel", UUID)


def test_swap(tmp_path: Path) -> None:
    header = bytearray(8192)
    header[4086:4096] = b"SWAPSPACE2"
    header[1024 + 12 : 1024 + 28] = bytes.fromhex(UUID.replace("-", ""))
    header[1024 + 28 : 1024 + 32] = b"swap"
    assert detect(MemorySource(header)) == ("swap", "swap", UUID)


@pytest.mark.parametrize(
    ("offset", "magic", "type"),
    [
        (0, b"LUKS\xba\xbe", "luks"),
        (0, b"QFI\xfb", "qcow2"),
        (0, b"hsqs", "squashfs"),
        (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (0x8001, b"CD001", "iso9660"),
        (3, b"NTFS    ", "ntfs"),
        (82, b"FAT32   ", "vfat"),
        (512, b"LABELONE", "lvm"),
        (0, b"\x1f\x8b\x08", "gzip"),
    ],
)
def test_magics(offset: int, magic: bytes, type: str) -> None:
    data = bytearray(offset + len(magic))  # the image ends with the magic
    data[offset:] = magic
    assert detect(MemorySource(data)).type == type
    assert detect(MemorySource(data[:-1])).type is None


def test_disks() -> None:
    assert detect(MemorySource(gpt_disk(MIB, 512, [(1, 40, 50, "")]))).type == "gpt"
    assert detect(MemorySource(gpt_disk(MIB, 4096, [(1, 40, 50, "")]))).type == "gpt"
    assert detect(MemorySource(mbr_disk(4 * MIB))).type == "mbr"


@pytest.mark.parametrize("size", [0, 1, 512, 70000])
def test_nothing(size: int) -> None:
    assert detect(MemorySource(bytes(size))) == (None, "", "")
