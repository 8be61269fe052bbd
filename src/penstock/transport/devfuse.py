# SPDX-License-Identifier: Apache-2.0
"""/dev/fuse: several workers on one connection, one of them reading.

Which worker reads is decided in :mod:`penstock.transport.turns`.

Invariants
    - One thread reads at a time; each worker reads from and replies to its own clone.
    - The descriptors do not block; sleeping is done in poll(2), which also hears :meth:`stop`.
    - A buffer belongs to one worker and is reused for each request.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from penstock.session import FileBody, Reply
from penstock.sys.devfuse import clone
from penstock.transport.body import CopyBuffer, ShortBody, SplicePipe
from penstock.transport.polling import HELD_UP, Polling
from penstock.transport.turns import Turns

if TYPE_CHECKING:
    from penstock.session import Origin, Session

__all__ = ["DevFuse", "Prepared", "Worker"]

_log = logging.getLogger(__name__)

_ROOM: Final = 4096
"""Bytes of a read buffer beyond ``max_write``: headers and names."""
_SMALLEST_BUFFER: Final = 8192
_GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF, errno.EPERM})
_LOOK_AGAIN: Final = frozenset({errno.EAGAIN, errno.ENOENT, errno.EINTR})
"""Another worker or an interrupt took the request away."""
_NOT_TAKEN: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ECONNABORTED})
_NO_SPLICE: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


class Prepared(NamedTuple):
    """Descriptors made beforehand; owned by the transport."""

    clones: tuple[int, ...]
    """Of the connection, for the workers after the first."""
    pipes: tuple[tuple[int, int], ...]
    """Read and write end for each worker."""
    wake: int
    """An eventfd that does not block; readable once the workers leave."""


class Worker:
    """One thread's clone of the descriptor and its buffers."""

    def __init__(self, transport: DevFuse, fd: int, buffer_size: int) -> None:
        self.fd = fd
        self.buffer = memoryview(bytearray(buffer_size))
        self.copy = CopyBuffer(transport.before_wait)
        self.pipe: SplicePipe | None = None
        self.leading = False
        self.serial = 0
        self.asleep = False

    def close(self) -> None:
        if self.pipe is not None:
            self.pipe.close()


