# SPDX-License-Identifier: Apache-2.0
"""Signals while a mount is made and served: they undo, or end it.

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
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, Protocol

__all__ = ["Ending", "Stopped", "ending"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Mounted(Protocol):
    """A mount, as far as its end goes."""

    def wait(self) -> object:
        """Wait until it has ended."""
        ...


class Stopped(BaseException):
    """A signal came before the mount was ready: undo what was done and go."""


class Ending:
    """Where the wishes for the end of one mount arrive; made by :func:`ending`."""

    def __init__(self) -> None:
        self._wishes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._raises = True
        self.on_wish: Callable[[], None] | None = None
        """Called by the handler of a signal, once signals interrupt nothing any more."""

    def wait(self, mounted: _Mounted) -> None:
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
        if self.on_wish is not None:
            self.on_wish()


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
