# SPDX-License-Identifier: Apache-2.0
"""A contained server with a flaw: the real one in the real sandbox, but that it goes wrong on cue.

Started in the place of ``penstock/contain/__main__.py`` by :mod:`tests.support.oddbroker`. Its last
argument is the cue: ``start`` and ``open``, each with a flaw as ``open:segv``, or ``lookup``, when
each name ``!FLAW`` that is looked up has the flaw.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("penstock.oddserver")
_SOCKET = 3
ESCAPES = "\x1b[2J\x1b]0;title\x07 \r\n\x00\x7f\x9b31m \u202e \ud800 end"
"""What a terminal would act on, in several ways."""
_kept: list[Any] = []


def _segv() -> None:
    ctypes.string_at(0)


def _sandbox() -> None:
    os.fork()


def _exit() -> None:
    os._exit(3)


def _memory() -> None:
    """Take all there is, and keep it."""
    while True:
        _kept.append(bytearray(b"\1" * (1 << 20)))


def _all_memory() -> None:
    """Leave not even room for the smallest object."""
    size = 1 << 20
    while size:
        try:
            _kept.append(bytes(size))
        except MemoryError:
            size //= 2
    raise MemoryError


def _hang() -> None:
    threading.Event().wait()


def _escapes() -> None:
    _log.warning("before %s", ESCAPES)
    _log.error("%s", "long " * 1000 + ESCAPES)


def _escapes_sent() -> None:
    """Escapes in a message that is put together by hand: no honest end escapes them."""
    _raw(21, struct.pack("<B", 30) + _text(b"\x1b[2J"))


def _text(text: bytes) -> bytes:
    return struct.pack("<H", len(text)) + text


def _raw(kind: int, body: bytes) -> None:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=_SOCKET)
    end.send(struct.pack("<HHI", kind, 0, 0) + body)
    end.detach()


def _unknown() -> None:
    _raw(999, b"")


def _hang_up() -> None:
    """Close the socket, and live on."""
    os.close(_SOCKET)
    _hang()


def _error() -> None:
    raise RuntimeError("a flaw: " + ESCAPES)


FLAWS: dict[str, Callable[[], None]] = {
    "segv": _segv,
    "abort": os.abort,
    "sandbox": _sandbox,
    "exit": _exit,
    "memory": _memory,
    "all memory": _all_memory,
    "hang": _hang,
    "escapes": _escapes,
    "raw": _escapes_sent,
    "unknown": _unknown,
    "hangup": _hang_up,
    "error": _error,
}


def _have_flaw(cue: str, kind: str) -> None:
    """Change the server so that it goes wrong on this cue."""
    mirror = kind.startswith("mirror")
    package, name = ("mirror", "MirrorServer") if mirror else ("ext4", "Ext4Server")
    served: Any = getattr(importlib.import_module(f"penstock.servers.{package}.server"), name)
    role: Any = importlib.import_module(f"penstock.contain.{'mirror' if mirror else 'image'}server")
    opener = "open_mirror" if mirror else "open_server"

    when, _, what = cue.partition(":")
    lookup = served.lookup
    opening = getattr(role, opener)

    def flawed_lookup(self: Any, ctx: Any, parent: Any, name: bytes) -> Any:
        flaw = FLAWS.get(name.decode(errors="replace").removeprefix("!"))
        if flaw is not None and name.startswith(b"!"):
            flaw()
        return lookup(self, ctx, parent, name)

    def flawed_opening(*args: Any, **words: Any) -> Any:
        FLAWS[what]()
        return opening(*args, **words)

    if when == "lookup":
        served.lookup = flawed_lookup
    elif when == "open":
        setattr(role, opener, flawed_opening)
    else:
        FLAWS[what]()


if __name__ == "__main__":
    sys.path += sys.argv[3:-1]
    from penstock.contain.server import main

    _have_flaw(sys.argv[-1], sys.argv[1])
    main(sys.argv[2], sys.argv[1])
