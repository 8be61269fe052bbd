# SPDX-License-Identifier: Apache-2.0
"""The command line.

Start with ``options.py``, the table of everything that may be typed, and ``main.py``. Each command
is a module of :mod:`penstock.cli.commands` with one function ``run(arguments) -> exit code``. A
command that cannot go on raises :class:`penstock.cli.errors.Failure`.

Rules: one clear line on stderr for every failure; no command touches a path on or below a mount
made by penstock, since that would wait for its server; imports are made where they are needed.
"""

__all__: list[str] = []
