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
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from penstock.cli.daemon import run_detached
from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.images import choose_partition
from penstock.cli.logs import configure_logging, log_to_syslog, warn
from penstock.cli.options import Words, parse_words

if TYPE_CHECKING:
    from penstock.control import Handler
    from penstock.serve import Mount, MountOptions
    from penstock.servers import Server
    from penstock.sys.mountinfo import MountInfo

__all__ = ["run"]

_log = logging.getLogger(__name__)

_MAX_WORKERS: Final = 64
_MAX_POLL: Final = 5000


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


def _log_request(line: str) -> None:
    _log.debug("%s", line)


def _serve(arguments: argparse.Namespace, words: Words, ready: Callable[[], None]) -> int:
    from penstock.serve import Stopped, ending

    try:
        with contextlib.ExitStack() as stack:
            end = stack.enter_context(ending())
            mounted = _mount(arguments, words, stack)
            ready()
            end.wait(mounted)
            mounted.close()  # while it is still on record, so that list never misses one
    except Stopped:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _mount(arguments: argparse.Namespace, words: Words, stack: contextlib.ExitStack) -> Mount:
    """Open the image, mount it, publish it; everything is undone by ``stack``."""
    from penstock.cli.images import open_filesystem, open_source
    from penstock.serve import mount
    from penstock.sys.inuse import in_use

    fd = open_source(arguments.source, ExitCode.MOUNT)
    stack.callback(os.close, fd)
    with _claimed(arguments.mountpoint) as target:
        server = open_filesystem(arguments.source, fd, arguments.type, words.server, ExitCode.MOUNT)
        for warning in server.warnings:
            warn(f"{arguments.source}: {warning}")
        user = in_use(fd)
        if user is not None:
            warn(f"{arguments.source}: is {user}: what is shown may be out of date or torn")
        options = _mount_options(words, server, os.path.realpath(arguments.source))
        try:
            trace = _log_request if arguments.debug else None
            mounted = mount(server.operations, target, options, trace)
        except OSError as error:
            why = explain(error)
            if "/dev/fuse" in str(error):
                why += " (see penstock doctor)"
            raise Failure(f"{arguments.mountpoint}: {why}", ExitCode.MOUNT) from error
        except ValueError as error:
            raise Failure(f"-o {explain(error)}", ExitCode.USAGE) from error
        stack.enter_context(mounted)
        _publish(mounted, server, os.path.realpath(arguments.source), stack)
    return mounted


@contextlib.contextmanager
def _claimed(path: str) -> Iterator[str]:
    """The absolute path to mount on, for this process alone as long as the block runs: of two that
    mount there at the same time one is refused. The lock is on the directory itself.

    Raises:
        Failure: as :func:`_mountpoint`, or another process is about to mount there.
    """
    target, covered = _mountpoint(path)
    with contextlib.ExitStack() as stack:
        try:
            lock = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Failure(f"{path}: another mount is being made there", ExitCode.MOUNT) from error
        except OSError as error:
            # It may not be read, or its filesystem has no locks. That need not keep from mounting.
            _log.debug("%s: %s", target, error)
        target, covered = _mountpoint(path)  # again, for what came before the lock was there
        if covered is not None:
            what = f"{covered.fstype} ({covered.source})"
            warn(f"{path}: {what} is mounted there, and is covered now")
        yield target


def _mountpoint(path: str) -> tuple[str, MountInfo | None]:
    """The absolute path to mount on, and the mount that will be covered.

    Raises:
        Failure: it is no directory, the root, or a mount of ours that must not be covered.
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
        entry = find_mount(target)  # which a symlink may lead to
    if target == "/":
        text = "is the root directory; choose another mount point"
        raise Failure(f"{path}: {text}", ExitCode.MOUNT)
    if entry is None:
        if not os.path.lexists(target):
            raise Failure(f"{path}: the mount point does not exist", ExitCode.MOUNT)
        if not os.path.isdir(target):
            raise Failure(f"{path}: the mount point is not a directory", ExitCode.MOUNT)
        return target, None
    listed = find_record(entry)
    if listed is not None and listed.state is State.STALE:
        raise Failure(
            f"{path}: has a mount whose server has died; run: penstock umount {target}",
            ExitCode.MOUNT,
        )
    if listed is not None:
        raise Failure(f"{path}: {listed.record.source} is mounted there", ExitCode.MOUNT)
    return target, entry


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
