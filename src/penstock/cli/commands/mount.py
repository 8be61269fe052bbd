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
from collections.abc import Callable
from typing import Final

from penstock.cli.daemon import run_detached
from penstock.cli.images import choose_partition
from penstock.cli.logs import configure_logging, log_to_syslog, warn
from penstock.cli.options import Words, number_of, parse_words

__all__ = ["run"]

_MAX_PROCESSES: Final = 16


def run(arguments: argparse.Namespace) -> int:
    """Mount; 0 when the mount can be used (with ``-f``: when it has ended)."""
    words = parse_words(arguments.options)
    choose_partition(words, arguments.partition)
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
    if words.generic.get("sandbox") == "no":
        from penstock.cli.inprocess import serve_in_process

        return serve_in_process(arguments, words, ready)
    from penstock.broker.launch import launch, stay_in_memory

    processes = number_of(words, "processes", 1, 1, _MAX_PROCESSES)
    # They import what they need while this process imports what it needs, the next line included.
    stay_in_memory()
    launched = [launch() for _ in range(processes)]
    from penstock.cli.contained import serve_contained

    return serve_contained(arguments, words, launched, ready)
