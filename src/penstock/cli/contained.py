# SPDX-License-Identifier: Apache-2.0
"""Mounting with a broker and contained servers: this process is the broker.

It imports nothing that reads an image.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

from penstock.broker.ending import Stopped, ending
from penstock.broker.keeper import Keeper
from penstock.broker.mount import Broker, Containment, Source
from penstock.broker.options import MountOptions
from penstock.broker.outcome import End, Outcome, ServerFailure
from penstock.broker.protocol import FailureCode, Ready
from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.images import open_source
from penstock.cli.logs import warn
from penstock.cli.mountpoints import claimed
from penstock.cli.options import Words
from penstock.control import (
    ABORT,
    PING,
    STATS,
    UNMOUNT,
    ControlError,
    ControlServer,
    Handler,
    Record,
    runtime_directory,
)
from penstock.negotiate import image_profile
from penstock.sys.inuse import in_use
from penstock.sys.notify import notify

__all__ = ["serve_contained"]

_log = logging.getLogger(__name__)

_MAX_PROCESSES: Final = 16
_SHORTEST_TIMEOUT: Final = 15
"""Seconds; the kernel looks at its requests no oftener."""
_LONGEST_TIMEOUT: Final = 0xFFFF

_CODES: Final = {
    End.CLEAN: ExitCode.OK,
    End.ERROR: ExitCode.SYSTEM,
    End.CRASHED: ExitCode.CRASHED,
    End.VIOLATION: ExitCode.CRASHED,
    End.KILLED: ExitCode.KILLED,
    End.OUT_OF_MEMORY: ExitCode.OUT_OF_MEMORY,
    End.HUNG: ExitCode.HUNG,
}


def serve_contained(
    arguments: argparse.Namespace, words: Words, options: MountOptions, ready: Callable[[], None]
) -> int:
    """Mount, call ``ready``, and serve until the mount has ended; the exit code."""
    containment = _containment(words, debug=arguments.debug)
    profile = image_profile(acl="noacl" not in words.server, idmap="idmap" in words.server)
    try:
        with contextlib.ExitStack() as stack:
            end = stack.enter_context(ending())
            keeper = stack.enter_context(Keeper.start())
            broker = stack.enter_context(
                Broker(arguments.mountpoint, options, profile, containment)
            )
            broker.launch()  # the servers start while everything else is being looked at
            keeper.servers([peer.pidfd for peer in broker.peers])
            _mount(arguments, words, broker, stack)
            control = _publish(arguments, broker, keeper, containment, stack)
            _watch(broker, keeper, control, containment)
            ready()
            notify("READY=1", f"STATUS={arguments.source} is mounted on {broker.mountpoint}")
            end.on_wish = broker.ask
            end.hold()
            outcome = broker.wait()
            notify("STOPPING=1")
    except Stopped:
        return ExitCode.INTERRUPTED
    return _report(arguments, outcome)


def _containment(words: Words, *, debug: bool) -> Containment:
    generic = words.generic
    processes = int(generic.get("processes", 1))
    if not 1 <= processes <= _MAX_PROCESSES:
        text = f"-o processes={processes}: is not in 1 to {_MAX_PROCESSES}"
        raise Failure(text, ExitCode.USAGE)
    timeout = int(generic.get("request_timeout", 0))
    if timeout and not _SHORTEST_TIMEOUT <= timeout <= _LONGEST_TIMEOUT:
        raise Failure(
            f"-o request_timeout={timeout}: is neither 0 nor in {_SHORTEST_TIMEOUT} to "
            f"{_LONGEST_TIMEOUT}",
            ExitCode.USAGE,
        )
    return Containment(
        strict=generic.get("sandbox") == "strict",
        keep_crashed=generic.get("crash") == "keep",
        processes=processes,
        request_timeout=timeout,
        log_level=logging.DEBUG if debug else logging.INFO,
    )


def _mount(
    arguments: argparse.Namespace, words: Words, broker: Broker, stack: contextlib.ExitStack
) -> Ready:
    """Open the image, have it judged, mount it."""
    source = arguments.source
    fd = open_source(source, ExitCode.MOUNT)
    stack.callback(os.close, fd)
    with claimed(arguments.mountpoint) as target:
        broker.mountpoint = target
        size = os.lseek(fd, 0, os.SEEK_END)
        image = Source(fd, size, arguments.type or "", tuple(words.server.items()))
        try:
            verdict = broker.judge(image)
            for warning in verdict.warnings:
                warn(f"{source}: {warning}")
            user = in_use(fd)
            if user is not None:
                warn(f"{source}: is {user}: what is shown may be out of date or torn")
            broker.mount()
        except ServerFailure as failure:
            raise _failure(source, failure, words) from failure
        except OSError as error:
            why = explain(error)
            if "/dev/fuse" in str(error):
                why += " (see penstock doctor)"
            raise Failure(f"{arguments.mountpoint}: {why}", ExitCode.MOUNT) from error
    return verdict


def _failure(source: str, failure: ServerFailure, words: Words) -> Failure:
    """What a server said of the image, or what became of the server, as the command's failure."""
    text = explain(failure)
    if failure.outcome is not None:
        return Failure(f"{source}: {text}", _CODES[failure.outcome.end])
    if failure.code is FailureCode.OPTION:
        hint = " (see penstock mount -o help)" if text.startswith("unknown option") else ""
        return Failure(text + hint, ExitCode.USAGE)
    if failure.code is FailureCode.CHECKSUM and "nocheck" not in words.server:
        text += " (-o nocheck reads on without checking)"
    return Failure(f"{source}: {text}", ExitCode.MOUNT)


