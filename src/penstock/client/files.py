# SPDX-License-Identifier: Apache-2.0
"""An open file of a client: reading, and where its data lies."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, Final, Self

from penstock.abi.fuse import LseekIn, Opcode, OpenIn, ReadIn, ReleaseIn
from penstock.client.channel import Channel
from penstock.client.stream import ServerLost
from penstock.wire import requests

__all__ = ["File", "open_node", "release_node"]

_SEEK_DATA: Final = 3
_SEEK_HOLE: Final = 4


def open_node(channel: Channel, nodeid: int, opcode: Opcode, flags: int) -> int | None:
    """Open a file or directory; its handle, or None where the server needs no opening.

    Raises:
        OSError: what the server answers.
    """
    kind = requests.Open if opcode is Opcode.OPEN else requests.Opendir
    try:
        return int(channel.request(opcode, nodeid, kind(OpenIn(flags, 0))).arg.fh)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return None


def release_node(channel: Channel, nodeid: int, opcode: Opcode, fh: int | None, flags: int) -> None:
    """Close what :func:`open_node` opened. Nothing is to be said of it where all is lost."""
    if fh is None:
        return
    kind = requests.Release if opcode is Opcode.RELEASE else requests.Releasedir
    try:
        channel.request(opcode, nodeid, kind(ReleaseIn(fh, flags, 0, 0)))
    except ServerLost:
        pass
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise


class File:
    """A file open for reading. A context manager.

    Args:
        channel: the connection.
        nodeid: the inode.
        size: bytes; nothing behind that is read, as the kernel does with a cached file.

    Raises:
        OSError: what the server answers to the open.
    """

    def __init__(self, channel: Channel, nodeid: int, size: int) -> None:
        self._channel = channel
        self._nodeid = nodeid
        self.size = size
        self._handle = open_node(channel, nodeid, Opcode.OPEN, os.O_RDONLY)
        self._open = True

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``; fewer only at the end of the file.

        Raises:
            OSError: what the server answers; EIO if it sends more than was asked for.
        """
        pieces: list[bytes] = []
        end = min(offset + length, self.size)
        while offset < end:
            piece = self._read_once(offset, min(end - offset, self._channel.max_data))
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_once(self, offset: int, length: int) -> bytes:
        arg = ReadIn(self._handle or 0, offset, length, 0, 0, os.O_RDONLY, 0)
        reply: Any = self._channel.request(Opcode.READ, self._nodeid, requests.Read(arg))
        if len(reply.data) > length:
            raise OSError(errno.EIO, f"{len(reply.data)} bytes came where {length} were asked for")
        return bytes(reply.data)

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """The data of the file without its holes: (offset, bytes), in order.

        Raises:
            OSError: what the server answers.
        """
        for start, end in self.data_ranges():
            position = start
            while position < end:
                piece = self.read(position, min(end - position, self._channel.max_data))
                if not piece:
                    return
                yield position, piece
                position += len(piece)

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """Where the file is not a hole: (start, end) byte ranges, in order.

        A server that cannot tell has data everywhere. One whose answers make no progress gets
        EIO, so that this always ends.
        """
        position = 0
        while position < self.size:
            start = self._seek(position, _SEEK_DATA)
            if start is None:
                return
            start = min(start, self.size)
            end = self._seek(start, _SEEK_HOLE) if start < self.size else start
            end = self.size if end is None else min(end, self.size)
            if start < position or end < start or (end == start and start < self.size):
                raise OSError(errno.EIO, "the server's answers to lseek contradict each other")
            if end > start:
                yield start, end
            position = end

    def _seek(self, offset: int, whence: int) -> int | None:
        """As lseek(2); None for "nothing of that kind follows"."""
        body = requests.Lseek(LseekIn(self._handle or 0, offset, whence, 0))
        try:
            return int(self._channel.request(Opcode.LSEEK, self._nodeid, body).arg.offset)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno in {errno.ENOSYS, errno.EOPNOTSUPP}:
                return offset if whence == _SEEK_DATA else self.size
            raise

    def close(self) -> None:
        """Release the file. Idempotent."""
        if self._open:
            self._open = False
            release_node(self._channel, self._nodeid, Opcode.RELEASE, self._handle, os.O_RDONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
