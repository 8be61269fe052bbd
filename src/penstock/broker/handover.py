# SPDX-License-Identifier: Apache-2.0
"""What a server gets of a connection: its descriptors, and what it cannot make itself."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from penstock.broker.files import Files
from penstock.broker.options import MountOptions
from penstock.broker.peer import Peer
from penstock.broker.protocol import MAX_WORKERS, Serve
from penstock.fs import Connection
from penstock.sys.devfuse import clone
from penstock.sys.files import large_pipe

__all__ = ["handed_over"]

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def handed_over(
    device: int, connection: Connection, options: MountOptions, files: Files, peer: Peer
) -> Iterator[tuple[Serve, list[int]]]:
    """The message that has a server serve a connection, and its descriptors; closed afterwards.

    Args:
        device: of the connection.
        connection: what is in force on it.
        options: of the mount.
        files: what carries whole files.
        peer: the server.
    """
    workers = min(options.workers, MAX_WORKERS)
    body = Serve(
        *connection,
        workers=workers,
        poll=str(options.poll),
        datapath=options.datapath,
        files=files.name,
        reasons=files.reasons,
    )
    with contextlib.ExitStack() as made:
        fds = [_clone(device, made) for _ in range(workers)]
        for _ in range(workers):
            ends = large_pipe()
            for fd in ends:
                made.callback(os.close, fd)
            fds += ends
        yield body, fds + files.descriptors(peer.number)


def _clone(device: int, made: contextlib.ExitStack) -> int:
    try:
        fd = clone(device)
    except OSError as error:
        _log.info("workers share one descriptor: %s", error)
        fd = os.dup(device)
    made.callback(os.close, fd)
    return fd
