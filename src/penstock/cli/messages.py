# SPDX-License-Identifier: Apache-2.0
"""What a command says beside its output: lines on stderr. Imports little: every command may."""

from __future__ import annotations

from penstock.cli.streams import say
from penstock.cli.text import printable

__all__ = ["report", "warn"]


def warn(message: str) -> None:
    """One line that the user should see, although the command goes on."""
    say(f"penstock: warning: {printable(message)}")


def report(message: str) -> None:
    """One line on what failed, where the command goes on and fails at its end."""
    say(f"penstock: {printable(message)}")
