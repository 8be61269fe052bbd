# SPDX-License-Identifier: Apache-2.0
"""Carrying out a reply whose body lies in files: by copy through memory, by splice through a pipe.

Facts about splice and /dev/fuse (fs/fuse/dev.c, fs/splice.c)
    - A reply is one message and so one splice: header and data must be in the pipe together.
    - A pipe has one slot per 4 KiB of its size. The header takes a slot, each page that a range
      touches takes one, however few bytes of it are used: pieces are counted before they go in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from typing import Final, Self

from penstock.session import ZEROS, FileBody
from penstock.sys.files import large_pipe

__all__ = ["CopyBuffer", "ShortBody", "SplicePipe"]

_PAGE: Final = mmap.PAGESIZE
_ZEROS: Final = bytes(64 << 10)


class ShortBody(OSError):
    """The files hold fewer bytes than the body promised."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the image is shorter than its metadata says")


class CopyBuffer:
    """A buffer, kept for reuse, in which a reply is put together.

    Args:
        before_wait: called before a read that would wait for the medium.
    """

    def __init__(self, before_wait: Callable[[], None] | None = None) -> None:
        self._buffer = bytearray(_PAGE)
        self._before_wait = before_wait

    def fill(self, head: bytes, body: FileBody) -> memoryview:
        """The whole message; with an inexact body it may be shorter than ``head`` says.

        Raises:
            ShortBody: a file of an exact body ended early.
            OSError: the medium failed.
        """
        start = len(head)
        total = start + body.length
        if len(self._buffer) < total:
            self._buffer = bytearray(total)
        view = memoryview(self._buffer)
        view[:start] = head
        position = start
        for fd, offset, length in body.ranges:
            target = view[position : position + length]
            if fd == ZEROS:
                target[:] = bytes(length)
                got = length
            else:
                got = self._read(fd, target, offset)
            position += got
            if got < length:
                if body.exact:
                    raise ShortBody
                break
        return view[:position]

    def _read(self, fd: int, target: memoryview, offset: int) -> int:
        length = len(target)
        got = 0
        if self._before_wait is not None:
            try:
                got = os.preadv(fd, [target], offset, os.RWF_NOWAIT)
            except OSError:  # not cached, or a file that cannot tell
                got = 0
            if got == length:
                return got
            self._before_wait()
        while got < length:
            count = os.preadv(fd, [target[got:]], offset + got)
            if count == 0:
                break
            got += count
        return got


class SplicePipe:
    """A pipe through which replies go from files to the device. A context manager.

    Args:
        ends: read and write end of a pipe that does not block, owned from here on; None: make one.
    """

    def __init__(self, ends: tuple[int, int] | None = None) -> None:
        self._read_end, self._write_end = ends or large_pipe()
        self.slots = fcntl.fcntl(self._write_end, fcntl.F_GETPIPE_SZ) // _PAGE

    @property
    def max_pages(self) -> int:
        """The most pages that a page-aligned message can have: one slot is the header's."""
        return self.slots - 1

    def fits(self, body: FileBody) -> bool:
        """Whether the pipe has a slot for each page that the body touches."""
        slots = 1
        for fd, offset, length in body.ranges:
            if fd == ZEROS:
                offset = 0
            slots += (offset + length - 1) // _PAGE - offset // _PAGE + 1
        return slots <= self.slots

    def send(self, device: int, head: bytes, body: FileBody) -> None:
        """Write the message to ``device``. The pipe is empty afterwards, whatever happens.

        Raises:
            ShortBody: the files hold fewer bytes than ``body.length``; nothing was sent.
            OSError: the medium failed and nothing was sent, or the device did not take it.
        """
        total = len(head) + body.length
        try:
            os.write(self._write_end, head)
            for fd, offset, length in body.ranges:
                if fd == ZEROS:
                    self._put_zeros(length)
                else:
                    self._put(fd, offset, length)
            os.splice(self._read_end, device, total)
        except OSError:
            self._drain()
            raise

    def _put(self, fd: int, offset: int, length: int) -> None:
        while length:
            count = os.splice(fd, self._write_end, length, offset_src=offset)
            if count == 0:
                raise ShortBody
            offset += count
            length -= count

    def _put_zeros(self, length: int) -> None:
        while length:
            length -= os.write(self._write_end, _ZEROS[:length])

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read_end, 1 << 20):
                pass

    def close(self) -> None:
        """Close both ends. Idempotent."""
        if self._read_end >= 0:
            os.close(self._read_end)
            os.close(self._write_end)
            self._read_end = self._write_end = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
