# SPDX-License-Identifier: Apache-2.0
"""The POSIX cases as a program: what is run, what is said, what it makes of differences."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest

from penstock.testing import posix
from penstock.testing.posix.__main__ import main
from penstock.testing.posix.registry import Case
from penstock.testing.posix.report import Verdict, judge, summary

ALL = (*posix.CASES, *posix.READ_CASES)


def said(*words: str | Path) -> tuple[int, list[str]]:
    """Exit status and lines of the program."""
    out = io.StringIO()
    status = main([str(word) for word in words], out)
    return status, out.getvalue().splitlines()


def a_case(name: str, fails_in: str = "", *needs: str) -> Case:
    """A case that fails on filesystems whose directory has this name."""

    def function(place: Path) -> None:
        posix.holds(not fails_in or place.parent.name != fails_in, f"not in {fails_in}")

    return Case("made-up", name, "A rule.", function, frozenset(needs))


def test_there_are_many_cases_and_each_says_its_rule() -> None:
    assert len(posix.CASES) >= 260
    assert len(posix.READ_CASES) >= 40
    short = [c.name for c in ALL if not c.rule.endswith(".") or len(c.rule) <= 20]
    assert short == []
    names = [(case.subject, case.name) for case in ALL]
    assert len(set(names)) == len(names)


def test_every_need_is_probed_and_needed(tmp_path: Path) -> None:
    used = {need for case in ALL for need in case.needs}
    assert used == set(posix.NEEDS)
    absent = posix.probe(tmp_path)
    assert absent.keys() < posix.NEEDS.keys()
    assert all(absent.values())
    assert list(tmp_path.iterdir()) == []


def test_each_case_has_a_directory_of_its_own_while_it_runs(tmp_path: Path) -> None:
    seen: list[Path] = []
    case = Case("s", "n", "A rule.", seen.append, frozenset())
    (outcome,) = posix.run(tmp_path, [case])
    assert outcome.error is None
    assert seen == [tmp_path / "s-n"]
    assert list(tmp_path.iterdir()) == []


def test_cases_without_what_they_need_are_left_out(tmp_path: Path) -> None:
    cases = [a_case("plain"), a_case("acl", "", "acl"), a_case("both", "", "acl", "xattr")]
    names = [outcome.case.name for outcome in posix.run(tmp_path, cases, without={"xattr"})]
    assert names == ["plain", "acl"]


def test_whatever_a_case_raises_is_its_outcome(tmp_path: Path) -> None:
    def broken(place: Path) -> None:
        raise ValueError("cannot mmap an empty file")

    case = Case("s", "n", "A rule.", broken, frozenset())
    (result,) = judge(tmp_path, [case], ())
    assert result.line() == "FAIL s/n: ValueError: cannot mmap an empty file — A rule."


def test_a_case_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    """A timer that runs already (a test's own, say) goes on afterwards."""

    def endless(place: Path) -> None:
        reader, writer = os.pipe()
        try:
            os.read(reader, 1)
        finally:
            os.close(reader)
            os.close(writer)

    before = signal.getitimer(signal.ITIMER_REAL)[0]
    handler = signal.getsignal(signal.SIGALRM)
    case = Case("s", "n", "A rule.", endless, frozenset())
    (outcome,) = posix.run(tmp_path, [case], seconds=0.05)
    assert str(outcome.error) == "no end within 0.05 s"
    assert signal.getsignal(signal.SIGALRM) is handler
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (before > 0)


def test_compared_with_another(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    ours.mkdir()
    other.mkdir()
    cases = [a_case("good"), a_case("bad", "ours"), a_case("theirs", "other")]
    assert [r.verdict for r in judge(ours, cases, (), other)] == ["ok", "FAIL", "ok"]
    assert [r.verdict for r in judge(ours, cases, ())] == ["ok", "FAIL", "ok"]
    # What fails in both is no failure.
    results = list(judge(ours, [a_case("bad", "ours")], (), ours))
    assert [result.verdict for result in results] == [Verdict.SAME]
    assert summary(results) == "1 cases: 1 as the other"


def test_program_says_a_line_for_each_case(tmp_path: Path) -> None:
    status, lines = said(tmp_path, "--only", "names/long_names", "--only", "appending")
    assert status == 0
    shown = [line for line in lines if not line.startswith("absent: ")]
    assert "ok names/long_names" in shown
    assert shown[-1] == f"{len(shown) - 1} cases: {len(shown) - 1} ok"
    assert len(shown) > 6
    assert list(tmp_path.iterdir()) == []


def test_program_leaves_out_what_it_is_told_to(tmp_path: Path) -> None:
    _, lines = said(tmp_path, "--without", "locks,acl", "--only", "locking/readers_share")
    assert "absent: acl, POSIX access control lists (said so)" in lines
    assert lines[-2:] == ["left out locking/readers_share: locks", "1 cases: 1 left out"]


def test_program_as_json(tmp_path: Path) -> None:
    status, lines = said(tmp_path, "--json", "--only", "names/long_names")
    answer = json.loads("\n".join(lines))
    assert status == 0
    assert answer["counts"] == {"ok": 1, "FAIL": 0, "left out": 0, "as the other": 0}
    assert answer["root"] == str(tmp_path)
    assert answer["cases"][0]["rule"].startswith("Names of 255 bytes work")


def test_program_lists_cases() -> None:
    status, lines = said("--list")
    assert status == 0
    assert len(lines) == len(posix.CASES)
    assert "renames/whiteout (root, whiteout): RENAME_WHITEOUT leaves" in "\n".join(lines)
    assert len(said("--list", "--read-only")[1]) == len(posix.READ_CASES)


def test_program_against_another_directory(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    words = ("--against", tmp_path / "two", "--only", "errnos/trailing_slashes")
    assert said(tmp_path / "one", *words)[0] == 0
    assert [list((tmp_path / name).iterdir()) for name in ("one", "two")] == [[], []]


def test_a_failure_is_the_exit_status(tmp_path: Path) -> None:
    """A prepared tree that can be written to keeps few rules of the read-only half."""
    assert said("--prepare", tmp_path / "tree")[0] == 0
    status, lines = said("--read-only", tmp_path / "tree", "--only", "refusing", "--json")
    answer = json.loads("\n".join(lines))
    assert status == 1
    assert answer["counts"]["FAIL"] > 5


def test_words_that_are_not_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, complaint in (
        (("--only", "nothing", tmp_path), "no case is called nothing"),
        (("--without", "magic", tmp_path), "unknown need: magic"),
        ((), "a directory is needed"),
    ):
        with pytest.raises(SystemExit) as caught:
            said(*words)
        assert caught.value.code == 2
        assert complaint in capsys.readouterr().err


def test_places_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(tmp_path / "missing", "--only", "names")[0] == 2
    assert "No such file" in capsys.readouterr().err
    assert said("--read-only", tmp_path)[0] == 2
    (tmp_path / "file").touch()
    assert said("--prepare", tmp_path)[0] == 2
    assert "an empty directory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]
