# SPDX-License-Identifier: Apache-2.0
"""File handles: name_to_handle_at(2), open_by_handle_at(2).

A handle is kept as the kernel's ``struct file_handle``: u32 bytes, s32 type, then the bytes.

Facts about connectable handles (AT_HANDLE_CONNECTABLE, Linux 6.13; fs/fhandle.c)
    - They name the parent directory too, so that the kernel can find a path to a file whose
      dentry has left its cache. Opened below a directory's descriptor they give nothing that
      does not lie beneath it: ESTALE.
    - With a cold dentry of a file the kernel reads through the parent directory for its name,
      which takes long in a large one. Whoever knows the name looks it up first: then it is warm.
    - Once the file has another parent and no dentry, the old handle answers ESTALE.
    - They are not to be had of a descriptor (AT_EMPTY_PATH: EINVAL), only of a name. For a
      directory the plain handle is connectable as it is, and is merely marked.
    - Opening takes CAP_DAC_READ_SEARCH in the initial user namespace; making one takes nothing.
    - The type's upper half has the kernel's marks (0x1_0000 connectable, 0x2_0000 directory).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from ctypes import c_char_p, c_int, c_void_p
from typing import Final

from penstock.sys.rawcalls import failed, prototype

__all__ = ["CONNECTABLE", "encode_handle", "encode_own_handle", "file_handle", "open_handle"]

CONNECTABLE: Final = 0x2
_EMPTY_PATH: Final = 0x1000
_AT_FDCWD: Final = -100
_MOST: Final = 128
_HEAD: Final = 8
_LENGTH: Final = struct.Struct("=I")
_set_length: Final = _LENGTH.pack_into
_name_to_handle_at: Final = prototype(
    "name_to_handle_at", c_int, c_char_p, c_void_p, c_void_p, c_int
)
_open_by_handle_at: Final = prototype("open_by_handle_at", c_int, c_char_p, c_int)


class _Buffer(threading.local):
    def __init__(self) -> None:
        self.handle = ctypes.create_string_buffer(_HEAD + _MOST)
        self.mount = c_int()
        self.mount_address = ctypes.addressof(self.mount)


_buffer: Final = _Buffer()


def _encode(fd: int, name: bytes, flags: int) -> bytes:
    buffer = _buffer.handle
    _set_length(buffer, 0, _MOST)
    if _name_to_handle_at(fd, name, buffer, _buffer.mount_address, flags):
        raise failed("name_to_handle_at", name)
    return buffer[: _HEAD + buffer[0][0]]  # type: ignore[return-value]


def encode_handle(fd: int, name: bytes) -> bytes:
    """The connectable handle of what ``name`` is in the directory ``fd``; no link is followed.

    Raises:
        OSError: EINVAL before Linux 6.13, EOPNOTSUPP where the filesystem has none, ENOENT.
    """
    return _encode(fd, name, CONNECTABLE)


def file_handle(path: str | os.PathLike[str], flags: int = 0) -> bytes:
    """The handle of what a path leads to, but for a link at its end.

    Args:
        path: as for open(2).
        flags: 0, or :data:`CONNECTABLE`.

    Raises:
        OSError: as :func:`encode_handle`.
    """
    return _encode(_AT_FDCWD, os.fsencode(path), flags)


def encode_own_handle(fd: int) -> bytes:
    """The handle of what is open, without its parent: of a file that has no name."""
    return _encode(fd, b"", _EMPTY_PATH)


def open_handle(mount: int, handle: bytes, flags: int = os.O_RDONLY) -> int:
    """Open a file by its handle.

    Args:
        mount: descriptor of a directory; what a connectable handle gives lies beneath it.
        handle: as encoded.
        flags: as open(2); O_CLOEXEC is added.

    Raises:
        OSError: ESTALE: there is no such file any more, or not there; EPERM; EINVAL for bytes that
            are no handle; and whatever open(2) answers.
    """
    if len(handle) < _HEAD or _LENGTH.unpack_from(handle)[0] != len(handle) - _HEAD:
        raise OSError(errno.EINVAL, f"{len(handle)} bytes are no file handle")
    fd = _open_by_handle_at(mount, handle, flags | os.O_CLOEXEC)
    if fd < 0:
        raise failed("open_by_handle_at")
    return fd
