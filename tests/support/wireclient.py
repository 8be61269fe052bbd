# SPDX-License-Identifier: Apache-2.0
"""The kernel's part of the conversation, played by a test: typed requests out, replies back."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self, get_args, get_type_hints

from penstock.abi.fuse import InitFlag, InitIn, Opcode
from penstock.abi.layout import is_layout
from penstock.datapath import Paths
from penstock.fs import Operations
from penstock.transport import MemoryTransport
from penstock.wire import (
    Features,
    Reply,
    Request,
    decode_out_header,
    decode_reply,
    encode_request,
    requests,
)

__all__ = ["WireClient", "fixed"]

OFFERED = 0x7_FFFF_FFFF_FFFF & ~InitFlag.INIT_RESERVED
OPCODES = {kind: opcode for opcode, kind in requests.REQUESTS.items()}


def fixed(cls: type[tuple[Any, ...]], **given: Any) -> Any:
    """A structure with the fields that matter; the others are zero."""
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if name in given:
            values[name] = given.pop(name)
        elif is_layout(hint):
            values[name] = fixed(hint)
        else:
            code = str(get_args(hint)[1])
            values[name] = bytes(int(code[:-1])) if code.endswith("s") else 0
    assert not given, f"{cls.__name__} has no {sorted(given)}"
    return cls(**values)


class WireClient:
    """A connection to a filesystem, without a kernel. A context manager; INIT is done.

    Args:
        filesystem: what is served.
        offered: the flags in INIT.
        datapaths: as the session's.
        carries: whether the kernel is asked to carry the data of files.

    Attributes:
        used: the opcodes sent so far, INIT included.
    """

    def __init__(
        self,
        filesystem: Operations,
        offered: int = OFFERED,
        *,
        datapaths: Paths | None = None,
        carries: bool = False,
    ) -> None:
        self.transport = MemoryTransport(filesystem, datapaths=datapaths or Paths("copy"))
        self.transport.session.carries = carries
        self.used: set[int] = set()
        self._unique = 0
        self.features = Features(setxattr_ext=False)
        offer = fixed(
            InitIn,
            major=7,
            minor=46,
            max_readahead=1 << 17,
            flags=offered & 0xFFFF_FFFF,
            flags2=offered >> 32,
        )
        self.init = self.ask(requests.Init(offer)).arg
        taken = self.init.flags | self.init.flags2 << 32
        self.features = Features(setxattr_ext=bool(taken & InitFlag.SETXATTR_EXT))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.transport.close()

    def send(
        self, request: Request, nodeid: int = 0, *, uid: int = 0, gid: int = 0, unique: int = 0
    ) -> tuple[int, bytes | None]:
        """Send a request; its number, and the reply if it came at once."""
        if not unique:
            self._unique += 2
            unique = self._unique
        self.used.add(OPCODES[type(request)])
        message = encode_request(
            request, self.features, unique=unique, nodeid=nodeid, uid=uid, gid=gid, pid=1
        )
        return unique, self.transport.call(message)

    def ask(self, request: Request, nodeid: int = 0, *, uid: int = 0, gid: int = 0) -> Any:
        """Send a request and decode its reply.

        Raises:
            OSError: the reply is an error.
            AssertionError: there is no reply yet, or none at all.
        """
        _, message = self.send(request, nodeid, uid=uid, gid=gid)
        assert message is not None, f"no reply to {request}"
        return self.decode(OPCODES[type(request)], request, message)

    def decode(self, opcode: int, request: Request, message: bytes) -> Reply:
        """The reply in a message. Raises as :meth:`ask`."""
        header = decode_out_header(message)
        if header.error:
            raise OSError(-header.error, os.strerror(-header.error))
        sized = opcode in {Opcode.GETXATTR, Opcode.LISTXATTR} and request[0].size == 0
        _, reply = decode_reply(opcode, message, size_query=sized)
        assert reply is not None
        return reply
