# SPDX-License-Identifier: Apache-2.0
"""The ``penstock`` program: finds the command and runs it.

Thin on purpose: only the modules of the command that was asked for are imported, since ``penstock
mount`` runs at boot.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from penstock.cli.errors import ExitCode, Failure
from penstock.cli.guard import guarded
from penstock.cli.streams import check_output, open_streams, say

__all__ = ["main"]

_USAGE: Final = """\
usage: penstock COMMAND [ARGUMENT…]

Filesystems in Python at kernel speed.

commands:
{commands}

`penstock help COMMAND` shows a command's arguments, `penstock mount -o help` its -o words,
`penstock --version` the version.

exit codes:
{codes}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit code.

    Args:
        arguments: the command line without the program's name; None: the process's own.
    """
    open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        say(_usage().rstrip())
        return ExitCode.USAGE
    return guarded(lambda: _run(words[0], words[1:]))


def _run(name: str, words: list[str]) -> int:
    if name == "help" and words:
        return _run(words[0], ["--help"])
    if name in {"-h", "--help", "help"}:
        check_output()
        print(_usage(), end="")
        return ExitCode.OK
    if name in {"-V", "--version"}:
        check_output()
        from penstock._version import __version__

        print(f"penstock {__version__}")
        return ExitCode.OK
    from penstock.cli.options import COMMANDS

    for command in COMMANDS:
        if command.name == name:
            break
    else:
        if name.startswith("/") and words:  # as libfuse's helper for mount(8) calls us
            from penstock.cli.helper import run_for_fuse

            return run_for_fuse([name, *words])
        what = "option" if name.startswith("-") else "command"
        raise Failure(f"{name}: no such {what} (see penstock --help)", ExitCode.USAGE)
    from importlib import import_module

    from penstock.cli.parser import parse_arguments

    try:
        parsed = parse_arguments(command, words)
    except SystemExit:  # --help was printed
        check_output()
        return ExitCode.OK
    if command.prints:
        check_output()
    module = import_module(f"penstock.cli.commands.{name.replace('-', '_')}")
    return int(module.run(parsed))


def _usage() -> str:
    from penstock.cli.options import COMMANDS

    width = max(len(command.name) for command in COMMANDS) + 2
    return _USAGE.format(
        commands="\n".join(f"  {command.name:<{width}}{command.summary}" for command in COMMANDS),
        codes="\n".join(f"  {code.value:<{width}}{code.meaning}" for code in ExitCode),
    )
