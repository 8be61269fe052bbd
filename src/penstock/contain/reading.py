# SPDX-License-Identifier: Apache-2.0
"""Reading an image that somebody else has made: a contained server parses it, this process asks.

No mount and no privilege is needed. The server is started for one image and killed at the end;
what it says is checked as a broker checks it, and whatever becomes of it is a
:class:`ServerFailure` with one line about that. It has a time for everything: nothing here waits
for ever.

While the server starts, this half is imported; the image's formats never are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from penstock.broker.launch import Launched
from penstock.broker.outcome import End, Outcome, ServerFailure, oom_kills
from penstock.broker.peer import Peer, missing_layers
from penstock.broker.protocol import (
    VERSION,
    Body,
    Description,
    Ended,
    Failed,
    FailureCode,
    Hello,
    Image,
    Log,
    ProtocolError,
    Purpose,
    Read,
    Ready,
    Verdict,
    Welcome,
    Word,
)
from penstock.sys.process import wait_pidfd
from penstock.sys.reasons import explain

if TYPE_CHECKING:
    from penstock.client import Client
    from penstock.client.stream import ServerLost

__all__ = [
    "OPENING_SECONDS",
    "REQUEST_SECONDS",
    "Contained",
    "Described",
    "describe",
    "open_reader",
]

OPENING_SECONDS: Final = 60.0
"""From the start of a server until it has judged the image."""
REQUEST_SECONDS: Final = 30.0
"""For the answer to each request."""
_EXIT_SECONDS: Final = 1.0
"""Between the end of a server's socket and that of its process."""
_WARNING: Final = 30
_MESSAGES_A_TURN: Final = 64
_SOCKET_BYTES: Final = 1 << 20
_LONGEST_VALUE: Final = 4096


class Contained(NamedTuple):
    """An image, and how to read it.

    Attributes:
        fd: the image, open for reading; stays the caller's.
        type: what to take it for; None: the server finds out.
        words: the filesystem's ``-o`` words.
        strict: refuse if a layer of the sandbox is missing.
        log: given each line of the server's log: its level, as Python's logging has them, and text.
    """

    fd: int
    type: str | None = None
    words: Mapping[str, str] = {}
    strict: bool = False
    log: Callable[[int, str], None] = lambda _level, _text: None


class Described(NamedTuple):
    """What a server says of an image."""

    description: dict[str, Any]
    """See :func:`penstock.contain.description.parse_description`."""
    failure: ServerFailure | None
    """Why it is not more."""


@contextlib.contextmanager
def open_reader(image: Contained, launched: Launched) -> Iterator[Client]:
    """A client of the filesystem in an image.

    Args:
        image: what to read.
        launched: a server that has just been started; owned from here on.

    Raises:
        ServerFailure: the image is not served; or, while the client is used, the server is lost.
    """
    with _Server(image, launched, Purpose.READ) as server:
        from penstock.client import Client  # noqa: PLC0415 - while the server starts
        from penstock.client.stream import Aside, ServerLost, StreamTransport  # noqa: PLC0415

        server.send_image()
        server.next(Ready)
        ours, theirs = socket.socketpair()
        try:
            with ours, theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
                server.send(Read(), theirs.fileno())
                theirs.close()
                transport = StreamTransport(
                    ours,
                    seconds=REQUEST_SECONDS,
                    aside=Aside(server.peer.channel.fileno(), server.look),
                )
                try:
                    client = Client(transport, reason=server.reason)
                except ServerLost:
                    raise
                except OSError as error:
                    raise server.violation(explain(error)) from error
                yield client  # not closed: the server is killed, and has nothing to save
                if transport.lost is not None:
                    raise transport.lost
        except ServerLost as error:
            raise server.why_lost(error) from error


def describe(image: Contained, launched: Launched) -> Described:
    """What an image is and holds.

    Args:
        image: what to look at.
        launched: a server that has just been started; owned from here on.

    Raises:
        ServerFailure: an option is wrong, the image cannot be read, or the server is lost.
    """
    with _Server(image, launched, Purpose.DESCRIBE) as server:
        from penstock.contain.description import (  # noqa: PLC0415 - while the server starts
            LONGEST,
            parse_description,
        )

        server.send_image()
        pieces: list[str] = []
        length = 0
        more = True
        while more:
            body = server.next(Description)
            assert isinstance(body, Description)
            pieces.append(body.text)
            length += len(body.text)
            more = bool(body.more)
            if length > LONGEST or not body.text:
                raise server.violation("the description is too long, or a piece of it empty")
        try:
            description = parse_description("".join(pieces))
        except ProtocolError as error:
            raise server.violation(str(error)) from error
        description["size"] = server.peer.image_size
        try:
            server.next(Ended)
        except ServerFailure as failure:
            if failure.code is None:
                raise
            return Described(description, failure)
    return Described(description, None)


