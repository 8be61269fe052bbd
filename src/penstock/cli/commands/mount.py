# SPDX-License-Identifier: Apache-2.0
"""``penstock mount``: from a command line to a mount that can be used.

In the background, the process that was started waits for a child that does everything (see
:mod:`penstock.cli.daemon`); with ``-f`` it does everything itself. Either way that process is the
broker, which starts the servers (:mod:`penstock.cli.contained`), and ends when the mount has ended:
by umount(8), ``penstock umount``, or a signal: SIGTERM, SIGINT and SIGHUP unmount. If the mount is
in use then, it is taken out of the tree all the same and its users get errors.
"""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Callable
from typing import Final

from penstock.broker.launch import ServerKind
from penstock.cli.daemon import run_detached
from penstock.cli.errors import ExitCode, Failure
from penstock.cli.images import choose_partition
from penstock.cli.logs import configure_logging, log_to_syslog, warn
from penstock.cli.options import Words, number_of, parse_words

__all__ = ["run"]

_MAX_PROCESSES: Final = 16


def run(arguments: argparse.Namespace) -> int:
    """Mount; 0 when the mount can be used (with ``-f``: when it has ended)."""
    words = parse_words(arguments.options)
    choose_partition(words, arguments.partition)
    if arguments.read_only:
        words.generic.pop("rw", None)
        words.generic["ro"] = ""
    for note in words.notes:
        warn(note)
    configure_logging(debug=arguments.debug)
    if arguments.foreground or arguments.debug:
        return _serve(arguments, words, lambda: None)

    def work(become_daemon: Callable[[], None]) -> int:
        def ready() -> None:
            become_daemon()
            log_to_syslog()

        return _serve(arguments, words, ready)

    return run_detached(work)


def _serve(arguments: argparse.Namespace, words: Words, ready: Callable[[], None]) -> int:
    kind = _kind(arguments, words)
    if words.generic.get("sandbox") == "no":
        from penstock.cli.inprocess import serve_in_process

        return serve_in_process(arguments, words, ready, tree=kind.is_mirror)
    from penstock.broker.launch import launch, stay_in_memory

    processes = number_of(words, "processes", 1, 1, _MAX_PROCESSES)
    if kind.is_mirror and processes > 1:
        raise Failure(
            f"-o processes={processes}: a directory has one server, which keeps its locks",
            ExitCode.USAGE,
        )
    # They import what they need while this process imports what it needs, the next line included.
    stay_in_memory()
    launched = [launch(kind) for _ in range(processes)]
    from penstock.cli.contained import serve_contained

    return serve_contained(arguments, words, launched, ready, tree=kind.is_mirror)


def _kind(arguments: argparse.Namespace, words: Words) -> ServerKind:
    """Which server the source takes.

    Raises:
        Failure: it is not what -t says (MOUNT).
    """
    if not _names_tree(arguments.source, arguments.type):
        if "rw" in words.generic:
            warn("-o rw: accepted, but images are mounted read-only")
        return ServerKind.IMAGE
    return ServerKind.TRUSTED_MIRROR if "trusted" in words.server else ServerKind.MIRROR


def _names_tree(source: str, wanted: str | None) -> bool:
    """Whether the source is a directory."""
    try:
        is_tree = stat.S_ISDIR(os.stat(source).st_mode)
    except (OSError, ValueError):
        return wanted == "mirror"  # opening it tells what is wrong
    if is_tree and wanted not in {None, "mirror"}:
        text = f"{source}: is a directory, which -t {wanted} does not serve (-t mirror does)"
        raise Failure(text, ExitCode.MOUNT)
    if not is_tree and wanted == "mirror":
        raise Failure(f"{source}: is no directory, which -t mirror is for", ExitCode.MOUNT)
    return is_tree
