# SPDX-License-Identifier: Apache-2.0
"""Answers that come later.

An operation that would have to wait (for a lock, a peer, an event) returns a :class:`Pending`
instead of its value and the worker goes on to the next request. Any thread completes or fails it,
once. The kernel's INTERRUPT cancels it, unmount drains it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar, cast

from penstock.fs.errors import FsError

__all__ = ["Answer", "Pending"]

T = TypeVar("T")


class Pending(Generic[T]):
    """The promise of an answer to one request.

    Args:
        on_cancel: called once, from the thread that cancels, when the caller has been interrupted
            or the filesystem is unmounted, unless the answer came first. It withdraws whatever
            would have completed the answer. The request is answered EINTR by then.
    """

    __slots__ = ("_lock", "_on_cancel", "_outcome", "_then")

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._on_cancel = on_cancel
        self._outcome: tuple[T | None, BaseException | None] | None = None
        self._then: Callable[[T | None, BaseException | None], None] | None = None

    @property
    def done(self) -> bool:
        """Whether it was completed, failed or cancelled."""
        return self._outcome is not None

    def complete(self, value: T) -> bool:
        """Answer with a value. Returns False, and does nothing, if it was done already."""
        return self._finish(value, None)

    def fail(self, error: int | BaseException) -> bool:
        """Answer with an errno or an exception. Returns False if it was done already."""
        return self._finish(None, FsError(error) if isinstance(error, int) else error)

    def cancel(self, error: int = errno.EINTR) -> bool:
        """Withdraw the request, answering ``error``. Returns False if it was done already."""
        if not self._finish(None, FsError(error)):
            return False
        if self._on_cancel is not None:
            self._on_cancel()
        return True

    def then(self, callback: Callable[[T | None, BaseException | None], None]) -> None:
        """Have ``callback(value, error)`` called once with the outcome: at once if it is there,
        else by the thread that brings it. One callback only; the session's."""
        with self._lock:
            if self._outcome is None:
                self._then = callback
                return
            outcome = self._outcome
        callback(*outcome)

    def _finish(self, value: T | None, error: BaseException | None) -> bool:
        with self._lock:
            if self._outcome is not None:
                return False
            self._outcome = (value, error)
            callback = self._then
        if callback is not None:
            callback(cast("T", value), error)
        return True


Answer: TypeAlias = T | Pending[T]
"""What an operation returns: the value, or the promise of it."""
