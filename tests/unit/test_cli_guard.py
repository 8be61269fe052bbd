# SPDX-License-Identifier: Apache-2.0
"""What a program raises is one line and an exit code."""

from __future__ import annotations

import pytest

from penstock.cli.guard import guarded


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (
            RuntimeError("can't start new thread"),
            "out of memory or threads (ulimit -v, ulimit -u): cannot start another thread",
        ),
        (OSError(24, "Too many open files"), "too many open files (ulimit -n)"),
        (OSError(24, "Too many open files", "/x"), "/x: too many open files (ulimit -n)"),
        (
            RuntimeError("odd"),
            "internal error: RuntimeError: odd (PENSTOCK_TRACEBACK=1 shows where)",
        ),
    ],
)
def test_one_line(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise error

    assert guarded(work) == 2
    assert capsys.readouterr() == ("", f"penstock: {said}\n")
