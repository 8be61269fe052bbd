# SPDX-License-Identifier: Apache-2.0
"""Who can change a file, and with it what root runs: all that leads to it is looked at.

A file can be changed by who owns it or may write it, and by who may put another in its place: in
its directory, in the directories above, and in those of each symbolic link on the way.
"""

from __future__ import annotations

import glob
import json
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator
from typing import Final

from penstock.cli.errors import ExitCode, Failure, explain

__all__ = ["changeable", "changeable_below", "changeable_installation", "fault"]

_ROOT: Final = frozenset({0})
_MAX_LINKS: Final = 40
_SECONDS: Final = 60
_QUESTION: Final = """
import json, sys
from importlib.util import find_spec
specs = [find_spec(name) for name in ("penstock", "crc32c")]
places = [place for spec in specs if spec for place in spec.submodule_search_locations or ()]
print(json.dumps([specs[0] is not None, [*sys.path, *places], [sys.executable]]))
"""
"""What an interpreter is asked: whether it has penstock, where it looks for code, and its program.
The directories that .pth files name are in its sys.path."""


def fault(info: os.stat_result, users: Iterable[int] = _ROOT) -> str | None:
    """Why others than these users can change a file or directory; None if they cannot."""
    if info.st_uid not in users:
        return f"belongs to uid {info.st_uid}"
    # Many systems give each user a group of his own, and have him share with it what he makes.
    own = info.st_uid != 0 and info.st_uid == os.geteuid() and info.st_gid == os.getegid()
    return "is writable for others" if info.st_mode & (0o002 if own else 0o022) else None


def changeable(path: str) -> str | None:
    """Which part of the way to a file others than root can change, and why; None if none.

    The way is walked as the kernel walks it, through every link. Of several parts it is the last.
    """
    found = None
    here = "/"
    links = 0
    names = path.split("/")[::-1]
    try:
        while names:
            name = names.pop()
            place = os.path.dirname(here) if name == ".." else os.path.join(here, name)
            info = os.lstat(place if name not in {"", "."} else here)
            if stat.S_ISLNK(info.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    return f"{path}: too many symbolic links"
                names += os.readlink(place).split("/")[::-1]
                here = "/" if os.readlink(place).startswith("/") else here
                continue
            here = place if name not in {"", "."} else here
            why = fault(info)
            found = f"{here} {why}" if why is not None else found
    except OSError as error:
        return f"{error.filename}: {explain(error)}"
    return found


def changeable_below(top: str) -> str | None:
    """The same for all that is below a directory, or below one that a link there leads to, and for
    the way to it. Where nothing is, it is asked of the directory in which it could be made."""
    pending = [top]
    seen = set()
    while pending:
        top = pending.pop()
        real = os.path.realpath(top)
        if real in seen:
            continue
        seen.add(real)
        found = changeable(top) if os.path.exists(top) else _changeable_missing(real)
        if found is not None:
            return found
        for directory, folders, files in os.walk(real):
            for name in (*folders, *files):
                place = os.path.join(directory, name)
                info = os.lstat(place)
                if not stat.S_ISLNK(info.st_mode):
                    why = fault(info)
                    if why is not None:
                        return f"{place} {why}"
                elif os.path.commonpath([real, os.path.realpath(place)]) != os.path.realpath(place):
                    pending.append(place)
    return None


def _changeable_missing(path: str) -> str | None:
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return changeable(path)


def changeable_installation(python: str) -> str | None:
    """Which part of an interpreter, and of all that it imports, others than root can change.

    The interpreter is run only once what it starts with is known to be root's alone: code that
    somebody else put there could answer for it.

    Raises:
        Failure: it cannot be asked, or has no penstock.
    """
    found = changeable(python) or _first(_started_with(python))
    if found is not None:
        return found
    has_penstock, directories, programs = _asked(python)
    if not has_penstock:
        raise Failure(f"{python}: has no penstock", ExitCode.USAGE)
    for path in programs:
        found = found or changeable(path)
    return found or _first(dict.fromkeys(directories))


def _first(places: Iterable[str]) -> str | None:
    """What can be changed in the first of these places where something can."""
    return next(filter(None, map(changeable_below, places)), None)


def _started_with(python: str) -> Iterator[str]:
    """What an interpreter reads before anybody can ask it: the configuration of a virtual
    environment, packages, and the directories that .pth files add."""
    for program in dict.fromkeys((python, os.path.realpath(python))):
        folder = os.path.dirname(program)
        prefix = os.path.dirname(folder)
        for above in (folder, prefix):
            if os.path.lexists(f"{above}/pyvenv.cfg"):
                yield f"{above}/pyvenv.cfg"
        for packages in glob.glob(f"{glob.escape(prefix)}/lib*/python3*/*-packages"):
            yield packages
            for path in glob.glob(f"{glob.escape(packages)}/*.pth"):
                yield from _added(path)


def _added(path: str) -> Iterator[str]:
    """The directories that a .pth file adds."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in map(str.strip, file):
            if line and not line.startswith(("#", "import ", "import\t")):
                yield os.path.join(os.path.dirname(path), line)


def _asked(python: str) -> tuple[bool, list[str], list[str]]:
    try:
        done = subprocess.run(
            [python, "-I", "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=_SECONDS,
            check=True,
        )
        has_penstock, directories, programs = json.loads(done.stdout)
    except OSError as error:
        raise Failure(f"{python}: {explain(error)}", ExitCode.USAGE) from error
    except (subprocess.SubprocessError, ValueError) as error:
        raise Failure(f"{python}: does not answer as Python 3 does", ExitCode.USAGE) from error
    return has_penstock, directories, programs
