# SPDX-License-Identifier: Apache-2.0
"""The program that carries attempts out, in the place of a server's program.

It is started as servers are, imports all that it needs, closes the sandbox, and only then gets the
descriptors to attack with, as a server gets its image. It answers over the one socket that it has.

Asked to, it forks a child for each attempt, which closes a sandbox of its own: a fresh interpreter
for each would take most of the time.
"""

from __future__ import annotations

import json
import os
import socket
import traceback
from typing import Any

from penstock.contain import sandbox
from tests.support.attacks import Attempt, Facts, Held, load

__all__ = ["main"]

_BROKER = 3
_LONGEST = 1 << 16


def main(outside: str) -> None:
    """Carry out what comes over the socket, until it is closed.

    Args:
        outside: the namespaces of whoever started this process, as servers are told.
    """
    numbers = {name: int(number) for name, _, number in _parts(outside)}
    attempts = load()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, _BROKER) as sock:
        while data := sock.recv(_LONGEST):
            order = json.loads(data)
            pid = os.fork() if order["fork"] else 0
            if pid == 0:
                _carry_out(sock, attempts, order, numbers)
            _, status = os.waitpid(pid, 0)
            _tell(sock, status=os.waitstatus_to_exitcode(status))


def _parts(outside: str) -> list[tuple[str, str, str]]:
    return [part.partition("=") for part in outside.split(",")]


def _carry_out(
    sock: socket.socket,
    attempts: dict[str, Attempt],
    order: dict[str, Any],
    outside: dict[str, int],
) -> None:
    """Close the sandbox, get what there is to hold, and attack. Ends this process."""
    try:
        _tell(sock, layers=_close(order, outside))
        data, fds, _, _ = socket.recv_fds(sock, _LONGEST, 8)
        task = json.loads(data)
        image, fuse, device, *pipe = (fds.pop(0) if has else -1 for has in task["has"])
        held = Held(_BROKER, image, fuse, device, (pipe[0], pipe[1]), Facts(**task["facts"]))
        try:
            attempts[task["attempt"]].run(held)
        except (OSError, MemoryError) as error:
            number = getattr(error, "errno", 0)
            _tell(sock, stopped=f"{type(error).__name__}: {error}", errno=number)
        else:
            _tell(sock, succeeded=True)
    except BaseException:  # noqa: BLE001 - a mistake in the attempt, for the test to show
        _tell(sock, broken=traceback.format_exc())
    finally:
        os._exit(1)  # status 0 is that of a program executed by an attempt


def _close(order: dict[str, Any], outside: dict[str, int]) -> dict[str, str]:
    """Close the sandbox; what layers there are, with the reason for each that is not in force."""
    if not order["layers"]:
        return {}
    layers = frozenset(order["layers"])
    report = list(sandbox.close(sandbox.IMAGE_SERVER, layers=layers, outside=outside))
    if order["threads"]:
        report.append(sandbox.close_threads(sandbox.IMAGE_SERVER))
    return {each.name: "" if each.in_force else each.detail for each in report}


def _tell(sock: socket.socket, **what: Any) -> None:
    sock.send(json.dumps(what).encode())
