# SPDX-License-Identifier: Apache-2.0
"""Serving a mount until it ends: by umount(8), by a call, or by a signal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from penstock.broker.ending import Ending, Stopped, ending
from penstock.broker.options import MountOptions
from penstock.fs import Operations
from penstock.serve.mount import Mount, mount

__all__ = ["Ending", "Stopped", "ending", "run"]


def run(
    operations: Operations,
    mountpoint: str | os.PathLike[str],
    options: MountOptions = MountOptions(),
    *,
    ready: Callable[[Mount], object] | None = None,
) -> None:
    """Mount a filesystem and serve it until it is unmounted, by whomever, or a signal comes.

    SIGINT, SIGTERM and SIGHUP unmount it, and this returns; a mount that is in use then is taken
    out of the tree, and its users get errors. A signal that is ignored stays ignored. Outside the
    main thread signals are not handled.

    Args:
        operations: the filesystem; ``destroy`` is called when the mount ends.
        mountpoint: an existing directory.
        options: see :class:`MountOptions`.
        ready: called with the mount, once it can be used.

    Raises:
        OSError: the mount point cannot be used, or the caller may not mount.
        ValueError: an option is wrong.
    """
    with ending() as end, contextlib.suppress(Stopped):
        mounted = None
        try:
            mounted = mount(operations, mountpoint, options)
            if ready is not None:
                ready(mounted)
            end.wait(mounted)
        finally:
            end.hold()
            if mounted is not None:
                mounted.close()
