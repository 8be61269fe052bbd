# SPDX-License-Identifier: Apache-2.0
"""``python -m penstock.testing.fsx DIR``: exit status 0 where nothing differs, 1 where something
does, 2 where the run could not be made."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from penstock.testing.fsx.probe import FEATURES
from penstock.testing.fsx.reporting import as_json, as_text, dump, parse
from penstock.testing.fsx.running import run
from penstock.testing.fsx.shrinking import shrink
from penstock.testing.fsx.world import Settings

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m penstock.testing.fsx",
        description="Random operations on a few files, compared with a model in memory.",
    )
    add = parser.add_argument
    add("directory", metavar="DIR", help="a directory on the filesystem to be tried")
    add("--operations", type=int, default=defaults.operations, metavar="N", help="how many")
    add("--seed", type=int, metavar="S", help="makes the same run again (default: any)")
    add("--files", type=int, default=defaults.files, metavar="N", help="how many names")
    add("--size", type=int, default=defaults.size, metavar="BYTES", help="of the largest file")
    add("--slots", type=int, default=defaults.slots, metavar="N", help="open descriptors")
    add(
        "--check-every",
        type=int,
        default=defaults.check_every,
        metavar="N",
        help="operations between two looks at whole contents",
    )
    add(
        "--underneath",
        metavar="DIR",
        help="the same directory past the filesystem: it is then changed there too",
    )
    add(
        "--settle",
        type=float,
        default=defaults.settle,
        metavar="SECONDS",
        help="until changes underneath must be seen",
    )
    add(
        "--without",
        action="append",
        default=[],
        choices=sorted(FEATURES),
        metavar="FEATURE",
        help=f"not to be used: {', '.join(FEATURES)}",
    )
    add("--replay", type=Path, metavar="FILE", help="the operations in this file, no others")
    add(
        "--shrink",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="to look for a short run that fails too (default: 20)",
    )
    add("--json", action="store_true", help="report as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    parser = _parser()
    words = parser.parse_args(arguments)
    if min(words.operations, words.files, words.check_every) < 1 or words.slots < 2:
        parser.error("numbers must be at least 1, and two descriptors open")
    if not 1 << 14 <= words.size <= 4 << 20:
        parser.error("--size: from 16384 to 4194304 bytes")
    settings = Settings(
        operations=words.operations,
        seed=secrets.randbelow(1 << 32) if words.seed is None else words.seed,
        files=words.files,
        size=words.size,
        slots=words.slots,
        check_every=words.check_every,
        without=frozenset(words.without),
        underneath=words.underneath,
        settle=words.settle,
    )
    try:
        given = None if words.replay is None else parse(words.replay.read_text(encoding="ascii"))
        outcome = run(words.directory, settings, given)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"penstock.testing.fsx: {error}\n")
        return 2
    short = shrink(words.directory, outcome, words.shrink)
    out = sys.stdout
    if words.json:
        out.write(as_json(words.directory, outcome, short))
    else:
        saved = _save(dump(short)) if short and words.replay is None else None
        out.write(as_text(words.directory, outcome, short, saved))
    return 0 if outcome.failure is None else 1


def _save(text: str) -> str:
    fd, path = tempfile.mkstemp(prefix="fsx-", suffix=".run")
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)
    return path


if __name__ == "__main__":
    sys.exit(main())
