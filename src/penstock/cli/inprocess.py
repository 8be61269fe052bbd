# SPDX-License-Identifier: Apache-2.0
"""Mounting with everything in this process (``-o sandbox=no``): for debugging."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable
from typing import Final

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.failures import server_failure
from penstock.cli.images import as_server_says, open_filesystem, open_source
from penstock.cli.logs import warn
from penstock.cli.mountoptions import mount_options
from penstock.cli.mountpoints import claimed
from penstock.cli.options import Words
from penstock.cli.publishing import mount_failure, publish, warn_of_source
from penstock.cli.statistics import statistics_of
from penstock.control import Record
from penstock.serve import Mount, MountOptions, Stopped, ending, mount
from penstock.servers import Server
from penstock.sys.notify import notify

__all__ = ["serve_in_process"]

_log = logging.getLogger(__name__)

_UNHEEDED: Final = ("processes", "crash", "request_timeout")
"""What takes a broker."""


def serve_in_process(
    arguments: argparse.Namespace, words: Words, ready: Callable[[], None], *, tree: bool
) -> int:
    """Mount, call ``ready``, and serve until the mount has ended; the exit code.

    Args:
        arguments: of the command line.
        words: the same for ``-o``.
        ready: called when the mount can be used.
        tree: whether the source is a directory.
    """
    options = mount_options(words, arguments.source, tree=tree)
    for word in _UNHEEDED:
        if word in words.generic:
            warn(f"-o {word}: has no effect with sandbox=no")
    try:
        with contextlib.ExitStack() as stack:
            end = stack.enter_context(ending())
            mounted = _mount(arguments, words, options, stack, tree=tree)
            notify("READY=1", f"STATUS={arguments.source} is mounted on {mounted.mountpoint}")
            ready()
            end.wait(mounted)
            notify("STOPPING=1")
            mounted.close()  # while it is still on record, so that list never misses one
    except Stopped:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _log_request(line: str) -> None:
    _log.debug("%s", line)


def _mount(
    arguments: argparse.Namespace,
    words: Words,
    options: MountOptions,
    stack: contextlib.ExitStack,
    *,
    tree: bool,
) -> Mount:
    """Open the source, mount it, publish it; everything is undone by ``stack``."""
    if tree:
        from penstock.cli.trees import opened_tree

        opened = opened_tree(arguments.source, read_only=options.read_only)
        fd = stack.enter_context(opened)
    else:
        fd = open_source(arguments.source, ExitCode.MOUNT)
        stack.callback(os.close, fd)
    with claimed(arguments.mountpoint) as target:
        if tree:
            server = _open_tree(arguments.source, fd, words, options)
        else:
            server = open_filesystem(
                arguments.source, fd, arguments.type, words.server, ExitCode.MOUNT
            )
        warn_of_source(arguments.source, None if tree else fd, server.warnings)
        options = dataclasses.replace(options, read_only=options.read_only or server.read_only)
        try:
            trace = _log_request if arguments.debug else None
            mounted = mount(server.operations, target.path, options, trace, target.directory)
        except OSError as error:
            raise mount_failure(arguments.mountpoint, error) from error
        except ValueError as error:
            raise Failure(f"-o {explain(error)}", ExitCode.USAGE) from error
        stack.enter_context(mounted)
        _publish(mounted, server, os.path.realpath(arguments.source), stack)
    return mounted


def _open_tree(source: str, fd: int, words: Words, options: MountOptions) -> Server:
    """The server of a directory.

    Raises:
        Failure: a word is wrong (USAGE), or it cannot be served (MOUNT).
    """
    from penstock.servers.mirror.options import parse_options
    from penstock.servers.mirror.server import open_mirror

    try:
        return open_mirror(fd, parse_options(words.server, read_only=options.read_only))
    except (ValueError, OSError) as error:
        raise server_failure(source, as_server_says(error), words.server, ExitCode.MOUNT) from error


def _publish(mounted: Mount, server: Server, source: str, stack: contextlib.ExitStack) -> None:
    record = Record.of_this_process(
        mount_id=mounted.info.mount_id if mounted.info is not None else 0,
        connection=mounted.connection,
        mountpoint=mounted.mountpoint,
        source=source,
        type=server.type,
        started=time.time(),
    )
    publish(record, mounted, lambda: statistics_of(mounted.statistics(), record), stack)
