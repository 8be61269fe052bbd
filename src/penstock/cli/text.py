# SPDX-License-Identifier: Apache-2.0
"""Text for people: names made harmless, sizes, durations, tables.

Names come from images, that is from anybody. On a terminal a control character could do anything,
so none reaches one.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

__all__ = [
    "duration",
    "json_text",
    "print_table",
    "printable",
    "raw_name",
    "size",
    "terminal_width",
    "write_raw",
]

_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that are not shown: controls, formats (which can reorder text), surrogates
(bytes that are no UTF-8), private and unassigned characters, line and paragraph separators."""


def printable(text: str | bytes, *, mark: str = "") -> str:
    """The text on one line and without anything that a terminal would act on.

    Args:
        text: a name, decoded with :func:`os.fsdecode` or still bytes.
        mark: what stands for each unsafe character; by default an escape as ``\\x1b``.
    """
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c, mark) if unicodedata.category(c) in _UNSAFE else c for c in text)


def _escape(character: str, mark: str) -> str:
    if mark:
        return mark
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def raw_name(name: bytes) -> str:
    """A name as ls(1) prints it: with ``?`` for what is unsafe on a terminal, else as it is."""
    if sys.stdout.isatty():
        return printable(name, mark="?")
    return os.fsdecode(name)


def write_raw(text: str) -> None:
    """Print text that may hold bytes that are no UTF-8 (as surrogates), with a newline."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")


def size(number: float) -> str:
    """Bytes for people: ``512 B``, ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(number) < 1024 or unit == "PiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"


def duration(seconds: float) -> str:
    """``5 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def json_text(value: Any) -> str:
    """Indented JSON, ASCII only, so that any name survives any locale."""
    import json

    return json.dumps(value, indent=2)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table: drawn on a terminal, plain columns elsewhere. Cells are made harmless."""
    clean = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headings), *clean]) for i in range(len(headings))]
    if sys.stdout.isatty() and sum(widths) + 2 * len(widths) > terminal_width():
        _print_blocks(headings, clean, title)
        return
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        _draw_table(headings, clean, title)
        return
    if title:
        print(title)
    for row in [list(headings), *clean]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def terminal_width() -> int:
    """Columns of the terminal; 120 where there is none."""
    import shutil

    return shutil.get_terminal_size((120, 24)).columns


def _print_blocks(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """What is too wide for a table: a line for each cell, so that paths stay in one piece."""
    if title:
        print(title)
    width = max(map(len, headings))
    for number, row in enumerate(rows):
        if number:
            print()
        for heading, cell in zip(headings, row, strict=True):
            print(f"{heading:<{width}}  {cell}".rstrip())


def _draw_table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    from rich.text import Text

    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=terminal_width()).print(table)
