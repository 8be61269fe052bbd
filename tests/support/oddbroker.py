# SPDX-License-Identifier: Apache-2.0
"""``penstock`` whose contained servers have a flaw, or whose broker has less patience.

``python -m tests.support.oddbroker CUE [NAME=SECONDS …] -- WORDS``: CUE is that of
:mod:`tests.support.oddserver`, NAME a constant of :mod:`penstock.broker.mount`, and WORDS are
penstock's command line.
"""

from __future__ import annotations

import sys
from pathlib import Path

import penstock.broker.launch
import penstock.broker.mount
from penstock.cli.main import main

_program = penstock.broker.launch._program
_CUE = sys.argv[1] if len(sys.argv) > 1 else ""


def _flawed(kind: penstock.broker.launch.ServerKind) -> list[str]:
    program = _program(kind)
    script = next(index for index, word in enumerate(program) if word.endswith(".py"))
    program[script] = str(Path(__file__).with_name("oddserver.py"))
    return [*program, _CUE]


if __name__ == "__main__":
    end = sys.argv.index("--")
    for setting in sys.argv[2:end]:
        name, _, value = setting.partition("=")
        assert isinstance(getattr(penstock.broker.mount, name), float)
        setattr(penstock.broker.mount, name, float(value))
    penstock.broker.launch._program = _flawed
    sys.exit(main(sys.argv[end + 1 :]))
