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
from collections.abc import Callable
from typing import Final

from penstock.broker.options import MountOptions
from penstock.cli.daemon import run_detached
from penstock.cli.errors import ExitCode, Failure
from penstock.cli.images import choose_partition
from penstock.cli.logs import configure_logging, log_to_syslog, warn
from penstock.cli.options import Words, parse_words

__all__ = ["mount_options", "request_timeout", "run"]

_MAX_WORKERS: Final = 64
_MAX_POLL: Final = 5000
_SHORTEST_TIMEOUT: Final = 15
"""Seconds; the kernel looks at its requests no oftener."""
_LONGEST_TIMEOUT: Final = 0xFFFF
_MAX_PROCESSES: Final = 16


def run(arguments: argparse.Namespace) -> int:
    """Mount; 0 when the mount can be used (with ``-f``: when it has ended)."""
    words = parse_words(arguments.options)
    choose_partition(words, arguments.partition)
    for note in words.notes:
        warn(note)
    options = mount_options(words, arguments.source)

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
    from penstock.broker.launch import launch

    processes = _number(words, "processes", 1, 1, _MAX_PROCESSES)
    # They import what they need while this process imports what it needs, the next line included.
    launched = [launch() for _ in range(processes)]
    from penstock.cli.contained import serve_contained

    return serve_contained(arguments, words, options, launched, ready)


def mount_options(words: Words, source: str) -> MountOptions:
    """What ``-o`` says of the mount itself.

    Raises:
        Failure: a value is out of range, or the caller may not have it (USAGE).
    """
    generic = words.generic
    root = os.geteuid() == 0
    for word in ("suid", "dev"):
        if word in generic and not root:
            raise Failure(f"-o {word}: is for root only", ExitCode.USAGE)
    return MountOptions(
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
        workers=_number(words, "workers", MountOptions().workers, 1, _MAX_WORKERS),
    )


def _number(words: Words, name: str, default: int, lowest: int, highest: int) -> int:
    number = int(words.generic.get(name, default))
    if not lowest <= number <= highest:
        raise Failure(f"-o {name}={number}: is not in {lowest} to {highest}", ExitCode.USAGE)
    return number


def request_timeout(words: Words) -> int:
    """Seconds after which the kernel gives up a mount that does not answer; 0 = never.

    Raises:
        Failure: the kernel cannot look after that (USAGE).
    """
    timeout = int(words.generic.get("request_timeout", 0))
    if timeout and not _SHORTEST_TIMEOUT <= timeout <= _LONGEST_TIMEOUT:
        text = f"is neither 0 nor in {_SHORTEST_TIMEOUT} to {_LONGEST_TIMEOUT}"
        raise Failure(f"-o request_timeout={timeout}: {text}", ExitCode.USAGE)
    return timeout


def _poll(text: str) -> str | int:
    if text in {"auto", "off"}:
        return text
    if text.isascii() and text.isdigit() and int(text) <= _MAX_POLL:
        return int(text)
    raise Failure(
        f"-o poll={text}: is neither auto nor off nor microseconds up to {_MAX_POLL}",
        ExitCode.USAGE,
    )
