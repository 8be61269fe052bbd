# SPDX-License-Identifier: Apache-2.0
"""What an image is, by its magic numbers alone: so that a refusal can say what it was given.

Nothing is verified and nothing is interpreted beyond a label and a UUID; whether an image is sound
is for its reader to say. The order of the table matters where formats may overlap: a partition
table comes after the filesystems that leave its place free, before those whose boot sector looks
like one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

from penstock.formats.source import BlockSource

__all__ = ["Detected", "detect"]


class Detected(NamedTuple):
    """What was found."""

    type: str | None
    """As blkid and mount name it, but ``ext4`` for ext2 and ext3 too; None if nothing is known."""
    label: str = ""
    uuid: str = ""


class _Magic(NamedTuple):
    type: str
    offset: int
    magic: bytes
    label: tuple[int, int] | None = None
    """Offset and length of the label in the image."""
    uuid: int | None = None
    """Offset of 16 bytes of UUID."""


_MAGICS: Final = (
    _Magic("luks", 0, b"LUKS\xba\xbe"),
    _Magic("qcow2", 0, b"QFI\xfb"),
    _Magic("vmdk", 0, b"KDMV"),
    _Magic("vhdx", 0, b"vhdxfile"),
    _Magic("vdi", 0x40, b"\x7f\x10\xda\xbe"),
    _Magic("gzip", 0, b"\x1f\x8b\x08"),
    _Magic("xz", 0, b"\xfd7zXZ\0"),
    _Magic("zstd", 0, b"\x28\xb5\x2f\xfd"),
    _Magic("bzip2", 0, b"BZh"),
    _Magic("zip", 0, b"PK\x03\x04"),
    _Magic("tar", 257, b"ustar"),
    _Magic("android-sparse", 0, b"\x3a\xff\x26\xed"),
    _Magic("xfs", 0, b"XFSB", (108, 12), 32),
    _Magic("squashfs", 0, b"hsqs"),
    _Magic("cramfs", 0, b"\x45\x3d\xcd\x28"),
    _Magic("romfs", 0, b"-rom1fs-"),
    _Magic("bcachefs", 4096 + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), (4168, 32)),
    _Magic("btrfs", 0x10040, b"_BHRfS_M", (0x1012B, 256), 0x10020),
    _Magic("erofs", 1024, b"\xe2\xe1\xf5\xe0", (1024 + 64, 16), 1024 + 48),
    _Magic("f2fs", 1024, b"\x10\x20\xf5\xf2", None, 1024 + 108),
    _Magic("ext4", 1024 + 0x38, b"\x53\xef", (1024 + 0x78, 16), 1024 + 0x68),
    _Magic("swap", 4096 - 10, b"SWAPSPACE2", (1024 + 28, 16), 1024 + 12),
    _Magic("lvm", 512, b"LABELONE"),
    _Magic("linux_raid", 4096, b"\xfc\x4e\x2b\xa9"),
    _Magic("iso9660", 0x8001, b"CD001", (0x8028, 32)),
    _Magic("udf", 0x8001, b"BEA01"),
    _Magic("ntfs", 3, b"NTFS    "),
    _Magic("exfat", 3, b"EXFAT   "),
    _Magic("bitlocker", 3, b"-FVE-FS-"),
    _Magic("gpt", 512, b"EFI PART"),
    _Magic("gpt", 4096, b"EFI PART"),
    _Magic("vfat", 82, b"FAT32   ", (71, 11)),
    _Magic("vfat", 54, b"FAT16   ", (43, 11)),
    _Magic("vfat", 54, b"FAT12   ", (43, 11)),
    _Magic("hfsplus", 1024, b"H+\0\x04"),
    _Magic("hfsplus", 1024, b"HX\0\x05"),
    _Magic("reiserfs", 0x10034, b"ReIsEr2Fs"),
    _Magic("reiserfs", 0x10034, b"ReIsEr3Fs"),
    _Magic("jfs", 0x8000, b"JFS1"),
    _Magic("nilfs2", 1024 + 6, b"\x34\x34"),
    _Magic("zfs", 0x20000, b"\x0c\xb1\xba\0\0\0\0\0"),
    _Magic("mbr", 510, b"\x55\xaa"),
)


def _reader(source: BlockSource) -> Callable[[int, int], bytes]:
    """Reads that come back short, or empty, where the image ends."""

    def read(offset: int, length: int) -> bytes:
        length = min(length, source.size - offset)
        return source.pread(length, offset) if length > 0 else b""

    return read


def detect(source: BlockSource) -> Detected:
    """What an image is.

    Raises:
        OSError: the source's.
    """
    read = _reader(source)
    for magic in _MAGICS:
        if read(magic.offset, len(magic.magic)) == magic.magic:
            return Detected(_refine(magic.type, read), _label(magic, read), _uuid(magic, read))
    return Detected(None)


def _refine(type: str, read: Callable[[int, int], bytes]) -> str:
    """Tell an external journal, which has a superblock of ext4, from a filesystem."""
    incompat = read(1024 + 0x60, 1)
    return "jbd" if type == "ext4" and incompat and incompat[0] & 0x8 else type


def _label(magic: _Magic, read: Callable[[int, int], bytes]) -> str:
    if magic.label is None:
        return ""
    return read(*magic.label).split(b"\0", 1)[0].decode("utf-8", "replace").strip()


def _uuid(magic: _Magic, read: Callable[[int, int], bytes]) -> str:
    raw = read(magic.uuid, 16) if magic.uuid is not None else b""
    return str(uuid.UUID(bytes=raw)) if len(raw) == 16 and any(raw) else ""