def _publish(
    arguments: argparse.Namespace,
    broker: Broker,
    keeper: Keeper,
    containment: Containment,
    stack: contextlib.ExitStack,
) -> Record | None:
    """Make the mount known to list, stats and umount. Without that it still works."""
    ready = broker.peers[0].ready
    record = Record.of_this_process(
        mount_id=broker.info.mount_id if broker.info is not None else 0,
        connection=broker.connection,
        mountpoint=broker.mountpoint,
        source=os.path.realpath(arguments.source),
        type=ready.type if ready is not None else "",
        started=time.time(),
        keeper=keeper.pid,
    )

    def statistics(_: dict[str, Any]) -> dict[str, Any]:
        from penstock.cli.statistics import contained_statistics

        return {
            "statistics": contained_statistics(
                broker.statistics(), record, strict=containment.strict
            )
        }

    def unmount(parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            broker.unmount(lazy=parameters.get("lazy") is True)
        except OSError as error:
            raise ControlError("org.penstock.Mount.Failed", {"message": explain(error)}) from error
        return {}

    def abort(_: dict[str, Any]) -> dict[str, Any]:
        broker.abort()
        return {}

    handlers: dict[str, Handler] = {
        PING: lambda _: {"pid": os.getpid()},
        STATS: statistics,
        UNMOUNT: unmount,
        ABORT: abort,
    }
    try:
        stack.enter_context(ControlServer(record, handlers))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        warn(f"no control socket, so list and stats will not show it: {where}{explain(error)}")
        return None
    return record


def _watch(broker: Broker, keeper: Keeper, record: Record | None, containment: Containment) -> None:
    """Tell the keeper what to undo when this process dies."""
    if broker.info is None:
        return
    files = []
    if record is not None:
        directory = runtime_directory()
        files = [f"{directory}/{record.name}.{ending}" for ending in ("json", "sock")]
    keeper.watch(
        mount_id=broker.info.mount_id,
        mountpoint=broker.info.mountpoint,
        connection=broker.connection,
        files=files,
        crash="keep" if containment.keep_crashed else "umount",
    )


def _report(arguments: argparse.Namespace, outcome: Outcome) -> int:
    if outcome.end is not End.CLEAN:
        _log.error("%s on %s: %s", arguments.source, arguments.mountpoint, outcome.text)
    return _CODES[outcome.end]
