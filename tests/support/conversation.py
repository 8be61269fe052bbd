# SPDX-License-Identifier: Apache-2.0
"""Short ways to say things to a memory filesystem, message by message."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from penstock.abi.fuse import (
    CreateIn,
    FileLock,
    GetattrIn,
    LkIn,
    MkdirIn,
    ReadIn,
    SetxattrIn,
    WriteIn,
)
from penstock.testing import MemoryFilesystem
from penstock.wire import (
    decode_dirents,
    requests,
)
from tests.support.wireclient import WireClient, fixed

ROOT = 1
NOW = 1_700_000_000_000_000_000
EOF = (1 << 63) - 1
Scenario = Callable[[WireClient, MemoryFilesystem], None]


def make(dax_window: int = 1 << 20) -> MemoryFilesystem:
    """A small filesystem whose clock stands still."""
    return MemoryFilesystem(
        limit=1 << 20, inodes=64, max_links=4, dax_window=dax_window, clock=lambda: NOW
    )


def converse(function: Scenario) -> set[int]:
    """Carry a conversation out; the opcodes that it used."""
    filesystem = make()
    with WireClient(filesystem) as client:
        function(client, filesystem)
    return client.used


def refused(code: int, client: WireClient, request: Any, nodeid: int = ROOT, uid: int = 0) -> None:
    """The request is answered with an error."""
    with pytest.raises(OSError) as caught:
        client.ask(request, nodeid, uid=uid, gid=uid)
    assert caught.value.errno == code


def create(client: WireClient, name: bytes = b"file", mode: int = 0o644) -> tuple[int, int]:
    """A new file in the root: its node and a handle open for reading and writing."""
    arg = fixed(CreateIn, flags=os.O_RDWR, mode=stat.S_IFREG | mode)
    reply = client.ask(requests.Create(arg, name), ROOT)
    return reply.entry.nodeid, reply.open.fh


def mkdir(client: WireClient, name: bytes, parent: int = ROOT) -> int:
    """A new directory: its node."""
    made = client.ask(requests.Mkdir(fixed(MkdirIn, mode=0o755), name), parent)
    return int(made.entry.nodeid)


def write(client: WireClient, node: int, fh: int, data: bytes, offset: int = 0) -> int:
    """Write; how much was taken."""
    arg = fixed(WriteIn, fh=fh, offset=offset, size=len(data))
    return int(client.ask(requests.Write(arg, memoryview(data)), node).arg.size)


def read(client: WireClient, node: int, fh: int, size: int = 4096, offset: int = 0) -> bytes:
    """Read."""
    arg = fixed(ReadIn, fh=fh, offset=offset, size=size)
    return bytes(client.ask(requests.Read(arg), node).data)


def attributes(client: WireClient, node: int) -> Any:
    """The attributes."""
    return client.ask(requests.Getattr(fixed(GetattrIn)), node).arg.attr


def lookup(client: WireClient, name: bytes, parent: int = ROOT) -> int:
    """The node under a name."""
    return int(client.ask(requests.Lookup(name), parent).entry.nodeid)


def names(client: WireClient, fh: int, node: int = ROOT, offset: int = 0) -> list[bytes]:
    """What READDIR lists."""
    arg = fixed(ReadIn, fh=fh, offset=offset, size=4096)
    data = client.ask(requests.Readdir(arg), node).data
    return [bytes(entry.name) for entry in decode_dirents(data)]


def lock(fh: int, owner: int, kind: int, start: int = 0, end: int = EOF, flags: int = 0) -> LkIn:
    """A lock request's argument."""
    return LkIn(fh, owner, FileLock(start, end, kind, owner), flags, 0)


def set_xattr(
    client: WireClient, node: int, name: bytes, value: bytes, flags: int = 0, kill: int = 0
) -> None:
    """Set an extended attribute."""
    arg = fixed(SetxattrIn, size=len(value), flags=flags, setxattr_flags=kill)
    client.ask(requests.Setxattr(arg, name, memoryview(value)), node)
