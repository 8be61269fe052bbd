# SPDX-License-Identifier: Apache-2.0
"""Mounting with a broker and contained servers: this process is the broker.

It imports nothing that reads an image or looks into a directory.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from penstock.broker.ending import Stopped, ending
from penstock.broker.keeper import NO_MOUNT, Keeper
from penstock.broker.launch import Launched
from penstock.broker.mount import Broker
from penstock.broker.options import Containment, MountOptions, Source
from penstock.broker.outcome import End, Outcome, ServerFailure
from penstock.broker.protocol import Ready
from penstock.cli.errors import ExitCode
from penstock.cli.failures import CODES, server_failure
from penstock.cli.images import open_source
from penstock.cli.mountoptions import mount_options, request_timeout
from penstock.cli.mountpoints import claimed
from penstock.cli.options import Words
from penstock.cli.publishing import mount_failure, publish, warn_of_source
from penstock.control import ControlServer, Record, runtime_directory
from penstock.negotiate import Profile, image_profile
from penstock.sys.notify import notify

__all__ = ["serve_contained"]

_log = logging.getLogger(__name__)

MIRROR: Final = "mirror"
"""The type of whatever is a directory."""


def serve_contained(
    arguments: argparse.Namespace,
    words: Words,
    launched: Sequence[Launched],
    ready: Callable[[], None],
    *,
    tree: bool,
) -> int:
    """Mount, call ``ready``, and serve until the mount has ended; the exit code.

    Args:
        arguments: of the command line.
        words: the same for ``-o``.
        launched: the servers, which start while everything else is being looked at.
        ready: called when the mount can be used.
        tree: whether the source is a directory.
    """
    containment = _containment(words, debug=arguments.debug)
    options = mount_options(words, arguments.source, tree=tree)
    profile = _profile(words, tree=tree)
    try:
        with contextlib.ExitStack() as stack:
            end = stack.enter_context(ending())
            keeper = stack.enter_context(Keeper.start())
            directory = _directory(arguments.source, options, stack) if tree else None
            if directory is not None:
                _start_opener(directory, launched, stack)
            broker = stack.enter_context(
                Broker(arguments.mountpoint, options, profile, launched, containment, directory)
            )
            keeper.servers([peer.pidfd for peer in broker.peers])
            broker.on_connection = lambda number: _watch(broker, keeper, number, containment)
            broker.on_unmounted = lambda: _unmounted(broker, keeper, containment)
            source = _source(arguments, words, options, directory, stack)
            verdict = _mount(arguments, words, broker, source)
            control = _publish(arguments, verdict, broker, keeper, containment, stack)
            _watch(broker, keeper, broker.connection, containment)
            # From here on a signal unmounts; until here it undoes what was done.
            end.on_wish = broker.ask
            end.hold()
            notify("READY=1", f"STATUS={arguments.source} is mounted on {broker.mountpoint}")
            ready()
            outcome = broker.wait()
            notify("STOPPING=1")
            if control is not None:
                control.leave_record = broker.mounted
    except Stopped:
        return ExitCode.INTERRUPTED
    return _report(arguments, outcome)


def _containment(words: Words, *, debug: bool) -> Containment:
    generic = words.generic
    return Containment(
        strict=generic.get("sandbox") == "strict",
        keep_crashed=generic.get("crash") == "keep",
        request_timeout=request_timeout(words),
        log_level=logging.DEBUG if debug else logging.INFO,
    )


def _profile(words: Words, *, tree: bool) -> Profile:
    if tree:
        from penstock.cli.trees import tree_profile

        return tree_profile(words.server)
    return image_profile(acl="noacl" not in words.server, idmap="idmap" in words.server)


def _directory(source: str, options: MountOptions, stack: contextlib.ExitStack) -> int:
    from penstock.cli.trees import opened_tree

    return stack.enter_context(opened_tree(source, read_only=options.read_only))


def _start_opener(
    directory: int, launched: Sequence[Launched], stack: contextlib.ExitStack
) -> None:
    """Have files opened by handle for a server that may not do it itself."""
    from penstock.broker.opener import Opener

    for server in launched:
        if server.handles is not None:
            stack.enter_context(Opener.start(directory, server.handles))


def _source(
    arguments: argparse.Namespace,
    words: Words,
    options: MountOptions,
    directory: int | None,
    stack: contextlib.ExitStack,
) -> Source:
    """What the servers are given."""
    pairs = tuple(words.server.items())
    if directory is not None:
        read_only = (("ro", ""),) if options.read_only else ()
        return Source(directory, None, MIRROR, (*pairs, *read_only))
    fd = open_source(arguments.source, ExitCode.MOUNT)
    stack.callback(os.close, fd)
    return Source(fd, os.lseek(fd, 0, os.SEEK_END), arguments.type or "", pairs)


def _mount(arguments: argparse.Namespace, words: Words, broker: Broker, source: Source) -> Ready:
    """Have the source judged, mount it."""
    with claimed(arguments.mountpoint) as target:
        broker.mountpoint, broker.directory = target
        try:
            verdict = broker.judge(source)
            warn_of_source(
                arguments.source, None if source.size is None else source.fd, verdict.warnings
            )
            broker.mount()
        except ServerFailure as failure:
            name = arguments.source
            raise server_failure(name, failure, words.server, ExitCode.MOUNT) from failure
        except OSError as error:
            raise mount_failure(arguments.mountpoint, error) from error
    return verdict


def _publish(
    arguments: argparse.Namespace,
    image: Ready,
    broker: Broker,
    keeper: Keeper,
    containment: Containment,
    stack: contextlib.ExitStack,
) -> ControlServer | None:
    record = Record.of_this_process(
        mount_id=broker.info.mount_id if broker.info is not None else 0,
        connection=broker.connection,
        mountpoint=broker.mountpoint,
        source=os.path.realpath(arguments.source),
        type=image.type,
        started=time.time(),
        keeper=keeper.pid,
    )

    def statistics() -> dict[str, Any]:
        from penstock.cli.statistics import contained_statistics

        return contained_statistics(
            broker.statistics(),
            record,
            strict=containment.strict,
            without=_without() if image.type == MIRROR else {},
        )

    return publish(record, broker, statistics, stack)


def _without() -> Mapping[str, str]:
    """The layers that servers of directories do without, and why."""
    from penstock.contain.mirrorprofile import mirror_profile

    return mirror_profile(trusted=False).without


def _watch(
    broker: Broker,
    keeper: Keeper,
    connection: int,
    containment: Containment,
    mount_id: int | None = None,
) -> None:
    """Tell the keeper what to undo when this process dies. A mount in the making is never kept."""
    if mount_id is None:
        mount_id = broker.info.mount_id if broker.info is not None else 0
    directory = runtime_directory()
    name = f"{os.getpid()}-{connection}"
    files = [f"{directory}/{file}" for file in (f"{name}.json", f"{name}.sock", f".{name}.new")]
    keeper.watch(
        mount_id=mount_id,
        mountpoint=broker.mountpoint,
        connection=connection,
        files=files if os.path.isdir(directory) else (),
        crash="keep" if containment.keep_crashed and broker.info is not None else "umount",
    )


def _unmounted(broker: Broker, keeper: Keeper, containment: Containment) -> None:
    if keeper.alive:  # nothing is lost without it any more
        _watch(broker, keeper, broker.connection, containment, mount_id=NO_MOUNT)


def _report(arguments: argparse.Namespace, outcome: Outcome) -> int:
    if outcome.end is not End.CLEAN:
        _log.error("%s on %s: %s", arguments.source, arguments.mountpoint, outcome.text)
    return CODES[outcome.end]
