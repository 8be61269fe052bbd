# SPDX-License-Identifier: Apache-2.0
"""``penstock doctor``: what this kernel and this user can do, and how that is known."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from penstock.cli.errors import ExitCode
from penstock.cli.text import json_text, printable, terminal_width

if TYPE_CHECKING:
    from penstock.cli.probes import Finding

__all__ = ["run"]

_WORDS = {True: "yes", False: "no", None: "?"}
_NARROW = 100
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
        "verdict": _verdict(findings),
    }


def _verdict(findings: list[Finding]) -> str:
    """What this user can do, in a line."""
    found = {finding.name: finding for finding in findings}
    device, helper, direct = (found.get(n) for n in ("fuse-device", "fusermount3", "mount-api"))
    if device is None or not device.user:
        why = device.detail if device is not None else "no FUSE device"
        return f"you can read images (ls, cat, cp, info) but not mount them: {why}"
    if direct is not None and direct.user:
        return "you can mount images, and read them without mounting"
    if helper is not None and helper.user:
        return "you can mount images (fusermount3 helps), and read them without mounting"
    why = f"fusermount3: {helper.detail}" if helper is not None else "no fusermount3"
    return f"you can read images (ls, cat, cp, info) but not mount them: {why}"


def _show(findings: list[Finding]) -> None:
    system = os.uname()
    print(f"Linux {system.release} on {system.machine}, uid {os.geteuid()}\n")
    columns = min(terminal_width(), 140)
    if columns < _NARROW:
        _show_blocks(findings, columns)
    else:
        _show_table(findings, columns)
    print("\n" + "\n".join(_wrapped(f"In short: {_verdict(findings)}.", columns)))


def _show_table(findings: list[Finding], columns: int) -> None:
    width = max(len(finding.title) for finding in findings)
    print(f"{'FEATURE':<{width}}  KERNEL  YOU  FOUND (and how that is known)")
    for finding in findings:
        print(
            f"{finding.title:<{width}}  {_word(finding.kernel, 6)}  {_word(finding.user, 3)}  "
            + ("\n" + " " * (width + 15)).join(_lines(finding, columns - width - 15))
        )


def _show_blocks(findings: list[Finding], columns: int) -> None:
    """For narrow terminals."""
    for number, finding in enumerate(findings):
        if number:
            print()
        print(finding.title)
        print(f"  kernel: {_word(finding.kernel, 3)}  you: {_word(finding.user, 3)}".rstrip())
        print("\n".join(f"  {line}" for line in _lines(finding, columns - 2)))


def _lines(finding: Finding, columns: int) -> list[str]:
    lines = _wrapped(f"{finding.detail} ({finding.how})", columns)
    if finding.enable:
        wish = finding.enable if finding.user else f"to get it: {finding.enable}"
        lines += _wrapped(wish, columns)
    return lines


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(
        printable(text), max(columns, 20), break_long_words=False, break_on_hyphens=False
    )


def _word(value: bool | None, width: int) -> str:
    text = f"{_WORDS[value]:<{width}}"
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[value]}m{text}\x1b[0m"
