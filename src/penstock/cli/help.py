# SPDX-License-Identifier: Apache-2.0
"""Texts made from the option tables: ``-o help``, and docs/commands.md.

``python -m penstock.cli.help`` prints the latter.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from penstock.cli.errors import ExitCode
from penstock.cli.options import COMMANDS, WORDS, Argument, Command, Kind, Shape, Word
from penstock.servers import TYPES, server_options

__all__ = ["commands_document", "words_help"]

_COLUMN = 22


def words_help() -> str:
    """What ``-o help`` prints."""
    lines = ["-o words of every mount:"]
    for word in WORDS:
        if word.kind not in {Kind.IGNORED, Kind.NOTED}:
            lines += _entry(_shown(word), _described(word))
    for type in TYPES:
        lines += ["", f"-o words of {type}:"]
        for option in server_options(type):
            shown = f"{option.name}={option.metavar}" if option.metavar else option.name
            lines += _entry(shown, option.help)
    lines += ["", "accepted, without effect:"]
    lines += textwrap.wrap(
        ", ".join(_without_effect()), 78, initial_indent="  ", subsequent_indent="  "
    )
    return "\n".join(lines) + "\n"


def commands_document() -> str:
    """The text of docs/commands.md."""
    lines = [
        "# Commands",
        "",
        "<!-- Made by python -m penstock.cli.help from src/penstock/cli/options.py. -->",
        "",
        "Every failure is one line on standard error. Exit codes, as those of mount(8):",
        "",
        "| Code | Meaning |",
        "|---|---|",
        *(f"| {code.value} | {code.meaning} |" for code in ExitCode),
    ]
    for command in COMMANDS:
        lines += _command(command)
    lines += ["", "## Words of -o", "", *_words_table()]
    for type in TYPES:
        lines += ["", f"Words of {type}:", "", "| Word | Meaning |", "|---|---|"]
        for option in server_options(type):
            shown = f"{option.name}={option.metavar}" if option.metavar else option.name
            lines.append(f"| `{shown}` | {option.help} |")
    return "\n".join(lines) + "\n"


def _entry(word: str, text: str) -> list[str]:
    indent = " " * (_COLUMN + 4)
    wrapped = textwrap.wrap(text, 90, initial_indent=indent, subsequent_indent=indent)
    if len(word) > _COLUMN:
        return [f"  {word}", *wrapped]
    wrapped[0] = f"  {word:<{_COLUMN}}  " + wrapped[0].lstrip()
    return wrapped


def _shown(word: Word) -> str:
    return f"{word.name}={'|'.join(word.values)}" if word.values else word.name


def _described(word: Word) -> str:
    return f"{word.help} (default: {word.default})" if word.default else word.help


def _without_effect() -> list[str]:
    names = [word.name for word in WORDS if word.kind in {Kind.IGNORED, Kind.NOTED}]
    return [*sorted(names), "x-*"]


def _command(command: Command) -> Iterator[str]:
    positional = [a for a in command.arguments if a.shape not in _WITH_FLAGS]
    words = [_placeholder(a) for a in positional]
    yield from ("", f"## penstock {command.name}", "")
    yield f"`penstock {command.name} {' '.join([*words, '[OPTION…]'])}`"
    yield from (
        "",
        f"{command.summary[0].upper()}{command.summary[1:]}. {command.description}".strip(),
    )
    yield from ("", "| Argument | Meaning |", "|---|---|")
    for argument in command.arguments:
        yield f"| {_argument(argument)} | {argument.help} |"


def _placeholder(argument: Argument) -> str:
    name = argument.names[0]
    return {Shape.SOME: f"{name}…", Shape.ANY: f"[{name}…]"}.get(argument.shape, name)


_WITH_FLAGS = {Shape.FLAG, Shape.VALUE, Shape.REPEATED}


def _argument(argument: Argument) -> str:
    value = f" {argument.metavar}" if argument.metavar else ""
    return ", ".join(f"`{name}{value}`" for name in argument.names).replace("|", "\\|")


def _words_table() -> Iterator[str]:
    yield from ("| Word | Meaning | Default |", "|---|---|---|")
    for word in WORDS:
        if word.kind is not Kind.IGNORED:
            shown = _shown(word).replace("|", "\\|")
            yield f"| `{shown}` | {word.help} | {word.default} |"
    names = ", ".join(f"`{w.name}`" for w in WORDS if w.kind is Kind.IGNORED)
    yield from (
        "",
        f"Accepted without effect, as mount(8) keeps them to itself: {names}, `x-*`.",
    )


if __name__ == "__main__":
    print(commands_document(), end="")
