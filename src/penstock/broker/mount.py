# SPDX-License-Identifier: Apache-2.0
"""One mount, from starting its servers to the end of the last of them.

The steps are :meth:`Broker.judge` (the servers look at the image), :meth:`Broker.mount` and
:meth:`Broker.wait`. One thread, that of the caller, does all of it; only :meth:`statistics`,
:meth:`unmount`, :meth:`abort` and :meth:`ask` may be called from others.

Invariants
    - Nothing is attached to the tree before every server has called the image good and serves.
    - This process holds a descriptor of the connection: it hears of its end, and no server's death
      ends it before it is known why.
    - Once one server is gone the others are ended too, and the connection with them: nobody waits
      for an answer that does not come.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

from penstock.broker.attach import (
    Attachment,
    find_attached,
    max_pages,
    open_connection,
    set_readahead,
    undo_attachment,
)
from penstock.broker.files import Files
from penstock.broker.handover import handed_over
from penstock.broker.handshake import answer_init
from penstock.broker.launch import Launched
from penstock.broker.options import Containment, MountOptions, Source
from penstock.broker.outcome import End, Outcome, ServerFailure, oom_kills
from penstock.broker.peer import KILL_SECONDS, Peer, missing_layers
from penstock.broker.protocol import (
    VERSION,
    Body,
    FailureCode,
    GetStatistics,
    Hello,
    Image,
    Invalidate,
    Invalidated,
    Log,
    Message,
    ProtocolError,
    Purpose,
    Ready,
    State,
    Statistics,
    Stop,
    Tree,
    Word,
)
from penstock.broker.statistics import BrokerStatistics, ServerStatistics
from penstock.fs import Connection
from penstock.negotiate import Limits, Profile
from penstock.sys.devfuse import connection_of
from penstock.sys.files import IMAGE_FLAGS, opened_again
from penstock.sys.mountinfo import MountInfo, find_mount, resolve_parent
from penstock.sys.process import wait_pidfd
from penstock.sys.unmount import find_fuse_mount, take_away

__all__ = ["Broker", "Source"]

_log = logging.getLogger(__name__)

_START_SECONDS: Final = 30.0
_JUDGE_SECONDS: Final = 120.0
_SERVE_SECONDS: Final = 30.0
_LEAVE_SECONDS: Final = 10.0
"""How long a server may take to end once its connection has."""
_EXIT_SECONDS: Final = 1.0
"""How long between the end of a server's socket, that of its process and that of its connection."""
_LAZY_SECONDS: Final = 1.0
_MESSAGES_A_TURN: Final = 64
_TICK: Final = 1.0
"""Seconds between two looks at a connection of which nothing is heard otherwise."""
_LEVELS: Final = frozenset({logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR})


_DEFAULT: Final = Containment()


