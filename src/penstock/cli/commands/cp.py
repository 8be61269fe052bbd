# SPDX-License-Identifier: Apache-2.0
"""``penstock cp``: files and trees out of an image.

Where things go is as with cp(1): into DEST if that is a directory, else to that name. The root of
an image, and a path that ends in ``.``, have no name: what they hold goes into DEST itself, which
is made if it is missing. A symlink named on the command line is followed inside the image.
"""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.images import Target, for_each, reading_words, stop_if_lost, targets
from penstock.cli.messages import report, warn
from penstock.cli.progress import progress_bar

if TYPE_CHECKING:
    from penstock.cli.extract import Extractor
    from penstock.client import Client, Found, Node

__all__ = ["run"]

_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of the destination after which nothing else would work either."""


def run(arguments: argparse.Namespace) -> int:
    """Copy each target; 2 if something could not be copied."""
    from penstock.cli.extract import Preserve

    words = reading_words(arguments)
    wanted = targets(arguments.source)
    try:
        preserve = Preserve(arguments.preserve or "default")
    except ValueError as error:
        raise Failure(
            f"--preserve={arguments.preserve}: is none of default, all, none", ExitCode.USAGE
        ) from error
    destination = os.fsencode(arguments.dest)
    into = os.path.isdir(destination)
    if len(wanted) > 1 and not into:
        raise Failure(f"{arguments.dest}: is not a directory", ExitCode.USAGE)
    copied: list[bool] = []

    def copy(client: Client, target: Target) -> None:
        one = _Copy(client, target, preserve, quiet=arguments.quiet)
        copied.append(one.run(destination, into=into))

    for_each(wanted, arguments.type, words, copy)
    return ExitCode.OK if all(copied) else ExitCode.SYSTEM


class _Copy:
    """One target's way out of the image."""

    def __init__(self, client: Client, target: Target, preserve: object, *, quiet: bool) -> None:
        self._client = client
        self._target = target
        self._preserve = preserve
        self._quiet = quiet
        self._failed = False
        self._parent = b""

    def run(self, destination: bytes, *, into: bool) -> bool:
        """Copy; whether all of it was copied."""
        path = os.fsencode(self._target.path or "/")
        try:
            top = self._client.resolve(path)
        except OSError as error:
            stop_if_lost(error)
            report(f"{self._target.name}: {explain(error)}")
            return False
        name = os.path.basename(path.rstrip(b"/"))
        nameless = name in {b"", b".", b".."}
        if nameless and top.is_dir and not into:
            _make(destination)
            into = True
        if into:
            parent = destination
        else:
            parent, name = os.path.split(destination.rstrip(b"/") or b"/")
        try:
            root = os.open(parent or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Failure(f"{os.fsdecode(parent)}: {explain(error)}") from error
        self._parent = parent
        try:
            self._copy(root, () if nameless else (name,), top)
        finally:
            os.close(root)
        return not self._failed

    def _copy(self, root: int, base: tuple[bytes, ...], top: Node) -> None:
        from penstock.cli.extract import Extractor, Preserve

        assert isinstance(self._preserve, Preserve)
        total = self._total(top)
        with progress_bar(total, quiet=self._quiet) as advance:
            extractor = Extractor(self._client, root, self._preserve, advance)
            try:
                if self._one(extractor, base, top) and top.is_dir:
                    self._tree(extractor, base, top)
            finally:
                self._finish(extractor)
        if extractor.attributes_lost:
            warn(f"{extractor.attributes_lost} files lost some of their attributes")

    def _tree(self, extractor: Extractor, base: tuple[bytes, ...], top: Node) -> None:
        refused: set[tuple[bytes, ...]] = set()
        for found in self._client.tree(top, self._unreadable):
            # What lies in a directory that could not be made cannot be made either.
            if any(found.path[:depth] in refused for depth in range(1, len(found.path))):
                continue
            if not self._one(extractor, (*base, *found.path), found.node) and found.node.is_dir:
                refused.add(found.path)

    def _one(self, extractor: Extractor, path: tuple[bytes, ...], node: Node) -> bool:
        from penstock.cli.extract import Skipped

        if not path:
            return True  # the top of a nameless target is the destination itself
        shown = os.fsdecode(os.path.join(self._parent, *path))
        try:
            extractor.extract(path, node)
        except Skipped as reason:
            warn(f"{shown}: left out: {reason}")
        except OSError as error:
            stop_if_lost(error)
            if error.errno in _FATAL:
                raise Failure(f"{shown}: {explain(error)}") from error
            report(f"{shown}: {explain(error)}")
            self._failed = True
            return False
        return True

    def _finish(self, extractor: Extractor) -> None:
        try:
            extractor.close()
        except OSError as error:
            stop_if_lost(error)
            shown = os.fsdecode(self._parent) or "."
            report(f"{shown}: attributes of directories: {explain(error)}")
            self._failed = True

    def _unreadable(self, path: bytes, error: OSError) -> None:
        where = (self._target.path or "").rstrip("/")
        report(f"{self._target.source}:{where}/{os.fsdecode(path)}: {explain(error)}")
        self._failed = True

    def _total(self, top: Node) -> Callable[[], int]:
        """What counts the bytes of a target, each file of several links once per link as the copy
        does. Errors are for the copy to tell."""

        def sizes() -> Iterator[int]:
            tree: Iterator[Found] = self._client.tree(top, lambda _path, _error: None)
            for found in tree:
                if found.node.is_file:
                    yield found.node.attr.size

        return lambda: sum(sizes()) if top.is_dir else top.attr.size


def _make(path: bytes) -> None:
    try:
        os.mkdir(path)
    except OSError as error:
        raise Failure(f"{os.fsdecode(path)}: {explain(error)}") from error
