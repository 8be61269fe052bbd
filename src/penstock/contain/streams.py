# SPDX-License-Identifier: Apache-2.0
"""What the contained server does for a command that reads an image: answer over a stream, or say
what the image is. The command's side is :mod:`penstock.contain.reading`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from penstock.broker.channel import Channel
from penstock.broker.protocol import (
    Description,
    Ended,
    EndReason,
    ProtocolError,
    Read,
    Verdict,
)
from penstock.contain.failures import failed
from penstock.datapath import Paths
from penstock.servers import Server
from penstock.servers.inspection import inspect_image
from penstock.session import Limits
from penstock.sys.reasons import explain
from penstock.transport.stream import StreamServer

__all__ = ["describe", "serve_stream"]

_PIECE: Final = 32 * 1024
_LIMITS: Final = Limits(max_write=4096)
"""The client writes nothing, so requests are small."""


def serve_stream(channel: Channel, server: Server) -> None:
    """Wait for READ, then answer over its stream until the client has gone.

    A reader's verdict on the image goes ahead of the reply that it makes an error of.

    Raises:
        ProtocolError: something else came.
    """
    message = channel.receive()
    if message is None:
        return
    if not isinstance(message.body, Read):
        raise ProtocolError(f"{message.kind.name} instead of READ")
    (stream,) = message.fds
    serving = StreamServer(server.operations, stream, datapaths=Paths("copy"), limits=_LIMITS)
    serving.session.on_verdict = lambda error: channel.send(Verdict(explain(error)))
    serving.serve()
    channel.send(Ended(EndReason.UNMOUNTED))


def describe(
    channel: Channel, fd: int, size: int, type: str | None, words: Mapping[str, str]
) -> None:
    """Say what an image is: DESCRIPTION in pieces, then ENDED, or FAILED with why it is not more.

    With a wrong option, or an image that cannot be read at all, FAILED is all.
    """
    try:
        description, error = inspect_image(fd, type, words, size=size)
    except Exception as raised:  # noqa: BLE001 - the caller must learn of it
        channel.send(failed(raised))
        return
    text = json.dumps(description)
    for start in range(0, len(text), _PIECE):
        more = start + _PIECE < len(text)
        channel.send(Description(more, text[start : start + _PIECE]))
    channel.send(Ended(EndReason.ASKED) if error is None else failed(error))