class Broker:
    """A mount whose servers are not trusted. A context manager: leaving it ends everything.

    Args:
        mountpoint: an existing directory.
        options: how to mount, and how to serve.
        profile: what kind of filesystem it is.
        launched: the servers, just started; owned from here on.
        containment: how to keep them.
        tree: the directory that they are to serve, where it is not an image; stays the caller's.
    """

    def __init__(
        self,
        mountpoint: str | os.PathLike[str],
        options: MountOptions,
        profile: Profile,
        launched: Sequence[Launched],
        containment: Containment = _DEFAULT,
        tree: int | None = None,
    ) -> None:
        self.mountpoint = os.fspath(mountpoint)
        """Its path; once it is attached, as the kernel has it."""
        self.directory: int | None = None
        """The mount point itself, where the caller holds it open while :meth:`mount` runs."""
        self.info: MountInfo | None = None
        """The mount as the kernel lists it, once it is attached."""
        self.on_connection: Callable[[int], None] | None = None
        """Called with the number of the connection, before there is a path to it where possible:
        what must be undone if this process dies is known then. May be called twice."""
        self.on_unmounted: Callable[[], None] | None = None
        """Called when the mount has gone: its numbers may be another's from now on."""
        self._unmounted = False
        self._options = options
        self._profile = profile
        self._containment = containment
        self._poll = select.poll()
        self._fds: dict[int, Peer] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.POLLIN)
        self._device = self._table = -1
        self._attachment: Attachment | None = None
        self._connection: Connection | None = None
        self._gone = False
        self._aborted = False
        self._asked = False
        self._outcome: Outcome | None = None
        self._oom_kills = oom_kills()
        self._started = time.monotonic()
        self._serial = 0
        self._answers: dict[tuple[int, int], Statistics] = {}
        self._answered = threading.Condition()
        self._undo = contextlib.ExitStack()
        level = containment.log_level
        chatty = level <= logging.DEBUG
        self.peers = [Peer(each, n, chatty=chatty) for n, each in enumerate(launched)]
        self._files = Files(options.datapath, stackable=options.stackable)
        self._source: Source | None = None
        self._violations: list[tuple[Peer, str]] = []
        for peer in self.peers:
            for fd in (peer.channel.fileno(), peer.pidfd):
                self._fds[fd] = peer
                self._poll.register(fd, select.POLLIN)
            count = len(self.peers)
            hello = Hello(VERSION, VERSION, Purpose.MOUNT, peer.number, count, level)
            self._send(peer, hello, [] if tree is None else [tree])

    # The steps

    def judge(self, source: Source) -> Ready:
        """Have the servers look at the image.

        Raises:
            ServerFailure: it is not served, and why.
        """
        self._until(
            lambda: all(peer.state is not State.STARTED for peer in self.peers),
            _START_SECONDS,
            "has not started",
        )
        self._check_layers()
        self._source = source
        words = tuple(Word(*pair) for pair in source.words)
        for peer in self.peers:
            if source.size is None:
                self._send(peer, Tree(source.type, words))
                continue
            with opened_again(source.fd, IMAGE_FLAGS) as fd:
                self._send(peer, Image(source.size, source.type, words), [fd])
        self._until(
            lambda: all(peer.ready is not None for peer in self.peers),
            _JUDGE_SECONDS,
            "has not judged the image",
        )
        verdicts = {peer.ready for peer in self.peers}
        verdict = verdicts.pop()
        if verdicts or verdict is None:
            raise ServerFailure(
                "the servers do not agree on what the image is",
                outcome=Outcome(End.VIOLATION, "the servers contradict each other"),
            )
        return verdict

    def mount(self) -> None:
        """Make the mount, hand it to the servers, and attach it once they serve.

        Raises:
            OSError: the mount point cannot be used, or the caller may not mount.
            ServerFailure: a server has failed meanwhile.
        """
        self.mountpoint = resolve_parent(self.mountpoint)
        before = find_mount(self.mountpoint)
        self._undo.callback(lambda: undo_attachment(self._device, self.mountpoint, before))
        attachment = open_connection(self.mountpoint, self._options, self.directory)
        self._attachment = attachment
        self._device = attachment.fd
        self._undo.callback(attachment.abandon)
        source, verdict = self._source, self.peers[0].ready
        assert source is not None
        assert verdict is not None
        self._files.choose(source.fd, verdict, attachment.how)
        self._tell_connection()  # fusermount3 has attached it by now
        attachment.create(self._shake_hands)
        self._tell_connection()
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll.register(self._table, select.POLLPRI)  # tells of every mount and unmount
        assert self._connection is not None
        options = self._options
        self._files.start(
            self._device,
            self._connection,
            self.peers,
            superblock_read_only=options.read_only,
            on_violation=self._report_violation,
        )
        for peer in self.peers:
            with handed_over(self._device, self._connection, options, self._files, peer) as serve:
                self._send(peer, *serve)
        self._files.run()
        self._until(
            lambda: all(peer.state is State.SERVING for peer in self.peers),
            _SERVE_SECONDS,
            "does not serve",
        )
        self._check_layers()
        self.info = find_attached(self._device, attachment.attach(), self.mountpoint)
        if self.info is not None:
            self.mountpoint = self.info.mountpoint
            set_readahead(self.info.minor, self._options.readahead)
        self._started = time.monotonic()

    def wait(self) -> Outcome:
        """Serve until the mount has ended, or :meth:`ask` was called.

        Returns:
            Why it has ended.
        """
        while self._outcome is None and not self._gone and not self._asked:
            self._turn(None)
        if self._gone and not self.mounted:
            self._unmounted = True
            if self.on_unmounted is not None:
                self.on_unmounted()
        if self._asked and self._outcome is None and not self._gone:
            self._detach()
        if self._gone and self._outcome is None:
            self._outcome = self._why_gone()
        self._finish()
        self._undo.pop_all()
        return self._outcome or Outcome(End.CLEAN, "unmounted")

    def close(self) -> None:
        """End everything that is left; a mount that was not waited for is undone. Idempotent."""
        with contextlib.suppress(OSError):
            self._undo.close()
        for peer in self.peers:
            peer.close()
        self._files.close()
        for fd in (self._device, self._wake, self._table):
            if fd >= 0:
                os.close(fd)
        self._device = self._wake = self._table = -1

    # From other threads

    @property
    def connection(self) -> int:
        """Number of the FUSE connection (/sys/fs/fuse/connections/N); 0 if it is not known."""
        return self.info.minor if self.info is not None else 0

    @property
    def mounted(self) -> bool:
        """Whether this mount is still in the mount table, wherever it is by now."""
        info = self.info
        if info is None or self._unmounted:
            return False
        now = find_fuse_mount(info.mount_id, info.minor)
        return now is not None and (now.source, now.fstype) == (info.source, info.fstype)

    def ask(self) -> None:
        """Have :meth:`wait` unmount and return. Also from a signal handler."""
        self._asked = True
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def abort(self) -> None:
        """End the connection at once; whoever waits for an answer gets an error."""
        self._aborted = True
        for peer in self.peers:
            peer.kill()

    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount; the servers end on their own then.

        Args:
            lazy: take it out of the tree although it is in use, and end the connection.

        Raises:
            OSError: EBUSY where it is in use and ``lazy`` was not asked for.
        """
        self._take_away(lazy=lazy)
        if lazy and not self._wait_gone(_LAZY_SECONDS):
            self.abort()

    def statistics(self, timeout: float = 0.5) -> BrokerStatistics:
        """A snapshot; asks the servers, and waits for those that do not answer in ``timeout``."""
        with self._answered:
            self._serial = serial = self._serial % 0xFFFF_FFFF + 1
        wanted = set()
        for peer in self.peers:
            if peer.state is State.SERVING:
                wanted.add((peer.number, serial))
                self._send(peer, GetStatistics(), serial=serial)
        with self._answered:
            self._answered.wait_for(lambda: wanted <= self._answers.keys(), timeout)
            answers = {key[0]: value for key, value in self._answers.items() if key in wanted}
            self._answers.clear()
        assert self._attachment is not None
        assert self._connection is not None
        servers = tuple(
            ServerStatistics(
                peer.pid, tuple(peer.layers.values()), answers.get(peer.number), peer.dropped
            )
            for peer in self.peers
        )
        return BrokerStatistics(
            self.mountpoint,
            self._attachment.how,
            self._connection,
            servers,
            time.monotonic() - self._started,
            self._files.statistics(),
        )

    # Making the mount

    def _shake_hands(self) -> None:
        options = self._options
        limits = Limits(
            max_write=options.max_write,
            max_pages=max_pages(options),
            request_timeout=self._containment.request_timeout,
            max_stack_depth=self._files.depth,
        )
        connection = answer_init(self._device, limits, self._files.profile(self._profile))
        self._connection = connection
        _log.debug("INIT: FUSE 7.%d, flags %#x", connection.minor, connection.flags)

    def _tell_connection(self) -> None:
        number = connection_of(self._device)
        if number is not None and self.on_connection is not None:
            self.on_connection(number)

    def _check_layers(self) -> None:
        missing = missing_layers(self.peers, strict=self._containment.strict)
        for name, detail in missing.items():
            _log.info("the sandbox is without %s: %s", name, detail)

    # Messages

    def _send(self, peer: Peer, body: Body, fds: Sequence[int] = (), serial: int = 0) -> None:
        """Send what may get lost when the server does not read: it is ended otherwise."""
        try:
            peer.send(body, fds, serial)
        except OSError as error:
            _log.debug("a message to server %d was not taken: %s", peer.number, error)

    def _turn(self, timeout: float | None) -> None:
        """Wait for something to happen, and see to it.

        The connection is looked at when a mount has come or gone, and every second, but not waited
        for: whoever waits on it is woken by each request (fs/fuse/dev.c, fiq->waitq).
        """
        wait = timeout
        if self._device >= 0 and not self._gone:
            wait = _TICK if timeout is None else min(timeout, _TICK)
        ready = self._poll.poll(None if wait is None else max(0.0, wait) * 1000)
        if self._device >= 0 and not self._gone:
            self._gone = self._wait_gone(0.0)
        for fd, _ in ready:
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                while self._violations:
                    self._violation(*self._violations.pop())
            elif fd != self._table:
                peer = self._fds.get(fd)
                if peer is None:
                    continue  # dropped earlier in this turn
                if fd == peer.pidfd:
                    self._dead(peer)
                else:
                    self._receive(peer)

    def _receive(self, peer: Peer, most: int = _MESSAGES_A_TURN) -> None:
        for _ in range(most):
            try:
                message = peer.channel.receive()
                if message is None:
                    self._hung_up(peer)
                    return
                self._take(peer, message)
            except BlockingIOError:
                return
            except ProtocolError as error:
                self._violation(peer, str(error))
                return

    def _take(self, peer: Peer, message: Message) -> None:
        if not peer.take(message):
            return
        body = message.body
        if isinstance(body, Log):
            level = body.level if body.level in _LEVELS else logging.INFO
            _log.log(level, "server: %s", body.text)
        elif isinstance(body, Statistics):
            with self._answered:
                if message.serial == self._serial:
                    self._answers[peer.number, message.serial] = body
                    self._answered.notify_all()
        elif isinstance(body, Invalidate):
            for other in self.peers:
                if other is not peer and other.state is State.SERVING:
                    self._send(other, Invalidated(*body))

    # Ends

    def _report_violation(self, number: int, what: str) -> None:
        """Have a server ended; from another thread."""
        self._violations.append((self.peers[number], what))
        os.eventfd_write(self._wake, 1)

    def _violation(self, peer: Peer, what: str) -> None:
        self._settle(Outcome(End.VIOLATION, f"the server broke the broker's protocol: {what}"))
        self._forget(peer, peer.channel.fileno())
        peer.kill()

    def _hung_up(self, peer: Peer) -> None:
        """A server's socket is closed: its process ends now, or is ended."""
        self._forget(peer, peer.channel.fileno())
        if not wait_pidfd(peer.pidfd, _EXIT_SECONDS):
            if peer.state is not State.ENDED:
                self._settle(Outcome(End.VIOLATION, "the server closed its socket and lived on"))
            peer.kill()

    def _dead(self, peer: Peer) -> None:
        if peer.channel.fileno() in self._fds:
            self._receive(peer, 1 << 12)  # what it said before
        for fd in (peer.channel.fileno(), peer.pidfd):
            self._forget(peer, fd)
        peer.reap()
        outcome = peer.outcome(oom_killed=oom_kills() > self._oom_kills)
        if peer.failed is not None:
            outcome = Outcome(End.ERROR, peer.failed.text)
        # A server can hear of the end a moment before everybody else does.
        if outcome is None and self._device >= 0 and not self._wait_gone(_EXIT_SECONDS):
            outcome = Outcome(End.ERROR, "the server ended, although it was not unmounted")
        if outcome is not None and not self._aborted:
            self._settle(outcome)
        elif not self._alive():
            self._gone = True

    def _settle(self, outcome: Outcome) -> None:
        """The first reason counts: what follows are its effects."""
        if self._outcome is None:
            self._outcome = outcome

    def _forget(self, peer: Peer, fd: int) -> None:
        if self._fds.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _alive(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.exit_status is None]

    def _until(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Serve messages until ``done``, or raise for what has come in between."""
        deadline = time.monotonic() + seconds
        while True:
            failed = next((peer.failed for peer in self.peers if peer.failed is not None), None)
            if failed is not None:
                raise ServerFailure(failed.text, FailureCode(failed.code))
            if self._outcome is not None:
                raise ServerFailure(self._outcome.text, outcome=self._outcome)
            if done():
                return
            if not self._alive():
                raise ServerFailure("the server has ended", outcome=Outcome(End.ERROR, "ended"))
            left = deadline - time.monotonic()
            if left <= 0:
                text = f"the server {what} within {seconds:.0f} s"
                raise ServerFailure(text, outcome=Outcome(End.HUNG, text))
            self._turn(left)

    def _wait_gone(self, seconds: float) -> bool:
        """Whether the connection ends within so many seconds. From any thread."""
        waiter = select.poll()
        waiter.register(self._device, 0)
        return bool(waiter.poll(seconds * 1000)) or self._gone

    def _detach(self) -> None:
        """Unmount; where the mount is in use, out of the tree all the same."""
        try:
            if self.mounted:
                self._take_away(lazy=False)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            _log.warning("%s: %s; detaching it", self.mountpoint, reason)
            with contextlib.suppress(OSError):
                self._take_away(lazy=True)
            deadline = time.monotonic() + _LAZY_SECONDS
            while not self._gone and self._outcome is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    self.abort()
                    break
                self._turn(left)

    def _why_gone(self) -> Outcome | None:
        """Why the connection has ended although all servers live; None if by unmounting."""
        if self._aborted or self._asked or not self.mounted:
            return None
        timeout = self._containment.request_timeout
        if timeout:
            text = f"the server did not answer a request within {timeout} s"
            return Outcome(End.HUNG, text)
        return Outcome(End.ERROR, "somebody has aborted the connection")

    def _finish(self) -> None:
        """Have every server end, then the connection; detach what is left in the tree."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        if self._outcome is not None:  # nothing good comes from the others any more
            deadline = 0.0
        for peer in self.peers:
            self._send(peer, Stop())
            peer.resume()
        while self._alive():
            left = deadline - time.monotonic()
            if left <= 0:
                self._kill()
                break
            self._turn(left)
        self._files.close()
        os.close(self._device)
        self._device = -1
        if not self._containment.keep_crashed and self.mounted:
            with contextlib.suppress(OSError):
                self._take_away(lazy=True)

    def _take_away(self, *, lazy: bool) -> None:
        if self.info is None or not self.mounted:
            raise OSError(errno.EINVAL, "is not mounted", self.mountpoint)
        take_away(self.info, lazy=lazy)

    def _kill(self) -> None:
        """Kill the servers that are left. The mount ends, whether or not they do."""
        for peer in self._alive():
            if self._outcome is None:
                _log.warning("server %d does not end and is killed", peer.number)
            peer.kill()
        for peer in self._alive():
            if not peer.reap(seconds=KILL_SECONDS):
                _log.error("server %d cannot be killed: it waits for its medium", peer.number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
