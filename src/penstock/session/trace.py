# SPDX-License-Identifier: Apache-2.0
"""One line for each request that was carried out: what was asked, what was answered, how long it
took. Called for a session that was given a ``trace`` alone."""

from __future__ import annotations

from typing import Any, Final

from penstock.abi.fuse import InHeader, Opcode
from penstock.session.ports import FileBody, Reply
from penstock.wire import WireError, decode_reply, format_reply, format_request

__all__ = ["trace_line"]

_SIZED: Final = frozenset({Opcode.GETXATTR, Opcode.LISTXATTR})
"""Their answer to a size of 0 is another structure."""


def trace_line(header: InHeader, request: Any, reply: Reply | None, nanoseconds: int) -> str:
    """The line, as ``GETATTR #4 node=1 … = attr_valid=1 … <12.3 us>``; never raises.

    Args:
        header: of the request.
        request: what it asked.
        reply: what was answered; None where there is no answer.
        nanoseconds: how long that took.
    """
    words = [format_request(header, request)]
    if reply is not None:
        words.append(_answer(header, request, reply))
    words.append(f"<{nanoseconds / 1000:.1f} us>")
    return " ".join(words)


def _answer(header: InHeader, request: Any, reply: Reply) -> str:
    if isinstance(reply.body, FileBody):
        return f"= {reply.body.length} bytes of the image"
    try:
        message = reply.head + bytes(reply.body)
        sized = header.opcode in _SIZED and request.arg.size == 0
        head, value = decode_reply(header.opcode, message, size_query=sized)
    except WireError as error:
        return f"= ? ({error})"
    return format_reply(header.opcode, head, value)
