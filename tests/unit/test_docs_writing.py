# SPDX-License-Identifier: Apache-2.0
"""What docs/writing-filesystems.md shows works as it stands."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import penstock
from penstock.fs import Operations
from tests.support.requirements import PROJECT

TEXT = (PROJECT / "docs" / "writing-filesystems.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def block(word: str) -> str:
    """The one block of code with a word in it."""
    (found,) = (each for each in BLOCKS if word in each)
    return str(found)


@pytest.fixture
def hello() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("hello", PROJECT / "examples" / "hello.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_driving_a_filesystem_from_memory(
    hello: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(block("MemoryTransport"), {"MyFilesystem": hello.Hello})  # noqa: S102 - our own text
    assert capsys.readouterr().out == f"2 {len(hello.TEXT)}\n"


def test_the_inode_table() -> None:
    class Thing:
        number = 7

    node = Thing()
    scope: dict[str, Any] = {"InodeTable": penstock.InodeTable, "root": Thing(), "node": node}
    exec(block("InodeTable"), scope)  # noqa: S102 - our own text
    assert scope["node"] is node
    with pytest.raises(penstock.FsError) as caught:
        scope["table"][scope["nodeid"]]
    assert caught.value.errno == errno.ESTALE


def test_running_the_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a place that is no directory each case fails and is printed with its rule."""
    (tmp_path / "file").touch()
    code = block("posix.run").replace("/mnt/point", str(tmp_path / "file"))
    exec(code, {})  # noqa: S102 - our own text
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > 200
    assert printed[1].startswith("   the rule: ")


def test_offering_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    scope: dict[str, Any] = {
        "penstock": penstock, "os": os, "OpenReply": penstock.OpenReply,
        "WholeFile": penstock.WholeFile, "Backing": penstock.Backing,
    }  # fmt: skip
    exec(block("whole_files"), scope)  # noqa: S102 - our own text
    kept: list[int] = []
    made = scope["MyFilesystem"]()
    made.path = lambda _nodeid: file

    def keep(fd: int) -> int:
        kept.append(fd)
        return 7

    made.keep = keep
    made.forgo = lambda _fh: kept.pop()
    assert made.whole_files == "passthrough"
    reply = made.open(None, 2, os.O_RDONLY, kill_suidgid=False)
    assert (reply.fh, reply.whole.length) == (7, 7)
    fd = reply.whole.source.fd
    assert os.pread(fd, 9, 0) == b"content"
    made.carried(2, reply.fh)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_what_is_named_exists() -> None:
    for name in set(re.findall(r"`penstock\.([A-Za-z]+)", TEXT)):
        assert hasattr(penstock, name) or importlib.util.find_spec(f"penstock.{name}"), name
    rules = TEXT.partition("## Rules of the kernel")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (.*?) \|", rules, re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`([a-z]+)`", cell)}
    assert len(named) > 20
    assert all(hasattr(Operations, name) for name in named)
