# SPDX-License-Identifier: Apache-2.0
"""The random operations: on tmpfs, again by the same seed, written down, and what is reported."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.testing import fsx
from penstock.testing.fsx import __main__ as program
from penstock.testing.fsx.model import Difference, Node, compare, payload
from penstock.testing.fsx.probe import FEATURES
from penstock.testing.fsx.reporting import command, dump, parse
from penstock.testing.fsx.running import choices
from penstock.testing.fsx.world import World

SETTINGS = fsx.Settings(operations=5_000, seed=7)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory."""
    folder = Path(tempfile.mkdtemp(prefix="fsx-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def test_tmpfs_does_as_the_model_says(place: Path) -> None:
    told: list[int] = []
    outcome = fsx.run(place, SETTINGS, progress=told.append)
    assert outcome.failure is None, fsx.as_text(str(place), outcome, (), None)
    assert outcome.done == SETTINGS.operations
    assert outcome.checks == len(told) + 1 == SETTINGS.operations // SETTINGS.check_every + 1
    assert not list(place.iterdir())


def test_another_path_to_the_same_files(place: Path) -> None:
    settings = dataclasses.replace(SETTINGS, underneath=str(place))
    outcome = fsx.run(place, settings)
    assert outcome.failure is None, fsx.as_text(str(place), outcome, (), None)
    assert {"read_beneath", "write_beneath", "truncate_beneath", "replace_beneath"} <= set(
        outcome.counts
    )


def test_another_path_to_other_files(place: Path, tmp_path: Path) -> None:
    outcome = fsx.run(place, dataclasses.replace(SETTINGS, underneath=str(tmp_path)))
    assert outcome.failure is not None


def _made(place: Path, settings: fsx.Settings) -> list[fsx.Operation]:
    """What would be done to an empty directory, if nothing came of it."""
    world = World(str(place), settings, dict.fromkeys(FEATURES), 4096)
    try:
        world.set_name(0, world.new_node())
        return list(choices(world, settings))
    finally:
        world.close()


def test_a_seed_makes_one_run(place: Path) -> None:
    settings = dataclasses.replace(SETTINGS, operations=50)
    assert _made(place, settings) == _made(place, settings)
    other = dataclasses.replace(settings, seed=8)
    assert _made(place, settings) != _made(place, other)


def test_a_run_can_be_written_down_and_cut(place: Path) -> None:
    """Operations that make no sense where they stand do nothing."""
    made = [
        fsx.Operation(1, "open", (0, 0, 0)),
        fsx.Operation(2, "pwrite", (0, 10, 100)),
        fsx.Operation(3, "copy_file_range", (0, 10, 5, 200, 50)),
        fsx.Operation(4, "load", (3, 0, 10)),
        fsx.Operation(5, "rename", (4, 1)),
        fsx.Operation(6, "pread", (77, 0, 10)),
    ]
    assert parse(dump(made)) == made
    outcome = fsx.run(place, SETTINGS, made)
    assert outcome.failure is None
    assert outcome.counts == {"open": 1, "pwrite": 1}


@pytest.mark.parametrize(
    "line", ['[1,"pread",1]', '[1,"nothing",1]', '[1,"close",-1]', '["1","close",1]', "{}", "1"]
)
def test_what_is_no_run_is_refused(line: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse(line)


def test_features_can_be_left_out(place: Path) -> None:
    settings = dataclasses.replace(SETTINGS, without=frozenset({"mmap", "direct", "punch"}))
    outcome = fsx.run(place, settings)
    assert outcome.failure is None
    assert not {"store", "load", "mmap", "punch"} & set(outcome.counts)


def test_the_first_byte_that_differs_is_named() -> None:
    compare(b"abc", b"abc", 0, "same")
    for got, wanted, offset in (
        (b"abcd", b"abXd", 102),
        (b"abc", b"abcd", 103),
        (b"", b"a", 100),
        (b"xbc", b"abc", 100),
        (bytes(5000) + b"x", bytes(5001), 5100),
    ):
        with pytest.raises(Difference) as caught:
            compare(got, wanted, 100, "content")
        assert caught.value.offset == offset
        assert caught.value.got != caught.value.wanted


def test_the_model_grows_by_zeros() -> None:
    node = Node(1)
    node.write(5, b"abc")
    assert node.data == bytes(5) + b"abc"
    node.zero(6, 100)
    assert node.data == bytes(5) + b"a" + bytes(2)
    node.zero(7, 3, grow=True)
    assert len(node.data) == 10
    node.resize(6)
    assert node.data == bytes(5) + b"a"


def test_operations_write_bytes_that_tell_them_apart() -> None:
    assert payload(1, 100) != payload(2, 100)
    assert payload(5, 1000)[:10] == payload(5, 10)
    assert payload(23, 10) == bytes(10)
    assert len(payload((1 << 20) - 1, 4 << 20)) == 4 << 20


def test_program_says_that_nothing_differs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([str(place), "--operations", "500", "--seed", "4"]) == 0
    assert "500 operations" in capsys.readouterr().out
    assert program.main([str(place), "--operations", "500", "--seed", "4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["difference"] is None
    assert document["operations"] == 500


def test_program_says_what_differs(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(fd: int, data: bytes, offset: int) -> int:
        return real(fd, data[:-1] + b"\x01" if len(data) > 100 else data, offset)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lying)
    words = [str(place), "--operations", "3000", "--seed", "4", "--shrink", "3"]
    assert program.main(words) == 1
    shown = capsys.readouterr().out
    assert "seed 4" in shown
    assert "expected " in shown
    assert "found " in shown
    assert f"{place} --operations 3000 --seed 4\n" in shown
    saved = Path(shown.splitlines()[-1].split()[-1])
    assert parse(saved.read_text(encoding="ascii"))
    saved.unlink()
    assert program.main([*words, "--json"]) == 1
    difference = json.loads(capsys.readouterr().out)["difference"]
    assert difference["expected"] != difference["found"]
    assert difference["last"]
    assert difference["short"]


def test_program_refuses_what_makes_no_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([str(place / "absent")]) == 2
    assert "absent" in capsys.readouterr().err
    for words in (["--files", "0"], ["--size", "5"], ["--without", "sense"]):
        with pytest.raises(SystemExit) as caught:
            program.main([str(place), *words])
        assert caught.value.code == 2


def test_the_command_makes_the_same_run() -> None:
    settings = dataclasses.replace(
        SETTINGS, files=3, size=65536, without=frozenset({"mmap"}), underneath="/src", settle=0.5
    )
    words = command("/mnt/a b", settings).split("fsx ", 1)[1]
    assert words == (
        "'/mnt/a b' --operations 5000 --seed 7 --files 3 --size 65536 --settle 0.5 "
        "--without mmap --underneath /src"
    )
