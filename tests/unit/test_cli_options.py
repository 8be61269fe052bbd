# SPDX-License-Identifier: Apache-2.0
"""The option tables and what is made from them."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.errors import ExitCode, Failure
from penstock.cli.help import commands_document, words_help
from penstock.cli.options import COMMANDS, WORDS, Command, Kind, Shape, parse_words, split_words
from penstock.cli.parser import parse_arguments
from penstock.servers import server_options
from tests.support.requirements import PROJECT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (",,", []),
        ("ro", [("ro", None)]),
        ("a=1,b", [("a", "1"), ("b", None)]),
        ("a=,b==", [("a", ""), ("b", "=")]),
        (r"fsname=a\,b,ro", [("fsname", "a,b"), ("ro", None)]),
        (r"fsname=a\\,ro", [("fsname", "a\\"), ("ro", None)]),
        (r"fsname=a\b", [("fsname", r"a\b")]),
        ("fsname=a\\", [("fsname", "a\\")]),
        ("=x", [("", "x")]),
    ],
)
def test_split_words(text: str, words: list[tuple[str, str | None]]) -> None:
    assert split_words(text) == words


@given(st.lists(st.tuples(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.text(max_size=10))))
def test_escaped_values_come_back(pairs: list[tuple[str, str]]) -> None:
    text = ",".join(
        name + "=" + value.replace("\\", "\\\\").replace(",", "\\,") for name, value in pairs
    )
    assert split_words(text) == pairs


def test_lines_of_fstab_are_taken() -> None:
    words = parse_words(["defaults,ro,noauto,x-systemd.automount,nofail,_netdev,user,comment=a b"])
    assert (words.generic, words.server, words.notes) == ({"ro": ""}, {}, [])


def test_last_word_wins() -> None:
    assert parse_words(["suid,nosuid"]).generic == {"nosuid": ""}
    assert parse_words(["nodev", "dev"]).generic == {"dev": ""}
    assert parse_words(["workers=2,workers=3"]).generic == {"workers": "3"}


def test_words_of_servers_are_left_to_them() -> None:
    assert parse_words(["partition=2,noload,whatever=x"]).server == {
        "partition": "2",
        "noload": "",
        "whatever": "x",
    }


def test_words_without_effect_are_noted() -> None:
    assert parse_words(["context=x,allow_root"]).notes == [
        "-o context: accepted, but has no effect",
        "-o allow_root: accepted, but only allow_other lets root in",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ro=1", "takes no value"),
        ("fsname", "needs a value (fsname=NAME)"),
        ("workers=", "needs a value"),
        ("rw=1", "takes no value"),
        ("workers=two", "is not a number"),
        ("max_read=-1", "is not a number"),
    ],
)
def test_wrong_values(text: str, message: str) -> None:
    with pytest.raises(Failure) as caught:
        parse_words([text])
    assert message in str(caught.value)
    assert caught.value.code == ExitCode.USAGE


def command(name: str) -> Command:
    return next(item for item in COMMANDS if item.name == name)


def test_arguments() -> None:
    parsed = parse_arguments(
        command("mount"), ["img", "-o", "ro", "dir", "-f", "-p", "3", "--options", "a,b"]
    )
    assert (parsed.source, parsed.mountpoint) == ("img", "dir")
    assert (parsed.options, parsed.partition, parsed.foreground) == (["ro", "a,b"], 3, True)
    assert (parsed.type, parsed.debug) == (None, False)
    parsed = parse_arguments(command("ls"), ["a:/b", "-la", "c"])
    assert (parsed.source, parsed.long, parsed.all) == (["a:/b", "c"], True, True)
    parsed = parse_arguments(command("cp"), ["a", "b", "c"])
    assert (parsed.source, parsed.dest) == (["a", "b"], "c")


@pytest.mark.parametrize("words", [[], ["--bogus", "x", "y"], ["x"], ["x", "y", "-p", "one"]])
def test_wrong_arguments(words: list[str]) -> None:
    with pytest.raises(Failure, match=r"see penstock mount --help") as caught:
        parse_arguments(command("mount"), words)
    assert caught.value.code == ExitCode.USAGE


def test_parsers_take_every_name_of_the_table() -> None:
    for item in COMMANDS:
        for argument in item.arguments:
            if argument.shape is Shape.FLAG:
                needed = ["x" for a in item.arguments if a.shape in {Shape.ONE, Shape.SOME}]
                for name in argument.names:
                    parsed = parse_arguments(item, [*needed, name])
                    assert True in vars(parsed).values()


def test_every_command_has_its_module() -> None:
    for item in COMMANDS:
        module = importlib.import_module(f"penstock.cli.commands.{item.name.replace('-', '_')}")
        assert callable(module.run)


def test_tables_are_consistent() -> None:
    names = [word.name for word in WORDS]
    assert len(names) == len(set(names))
    assert not set(names) & {option.name for option in server_options("ext4")}
    for word in WORDS:
        assert bool(word.help) == (word.kind is not Kind.IGNORED)
        assert bool(word.values) == (word.kind in {Kind.TEXT, Kind.NUMBER, Kind.CHOICE})


def test_help_names_every_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(command("mount"), ["-o", "ro,help"])  # although SOURCE is missing
    assert not caught.value.code
    text = capsys.readouterr().out
    assert text == words_help()
    for name in [word.name for word in WORDS] + [o.name for o in server_options("ext4")]:
        assert name in text
    assert max(map(len, text.splitlines())) <= 90


def test_document_is_made_from_the_tables() -> None:
    text = (PROJECT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert text == commands_document(), "run: python -m penstock.cli.help > docs/commands.md"
