# SPDX-License-Identifier: Apache-2.0
"""``penstock mount``: from a command line to a mount that can be used.

In the background, the process that was started waits for a child that does everything (see
:mod:`penstock.cli.daemon`); with ``-f`` it does everything itself. Either way the serving process
ends when the mount has ended, by umount(8), ``penstock umount``, or a signal: SIGTERM, SIGINT and
SIGHUP unmount. If the mount is in use then, it is taken out of the tree all the same and its users
get errors, since the server will be gone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Final

from penstock.cli.daemon import run_detached
from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.logs import configure_logging, warn
from penstock.cli.options import Words, parse_words

if TYPE_CHECKING:
    from penstock.control import Handler
    from penstock.serve import Mount, MountOptions
    from penstock.servers import Server

__all__ = ["run"]

_MAX_WORKERS: Final = 64
_MAX_POLL: Final = 5000
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(arguments: argparse.Namespace) -> int:
    """Mount; 0 when the mount can be used (with ``-f``: when it has ended)."""
    words = parse_words(arguments.options)
    if arguments.partition is not None:
        words.server["partition"] = str(arguments.partition)
    for note in words.notes:
        warn(note)

    def work(ready: Callable[[], None]) -> int:
        configure_logging(debug=arguments.debug)
        return _serve(arguments, words, ready)

    if arguments.foreground or arguments.debug:
        return work(lambda: None)
    return run_detached(work)


class _Stopped(BaseException):
    """A signal came before the mount was ready: undo what was done and go."""


@contextlib.contextmanager
def _signals_into(wishes: queue.SimpleQueue[str]) -> Iterator[Callable[[], None]]:
    """Have signals end the mount: until the yielded function is called by raising
    :class:`_Stopped`, then by a word in the queue."""
    is_ready = False

    def handle(number: int, _frame: FrameType | None) -> None:
        if not is_ready:
            raise _Stopped
        wishes.put(signal.Signals(number).name)

    def switch() -> None:
        nonlocal is_ready
        is_ready = True

    before = {}
    for number in _SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # started by nohup
        before[number] = signal.signal(number, handle)
    try:
        yield switch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(arguments: argparse.Namespace, words: Words, ready: Callable[[], None]) -> int:
    wishes: queue.SimpleQueue[str] = queue.SimpleQueue()
    try:
        with contextlib.ExitStack() as stack:
            switch = stack.enter_context(_signals_into(wishes))
            mounted = _mount(arguments, words, stack)
            _when_ended(mounted, wishes)
            ready()
            switch()
            wishes.get()
            _end(mounted)
    except _Stopped:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _end(mounted: Mount) -> None:
    """Unmount while the mount is still on record, so that ``list`` never misses one."""
    try:
        mounted.unmount()
    except OSError as error:
        warn(f"{mounted.mountpoint}: {explain(error)}; detaching it")
        mounted.unmount(lazy=True)


def _when_ended(mounted: Mount, wishes: queue.SimpleQueue[str]) -> None:
    import threading

    def watch() -> None:
        mounted.wait()
        wishes.put("ended")

    threading.Thread(target=watch, name="penstock-watch", daemon=True).start()


def _mount(arguments: argparse.Namespace, words: Words, stack: contextlib.ExitStack) -> Mount:
    """Open the image, mount it, publish it; everything is undone by ``stack``."""
    from penstock.cli.images import open_filesystem, open_source
    from penstock.serve import mount

    fd = open_source(arguments.source, ExitCode.MOUNT)
    stack.callback(os.close, fd)
    target = _mountpoint(arguments.mountpoint)
    server = open_filesystem(arguments.source, fd, arguments.type, words.server, ExitCode.MOUNT)
    for warning in server.warnings:
        warn(f"{arguments.source}: {warning}")
    options = _mount_options(words, server, os.path.realpath(arguments.source))
    try:
        mounted = mount(server.operations, target, options)
    except OSError as error:
        raise Failure(f"{arguments.mountpoint}: {explain(error)}", ExitCode.MOUNT) from error
    except ValueError as error:
        raise Failure(f"-o {explain(error)}", ExitCode.USAGE) from error
    stack.enter_context(mounted)
    _publish(mounted, server, os.path.realpath(arguments.source), stack)
    return mounted


def _mountpoint(path: str) -> str:
    """The absolute path to mount on.

    Raises:
        Failure: it is no directory, or a mount of ours that must not be covered.
    """
    from penstock.control import State, find_record
    from penstock.sys.mountinfo import find_mount, resolve_parent

    if not path or "\0" in path:
        raise Failure(f"{path!r}: is no path for a mount point", ExitCode.USAGE)
    try:
        target = resolve_parent(path)
    except OSError as error:  # a relative path in a directory that was deleted
        raise Failure(f"{path}: {explain(error)}", ExitCode.MOUNT) from error
    entry = find_mount(target)
    if entry is None:
        target = os.path.realpath(target)
        if not os.path.lexists(target):
            raise Failure(f"{path}: the mount point does not exist", ExitCode.MOUNT)
        if not os.path.isdir(target):
            raise Failure(f"{path}: the mount point is not a directory", ExitCode.MOUNT)
        return target
    listed = find_record(entry)
    if listed is not None and listed.state is State.STALE:
        raise Failure(
            f"{path}: has a mount whose server has died; run: penstock umount {target}",
            ExitCode.MOUNT,
        )
    if listed is not None:
        raise Failure(f"{path}: {listed.record.source} is mounted there", ExitCode.MOUNT)
    return target


def _mount_options(words: Words, server: Server, source: str) -> MountOptions:
    from penstock.serve import MountOptions

    generic = words.generic
    root = os.geteuid() == 0
    for word in ("suid", "dev"):
        if word in generic and not root:
            raise Failure(f"-o {word}: is for root only", ExitCode.USAGE)
    options = MountOptions(
        source=generic.get("fsname", source),
        subtype=generic.get("subtype", "penstock"),
        read_only=server.read_only or "ro" in generic,
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


def _publish(mounted: Mount, server: Server, source: str, stack: contextlib.ExitStack) -> None:
    """Make the mount known to list, stats and umount. Without that it still works."""
    from penstock.control import PING, STATS, UNMOUNT, ControlServer, Record

    record = Record.of_this_process(
        mount_id=mounted.info.mount_id if mounted.info is not None else 0,
        connection=mounted.connection,
        mountpoint=mounted.mountpoint,
        source=source,
        type=server.type,
        started=time.time(),
    )
    handlers: dict[str, Handler] = {
        PING: lambda _: {"pid": os.getpid()},
        STATS: lambda _: {"statistics": _statistics(mounted, record)},
        UNMOUNT: lambda parameters: _unmount(mounted, lazy=parameters.get("lazy") is True),
    }
    try:
        stack.enter_context(ControlServer(record, handlers))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        warn(f"no control socket, so list and stats will not show it: {where}{explain(error)}")


def _unmount(mounted: Mount, *, lazy: bool) -> dict[str, object]:
    from penstock.control import ControlError

    try:
        mounted.unmount(lazy=lazy)
    except OSError as error:
        raise ControlError("org.penstock.Mount.Failed", {"message": explain(error)}) from error
    return {}


def _statistics(mounted: Mount, record: object) -> dict[str, object]:
    from penstock.cli.statistics import statistics_of
    from penstock.control import Record

    assert isinstance(record, Record)
    return statistics_of(mounted.statistics(), record)
