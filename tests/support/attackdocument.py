# SPDX-License-Identifier: Apache-2.0
"""The text that tells what was tried: a part of docs/security.md.

What this kernel does not have, or its Landlock cannot do yet, stands there as promised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from penstock.contain.sandbox import LAYERS
from tests.support.attackmatrix import ALL, Measured, is_absent, uses_only_allowed
from tests.support.attackrun import BROKER
from tests.support.attacks import Attempt, load
from tests.support.requirements import PROJECT

__all__ = ["documents"]

SECURITY: Final = PROJECT / "docs" / "security.md"
_PLACE: Final = re.compile(r"(<!-- begin: attacks[^>]*-->\n).*(<!-- end: attacks -->)", re.DOTALL)
_COLUMNS: Final = (*LAYERS, BROKER)

_INTRODUCTION: Final = """\
Written by `python -m tests.support.attackmatrix`, as root, and compared with what is measured by
`tests/root/test_containment.py`. The attempts are the functions of `tests/support/attack_*.py`.

Each attempt is carried out by code that runs inside a server's process after its sandbox has
closed, with all that a server holds: the image, its connection to the kernel, a pipe and the socket
to the broker.
"""

_BOTH: Final = """\
### No layer, and all layers

A star: the attempt takes no system call but those that servers may make.
"""

_ALONE: Final = """\
### One layer alone

All other layers are off. A cross: this layer must stop the attempt by itself, and did. Elsewhere it
may or may not; another layer answers for it. The last column is no layer of the sandbox, but what
the broker hands out: the image open for reading only, and a connection whose INIT it has answered
itself.
"""


def documents(rows: Sequence[Measured]) -> dict[Path, str]:
    """Each document, and its whole text."""
    table = _Table(rows)
    security = SECURITY.read_text(encoding="utf-8")
    text = f"{_INTRODUCTION}\n{table.summary()}\n{table.matrices()}"
    return {SECURITY: _PLACE.sub(lambda found: found[1] + text + found[2], security)}


class _Table:
    """The attempts, and which of them went through."""

    def __init__(self, rows: Sequence[Measured]) -> None:
        self.attempts = load()
        measured = [row for row in rows if row.succeeded]
        absent = {
            row.attempt
            for row in rows
            if not row.layers and is_absent(self.attempts[row.attempt], row)
        }
        self.real = {row.attempt for row in measured if not row.layers} | absent
        self.through = {row.attempt for row in measured if row.layers == ALL}
        self.past = {(row.attempt, *row.layers) for row in measured if len(row.layers) == 1}
        self.starred = {name for name, each in self.attempts.items() if uses_only_allowed(each)}

    def stopped_alone(self, attempt: Attempt, layer: str) -> bool:
        """Whether a layer must stop an attempt, and did."""
        return layer in attempt.stopped_by and (attempt.name, layer) not in self.past

    def summary(self) -> str:
        """In short."""
        attempts = self.attempts.values()
        calls = {call for attempt in attempts for call in attempt.calls}
        counts = [
            str(sum(self.stopped_alone(attempt, layer) for attempt in attempts))
            for layer in _COLUMNS
        ]
        return "\n".join(
            [
                f"{len(attempts)} attempts, which take {len(calls)} different system calls.",
                f"{len(self.starred)} of them take none but those that servers may make.",
                "",
                "| Closed | Succeed |",
                "|---|--:|",
                f"| no layer | {len(self.real)} |",
                f"| all layers, whether root or an ordinary user mounts | {len(self.through)} |",
                "",
                "How many each layer stops by itself, all others being off",
                "(the last one is what the broker hands out):",
                "",
                f"| {' | '.join(f'`{layer}`' for layer in _COLUMNS)} |",
                "|" + "--:|" * len(_COLUMNS),
                f"| {' | '.join(counts)} |",
                "",
            ]
        )

    def matrices(self) -> str:
        """In full."""
        lines = [_BOTH]
        sections: dict[str, list[Attempt]] = {}
        for attempt in self.attempts.values():
            sections.setdefault(attempt.section, []).append(attempt)
        for title, group in sections.items():
            lines += [f"#### {title}", "", "| Attempt | What it does | System calls | No | All |"]
            lines += ["|---|---|---|---|---|", *map(self._row, group), ""]
        lines += [_ALONE, f"| Attempt | {' | '.join(f'`{layer}`' for layer in _COLUMNS)} |"]
        lines += ["|---|" + ":-:|" * len(_COLUMNS), *map(self._row_alone, self.attempts.values())]
        return "\n".join([*lines, ""])

    def _row(self, attempt: Attempt) -> str:
        cells = [
            attempt.title + (" *" if attempt.name in self.starred else ""),
            " ".join(attempt.what.split()),
            ", ".join(attempt.calls),
            "succeeds" if attempt.name in self.real else "stopped",
            "succeeds" if attempt.name in self.through else "stopped",
        ]
        return f"| {' | '.join(cells)} |"

    def _row_alone(self, attempt: Attempt) -> str:
        cells = ["x" if self.stopped_alone(attempt, layer) else " " for layer in _COLUMNS]
        return f"| {attempt.title} | {' | '.join(cells)} |"
