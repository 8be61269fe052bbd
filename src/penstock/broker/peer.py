# SPDX-License-Identifier: Apache-2.0
"""The broker's view of one server: where it is, what may come from it, and how much.

Invariants
    - A message is looked at only if it may come in the server's state (:data:`MAY_SEND`).
    - Each kind of message that a server sends of its own accord has a rate (:data:`RATES`). Lines
      for the log beyond theirs are dropped and counted; anything else is a violation then.
    - Numbers that name a place in the image lie inside the image.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final, NamedTuple

from penstock.broker.channel import Channel
from penstock.broker.launch import Launched
from penstock.broker.outcome import Outcome, judge_exit
from penstock.broker.protocol import (
    MAY_SEND,
    VERSION,
    Ended,
    EndReason,
    Failed,
    FailureCode,
    Kind,
    Layer,
    Message,
    ProtocolError,
    Ready,
    Serving,
    State,
    Welcome,
)

__all__ = ["RATES", "Peer", "Rate"]


class Rate(NamedTuple):
    """So many messages at once, and so many a second afterwards."""

    burst: int
    per_second: float


RATES: Final[dict[Kind, Rate]] = {
    Kind.LOG: Rate(100, 5),
    Kind.STATISTICS: Rate(32, 32),
    Kind.BACKING_OPEN: Rate(20_000, 20_000),
    Kind.BACKING_CLOSE: Rate(40_000, 40_000),
    Kind.INVALIDATE: Rate(10_000, 5_000),
}
_LAYERS: Final = 32
_LARGEST_BLOCK: Final = 1 << 20


class _Bucket:
    """How many messages of one kind may come now."""

    __slots__ = ("_left", "_rate", "_then")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._left = float(rate.burst)
        self._then = now

    def take(self, now: float) -> bool:
        """Whether one may; counts it."""
        rate = self._rate
        self._left = min(rate.burst, self._left + (now - self._then) * rate.per_second)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Peer:
    """One server.

    Args:
        launched: its process and socket; owned from here on.
        number: which of the mount's servers, from 0.
    """

    def __init__(self, launched: Launched, number: int = 0) -> None:
        self.pid = launched.pid
        self.pidfd = launched.pidfd
        self.channel: Channel = launched.channel
        self.number = number
        self.state = State.STARTED
        self.layers: dict[str, Layer] = {}
        self.ready: Ready | None = None
        self.failed: Failed | None = None
        self.goodbye: EndReason | None = None
        self.image_size = 0
        """Bytes; set before the image is sent."""
        self.dropped = 0
        """Log lines that were too many."""
        self.exit_status: int | None = None
        """As os.waitstatus_to_exitcode gives it; None while the process runs."""
        now = time.monotonic()
        self._buckets = {kind: _Bucket(rate, now) for kind, rate in RATES.items()}

    def take(self, message: Message) -> bool:
        """Check a message and note what it says of the server itself.

        Returns:
            Whether the broker has to look at it too; its descriptors are the caller's either way.

        Raises:
            ProtocolError: it may not come now, or says what cannot be.
        """
        kind = message.kind
        if kind not in MAY_SEND[self.state]:
            raise ProtocolError(f"{kind.name} from a server that is {self.state.value}")
        bucket = self._buckets.get(kind)
        if bucket is not None and not bucket.take(time.monotonic()):
            if kind is Kind.LOG:
                self.dropped += 1
                return False
            raise ProtocolError(f"{kind.name} comes too often")
        body = message.body
        if isinstance(body, Welcome):
            self._welcome(body)
        elif isinstance(body, Ready):
            self._ready(body)
        elif isinstance(body, Serving):
            self._add_layers(body.layers)
            self.state = State.SERVING
        elif isinstance(body, Failed):
            self._failed(body)
        elif isinstance(body, Ended):
            if body.reason not in set(EndReason):
                raise ProtocolError(f"ENDED: unknown reason {body.reason}")
            self.goodbye = EndReason(body.reason)
            self.state = State.ENDED
        return True

    def _welcome(self, body: Welcome) -> None:
        if body.version != VERSION:
            raise ProtocolError(f"WELCOME: version {body.version}, not {VERSION}")
        self._add_layers(body.layers)
        self.state = State.WELCOMED

    def _add_layers(self, layers: tuple[Layer, ...]) -> None:
        self.layers.update((layer.name, layer) for layer in layers)
        if len(self.layers) > _LAYERS:
            raise ProtocolError("too many layers")

    def _ready(self, body: Ready) -> None:
        size = self.image_size
        if not 0 < body.length <= size or body.offset > size - body.length:
            raise ProtocolError(
                f"READY: {body.length} bytes at {body.offset} of an image of {size} bytes"
            )
        block = body.block_size
        if block & (block - 1) or not 512 <= block <= _LARGEST_BLOCK:
            raise ProtocolError(f"READY: blocks of {block} bytes")
        self.ready = body
        self.state = State.READY

    def _failed(self, body: Failed) -> None:
        if body.code not in set(FailureCode):
            raise ProtocolError(f"FAILED: unknown code {body.code}")
        self.failed = body
        self.state = State.ENDED

    # The process

    def reap(self, *, wait: bool = False) -> bool:
        """Whether the process has ended; its status is then noted.

        Args:
            wait: wait for it.
        """
        if self.exit_status is None:
            try:
                pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            except ChildProcessError:
                pid, status = self.pid, 0
            if pid == 0:
                return False
            self.exit_status = os.waitstatus_to_exitcode(status)
        return True

    def kill(self) -> None:
        """Kill the process; returns at once."""
        if self.exit_status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def outcome(self, *, oom_killed: bool) -> Outcome | None:
        """How it has ended, None if it said goodbye and meant it. After :meth:`reap`."""
        status = self.exit_status or 0
        if self.goodbye is not None and status == 0:
            return None
        return judge_exit(status, oom_killed)

    def close(self) -> None:
        """Kill and reap the process, close socket and descriptor. Idempotent."""
        if self.pidfd >= 0:
            self.kill()
            self.reap(wait=True)
            self.channel.close()
            os.close(self.pidfd)
            self.pidfd = -1
