# SPDX-License-Identifier: Apache-2.0
"""``python -m penstock.testing.posix DIR``: run the cases on a filesystem and say what came of it.

One line for each case, then a line of counts. The exit status is 0 if no case failed, 1 if one did,
2 if nothing could be tried.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

from penstock.testing.posix import CASES, NEEDS, READ_CASES, absent_of, prepare, probe
from penstock.testing.posix.registry import Case
from penstock.testing.posix.report import Result, Verdict, as_json, judge, summary

__all__ = ["main"]

_OF_THE_MOUNT: Final = {"suid", "exec", "others"}


def main(words: Sequence[str] | None = None, out: TextIO = sys.stdout) -> int:
    """Do what the command line says; the exit status."""
    parser = _parser()
    options = parser.parse_args(words)
    without = {need for word in options.without for need in word.split(",")}
    if without - NEEDS.keys():
        parser.error(f"unknown need: {', '.join(sorted(without - NEEDS.keys()))}")
    cases = _chosen(READ_CASES if options.read_only else CASES, options.only)
    if not cases:
        parser.error(f"no case is called {', '.join(options.only)}; --list shows all")
    if options.list:
        for case in cases:
            needs = f" ({', '.join(sorted(case.needs))})" if case.needs else ""
            out.write(f"{case.subject}/{case.name}{needs}: {case.rule}\n")
        return 0
    if options.directory is None:
        parser.error("a directory is needed")
    try:
        if options.prepare:
            return _prepare(options.directory, out)
        return _run(options, cases, without, out)
    except OSError as error:
        sys.stderr.write(f"posix: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m penstock.testing.posix",
        description="Try what a POSIX filesystem on Linux does, rule by rule.",
    )
    add = parser.add_argument
    add("directory", metavar="DIR", type=_path, nargs="?", help="on the filesystem to try")
    add("--without", metavar="NEED", action="append", default=[], help="leave out what needs it")
    add(
        "--only",
        metavar="SUBJECT[/NAME]",
        action="append",
        default=[],
        help="these cases (may be given several times)",
    )
    add("--against", metavar="DIR2", type=_path, help="what fails there too is no failure")
    add("--read-only", action="store_true", help="the read-only half, on a tree that was prepared")
    add("--prepare", action="store_true", help="make the tree for --read-only in an empty DIR")
    add("--json", action="store_true", help="say everything as one JSON object")
    add("--list", action="store_true", help="list the cases and their rules")
    return parser


def _chosen(cases: Sequence[Case], only: Sequence[str]) -> list[Case]:
    wanted = set(only)
    return [
        case
        for case in cases
        if not wanted or wanted & {case.subject, f"{case.subject}/{case.name}"}
    ]


def _path(word: str) -> Path:
    """As it is from anywhere: cases have processes of their own."""
    return Path(word).absolute()


def _prepare(directory: Path, out: TextIO) -> int:
    absent = prepare(directory)
    out.writelines(f"not in the tree: {need} ({why})\n" for need, why in absent.items())
    out.write(f"prepared {directory}\n")
    return 0


def _run(options: argparse.Namespace, cases: Sequence[Case], without: set[str], out: TextIO) -> int:
    with contextlib.ExitStack() as stack:
        root, other = options.directory.resolve(), options.against
        if options.read_only:
            absent = absent_of(root)
        else:
            root = stack.enter_context(_below(root))
            other = None if other is None else stack.enter_context(_below(other))
            absent = probe(root)
            if other is not None:
                # What the other has is to work here, but for what mounting has taken away.
                mounted = {need: why for need, why in absent.items() if need in _OF_THE_MOUNT}
                absent = probe(other) | mounted
        absent |= dict.fromkeys(without, "said so")
        if not options.json:
            out.writelines(
                f"absent: {need}, {NEEDS[need]} ({why})\n" for need, why in absent.items()
            )
        results: list[Result] = []
        for result in judge(root, cases, absent, other):
            results.append(result)
            if not options.json:
                out.write(result.line() + "\n")
                out.flush()
    if options.json:
        out.write(json.dumps(as_json(options.directory, absent, results), indent=1) + "\n")
    else:
        out.write(summary(results) + "\n")
    return int(any(result.verdict is Verdict.FAIL for result in results))


@contextlib.contextmanager
def _below(directory: Path) -> Iterator[Path]:
    """A directory of our own, which everybody may enter."""
    place = Path(tempfile.mkdtemp(prefix="posix-", dir=directory))
    try:
        place.chmod(0o755)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
