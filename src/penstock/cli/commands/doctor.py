# SPDX-License-Identifier: Apache-2.0
"""``penstock doctor``: what this kernel and this user can do, and how that is known."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.cli.errors import ExitCode
from penstock.cli.text import json_text, printable, terminal_width

if TYPE_CHECKING:
    from penstock.cli.probes import Finding

__all__ = ["run"]

_WORDS = {True: "yes", False: "no", None: "?"}
_NARROW = 100
_MOUNTED = {"lens": "images", "passthrough": "directories"}
"""What can be mounted, by the data path that is best for it."""
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
    found = {finding.name: finding for finding in findings}
    return {
        "kernel": system.release,
        "machine": system.machine,
        "uid": os.geteuid(),
        "features": [finding._asdict() for finding in findings],
        "datapaths": {_MOUNTED[name]: _path(found, name) for name in _MOUNTED},
        "verdict": _verdict(findings),
    }


def _verdict(findings: list[Finding]) -> str:
    """What this user can do, in a line."""
    found = {finding.name: finding for finding in findings}
    device, helper, direct = (found.get(n) for n in ("fuse-device", "fusermount3", "mount-api"))
    tried = found.get("copy")
    why = f"fusermount3: {helper.detail}" if helper is not None else "no fusermount3"
    if device is None or not device.user:
        why = device.detail if device is not None else "no FUSE device"
    elif tried is not None and not tried.user:
        why = tried.detail
    elif (direct is not None and direct.user) or (helper is not None and helper.user):
        how = "" if direct is not None and direct.user else " (fusermount3 helps)"
        first = f"you can mount images and directories{how}, and read images without mounting"
        return f"{first}; {_data(found)}" if tried is not None else first
    return f"you can read images (ls, cat, cp, info) but not mount them: {why}"


def _data(found: Mapping[str, Finding]) -> str:
    """How the data of mounts will go, and what would have it go better."""
    images, directories = (_path(found, name) for name in _MOUNTED)
    said = f"by {images} for images, by {directories} for directories"
    if images == directories:
        said = f"by {images}"
    lacking = [name for name in _MOUNTED if name in found and not found[name].user]
    wishes = dict.fromkeys(found[name].enable for name in lacking)
    wish = f" (for {' and '.join(lacking)}: {'; '.join(wishes)})" if lacking else ""
    return f"file data goes {said}{wish}"


def _path(found: Mapping[str, Finding], name: str) -> str:
    """The data path that ``datapath=auto`` will have; empty where there will be no mount.

    Args:
        found: the findings by name.
        name: the data path that is best for what is mounted.
    """
    ways = [each for each in (name, "splice", "copy") if each in found and found[each].user]
    return ways[0] if "copy" in ways else ""


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
