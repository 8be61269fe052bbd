# SPDX-License-Identifier: Apache-2.0
"""``penstock doctor``: what this kernel and this user can do, and how that is known."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from penstock.cli.errors import ExitCode
from penstock.cli.text import json_text, printable

if TYPE_CHECKING:
    from penstock.cli.probes import Finding

__all__ = ["run"]

_WORDS = {True: "yes", False: "no", None: "?"}
_COLOURS = {True: "32", False: "31", None: "33"}


def run(arguments: argparse.Namespace) -> int:
    """Print all findings; 0 whatever they are."""
    from penstock.cli.probes import all_findings

    findings = all_findings()
    if arguments.json:
        print(json_text(_as_json(findings)))
    else:
        _show(findings)
    return ExitCode.OK


def _as_json(findings: list[Finding]) -> dict[str, Any]:
    system = os.uname()
    return {
        "kernel": system.release,
        "machine": system.machine,
        "uid": os.geteuid(),
        "features": [finding._asdict() for finding in findings],
    }


def _show(findings: list[Finding]) -> None:
    system = os.uname()
    print(f"Linux {system.release} on {system.machine}, uid {os.geteuid()}\n")
    width = max(len(finding.title) for finding in findings)
    columns = max(60, min(_width(), 140)) - width - 15
    print(f"{'FEATURE':<{width}}  KERNEL  YOU  FOUND (and how that is known)")
    for finding in findings:
        lines = textwrap.wrap(printable(f"{finding.detail} ({finding.how})"), columns)
        if finding.enable:
            lines += textwrap.wrap(
                printable(f"to get it: {finding.enable}" if not finding.user else finding.enable),
                columns,
            )
        print(
            f"{finding.title:<{width}}  {_word(finding.kernel, 6)}  {_word(finding.user, 3)}  "
            + ("\n" + " " * (width + 15)).join(lines)
        )


def _width() -> int:
    try:
        return os.get_terminal_size(1).columns
    except OSError:
        return 120


def _word(value: bool | None, width: int) -> str:
    text = f"{_WORDS[value]:<{width}}"
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[value]}m{text}\x1b[0m"