class _Server:
    """A server that has been started for one image. A context manager: leaving it kills it."""

    def __init__(self, image: Contained, launched: Launched, purpose: Purpose) -> None:
        self.peer = Peer(launched)
        self._image = image
        self._purpose = purpose
        self._deadline = time.monotonic() + OPENING_SECONDS
        self._verdict = ""
        self._failure: ServerFailure | None = None

    def __enter__(self) -> Self:
        self._oom_kills = oom_kills()
        self._poll = select.poll()
        self._poll.register(self.peer.channel.fileno(), select.POLLIN)
        self.send(Hello(VERSION, VERSION, self._purpose, 0, 1, _WARNING))
        return self

    def __exit__(self, *_exc: object) -> None:
        self.peer.close()

    # To the server

    def send(self, body: Body, *fds: int) -> None:
        """Send a message. One that is not taken is found out by what does not come."""
        with contextlib.suppress(OSError):
            self.peer.send(body, fds)

    def send_image(self) -> None:
        """Once the sandbox is closed, send the image."""
        self.next(Welcome)
        missing_layers([self.peer], strict=self._image.strict)
        fd = self._image.fd
        size = os.lseek(fd, 0, os.SEEK_END)
        words = tuple(
            Word(name, _checked(name, value)) for name, value in self._image.words.items()
        )
        try:
            self.send(Image(size, self._image.type or "", words), fd)
        except ValueError as error:  # no server has such words
            raise ServerFailure(f"-o or -t: {error}", FailureCode.OPTION) from error

    # From the server

    def next(self, expected: type[Body]) -> Body:
        """The next message that is not only for the log, before the image must be open.

        Raises:
            ServerFailure: FAILED came, the server is gone, takes too long, or breaks the rules.
        """
        while (left := self._deadline - time.monotonic()) > 0:
            if self._poll.poll(left * 1000):
                body = self._receive(expected)
                if body is not None:
                    return body
        raise self._fail(Outcome(End.HUNG, "the server takes too long to open the image"))

    def look(self) -> None:
        """Take what has come while a reply is waited for.

        Raises:
            ServerLost: nothing more can be expected of the server.
        """
        from penstock.client.stream import ServerLost  # noqa: PLC0415 - is there by now

        try:
            for _ in range(_MESSAGES_A_TURN):
                self._receive(Ended)
                if not self._poll.poll(0):
                    return
        except ServerFailure as failure:
            self._failure = failure
            raise ServerLost(errno.EIO, str(failure)) from failure

    def reason(self) -> str:
        """Why the last reply is an error, in the server's words; empty if it has said nothing."""
        if self._poll.poll(0):
            self.look()
        verdict, self._verdict = self._verdict, ""
        return verdict

    def _receive(self, expected: type[Body]) -> Body | None:
        """One message; None if there is none, or no more is to be done about it."""
        try:
            message = self.peer.channel.receive()
            if message is None:
                raise self._gone()
            if not self.peer.take(message):
                return None
        except BlockingIOError:
            return None
        except ProtocolError as error:
            raise self.violation(str(error)) from error
        body = message.body
        if isinstance(body, Failed):
            raise ServerFailure(body.text, body.code)
        if isinstance(body, Log):
            self._image.log(body.level, body.text)
            return None
        if isinstance(body, Verdict):
            self._verdict = body.text
            return None
        if not isinstance(body, expected):
            raise self.violation(f"{message.kind.name} where it does not belong")
        return body

    # The end of it

    def violation(self, text: str) -> ServerFailure:
        """The server has done what it must not do."""
        return self._fail(Outcome(End.VIOLATION, f"the server breaks the protocol: {text}"))

    def why_lost(self, error: ServerLost) -> ServerFailure:
        """Why the client has lost the server."""
        if self._failure is not None:
            return self._failure
        if error.errno == errno.ETIMEDOUT:
            text = f"the server has not answered for {REQUEST_SECONDS:g} s"
            return self._fail(Outcome(End.HUNG, text))
        if error.errno == errno.EPROTO:
            return self.violation(error.strerror or "")
        return self._gone()

    def _gone(self) -> ServerFailure:
        """The server has ended, or has at least closed its socket."""
        if not wait_pidfd(self.peer.pidfd, _EXIT_SECONDS):
            return self.violation("it closes its connection")
        self.peer.reap()
        outcome = self.peer.outcome(oom_killed=oom_kills() > self._oom_kills)
        return self._fail(outcome or Outcome(End.ERROR, "the server has ended too early"))

    def _fail(self, outcome: Outcome) -> ServerFailure:
        self._failure = self._failure or ServerFailure(outcome.text, outcome=outcome)
        return self._failure


def _checked(name: str, value: str) -> str:
    if len(os.fsencode(value)) > _LONGEST_VALUE:
        raise ServerFailure(f"-o {name}: its value is too long", FailureCode.OPTION)
    return value