class DevFuse:
    """Serves a session on a mounted /dev/fuse descriptor.

    Args:
        fd: the connection's descriptor, mounted; owned from here on.
        workers: threads; each has a clone where the caller may make one.
        poll: ``auto``, ``off``, or microseconds (:class:`Polling`).
        max_write: bytes of the largest write; each worker has a buffer for one.
        on_splice_refused: told once, with the reason, when splice cannot be used here.
        prepared: what the workers use, made beforehand by somebody with more rights.
    """

    def __init__(
        self,
        fd: int,
        *,
        workers: int = 2,
        poll: str | int = "auto",
        max_write: int = 1 << 20,
        on_splice_refused: Callable[[str], None] | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        self.fd = fd
        self._prepared = prepared
        self._session: Session | None = None
        self._idle: Callable[[], bool] = bool
        self._polling = Polling(poll)
        self._buffer_size = max(_SMALLEST_BUFFER, max_write + _ROOM)
        self._count = max(1, workers)
        self._threads: list[threading.Thread] = []
        self._turns = Turns(self._count)
        self._local = threading.local()
        self._wake = prepared.wake if prepared else os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._refuse_splice = on_splice_refused
        self._last_answer = time.perf_counter_ns()
        self._left = self._count
        self._lock = threading.Lock()
        self.failure: Exception | None = None
        """Why a worker has given the connection up."""
        self.ended = threading.Event()
        self._workers = [Worker(self, fd, self._buffer_size)]
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)

    # Life

    def attach(self, session: Session) -> None:
        """The session that answers; before :meth:`handshake`."""
        self._session = session
        self._idle = session.idle

    def handshake(self, timeout: float = 10.0) -> None:
        """Answer INIT, in the calling thread.

        Raises:
            OSError: ETIMEDOUT, or the connection ended.
        """
        worker = self._workers[0]
        waiter = select.poll()
        waiter.register(self.fd, select.POLLIN)
        deadline = time.monotonic() + timeout
        assert self._session is not None
        while self._session.connection is None:
            left = deadline - time.monotonic()
            if left <= 0 or not waiter.poll(left * 1000):
                raise OSError(errno.ETIMEDOUT, "the kernel did not ask for INIT")
            with contextlib.suppress(BlockingIOError):
                count = os.readv(self.fd, [worker.buffer])
                reply = self._session.handle(worker.buffer[:count], worker)
                if reply is not None:
                    self._send(worker, reply)
                if self._session.connection is None:
                    raise OSError(errno.EPROTO, "the kernel's FUSE protocol cannot be spoken")

    def start(self) -> None:
        """Start the workers, each with its clone."""
        clones = self._prepared.clones if self._prepared else self._clones()
        for fd in clones:
            self._workers.append(Worker(self, fd, self._buffer_size))
        if self._prepared:
            for worker, ends in zip(self._workers, self._prepared.pipes, strict=True):
                worker.pipe = SplicePipe(ends)
        for number, worker in enumerate(self._workers):
            thread = threading.Thread(
                target=self._run, args=(worker,), name=f"penstock-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._turns.start()

    def _clones(self) -> list[int]:
        """Descriptors for the workers after the first."""
        fds = []
        for _ in range(1, self._count):
            try:
                fds.append(clone(self.fd))
            except OSError as error:
                _log.info("workers share one descriptor: %s", error)
                fds.append(self.fd)
        return fds

    def stop(self) -> None:
        """Have the workers leave; returns at once. The connection ends with :meth:`close`."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Wait for the workers and close every descriptor, which ends the connection."""
        if self.fd < 0:
            return
        self.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._turns.stop()
        for worker in self._workers:
            worker.close()
        for fd in {self.fd, *(worker.fd for worker in self._workers)}:
            os.close(fd)
        os.close(self._wake)
        self.fd = -1

    # The session's sink

    def reply(self, reply: Reply, origin: Origin) -> None:
        """Send a late answer by way of the descriptor that its request came from."""
        assert isinstance(origin, Worker)
        self._send(origin, reply, CopyBuffer())

    def notify(self, message: bytes) -> None:
        """Send a notification; raises the kernel's errno."""
        os.write(self.fd, message)

    def in_worker(self) -> bool:
        """Whether the calling thread carries requests out."""
        return getattr(self._local, "worker", None) is not None

    def before_wait(self) -> None:
        """The calling worker is about to wait: another one may lead meanwhile."""
        worker: Worker | None = getattr(self._local, "worker", None)
        if worker is not None:
            self._turns.hand_over(worker)

    # Workers

    def _run(self, worker: Worker) -> None:
        self._local.worker = worker
        session = self._session
        assert session is not None
        buffer = worker.buffer
        waiter = select.poll()
        waiter.register(worker.fd, select.POLLIN)
        waiter.register(self._wake, select.POLLIN)
        try:
            while not self._stopping:
                if not worker.leading:
                    self._turns.take(worker)
                count = self._next(worker, waiter)
                if count:
                    worker.serial += 1
                    reply = session.handle(buffer[:count], worker)
                    if reply is not None:
                        self._send(worker, reply)
                    worker.serial += 1
                    self._last_answer = time.perf_counter_ns()
        except Exception as error:  # noqa: BLE001 - the others must be told to leave
            self.failure = error
            _log.exception("a worker failed; the mount is being given up")
        finally:
            self._leave(worker)

    def _leave(self, worker: Worker) -> None:
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._turns.hand_over(worker, last=True)
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            assert self._session is not None
            self._session.end()
            self.ended.set()

    def _next(self, worker: Worker, waiter: select.poll) -> int:
        """Read the next request; its length, or 0 when it is time to look again or to leave."""
        look = waiter.poll
        idle = self._idle
        clock = time.perf_counter_ns
        deadline = self._last_answer + self._polling.window
        before = 0
        # poll(2) and not read(2) until it is refused: an exception costs more than a system call.
        while not look(0):
            if idle():
                before = 0
                continue
            now = clock()
            if before and now - before > HELD_UP:
                self._polling.held_up(now)
                deadline = now
            before = now
            if now >= deadline:
                worker.asleep = True
                look()
                worker.asleep = False
                self._turns.awake()
                now = clock()
                self._polling.slept(now - self._last_answer, now)
                break
        if self._stopping:
            return 0
        try:
            return os.readv(worker.fd, (worker.buffer,))
        except OSError as error:
            return self._read_failed(error)

    def _read_failed(self, error: OSError) -> int:
        if error.errno in _GONE:
            self._stopping = True
        elif error.errno not in _LOOK_AGAIN:
            raise error
        return 0

    # Replies

    def _send(self, worker: Worker, reply: Reply, buffer: CopyBuffer | None = None) -> None:
        """Send one reply; a body that cannot be had becomes EIO."""
        body = reply.body
        if reply.store is not None:
            self._store(worker, reply, buffer or worker.copy)
        try:
            if not isinstance(body, FileBody):
                if body:
                    os.writev(worker.fd, (reply.head, body))
                else:
                    os.write(worker.fd, reply.head)
            elif not (body.splice and buffer is None and self._spliced(worker, reply, body)):
                self._copied(worker, reply, body, buffer or worker.copy)
        except OSError as error:
            self._not_sent(worker, reply, error)

    def _store(self, worker: Worker, reply: Reply, buffer: CopyBuffer) -> None:
        """Put the content of a file that is about to be opened into the kernel's cache."""
        body = reply.store
        assert body is not None
        try:
            if isinstance(body, FileBody):
                os.write(worker.fd, buffer.fill(reply.store_head(body.length), body))
            else:
                os.writev(worker.fd, (reply.store_head(len(body)), body))
        except OSError as error:
            _log.debug("storing what is opened: %s", error)

    def _copied(self, worker: Worker, reply: Reply, body: FileBody, buffer: CopyBuffer) -> None:
        try:
            message = buffer.fill(reply.head, body)
        except OSError as error:
            _log.warning("reading the image: %s", error)
            os.write(worker.fd, reply.failed(error.errno or errno.EIO).head)
            return
        if len(message) < len(reply.head) + body.length:
            message[:4] = len(message).to_bytes(4, "little")
        os.write(worker.fd, message)

    def _spliced(self, worker: Worker, reply: Reply, body: FileBody) -> bool:
        """Try by splice; False if the reply has to be copied."""
        pipe = worker.pipe
        if pipe is None:
            pipe = worker.pipe = SplicePipe()
        if not pipe.fits(body):
            return False
        if self._count > 1 and not _cached(body):
            self.before_wait()
        try:
            pipe.send(worker.fd, reply.head, body)
        except ShortBody:
            return False
        except OSError as error:
            if error.errno in _NOT_TAKEN:
                raise
            if error.errno in _NO_SPLICE and self._refuse_splice is not None:
                self._refuse_splice(f"the image cannot be spliced from: {error.strerror}")
            return False
        return True

    def _not_sent(self, worker: Worker, reply: Reply, error: OSError) -> None:
        assert self._session is not None
        self._session.undelivered(reply)
        if error.errno in _NOT_TAKEN:
            return
        _log.error("the kernel did not take a reply of %d bytes: %s", len(reply.head), error)
        with contextlib.suppress(OSError):
            os.write(worker.fd, reply.failed().head)


def _cached(body: FileBody) -> bool:
    """Whether the last byte of each range is in the page cache: readahead makes the last page of
    a run the last to arrive, so that one byte tells for the run."""
    probe = bytearray(1)
    for fd, offset, length in body.ranges:
        if fd >= 0:
            try:
                os.preadv(fd, [probe], offset + length - 1, os.RWF_NOWAIT)
            except OSError:
                return False
    return True
