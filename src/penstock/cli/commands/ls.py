# SPDX-License-Identifier: Apache-2.0
"""``penstock ls``: the names in an image, as ls(1) shows them.

Order is by bytes, one name per line. Names: on a terminal ``?`` stands for what could act on it;
elsewhere they are written as they are, so that a script gets the real ones, and ``--json`` escapes
them.
"""

from __future__ import annotations

import argparse
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from penstock.cli.errors import ExitCode, explain
from penstock.cli.images import Target, for_each, reading_words, stop_if_lost, targets
from penstock.cli.messages import report
from penstock.cli.text import raw_name, write_raw

if TYPE_CHECKING:
    from penstock.client import Client, Node

__all__ = ["run"]

Row = tuple[bytes, "Node"]
_UNITS = " KMGTPE"


class _Lister:
    """Prints what one command line asks for."""

    def __init__(self, arguments: argparse.Namespace, *, titles: bool) -> None:
        self.failed = False
        self._arguments = arguments
        self._titles = titles or arguments.recursive
        self._rows: list[dict[str, Any]] = []
        self._printed = False
        self._entered: set[int] = set()

    def fault(self, name: str, error: OSError) -> None:
        """Say what could not be read; the listing goes on, unless the server is lost."""
        stop_if_lost(error)
        report(f"{name}: {explain(error)}")
        self.failed = True

    def show(self, client: Client, target: Target) -> None:
        """List one target."""
        path = os.fsencode(target.path or "/")
        self._entered.clear()
        try:
            # As ls(1): a link named on the command line is followed, but not with -l or -d.
            shy = self._arguments.long or self._arguments.directory
            node = client.resolve(path, follow=not shy or path.endswith(b"/"))
        except OSError as error:
            self.fault(target.name, error)
            return
        if node.is_dir and not self._arguments.directory:
            self._directory(client, target.source, path, node)
        else:
            self._print(client, [(path, node)], b"")

    def _directory(self, client: Client, source: str, path: bytes, node: Node) -> None:
        todo = [(path, node)]
        while todo:
            path, node = todo.pop()
            if node.nodeid in self._entered:
                error = OSError(117, "is met a second time in the tree")
                self.fault(f"{source}:{os.fsdecode(path)}", error)
                continue
            self._entered.add(node.nodeid)
            rows = sorted(self._children(client, source, path, node), key=lambda row: row[0])
            self._title(source, path)
            self._print(client, rows, path)
            if self._arguments.recursive:
                below = [(_join(path, name), child) for name, child in rows if child.is_dir]
                todo += reversed([pair for pair in below if len(pair[0]) < 4096])

    def _children(self, client: Client, source: str, path: bytes, node: Node) -> Iterator[Row]:
        def refused(name: bytes, error: OSError) -> None:
            self.fault(f"{source}:{os.fsdecode(_join(path, name))}", error)

        try:
            for listing in client.readdir(node, refused):
                if listing.name.startswith(b".") and not self._arguments.all:
                    continue
                try:
                    yield listing.name, listing.node or client.lookup(node, listing.name)
                except OSError as error:
                    refused(listing.name, error)
        except OSError as error:
            self.fault(f"{source}:{os.fsdecode(path)}", error)

    # Output

    def _title(self, source: str, path: bytes) -> None:
        if self._titles and not self._arguments.json:
            if self._printed:
                write_raw("")
            write_raw(f"{source}:{raw_name(path)}:")
        self._printed = True

    def _print(self, client: Client, rows: Iterable[Row], directory: bytes) -> None:
        self._printed = True
        if self._arguments.json:
            self._rows += [_as_json(client, _join(directory, name), node) for name, node in rows]
        elif self._arguments.long:
            human = self._arguments.human_readable
            for line in _long_lines(client, list(rows), human=human):
                write_raw(line)
        else:
            for name, _ in rows:
                write_raw(raw_name(name))

    def finish(self) -> None:
        """Print what waits until all is known."""
        if self._arguments.json:
            from penstock.cli.text import json_text

            print(json_text(self._rows))


def run(arguments: argparse.Namespace) -> int:
    """List each target; 2 if something could not be read."""
    words = reading_words(arguments)
    wanted = targets(arguments.source)
    lister = _Lister(arguments, titles=len(wanted) > 1)
    for_each(wanted, arguments.type, words, lister.show)
    lister.finish()
    return ExitCode.SYSTEM if lister.failed else ExitCode.OK


def _join(directory: bytes, name: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + name if directory else name


def _long_lines(client: Client, rows: list[Row], *, human: bool) -> Iterator[str]:
    cells = [_long_cells(node, human=human) for _, node in rows]
    widths = [max((len(row[i]) for row in cells), default=0) for i in range(5)]
    for (name, node), (mode, links, uid, gid, extent, when) in zip(rows, cells, strict=True):
        shown = raw_name(name)
        if node.is_link:
            shown += " -> " + _link_target(client, node)
        yield (
            f"{mode} {links:>{widths[1]}} {uid:<{widths[2]}} {gid:<{widths[3]}} "
            f"{extent:>{widths[4]}} {when} {shown}"
        )


def _long_cells(node: Node, *, human: bool) -> tuple[str, str, str, str, str, str]:
    attr = node.attr
    device = stat.S_ISCHR(attr.mode) or stat.S_ISBLK(attr.mode)
    extent = _size(attr.size, human=human)
    if device:
        extent = f"{_major(attr.rdev)}, {_minor(attr.rdev)}"
    numbers = (str(attr.nlink), str(attr.uid), str(attr.gid))
    return (stat.filemode(attr.mode), *numbers, extent, _time(attr.mtime))


def _size(size: int, *, human: bool) -> str:
    """As ls(1): with -h at most one decimal and rounded up, in powers of 1024."""
    if not human or size < 1024:
        return str(size)
    unit = min((size.bit_length() - 1) // 10, 6)
    tenths = -(-size * 10 >> 10 * unit)
    if tenths <= 99:
        return f"{tenths // 10}.{tenths % 10}{_UNITS[unit]}"
    whole = -(-size >> 10 * unit)
    if whole == 1024 and unit < 6:
        return f"1.0{_UNITS[unit + 1]}"
    return f"{whole}{_UNITS[unit]}"


def _time(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _link_target(client: Client, node: Node) -> str:
    try:
        return raw_name(client.readlink(node))
    except OSError as error:
        stop_if_lost(error)
        return f"({explain(error)})"


def _major(rdev: int) -> int:
    return (rdev >> 8) & 0xFFF


def _minor(rdev: int) -> int:
    return (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00)


_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device", stat.S_IFBLK: "block device", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}  # fmt: skip


def _as_json(client: Client, path: bytes, node: Node) -> dict[str, Any]:
    attr = node.attr
    row: dict[str, Any] = {
        "path": os.fsdecode(path),
        "type": _KINDS[stat.S_IFMT(attr.mode)],
        "mode": f"{stat.S_IMODE(attr.mode):04o}",
        "inode": attr.ino,
        "links": attr.nlink,
        "uid": attr.uid,
        "gid": attr.gid,
        "size": attr.size,
        "mtime_ns": attr.mtime * 1_000_000_000 + attr.mtimensec,
    }
    if node.is_link:
        try:
            row["target"] = os.fsdecode(client.readlink(node))
        except OSError as error:
            stop_if_lost(error)
            row["target_error"] = explain(error)
    if stat.S_ISCHR(attr.mode) or stat.S_ISBLK(attr.mode):
        row["device"] = [_major(attr.rdev), _minor(attr.rdev)]
    return row
