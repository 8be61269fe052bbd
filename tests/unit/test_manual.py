# SPDX-License-Identifier: Apache-2.0
"""The manual pages: groff has nothing to say about them, and they say everything."""

from __future__ import annotations

import re
import subprocess
from functools import cache

import pytest

from penstock.cli import helper
from penstock.cli.errors import ExitCode
from penstock.cli.manual import PAGES, page
from penstock.cli.options import COMMANDS, WORDS, Argument
from penstock.servers import TYPES, server_options


@cache
def shown(name: str) -> str:
    """A page as people read it, in one line."""
    command = ["groff", "-man", "-Tutf8", "-P-c", "-P-b", "-P-o", "-P-u", "-rLL=500n"]
    done = subprocess.run(command, input=page(name), capture_output=True, text=True, check=True)
    return re.sub(r"\s+", " ", done.stdout.replace("\u2212", "-").replace("\u2010", "-"))


@pytest.mark.requires("groff")
@pytest.mark.parametrize("name", PAGES)
def test_groff_warns_of_nothing(name: str) -> None:
    command = ["groff", "-man", "-ww", "-b", "-z", "-Tutf8"]
    text = page(name)
    if text.startswith(".so "):
        assert text == ".so man8/mount.penstock.8\n"
        assert "mount.penstock.8" in PAGES
        return
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.requires("groff")
def test_groff_does_warn() -> None:
    """What the test above relies on."""
    command = ["groff", "-man", "-ww", "-b", "-z", "-Tutf8"]
    text = page("penstock.1") + ".unheardof\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert "unheardof" in done.stderr


def described(argument: Argument, text: str) -> bool:
    """All names of an argument, and what it is for."""
    return all(name in text for name in argument.names) and argument.help[1:] in text


@pytest.mark.requires("groff")
def test_every_command_is_in_the_page() -> None:
    text = shown("penstock.1")
    for command in COMMANDS:
        assert f"penstock {command.name} " in text
        assert command.summary[1:] in text
        assert command.description in text
        for argument in command.arguments:
            assert described(argument, text.replace("...", "…")), (command.name, argument.names)


@pytest.mark.requires("groff")
def test_every_word_is_in_the_page() -> None:
    words = shown("penstock.1").partition("WORDS OF -o")[2].partition("EXIT STATUS")[0]
    for word in WORDS:
        assert re.search(rf"(?<![\w-]){re.escape(word.name)}(?![\w-])", words), word.name
        assert word.help[1:] in words
    for type in TYPES:
        for option in server_options(type):
            assert option.help[1:] in words
            assert option.name + (f"={option.metavar}" if option.metavar else "") in words


@pytest.mark.requires("groff")
@pytest.mark.parametrize("name", ["penstock.1", "mount.penstock.8"])
def test_every_exit_code_is_in_the_page(name: str) -> None:
    text = shown(name)
    for code in ExitCode:
        assert f"{code.value} {code.meaning[0].upper()}{code.meaning[1:]}." in text


@pytest.mark.requires("groff")
def test_the_helper_has_every_flag_and_lines_of_fstab() -> None:
    text = shown("mount.penstock.8")
    for argument in helper.ARGUMENTS:
        assert described(argument, text.replace("...", "…")), argument.names
    lines = re.findall(r"(/\S+) (/\S+) (fuse\.penstock|penstock) (\S+) 0 0", text)
    assert len(lines) >= 4
    for source, directory, _, words in lines:
        call = helper.parse_call([source, directory, "-o", words])
        assert helper.mount_words(call)[:2] == [source, directory]
        known = helper.options_text(call._replace(sloppy=True)).split(",")
        assert known == [word for word in words.split(",") if not word.startswith("x-")]


def test_unknown_page() -> None:
    with pytest.raises(KeyError):
        page("penstock.2")
