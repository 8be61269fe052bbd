# SPDX-License-Identifier: Apache-2.0
"""The tables of system calls in docs/security.md, as ``python -m penstock.contain.profile`` prints
them, and that of a mirror's capabilities. ``python -m tests.support.calltables`` writes them into
the page; a test compares.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Final

from penstock.servers.mirror.rights import RIGHTS, TRUSTED
from tests.support.requirements import PROJECT

__all__ = ["NAMES", "PAGE", "capabilities", "filled"]

PAGE: Final = PROJECT / "docs" / "security.md"
NAMES: Final = ("image", "mirror", "user-mirror")


def filled(name: str, table: str) -> str:
    """The page with this table in its place, between the two comments that name it."""
    text = PAGE.read_text(encoding="utf-8")
    begin = rf"(?<=<!-- begin: system calls of {name} )(.*? -->\n\n)"
    pattern = rf"{begin}.*?(?=\n<!-- end: system calls of {name} -->)"
    found, count = re.subn(pattern, lambda match: match.group(1) + table, text, flags=re.DOTALL)
    assert count == 1, name
    return found


def capabilities() -> str:
    """The page with the capabilities of a mirror's server in their place."""
    rows = [(f"CAP_{each.capability.name}", each.use, each.without) for each in RIGHTS]
    name = f"CAP_{TRUSTED.capability.name}, only with `-o trusted`"
    rows.append((name, TRUSTED.use, TRUSTED.without))
    table = "| Capability | What for | Without it |\n|---|---|---|\n"
    table += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    text = PAGE.read_text(encoding="utf-8")
    pattern = r"(?<=<!-- begin: capabilities )(.*? -->\n\n).*?(?=\n<!-- end: capabilities -->)"
    found, count = re.subn(pattern, lambda match: match.group(1) + table, text, flags=re.DOTALL)
    assert count == 1
    return found


def main() -> None:
    """Write all of them."""
    for name in NAMES:
        command = [sys.executable, "-m", "penstock.contain.profile", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        PAGE.write_text(filled(name, done.stdout), encoding="utf-8")
    PAGE.write_text(capabilities(), encoding="utf-8")


if __name__ == "__main__":
    main()
