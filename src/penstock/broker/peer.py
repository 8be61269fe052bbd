# SPDX-License-Identifier: Apache-2.0
"""The broker's view of one server: where it is, what may come from it, and how much.

Invariants
    - A message is looked at only if it may come in the server's state (:data:`MAY_SEND`).
    - All messages together have a rate (:data:`ALL`), which no honest server comes near, and each
      kind that a server sends of its own accord has one (:data:`RATES`). Lines for the log beyond
      theirs are dropped and counted; anything else is a violation then.
    - Nothing is an answer that was not asked for.
    - Numbers that name a place in the image lie inside the image.
    - A layer of the sandbox that was missing stays missing, whatever a server says of it that has
      seen the image.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from penstock.broker.channel import Channel
from penstock.broker.launch import Launched
from penstock.broker.outcome import Outcome, ServerFailure, judge_exit
from penstock.broker.protocol import (
    BECOMES,
    MAY_SEND,
    VERSION,
    Body,
    Ended,
    EndReason,
    Failed,
    GetStatistics,
    Hello,
    Image,
    Kind,
    Layer,
    Message,
    ProtocolError,
    Purpose,
    Ready,
    Serving,
    State,
    Statistics,
    Tree,
    Welcome,
    kind_of,
)
from penstock.sys.process import wait_pidfd

__all__ = ["ALL", "KILL_SECONDS", "RATES", "Bucket", "Peer", "Rate", "missing_layers"]


class Rate(NamedTuple):
    """So many messages at once, and so many a second afterwards."""

    burst: int
    per_second: float


ALL: Final = Rate(50_000, 10_000)
"""Messages of one server, whatever they are; without lines for the log where all are wanted."""
RATES: Final[dict[Kind, Rate]] = {
    Kind.LOG: Rate(100, 5),
    Kind.STATISTICS: Rate(32, 32),
    Kind.INVALIDATE: Rate(10_000, 5_000),
}
KILL_SECONDS: Final = 5.0
"""How long a process may take to end that was killed."""
_LARGEST_BLOCK: Final = 1 << 20


def missing_layers(peers: Iterable[Peer], *, strict: bool) -> dict[str, str]:
    """The layers of the sandbox that a server is without, and why.

    Args:
        peers: the servers.
        strict: let none be missing.

    Raises:
        ServerFailure: one is missing, and none may be.
    """
    missing = {
        layer.name: layer.detail
        for peer in peers
        for layer in peer.layers.values()
        if not layer.in_force
    }
    if missing and strict:
        what = "; ".join(f"{name}: {detail}" for name, detail in missing.items())
        raise ServerFailure(f"sandbox=strict: a layer is missing: {what}")
    return missing


class Bucket:
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
        chatty: take as many lines for the log as come.
    """

    def __init__(self, launched: Launched, number: int = 0, *, chatty: bool = False) -> None:
        self.pid = launched.pid
        self.pidfd = launched.pidfd
        self.channel: Channel = launched.channel
        self.number = number
        self.state = State.STARTED
        self.layers: dict[str, Layer] = {}
        self.ready: Ready | None = None
        self.failed: Failed | None = None
        self.goodbye: EndReason | None = None
        self.image_size: int | None = 0
        """Bytes, as it was told; None: it has no image but a directory."""
        self.dropped = 0
        """Log lines that were too many."""
        self.unheard = 0
        """Messages to it that it has not made room for."""
        self.exit_status: int | None = None
        """As os.waitstatus_to_exitcode gives it; None while the process runs."""
        now = time.monotonic()
        self._all = Bucket(ALL, now)
        self._buckets = {kind: Bucket(rate, now) for kind, rate in RATES.items()}
        if chatty:
            del self._buckets[Kind.LOG]
        self._purpose = Purpose.MOUNT
        self._unanswered = 0
        self._lock = threading.Lock()

    def send(self, body: Body, fds: Sequence[int] = (), serial: int = 0) -> None:
        """Send it a message, and note what that makes of it. From any thread.

        Raises:
            BlockingIOError: it does not read.
            OSError: it has gone.
        """
        with self._lock:
            self.channel.send(body, fds, serial)
            if isinstance(body, GetStatistics):
                self._unanswered += 1
            elif isinstance(body, Hello):
                self._purpose = body.purpose
            elif isinstance(body, Image):
                self.image_size = body.size
            elif isinstance(body, Tree):
                self.image_size = None
            self._become(kind_of(body))

    def _become(self, kind: Kind) -> None:
        state = BECOMES[self.state].get(kind, self.state)
        if state is State.JUDGING and self._purpose is Purpose.DESCRIBE:
            state = State.DESCRIBING
        self.state = state

    def take(self, message: Message) -> bool:
        """Check a message and note what it says of the server itself.

        Returns:
            Whether the broker has to look at it too; its descriptors are then the caller's.

        Raises:
            ProtocolError: it may not come now, or says what cannot be.
        """
        try:
            taken = self._take(message)
        except ProtocolError:
            self._discard(message)
            raise
        if not taken:
            self._discard(message)
        return taken

    def _discard(self, message: Message) -> None:
        for fd in message.fds:
            self.channel.discard(fd)

    def _take(self, message: Message) -> bool:
        kind = message.kind
        with self._lock:
            if kind not in MAY_SEND[self.state]:
                raise ProtocolError(f"{kind.name} from a server that is {self.state.value}")
            if not self._in_time(kind):
                self.dropped += 1
                return False
            self._note(message.body)
            self._become(kind)
        return True

    def _in_time(self, kind: Kind) -> bool:
        """Whether the message comes within its rate; False: leave it be."""
        now = time.monotonic()
        bucket = self._buckets.get(kind)
        if kind is Kind.LOG and bucket is None:
            return True
        if not self._all.take(now):
            raise ProtocolError("its messages come too often")
        if bucket is None or bucket.take(now):
            return True
        if kind is not Kind.LOG:
            raise ProtocolError(f"{kind.name} comes too often")
        return False

    def _note(self, body: Body) -> None:
        if isinstance(body, Welcome):
            if body.version != VERSION:
                raise ProtocolError(f"WELCOME: version {body.version}, not {VERSION}")
            self._add_layers(body.layers)
        elif isinstance(body, Ready):
            self._check_place(body)
            self.ready = body
        elif isinstance(body, Serving):
            self._add_layers(body.layers)
        elif isinstance(body, Failed):
            text = body.text.strip() or "the server does not say why"
            self.failed = Failed(body.code, text)
        elif isinstance(body, Ended):
            self.goodbye = body.reason
        elif isinstance(body, Statistics):
            if not self._unanswered:
                raise ProtocolError("STATISTICS that nobody asked for")
            self._unanswered -= 1

    def _add_layers(self, layers: tuple[Layer, ...]) -> None:
        """Note layers; one that was missing before the image came stays missing."""
        first = self.state is State.STARTED
        for layer in layers:
            known = self.layers.get(layer.name)
            if first or (known is not None and known.in_force):
                self.layers[layer.name] = layer

    def _check_place(self, body: Ready) -> None:
        size = self.image_size
        if size is None:
            if body.offset or body.length:
                raise ProtocolError("READY: a directory is no place in an image")
        elif not 0 < body.length <= size or body.offset > size - body.length:
            raise ProtocolError(
                f"READY: {body.length} bytes at {body.offset} of an image of {size} bytes"
            )
        block = body.block_size
        if block & (block - 1) or not 512 <= block <= _LARGEST_BLOCK:
            raise ProtocolError(f"READY: blocks of {block} bytes")

    # The process

    def reap(self, *, seconds: float = 0.0) -> bool:
        """Whether the process has ended; its status is then noted.

        Args:
            seconds: to wait for it. One that waits for a disk cannot even be killed.
        """
        if self.exit_status is None:
            if not wait_pidfd(self.pidfd, seconds):
                return False
            try:
                _, status = os.waitpid(self.pid, 0)
            except ChildProcessError:
                status = 0
            self.exit_status = os.waitstatus_to_exitcode(status)
        return True

    def kill(self) -> None:
        """Kill the process; returns at once."""
        if self.exit_status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def resume(self) -> None:
        """Let a stopped process run, since it could not end otherwise."""
        if self.exit_status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGCONT)

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
            self.reap(seconds=KILL_SECONDS)
            self.channel.close()
            os.close(self.pidfd)
            self.pidfd = -1
