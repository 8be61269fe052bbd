# SPDX-License-Identifier: Apache-2.0
"""Opening what the user names: an image, a file within it, the filesystem that it holds."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.messages import report

if TYPE_CHECKING:
    import argparse

    from penstock.broker.outcome import ServerFailure
    from penstock.cli.options import Words
    from penstock.client import Client
    from penstock.contain.reading import Contained
    from penstock.servers import Server

__all__ = [
    "Target",
    "as_server_says",
    "choose_partition",
    "contained",
    "for_each",
    "inspect_here",
    "open_client",
    "open_filesystem",
    "open_source",
    "reading_words",
    "stop_if_lost",
    "targets",
]

_WARNING: Final = 30
"""As Python's logging has it."""


def open_source(path: str, code: ExitCode = ExitCode.SYSTEM) -> int:
    """Open an image for reading; a descriptor that the caller owns.

    Raises:
        Failure: with ``code``: it cannot be opened, or cannot be an image.
    """
    from penstock.sys.files import IMAGE_FLAGS

    try:
        # Opening a device can have effects, and a fifo waits: so look before. And look again at
        # what was opened: whoever owns the directory may have put something else there.
        seen = os.stat(path).st_mode
        _check_image(path, seen, code)
        with contextlib.ExitStack() as undo:
            fd = os.open(path, IMAGE_FLAGS)
            undo.callback(os.close, fd)
            opened = os.fstat(fd).st_mode
            _check_image(path, opened, code)
            if stat.S_IFMT(opened) != stat.S_IFMT(seen):
                raise Failure(f"{path}: was exchanged while it was opened", code)
            undo.pop_all()
        return fd
    except OSError as error:
        raise Failure(f"{path}: {explain(error)}", code) from error
    except ValueError as error:
        raise Failure(f"{path!r}: {error}", ExitCode.USAGE) from error


def _check_image(path: str, mode: int, code: ExitCode) -> None:
    if stat.S_ISDIR(mode):
        raise Failure(f"{path}: is a directory, not a disk image: ls(1) shows what is in it", code)
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise Failure(f"{path}: is neither a regular file nor a block device", code)


def contained(fd: int, type: str | None, words: Words) -> Contained:
    """How to read an image in a contained server, as the user wishes. Does not own ``fd``."""
    from penstock.contain.reading import Contained

    def log(level: int, text: str) -> None:
        if level >= _WARNING:
            report(text)

    strict = words.generic.get("sandbox") == "strict"
    return Contained(fd, type, words.server, strict=strict, log=log)


@contextlib.contextmanager
def open_client(path: str, type: str | None, words: Words) -> Iterator[Client]:
    """A client of the filesystem in an image, which a contained server reads; no mount is made.

    With ``-o sandbox=no`` it is read in this process.

    Raises:
        Failure: the image is none that can be served, a word is wrong (USAGE), or the server is
            lost while the client is used.
    """
    fd = open_source(path)
    try:
        if words.generic.get("sandbox") == "no":
            with _client_here(path, fd, type, words.server) as client:
                yield client
            return
        from penstock.broker.launch import launch

        launched = launch()  # it starts while the rest is imported
        from penstock.broker.outcome import ServerFailure
        from penstock.contain.reading import open_reader

        try:
            with open_reader(contained(fd, type, words), launched) as client:
                yield client
        except ServerFailure as failure:
            from penstock.cli.failures import server_failure

            raise server_failure(path, failure, words.server, ExitCode.SYSTEM) from failure
    finally:
        os.close(fd)


def stop_if_lost(error: OSError) -> None:
    """Raise an error again after which nothing more of the image can be read."""
    from penstock.client import ServerLost

    if isinstance(error, ServerLost):
        raise error


# In this process, for debugging


def open_filesystem(
    path: str, fd: int, type: str | None, words: Mapping[str, str], code: ExitCode
) -> Server:
    """The server for what an image holds, in this process. Does not own ``fd``.

    Raises:
        Failure: the image is none that can be served (``code``), or a word is wrong (USAGE).
    """
    from penstock.cli.failures import server_failure
    from penstock.servers import open_server

    try:
        return open_server(fd, type, words)
    except (ValueError, OSError) as error:
        raise server_failure(path, as_server_says(error), words, code) from error


