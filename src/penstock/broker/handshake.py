# SPDX-License-Identifier: Apache-2.0
"""Answering INIT in the server's place, so that a server has no say in what is negotiated.

The only bytes read here are the kernel's own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import Final

from penstock.abi.fuse import InHeader, InitIn, Opcode, OutHeader
from penstock.abi.layout import pack, size_of, unpack
from penstock.fs import Connection
from penstock.negotiate import Limits, Profile, negotiate

__all__ = ["answer_init"]

_SMALLEST_BUFFER: Final = 8192
"""FUSE_MIN_READ_BUFFER: the kernel refuses to fill a smaller one."""


def answer_init(fd: int, limits: Limits, profile: Profile, timeout: float = 10.0) -> Connection:
    """Read INIT from a connection and answer it.

    Args:
        fd: /dev/fuse, not blocking.
        limits: sizes to ask for.
        profile: what the filesystem asks for.
        timeout: seconds.

    Returns:
        What is in force now.

    Raises:
        OSError: ETIMEDOUT, EPROTO, or the connection ended.
    """
    waiter = select.poll()
    waiter.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not waiter.poll(left * 1000):
            raise OSError(errno.ETIMEDOUT, "the kernel did not ask for INIT")
        with contextlib.suppress(BlockingIOError):
            return _answer(fd, os.read(fd, _SMALLEST_BUFFER), limits, profile)


def _answer(fd: int, message: bytes, limits: Limits, profile: Profile) -> Connection:
    header = unpack(InHeader, message)
    if header.opcode != Opcode.INIT:
        raise OSError(errno.EPROTO, f"the kernel's first request is no INIT ({header.opcode})")
    # Older kernels send less of it; what is missing counts as 0.
    body = message[size_of(InHeader) : header.len]
    body += bytes(size_of(InitIn) - len(body))
    try:
        reply, connection = negotiate(unpack(InitIn, body), limits, profile)
    except OSError as error:
        os.write(fd, _reply(header.unique, b"", -errno.EPROTO))
        raise OSError(errno.EPROTO, str(error)) from error
    os.write(fd, _reply(header.unique, pack(reply), 0))
    return connection


def _reply(unique: int, body: bytes, error: int) -> bytes:
    return pack(OutHeader(size_of(OutHeader) + len(body), error, unique)) + body
