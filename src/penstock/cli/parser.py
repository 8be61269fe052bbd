# SPDX-License-Identifier: Apache-2.0
"""An argument parser made from one row of the command table."""

from __future__ import annotations

import argparse
from typing import Any, Final, NoReturn

from penstock.cli.errors import ExitCode, Failure
from penstock.cli.options import Argument, Command, Shape, split_words

__all__ = ["parse_arguments"]

_COUNT: Final = {Shape.ONE: None, Shape.OPTIONAL: "?", Shape.SOME: "+", Shape.ANY: "*"}


class _Parser(argparse.ArgumentParser):
    """argparse that fails in one line and with mount(8)'s code for it."""

    def error(self, message: str) -> NoReturn:
        raise Failure(f"{message} (see {self.prog} --help)", ExitCode.USAGE)


def parse_arguments(command: Command, words: list[str]) -> argparse.Namespace:
    """Parse the command line of one command.

    Attributes of the result are called after the long flags, or the positional's name up to its
    first bracket, in lower case: ``foreground``, ``source``.

    Raises:
        Failure: it is wrong (USAGE).
        SystemExit: 0, after ``--help`` has been printed.
    """
    parser = _Parser(
        prog=f"penstock {command.name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}. {command.description}",
        allow_abbrev=False,
        add_help=False,
    )
    taken = any("-h" in argument.names for argument in command.arguments)
    flags = ["--help"] if taken else ["-h", "--help"]
    parser.add_argument(*flags, action="help", help="show this help and exit")
    for argument in command.arguments:
        _add(parser, argument)
    return parser.parse_intermixed_args(words)


def _add(parser: argparse.ArgumentParser, argument: Argument) -> None:
    if argument.shape in _COUNT:
        name = argument.names[0]
        options: dict[str, Any] = {"metavar": name, "help": argument.help}
        if (count := _COUNT[argument.shape]) is not None:
            options["nargs"] = count
        parser.add_argument(name.partition("[")[0].lower(), **options)
    elif argument.shape is Shape.FLAG:
        parser.add_argument(*argument.names, action="store_true", help=argument.help)
    else:
        repeated = argument.shape is Shape.REPEATED
        parser.add_argument(
            *argument.names,
            action=_WordsAction if repeated else "store",
            default=[] if repeated else None,
            type=int if argument.number else str,
            metavar=argument.metavar,
            help=argument.help,
        )


class _WordsAction(argparse.Action):
    """Collects the arguments of ``-o``; ``-o help`` answers at once, whatever else is missing."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if any(name == "help" for name, _ in split_words(values)):
            from penstock.cli.help import words_help

            print(words_help(), end="")
            parser.exit()
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])
