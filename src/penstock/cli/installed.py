# SPDX-License-Identifier: Apache-2.0
"""What ``penstock install-system`` puts where: mount helpers, units, tmpfiles.d, manual pages.

Everything is made here from the running installation: the units are package data with placeholders
(:mod:`penstock.contain.units`), the pages come from the option tables, and the helper is a line of
shell that starts this installation's interpreter.

Invariant: each file has :data:`MARK` among its first lines, and each link has a target that only
penstock makes, so that what is ours can be told from what is not before anything is written.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from penstock.cli.manual import PAGES, page

__all__ = ["DIRECTORIES", "MARK", "SERVICE_NAME", "SOCKETS", "Item", "Places", "items"]

MARK: Final = "Installed by: penstock install-system"
SOCKETS: Final = "/run/filesystems"
SERVICE_NAME: Final = "penstock-ext4"
"""The name under which fuservicemount3 finds the service, where no other is asked for."""

_HELPER: Final = "mount.penstock"
_LINK: Final = "mount.fuse.penstock"
_UNITS: Final = ("penstock-ext4.socket", "penstock-ext4@.service", "penstock@.service")
_TMPFILES: Final = "penstock.conf"
DIRECTORIES: Final = (
    "/usr/local/lib/systemd/system", "/usr/local/lib/systemd", "/usr/local/lib/tmpfiles.d",
)  # fmt: skip
"""Directories that a system without local units does not have; removed again if they are empty."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./+@:,=-]+")
"""Words of systemd.service(5) that need no quotes."""
_LIBRARIES: Final = ("lib", "lib64")


class Places(NamedTuple):
    """Directories to install into."""

    helpers: str = "/sbin"
    """mount(8) looks nowhere else."""
    units: str = "/usr/local/lib/systemd/system"
    tmpfiles: str = "/usr/local/lib/tmpfiles.d"
    man: str = "/usr/local/share/man"


class Item(NamedTuple):
    """A file, or a symbolic link, to be there."""

    path: str
    content: str
    """The link's target, if it is one."""
    mode: int = 0o644
    link: bool = False


def items(places: Places, python: str, names: Sequence[str]) -> Iterator[Item]:
    """Everything to install.

    Args:
        places: where to.
        python: the interpreter that has penstock.
        names: of the service's sockets below :data:`SOCKETS`.
    """
    yield Item(f"{places.helpers}/{_HELPER}", _helper(python), 0o755)
    yield Item(f"{places.helpers}/{_LINK}", _HELPER, link=True)
    for name in _UNITS:
        yield Item(f"{places.units}/{name}", _unit(name, python, names))
    yield Item(f"{places.tmpfiles}/{_TMPFILES}", f"# {MARK}\n{_template(_TMPFILES)}")
    for name in PAGES:
        section = name.rpartition(".")[2]
        # A page that only names another must begin with that.
        comment = f'.\\" {MARK}\n'
        text = page(name)
        text = text + comment if text.startswith(".so") else comment + text
        yield Item(f"{places.man}/man{section}/{name}", text)


def _helper(python: str) -> str:
    command = shlex.join([python, "-I", "-m", "penstock.cli.helper"])
    return f'#!/bin/sh\n# {MARK}\nexec {command} "$@"\n'


def _unit(name: str, python: str, names: Sequence[str]) -> str:
    text = _template(name)
    values = {
        "@PENSTOCK@": f"{_quoted(python)} -I -m penstock",
        "@EXECPATHS@": " ".join(map(_quoted, _exec_paths(python))),
        "@SOCKETS@": "\n".join(f"ListenSequentialPacket={SOCKETS}/{each}" for each in names),
    }
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return f"# {MARK}\n{text}"


def _template(name: str) -> str:
    return (importlib.resources.files("penstock.contain.units") / name).read_text("utf-8")


def _exec_paths(python: str) -> list[str]:
    """What the service may execute and map as code: the interpreter, and libraries of its
    environment and of the system. The dash lets one of them be absent."""
    programs = {python, os.path.realpath(python)}
    prefixes = {os.path.dirname(os.path.dirname(program)) for program in programs}
    libraries = {f"{prefix}/{name}" for prefix in {*prefixes, "", "/usr"} for name in _LIBRARIES}
    return [f"-{path}" for path in sorted(programs | libraries)]


def _quoted(path: str) -> str:
    """A path as a word of systemd.service(5). There is no line break in it, and no ``$``."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return path if _PLAIN.fullmatch(path) else f'"{escaped}"'
