# SPDX-License-Identifier: Apache-2.0
"""Where readers get bytes from: ``pread`` on a window of a file or block device.

Never mmap: an image that is truncated while mounted would then be SIGBUS instead of EIO.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Protocol

__all__ = ["BlockSource", "FileSource", "device_size"]


class BlockSource(Protocol):
    """A window of ``size`` bytes that can be read at any offset."""

    size: int

    def pread(self, length: int, offset: int) -> bytes:
        """Exactly ``length`` bytes from ``offset`` (bytes, relative to the window).

        Raises:
            OSError: EIO when the range is not wholly inside the window or the file has shrunk;
                whatever the medium answers otherwise.
        """
        ...


def device_size(fd: int) -> int:
    """Size in bytes of the regular file or block device behind ``fd``.

    Raises:
        OSError: EISDIR for a directory, EINVAL for anything else that has no size.
    """
    st = os.fstat(fd)
    if stat.S_ISREG(st.st_mode):
        return st.st_size
    if stat.S_ISBLK(st.st_mode):
        return os.lseek(fd, 0, os.SEEK_END)
    if stat.S_ISDIR(st.st_mode):
        raise OSError(errno.EISDIR, "is a directory, not a disk image")
    raise OSError(errno.EINVAL, "is neither a regular file nor a block device")


class FileSource:
    """A window on an open descriptor. Does not own the descriptor.

    Args:
        fd: open for reading.
        offset: first byte of the window in the file.
        size: bytes in the window; None = to the end of the file. Where it is given, nothing but
            reads are done on the descriptor: a sandbox may have no more than that.
        before_wait: called before a read that is not in the page cache, and so may wait for the
            medium. A transport uses it to let another worker take requests meanwhile.
    """

    def __init__(
        self,
        fd: int,
        offset: int = 0,
        size: int | None = None,
        *,
        before_wait: Callable[[], None] | None = None,
    ) -> None:
        if size is None:
            size = max(0, device_size(fd) - offset)
        self.fd = fd
        self.offset = offset
        self.size = size
        self.before_wait = before_wait

    def pread(self, length: int, offset: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(
                errno.EIO,
                f"read of {length} bytes at {offset} is outside the image of {self.size} bytes",
            )
        position = self.offset + offset
        if self.before_wait is not None:
            data = self._pread_cached(length, position)
            if data is not None:
                return data
            self.before_wait()
        data = os.pread(self.fd, length, position)
        if len(data) == length:
            return data
        return self._pread_rest(data, length, position)

    def _pread_cached(self, length: int, position: int) -> bytes | None:
        """The bytes if all of them are in the page cache, else None."""
        buffer = bytearray(length)
        try:
            if os.preadv(self.fd, [buffer], position, os.RWF_NOWAIT) == length:
                return bytes(buffer)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            self.before_wait = None  # this file cannot tell; read it plainly from now on
        return None

    def _pread_rest(self, data: bytes, length: int, position: int) -> bytes:
        pieces = [data]
        done = len(data)
        while done < length:
            piece = os.pread(self.fd, length - done, position + done)
            if not piece:
                raise OSError(errno.EIO, f"image ends at byte {position + done} while being read")
            pieces.append(piece)
            done += len(piece)
        return b"".join(pieces)
