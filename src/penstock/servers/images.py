# SPDX-License-Identifier: Apache-2.0
"""From an open image to the server for it: what it is, where its filesystem lies, who serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.formats.detect import Detected, detect
from penstock.formats.errors import CorruptImage, FormatError
from penstock.formats.partition import read_partitions
from penstock.formats.source import FileSource, device_size
from penstock.servers.base import Server, UnknownImage

__all__ = ["open_image"]

_ALIASES: Final = {"ext2": "ext4", "ext3": "ext4", "ext4": "ext4"}
_TABLES: Final = frozenset({"gpt", "mbr"})
_NAMES: Final = {
    "xfs": "an XFS filesystem",
    "btrfs": "a Btrfs filesystem",
    "erofs": "an EROFS filesystem",
    "squashfs": "a SquashFS filesystem",
    "vfat": "a FAT filesystem",
    "ntfs": "an NTFS filesystem",
    "swap": "swap space",
    "luks": "a LUKS container; open it with cryptsetup first",
    "lvm": "an LVM physical volume; activate it and mount a logical volume",
    "iso9660": "an ISO 9660 image",
    "qcow2": "a QCOW2 disk; convert it with qemu-img first",
}
_SMALLEST: Final = 2048


def open_image(
    fd: int, type: str | None = None, options: Mapping[str, str] = {}, *, size: int | None = None
) -> Server:
    """See :func:`penstock.servers.open_server`."""
    if type == "mirror":
        raise ValueError("-t mirror: serves a directory, not an image")
    if type is not None and type not in _ALIASES:
        raise ValueError(f"-t {type}: not one of {', '.join(_ALIASES)}")
    from penstock.servers.ext4.options import parse_options  # noqa: PLC0415
    from penstock.servers.ext4.server import open_ext4  # noqa: PLC0415

    parsed = parse_options(options)
    total = device_size(fd) if size is None else size
    source = FileSource(fd, *_window(FileSource(fd, 0, total), parsed.partition))
    found = detect(source)
    if found.type not in _ALIASES:
        raise UnknownImage(_describe(found, source.size, parsed.partition))
    try:
        return open_ext4(source, parsed)
    except FormatError as error:
        if parsed.partition is None:
            raise
        raise error.__class__(f"partition {parsed.partition}: {error}") from error


def _window(image: FileSource, number: int | None) -> tuple[int, int]:
    """Offset and size in bytes of the partition; the whole image if None."""
    total = image.size
    if total == 0:
        raise UnknownImage("is empty")
    if number is None:
        return 0, total
    table = read_partitions(image)
    if table is None:
        raise UnknownImage(f"has no partition table, so no partition {number}")
    for partition in table.partitions:
        if partition.number == number:
            if partition.start >= total:
                raise CorruptImage(f"partition {number} begins beyond the end of the image")
            if table.kind == "mbr" and partition.type_name.lower().endswith("extended"):
                raise UnknownImage(
                    f"partition {number} is an extended partition, which holds others: logical "
                    "partitions have numbers from 5 ('penstock info' lists them)"
                )
            return partition.start, min(partition.size, total - partition.start)
    numbers = ", ".join(str(partition.number) for partition in table.partitions) or "none"
    raise UnknownImage(f"has no partition {number}; there are: {numbers}")


def _describe(found: Detected, size: int, partition: int | None) -> str:
    what = f"partition {partition}" if partition is not None else "the image"
    verb = f"{what} is" if partition is not None else "is"
    if found.type in _TABLES:
        return (
            f"{verb} a disk with partitions ({str(found.type).upper()}): choose one with "
            "-o partition=N ('penstock info' lists them)"
        )
    if found.type is not None:
        return f"{verb} {_NAMES.get(found.type, found.type)}, not ext2, ext3 or ext4"
    if size < _SMALLEST:
        return f"{verb} too small for any filesystem ({what} has {size} bytes)"
    return f"{verb} no filesystem that penstock knows ({what} has no ext4 superblock)"