def inspect_here(
    fd: int, type: str | None, words: Mapping[str, str]
) -> tuple[dict[str, Any], ServerFailure | None]:
    """What an image is and holds, and why that is not more; in this process.

    Raises:
        ServerFailure: the image cannot be read at all, or a word is wrong.
    """
    from penstock.servers.inspection import inspect_image

    try:
        description, error = inspect_image(fd, type, words)
    except (ValueError, OSError) as raised:
        raise as_server_says(raised) from raised
    return description, None if error is None else as_server_says(error)


def as_server_says(error: Exception) -> ServerFailure:
    """An exception of opening what is served, as it comes from a contained server."""
    from penstock.broker.outcome import ServerFailure
    from penstock.contain.failures import failed

    said = failed(error)
    return ServerFailure(said.text, said.code)


@contextlib.contextmanager
def _client_here(
    path: str, fd: int, type: str | None, words: Mapping[str, str]
) -> Iterator[Client]:
    from penstock.cli.logs import configure_logging
    from penstock.client import Client
    from penstock.datapath import Paths
    from penstock.transport import MemoryTransport

    configure_logging()
    verdicts: list[str] = []

    def reason() -> str:
        return verdicts.pop() if verdicts else ""

    server = open_filesystem(path, fd, type, words, ExitCode.SYSTEM)
    with (
        MemoryTransport(server.operations, datapaths=Paths("copy")) as transport,
        Client(transport, reason=reason) as client,
    ):
        # So that what a message says of a failure is the reader's own words.
        transport.session.on_verdict = lambda error: verdicts.append(explain(error))
        yield client


# What the command line names


class Target(NamedTuple):
    """A file in an image, as named on the command line."""

    source: str
    path: str | None
    """None if only the image was named."""

    @property
    def name(self) -> str:
        """As messages call it."""
        return self.source if self.path is None else f"{self.source}:{self.path}"


def for_each(
    wanted: Iterable[Target],
    type: str | None,
    words: Words,
    action: Callable[[Client, Target], None],
) -> None:
    """Do something with the targets in order, and a client of their image, opened once in a row.

    Raises:
        Failure: as :func:`open_client`.
    """
    for source, group in itertools.groupby(wanted, lambda target: target.source):
        with open_client(source, type, words) as client:
            for target in group:
                action(client, target)


def targets(words: list[str]) -> list[Target]:
    """Read ``IMG:/a IMG2:/b`` and ``IMG /a /b``.

    A word is ``SOURCE:PATH`` if what stands before one of its colons exists here (the first such
    colon counts); otherwise it is a path in the image named last. The first word is always an
    image.
    """
    found: list[Target] = []
    source: str | None = None
    bare: str | None = None
    for word in words:
        split = _split(word)
        if split is None and source is not None:
            found.append(Target(source, word))
            bare = None
            continue
        if bare is not None:  # an image after which no path came stands for itself
            found.append(Target(bare, None))
        source, path = split or (word, None)
        bare = source if path is None else None
        if path is not None:
            found.append(Target(source, path))
    if bare is not None:
        found.append(Target(bare, None))
    return found


def _split(word: str) -> tuple[str, str] | None:
    if os.path.exists(word):
        return None
    position = word.find(":")
    while position >= 0:
        if os.path.exists(word[:position]):
            return word[:position], word[position + 1 :]
        position = word.find(":", position + 1)
    return None


def reading_words(arguments: argparse.Namespace) -> Words:
    """The words for a command that reads an image: ``-o`` and ``--partition``."""
    from penstock.cli.messages import warn
    from penstock.cli.options import parse_words

    words = parse_words(arguments.options)
    choose_partition(words, arguments.partition)
    for note in words.notes:
        warn(note)
    return words


def choose_partition(words: Words, number: int | None) -> None:
    """Have ``--partition`` mean ``-o partition=``.

    Raises:
        Failure: both are given, and differ (USAGE).
    """
    if number is None:
        return
    other = words.server.setdefault("partition", str(number))
    if other != str(number):
        raise Failure(
            f"--partition={number} and -o partition={other} contradict each other", ExitCode.USAGE
        )
