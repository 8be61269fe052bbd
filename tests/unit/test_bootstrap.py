# SPDX-License-Identifier: Apache-2.0
"""make setup in a clone that belongs to somebody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import bootstrap


def test_unwritable_clone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_reached(*_: object) -> None:
        raise AssertionError("went on in a folder that is not writable")

    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    monkeypatch.setattr(bootstrap, "install_packages", not_reached)
    monkeypatch.setattr("sys.argv", ["bootstrap.py", "run"])
    assert bootstrap.main() == 1
    err = capsys.readouterr().err
    assert err.startswith(f"setup: {tmp_path} is not writable for you. ")
    assert "python3-venv" not in err
    (tmp_path / ".venv").mkdir()
    bootstrap.check_writable()  # only what is in there is written then
