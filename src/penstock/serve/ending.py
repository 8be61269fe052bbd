# SPDX-License-Identifier: Apache-2.0
"""Serving a mount until it ends: by umount(8), by a call, or by a signal.

Signals and mounts
    - A process that dies of a signal leaves its mount behind, and whoever uses that gets ENOTCONN.
      So while a mount is made and served, signals are handled: they undo or unmount.
    - While the mount is being made, the first signal raises :class:`Stopped`, which interrupts
      whatever it is waiting for; later ones are ignored, so that undoing is not interrupted.
    - Once it is served, signals only leave a word for who waits: nothing is interrupted.
    - A signal that was ignored when the process was started (nohup, a job in the background of a
      script) stays ignored.
    - CPython handles signals in the main thread only; from another one nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

from penstock.broker.options import MountOptions
from penstock.fs import Operations
from penstock.serve.mount import Mount, mount

__all__ = ["Ending", "Stopped", "ending", "run"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A signal came before the mount was ready: undo what was done and go."""


class Ending:
    """Where the wishes for the end of one mount arrive; made by :func:`ending`."""

    def __init__(self) -> None:
        self._wishes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._raises = True

    def wait(self, mounted: Mount) -> None:
        """Wait until the mount has ended, or a signal asks for its end.

        The mount is not unmounted here. From here on signals no longer raise :class:`Stopped`.
        """

        def watch() -> None:
            mounted.wait()
            self._wishes.put("ended")

        threading.Thread(target=watch, name="penstock-watch", daemon=True).start()
        self.hold()
        self._wishes.get()

    def hold(self) -> None:
        """Let no signal interrupt what follows."""
        self._raises = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """A handler for signal(2)."""
        self._wishes.put(signal.Signals(number).name)
        if self._raises:
            self._raises = False
            raise Stopped


@contextlib.contextmanager
def ending() -> Iterator[Ending]:
    """Have SIGTERM, SIGINT and SIGHUP end a mount; on leaving, the old handlers are back.

    Raises:
        Stopped: inside, at any point before :meth:`Ending.wait`.
    """
    wishes = Ending()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # None: set by a library in C, which is not ours to replace.
            if signal.getsignal(number) not in {signal.SIG_IGN, None}:
                before[number] = signal.signal(number, wishes.handle)
    try:
        yield wishes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
