# SPDX-License-Identifier: Apache-2.0
"""The sandbox of a server: one is started, closes it, says what is in force, and is ended."""

from __future__ import annotations

import select
from contextlib import closing
from typing import Final

from penstock.broker.launch import launch
from penstock.broker.peer import Peer
from penstock.broker.protocol import VERSION, Hello, Layer, ProtocolError, Purpose, Welcome
from penstock.cli.errors import explain
from penstock.cli.probes.base import Finding

__all__ = ["sandbox_findings"]

_HOW: Final = "a server was started that closed it"
_SECONDS: Final = 10.0


def sandbox_findings() -> list[Finding]:
    """One finding for each layer, or one that says why no server can be started."""
    try:
        layers = _layers()
    except (OSError, ProtocolError, TimeoutError) as error:
        return [Finding("sandbox", "sandbox", None, False, explain(error), _HOW)]
    return [_finding(layer) for layer in layers]


def _layers() -> tuple[Layer, ...]:
    with closing(Peer(launch())) as peer:
        peer.send(Hello(VERSION, VERSION, Purpose.DESCRIBE, 0, 1))
        waiter = select.poll()
        waiter.register(peer.channel.fileno(), select.POLLIN)
        if not waiter.poll(_SECONDS * 1000):
            raise TimeoutError(f"the server has not started within {_SECONDS:.0f} s")
        message = peer.channel.receive()
        if message is None or not isinstance(message.body, Welcome):
            raise ProtocolError("the server has ended at start")
        peer.take(message)
        return message.body.layers


def _finding(layer: Layer) -> Finding:
    title = f"sandbox: {layer.name.replace('_', ' ')}"
    name = f"sandbox-{layer.name.replace('_', '-')}"
    there = bool(layer.in_force)
    return Finding(name, title, True if there else None, there, layer.detail, _HOW)
