# SPDX-License-Identifier: Apache-2.0
"""From mappings to file ranges: cut to the read, checked, neighbours joined."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from penstock.fs import FsError, Mapped, MappingType
from penstock.session import ZEROS, FileRange

__all__ = ["file_ranges"]

_HOLE = int(MappingType.HOLE)
_DELALLOC = int(MappingType.DELALLOC)
_MAPPED = int(MappingType.MAPPED)
_UNWRITTEN = int(MappingType.UNWRITTEN)


def file_ranges(data: Mapped, offset: int, devices: Sequence[int]) -> tuple[FileRange, ...]:
    """The ranges whose bytes make up ``data.length`` bytes of the file from ``offset``.

    Args:
        data: sorted mappings that cover the range.
        offset: byte offset of the read in the file.
        devices: descriptors by device number, from 1.

    Raises:
        FsError: EIO if the mappings have a gap, end early, or name an unknown device.
    """
    if len(data.mappings) == 1:
        start, length, kind, addr, device, _flags = data.mappings[0]
        skip = offset - start
        if kind == _MAPPED and 0 <= skip <= length - data.length and 0 < device <= len(devices):
            return (FileRange(devices[device - 1], addr + skip, data.length),)
    ranges: list[FileRange] = []
    position = offset
    end = offset + data.length
    for start, length, kind, addr, device, _flags in data.mappings:
        if position >= end:
            break
        skip = position - start
        if skip >= length:
            continue
        if skip < 0:
            raise FsError(errno.EIO, f"no mapping covers byte {position} of the file")
        count = min(length - skip, end - position)
        if kind == _MAPPED and 0 < device <= len(devices):
            _append(ranges, devices[device - 1], addr + skip, count)
        elif kind in (_HOLE, _UNWRITTEN, _DELALLOC):
            _append(ranges, ZEROS, 0, count)
        else:
            raise FsError(errno.EIO, f"a mapping of type {kind} on device {device} cannot be read")
        position += count
    if position < end:
        raise FsError(errno.EIO, f"the mappings end at byte {position}, {end} was promised")
    return tuple(ranges)


def _append(ranges: list[FileRange], fd: int, offset: int, length: int) -> None:
    if ranges:
        last = ranges[-1]
        if last.fd == fd and (fd == ZEROS or last.offset + last.length == offset):
            ranges[-1] = FileRange(fd, last.offset, last.length + length)
            return
    ranges.append(FileRange(fd, offset, length))
