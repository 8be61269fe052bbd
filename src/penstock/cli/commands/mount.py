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
import dataclasses
import os
from collections.abc import Callable
from typing import Final

from penstock.broker.options import MountOptions
from penstock.cli.daemon import run_detached
from penstock.cli.errors import ExitCode, Failure
from penstock.cli.images import choose_partition
from penstock.cli.logs import configure_logging, log_to_syslog, warn
from penstock.cli.options import Words, parse_words

__all__ = ["run"]

_MAX_WORKERS: Final = 64
_MAX_POLL: Final = 5000


def run(arguments: argparse.Namespace) -> int:
    """Mount; 0 when the mount can be used (with ``-f``: when it has ended)."""
    words = parse_words(arguments.options)
    choose_partition(words, arguments.partition)
    for note in words.notes:
        warn(note)
    options = _mount_options(words, arguments.source)

    configure_logging(debug=arguments.debug)
    if arguments.foreground or arguments.debug:
        return _serve(arguments, words, options, lambda: None)

    def work(become_daemon: Callable[[], None]) -> int:
        def ready() -> None:
            become_daemon()
            log_to_syslog()

        return _serve(arguments, words, options, ready)

    return run_detached(work)


def _serve(
    arguments: argparse.Namespace, words: Words, options: MountOptions, ready: Callable[[], None]
) -> int:
    if words.generic.get("sandbox") == "no":
        from penstock.cli.inprocess import serve_in_process

        return serve_in_process(arguments, words, options, ready)
    from penstock.cli.contained import serve_contained

    return serve_contained(arguments, words, options, ready)


def _mount_options(words: Words, source: str) -> MountOptions:
    generic = words.generic
    root = os.geteuid() == 0
    for word in ("suid", "dev"):
        if word in generic and not root:
            raise Failure(f"-o {word}: is for root only", ExitCode.USAGE)
    options = MountOptions(
        source=generic.get("fsname", os.path.realpath(source)),
        subtype=generic.get("subtype", "penstock"),
        read_only=True,  # images are never written
        allow_other="allow_other" in generic,
        suid="suid" in generic,
        dev="dev" in generic,
        exec="noexec" not in generic,
        symfollow="nosymfollow" not in generic,
        poll=_poll(generic.get("poll", "auto")),
        datapath=generic.get("datapath", "auto"),
        max_read=int(generic.get("max_read", 0)),
    )
    if "workers" in generic:
        workers = int(generic["workers"])
        if not 1 <= workers <= _MAX_WORKERS:
            raise Failure(f"-o workers={workers}: is not in 1 to {_MAX_WORKERS}", ExitCode.USAGE)
        options = dataclasses.replace(options, workers=workers)
    return options


def _poll(text: str) -> str | int:
    if text in {"auto", "off"}:
        return text
    if text.isascii() and text.isdigit() and int(text) <= _MAX_POLL:
        return int(text)
    raise Failure(
        f"-o poll={text}: is neither auto nor off nor microseconds up to {_MAX_POLL}",
        ExitCode.USAGE,
    )
