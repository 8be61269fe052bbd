# SPDX-License-Identifier: Apache-2.0
"""Damaged images, each before a contained server of its own; what becomes of each of them.

``python -m tests.support.hostilerun FIRST COUNT FOLDER``: images are made of seeds FIRST to
FIRST+COUNT-1, and what was found is printed as JSON, see :class:`Run`.

What keeps it quick: the image is one file, changed and changed back, and most servers do not start
an interpreter. They are made as always (new namespaces, their descriptors and nothing else), but
where one executes Python, it goes on as a copy of this process, which has imported the server's
modules before. From there on nothing differs: the server closes its sandbox, and then gets the
image. Each :data:`FRESH` th one is started as always.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import gc
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from penstock.broker.launch import Launched, launch
from penstock.broker.outcome import ServerFailure
from penstock.broker.protocol import FailureCode
from penstock.client import Client
from penstock.client.nodes import Listing, Node
from penstock.client.stream import ServerLost
from penstock.contain import imageserver, server
from penstock.contain.reading import Contained, open_reader
from tests.fuzz.bases import BASES, load
from tests.fuzz.edit import Editor
from tests.fuzz.mutate import damaged

__all__ = ["FRESH", "Run", "image_of", "imageserver", "main"]

FRESH = 10
"""Of so many servers, one is started with an interpreter of its own."""
_NODES = 12
_NAMES = 40
_XATTRS = 4
_READ = 65536
_CHANGES = (1, 1, 2, 3, 6)
IMAGES = {FailureCode.IMAGE, FailureCode.CHECKSUM, FailureCode.SYSTEM, FailureCode.MEMORY}
"""Whose fault it may be that an image is refused: its own."""


@dataclasses.dataclass
class Run:
    """What was found."""

    served: int = 0
    refused: int = 0
    read: int = 0
    """Of those served, from how many something could be read."""
    faults: list[str] = dataclasses.field(default_factory=list)
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    """Of refusals, the first words; how often."""
    slowest: float = 0.0
    """Seconds from the start of a server to its end."""
    errors: dict[str, int] = dataclasses.field(default_factory=dict)


def image_of(seed: int) -> Editor:
    """The damaged image of a seed."""
    chance = random.Random(seed)
    return damaged(chance.choice(BASES), chance, chance.choice(_CHANGES))


class _File:
    """A base as a file, for images that are changes to it."""

    def __init__(self, folder: Path, base: str) -> None:
        self._base = load(base)
        path = folder / f"{base}-{os.getpid()}"
        path.write_bytes(self._base)
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.read_only = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        path.unlink()

    def change(self, image: Editor) -> None:
        os.ftruncate(self.fd, image.size)
        for offset, data in image.patches:
            os.pwrite(self.fd, data, offset)

    def restore(self, image: Editor) -> None:
        os.ftruncate(self.fd, len(self._base))
        for offset, data in image.patches:
            os.pwrite(self.fd, self._base[offset : offset + len(data)], offset)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.read_only)


class _Walker:
    """Uses one image by way of a client: what is nearest to its root."""

    def __init__(self, client: Client, errors: collections.Counter[str]) -> None:
        self._client = client
        self._errors = errors
        self.read = 0
        """Inodes that could be read."""

    def walk(self) -> None:
        self._try(self._client.statfs)
        todo = [self._client.root]
        for _ in range(_NODES):
            if not todo:
                return
            node = todo.pop(0)
            self._attributes(node)
            if node.is_dir:
                todo += self._list(node)
            elif node.is_link:
                self._try(lambda node=node: self._client.readlink(node))  # type: ignore[misc]
            elif node.is_file:
                self._try(lambda node=node: self._content(node))  # type: ignore[misc]
            self.read += 1

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except ServerLost:
            raise
        except OSError as error:
            self._errors[errno.errorcode[error.errno or 0]] += 1

    def _attributes(self, node: Node) -> None:
        self._try(lambda: self._client.statx(node))
        names: list[bytes] = []
        self._try(lambda: names.extend(self._client.listxattr(node)))
        for name in names[:_XATTRS]:
            self._try(lambda name=name: self._client.getxattr(node, name))  # type: ignore[misc]

    def _list(self, node: Node) -> list[Node]:
        entries = self._client.readdir(node)
        found: list[Listing] = []
        self._try(lambda: found.extend(itertools.islice(entries, _NAMES)))
        nodes = [listing.node for listing in found if listing.node is not None]
        for listing in (*found[:2], *found[-1:]):
            self._try(lambda name=listing.name: self._client.lookup(node, name))  # type: ignore[misc]
        self._try(lambda: self._client.lookup(node, b"absent"))
        return nodes

    def _content(self, node: Node) -> None:
        with self._client.open(node) as file:
            for offset in dict.fromkeys((0, max(file.size - _READ, 0))):
                file.read(offset, _READ)
            for _ in itertools.islice(file.data_ranges(), 3):
                pass


def _launch(seed: int) -> Launched:
    """A server, a fresh one or a copy of this process."""
    execve = os.execve
    if seed % FRESH:
        os.execve = _serve_instead  # type: ignore[assignment]
    try:
        return launch()
    finally:
        os.execve = execve


def _serve_instead(_program: str, argv: list[bytes], _environment: object) -> NoReturn:
    """What a server executes, without the start of an interpreter."""
    gc.disable()
    outside = next(word for word in argv if b"pid=" in word)
    server.main(outside.decode(), "image")


def _one(seed: int, file: _File, launched: Launched, run: Run) -> None:
    """One image before one server."""
    image = image_of(seed)
    file.change(image)
    errors: collections.Counter[str] = collections.Counter(run.errors)
    said: list[str] = []
    begun = time.monotonic()
    try:
        source = Contained(
            file.read_only, "ext4", strict=True, log=lambda _, text: said.append(text)
        )
        with open_reader(source, launched) as client:
            walker = _Walker(client, errors)
            walker.walk()
        run.served += 1
        run.read += walker.read > 1
    except ServerFailure as failure:
        run.refused += 1
        if failure.code not in IMAGES:
            run.faults.append(f"seed {seed}: {failure.code}: {failure}")
        reason = " ".join(str(failure).split()[:3])
        run.reasons[reason] = run.reasons.get(reason, 0) + 1
    except Exception as error:  # noqa: BLE001 - whatever it is: this process is the broker
        run.faults.append(f"seed {seed}: {error!r}")
    finally:
        file.restore(image)
    run.slowest = max(run.slowest, time.monotonic() - begun)
    run.faults += [f"seed {seed}: {line}" for line in said if " failed" in line]
    run.errors = dict(errors)


def main() -> None:
    """Print the :class:`Run` of these images."""
    first, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    files = {base: _File(folder, base) for base in BASES}
    run = Run()
    before = len(os.listdir("/proc/self/fd"))
    for seed in range(first, first + count):
        _one(seed, files[image_of(seed).name], _launch(seed), run)
    left = len(os.listdir("/proc/self/fd")) - before
    if left:
        run.faults.append(f"{left} descriptors are left")
    print(json.dumps(dataclasses.asdict(run)))  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
