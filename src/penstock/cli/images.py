# SPDX-License-Identifier: Apache-2.0
"""Opening what the user names: an image, a file within it, the filesystem that it holds."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from penstock.cli.errors import ExitCode, Failure, explain

if TYPE_CHECKING:
    import argparse

    from penstock.cli.options import Words
    from penstock.client import Client
    from penstock.servers import Server

__all__ = [
    "Target",
    "by_source",
    "choose_partition",
    "open_client",
    "open_filesystem",
    "open_source",
    "reading_words",
    "targets",
]


def open_source(path: str, code: ExitCode = ExitCode.SYSTEM) -> int:
    """Open an image for reading; a descriptor that the caller owns.

    Raises:
        Failure: with ``code``: it cannot be opened, or cannot be an image.
    """
    try:
        mode = os.stat(path).st_mode
        # Opening a device can have effects, and a fifo waits: so look before.
        if stat.S_ISDIR(mode):
            raise Failure(f"{path}: is a directory, not a disk image", code)
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise Failure(f"{path}: is neither a regular file nor a block device", code)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise Failure(f"{path}: {explain(error)}", code) from error
    except ValueError as error:
        raise Failure(f"{path!r}: {error}", ExitCode.USAGE) from error


def open_filesystem(
    path: str, fd: int, type: str | None, words: Mapping[str, str], code: ExitCode
) -> Server:
    """The server for what an image holds. Does not own ``fd``.

    Raises:
        Failure: the image is none that can be served (``code``), or a word is wrong (USAGE).
    """
    from penstock.formats.errors import BadChecksum, FormatError
    from penstock.servers import UnknownImage, open_server

    try:
        return open_server(fd, type, words)
    except (FormatError, UnknownImage, OSError) as error:
        unchecked = isinstance(error, BadChecksum) and "nocheck" not in words
        hint = " (-o nocheck reads on without checking)" if unchecked else ""
        raise Failure(f"{path}: {explain(error)}{hint}", code) from error
    except ValueError as error:
        text = explain(error)
        hint = " (see penstock mount -o help)" if text.startswith("unknown option") else ""
        raise Failure(text + hint, ExitCode.USAGE) from error


@contextlib.contextmanager
def open_client(path: str, type: str | None, words: Mapping[str, str]) -> Iterator[Client]:
    """A client of the filesystem in an image, in this process, without any mount.

    Raises:
        Failure: as :func:`open_filesystem`.
    """
    from penstock.cli.logs import configure_logging
    from penstock.client import Client
    from penstock.datapath import ReadPaths
    from penstock.transport import MemoryTransport

    configure_logging()
    verdicts: list[str] = []

    def reason() -> str:
        return verdicts.pop() if verdicts else ""

    fd = open_source(path)
    try:
        server = open_filesystem(path, fd, type, words, ExitCode.SYSTEM)
        with (
            MemoryTransport(server.operations, datapaths=ReadPaths("copy")) as transport,
            Client(transport, reason=reason) as client,
        ):
            # So that what a message says of a failure is the reader's own words.
            transport.session.on_verdict = lambda error: verdicts.append(explain(error))
            yield client
    finally:
        os.close(fd)


class Target(NamedTuple):
    """A file in an image, as named on the command line."""

    source: str
    path: str | None
    """None if only the image was named."""

    @property
    def name(self) -> str:
        """As messages call it."""
        return self.source if self.path is None else f"{self.source}:{self.path}"


def by_source(
    wanted: Iterable[Target], type: str | None, words: Mapping[str, str]
) -> Iterator[tuple[Client, Target]]:
    """The targets in order, each with a client of its image, which is opened once in a row.

    Raises:
        Failure: as :func:`open_filesystem`.
    """
    for source, group in itertools.groupby(wanted, lambda target: target.source):
        with open_client(source, type, words) as client:
            for target in group:
                yield client, target


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
    from penstock.cli.logs import warn
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
