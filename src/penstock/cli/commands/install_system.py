# SPDX-License-Identifier: Apache-2.0
"""``penstock install-system``: what pip cannot put in place, put in place.

mount(8) looks for helpers in /sbin alone, systemd for units in directories of its own. What goes
where is in :mod:`penstock.cli.installed`; here it is compared with what is there, and written. All
is looked at before anything is written, so that a file that is not ours stops everything.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from typing import Final

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.installed import MARK, SERVICE_NAME, Item, Places, items
from penstock.cli.logs import warn

__all__ = ["changeable", "run"]

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_HEAD: Final = 1024
"""Bytes of a file in which our mark must be."""
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108  compared alone
_NEXT: Final = (
    "next:",
    "  systemctl daemon-reload",
    "  systemd-tmpfiles --create penstock.conf",
    f"  systemctl enable --now {SERVICE_NAME}.socket   # for fuservicemount3 alone",
)


def run(arguments: argparse.Namespace) -> int:
    """Install, or remove, and print what was done."""
    root = os.path.abspath(arguments.root) if arguments.root else ""
    python = arguments.python or sys.executable
    if not os.path.isabs(python):
        raise Failure(f"--python {python}: is no absolute path", ExitCode.USAGE)
    wanted = [
        item._replace(path=root + item.path)
        for item in items(_places(arguments), python, _names(arguments.alias))
    ]
    if arguments.remove:
        _remove(wanted, dry=arguments.dry_run)
        return ExitCode.OK
    if not root and not arguments.dry_run and os.geteuid() != 0:
        raise Failure("only root can install into the system (or say --root DIR)", ExitCode.USAGE)
    if not root and not arguments.force:
        _check_trust(python)
    if not root and python.startswith(tuple(f"{place}/" for place in _HIDDEN)):
        warn(f"{python}: is hidden from {SERVICE_NAME}@.service, which will not start")
    if _install(wanted, dry=arguments.dry_run) and not root and not arguments.dry_run:
        print("\n".join(_NEXT))
    return ExitCode.OK


def _places(arguments: argparse.Namespace) -> Places:
    given = {name: getattr(arguments, name) for name in Places._fields}
    for name, path in given.items():
        if path is not None and not os.path.isabs(path):
            raise Failure(f"--{name} {path}: is no absolute path", ExitCode.USAGE)
    return Places(**{name: path for name, path in given.items() if path is not None})


def _names(aliases: str | None) -> list[str]:
    names = [SERVICE_NAME]
    for name in filter(None, (aliases or "").split(",")):
        if not _NAME.fullmatch(name):
            raise Failure(f"--alias {name}: is no name for a filesystem type", ExitCode.USAGE)
        if name not in names:
            names.append(name)
    return names


def _install(wanted: list[Item], *, dry: bool) -> bool:
    """Put everything in place; whether anything changed."""
    there = {item.path: _there(item) for item in wanted}
    for path, content in there.items():
        if content is not None and not _ours(content, path):
            raise Failure(f"{path}: is not penstock's; move it away first")
    changed = False
    for item in wanted:
        same = there[item.path] == item.content and _mode_is(item)
        changed |= not same
        if not same and not dry:
            _write(item)
        word = "replaced" if there[item.path] is not None else "installed"
        print(f"unchanged {item.path}" if same else f"{_would(dry)}{word} {item.path}")
    return changed


def _remove(wanted: Iterable[Item], *, dry: bool) -> None:
    """Remove what is ours; what is somebody else's stays, with a word."""
    for item in wanted:
        content = _there(item)
        if content is None:
            continue
        if not _ours(content, item.path):
            warn(f"{item.path}: is not penstock's, and stays")
            continue
        if not dry:
            os.unlink(item.path)
        print(f"{_would(dry)}removed {item.path}")


def _would(dry: bool) -> str:
    return "would be " if dry else ""


def _there(item: Item) -> str | None:
    """What is at an item's path: a file's text, a link's target, None for nothing."""
    try:
        mode = os.lstat(item.path).st_mode
        if stat.S_ISLNK(mode):
            return os.readlink(item.path)
        if stat.S_ISREG(mode):
            with open(item.path, encoding="utf-8", errors="replace") as file:
                return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return ""


def _ours(content: str, path: str) -> bool:
    if os.path.islink(path):
        return os.path.basename(path).startswith("mount.") and content == "mount.penstock"
    return MARK in content[:_HEAD]


def _mode_is(item: Item) -> bool:
    mode = os.lstat(item.path).st_mode
    return stat.S_ISLNK(mode) if item.link else mode == stat.S_IFREG | item.mode


def _write(item: Item) -> None:
    """Make a file or link under another name, then put it in place, so that nobody sees half."""
    directory, name = os.path.split(item.path)
    os.makedirs(directory, 0o755, exist_ok=True)
    with _temporary(directory, name) as path:
        if item.link:
            os.unlink(path)
            os.symlink(item.content, path)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(item.content)
                os.fchmod(file.fileno(), item.mode)
        os.rename(path, item.path)


@contextlib.contextmanager
def _temporary(directory: str, name: str) -> Iterator[str]:
    fd, path = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
    os.close(fd)
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _check_trust(python: str) -> None:
    """Refuse an installation that others than root can change, since root would then run what
    they wrote there.

    Raises:
        Failure: one of its directories belongs to somebody else, or others may write there.
    """
    import penstock

    places = {python, os.path.realpath(python), sysconfig.get_path("purelib")}
    places.add(os.path.realpath(os.path.dirname(penstock.__file__)))
    for place in sorted(places):
        culprit = changeable(place)
        if culprit is not None:
            raise Failure(
                f"{culprit}, so that others could change what root runs: install penstock where "
                "root alone can write (python3 -m venv /opt/penstock), or say --force"
            )


def changeable(path: str) -> str | None:
    """Which part of a path others than root can change, and why; None if none."""
    while True:
        try:
            info = os.stat(path)
        except OSError as error:
            return f"{path}: {explain(error)}"
        if info.st_uid != 0:
            return f"{path} belongs to uid {info.st_uid}"
        if info.st_mode & 0o022:
            return f"{path} is writable for others"
        if path == "/":
            return None
        path = os.path.dirname(path)
