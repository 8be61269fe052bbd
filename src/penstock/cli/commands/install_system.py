# SPDX-License-Identifier: Apache-2.0
"""``penstock install-system``: what pip cannot put in place, put in place.

mount(8) looks for helpers in /sbin alone, systemd for units in directories of its own. What goes
where is in :mod:`penstock.cli.installed`; here it is compared with what is there, and written. All
is looked at before anything is written, so that a file that is not ours stops everything.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
from collections.abc import Sequence
from typing import Final

from penstock.cli.errors import ExitCode, Failure
from penstock.cli.installed import DIRECTORIES, MARK, SERVICE_NAME, Item, Places, items
from penstock.cli.logs import warn
from penstock.cli.placing import Found, Tree
from penstock.cli.text import printable
from penstock.cli.trust import changeable_installation

__all__ = ["run"]

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
    root = "" if root == "/" else root
    python = _python(arguments.python or sys.executable)
    wanted = list(items(_places(arguments), python, _names(arguments.alias)))
    # What is taken away gives nobody anything, wherever it was put.
    tree = Tree(root, force=arguments.force or arguments.remove)
    done: list[str] = []
    try:
        if arguments.remove:
            _remove(tree, wanted, done, dry=arguments.dry_run)
            return ExitCode.OK
        if not root and not arguments.dry_run and os.geteuid() != 0:
            text = "only root can install into the system (or say --root DIR)"
            raise Failure(text, ExitCode.USAGE)
        if not root and not arguments.force:
            _check_trust(python)
        if not root and python.startswith(tuple(f"{place}/" for place in _HIDDEN)):
            warn(f"{python}: is hidden from {SERVICE_NAME}@.service, which will not start")
        changed = _install(tree, wanted, done, dry=arguments.dry_run)
        if changed and not root and not arguments.dry_run:
            done += _NEXT
    finally:
        # Not before: who reads only some lines of this must not end it half-way.
        for line in done:
            print(printable(line))
    return ExitCode.OK


def _python(path: str) -> str:
    if not os.path.isabs(path):
        raise Failure(f"--python {path}: is no absolute path", ExitCode.USAGE)
    if not path.isprintable() or "$" in path:
        raise Failure(f"--python {path}: cannot be named in a unit", ExitCode.USAGE)
    return path


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


def _install(tree: Tree, wanted: Sequence[Item], done: list[str], *, dry: bool) -> bool:
    """Put everything in place; whether anything changed."""
    there = {item.path: tree.find(item.path) for item in wanted}
    for path, found in there.items():
        if found is not None and not _ours(path, found):
            raise Failure(f"{tree.shown(path)}: is not penstock's; move it away first")
    changed = False
    for item in wanted:
        found = there[item.path]
        same = found is not None and _same(item, found)
        changed |= not same
        if not same and not dry:
            tree.put(item)
        word = "replaced" if found is not None else "installed"
        done.append(f"{'unchanged' if same else _would(dry) + word} {tree.shown(item.path)}")
    return changed


def _remove(tree: Tree, wanted: Sequence[Item], done: list[str], *, dry: bool) -> None:
    """Remove what is ours; what is somebody else's stays, with a word."""
    for item in wanted:
        found = tree.find(item.path)
        if found is None:
            continue
        if not _ours(item.path, found):
            warn(f"{tree.shown(item.path)}: is not penstock's, and stays")
            continue
        if not dry:
            tree.remove(item.path)
        done.append(f"{_would(dry)}removed {tree.shown(item.path)}")
    if not dry:
        empty = filter(tree.remove_directory, DIRECTORIES)
        done += [f"removed {tree.shown(directory)}" for directory in empty]


def _would(dry: bool) -> str:
    return "would be " if dry else ""


def _ours(path: str, found: Found) -> bool:
    if stat.S_ISLNK(found.mode):
        return os.path.basename(path).startswith("mount.") and found.content == "mount.penstock"
    return MARK in found.content[:_HEAD]


def _same(item: Item, found: Found) -> bool:
    mode = stat.S_ISLNK(found.mode) if item.link else found.mode == stat.S_IFREG | item.mode
    return mode and found.content == item.content


def _check_trust(python: str) -> None:
    """Refuse an installation that others than root can change, since root would then run what
    they wrote there.

    Raises:
        Failure: a part of it belongs to somebody else, or others may write there.
    """
    culprit = changeable_installation(python)
    if culprit is not None:
        raise Failure(
            f"{culprit}, so that others could change what root runs: install penstock where "
            "root alone can write (python3 -m venv /opt/penstock), or say --force"
        )
