# SPDX-License-Identifier: Apache-2.0
"""What mounting has in common, whether or not the server is contained: what the user is told, and
how the mount becomes known to other commands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.logs import warn
from penstock.control import (
    ABORT,
    PING,
    STATS,
    UNMOUNT,
    ControlError,
    ControlServer,
    Handler,
    Record,
)
from penstock.sys.inuse import in_use

__all__ = ["mount_failure", "publish", "warn_of_source"]


class _Mounted(Protocol):
    """A mount, as far as other commands steer it."""

    def unmount(self, *, lazy: bool) -> None: ...

    def abort(self) -> None: ...


def warn_of_source(source: str, fd: int | None, warnings: Iterable[str]) -> None:
    """Tell the user what is odd about an image or a directory.

    Args:
        source: its path, as the user named it.
        fd: the image; None: a directory, which others may use at the same time.
        warnings: what the server said of it.
    """
    for warning in warnings:
        warn(f"{source}: {warning}")
    if fd is None:
        return
    user = in_use(fd)
    if user is not None:
        warn(f"{source}: is {user}: what is shown may be out of date or torn")


def mount_failure(mountpoint: str, error: OSError) -> Failure:
    """Why nothing could be mounted there."""
    why = explain(error)
    if "/dev/fuse" in str(error):
        why += " (see penstock doctor)"
    return Failure(f"{mountpoint}: {why}", ExitCode.MOUNT)


def publish(
    record: Record,
    mounted: _Mounted,
    statistics: Callable[[], dict[str, Any]],
    stack: contextlib.ExitStack,
) -> ControlServer | None:
    """Make a mount known to list, stats and umount. Without that it still works.

    Args:
        record: what the mount is.
        mounted: the mount.
        statistics: gives what stats shows.
        stack: withdraws it in the end.
    """

    def unmount(parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            mounted.unmount(lazy=parameters.get("lazy") is True)
        except OSError as error:
            raise ControlError("org.penstock.Mount.Failed", {"message": explain(error)}) from error
        return {}

    def abort(_: dict[str, Any]) -> dict[str, Any]:
        mounted.abort()
        return {}

    handlers: dict[str, Handler] = {
        PING: lambda _: {"pid": os.getpid()},
        STATS: lambda _: {"statistics": statistics()},
        UNMOUNT: unmount,
        ABORT: abort,
    }
    try:
        return stack.enter_context(ControlServer(record, handlers))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        warn(f"no control socket, so list and stats will not show it: {where}{explain(error)}")
        return None
