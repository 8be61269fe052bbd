# SPDX-License-Identifier: Apache-2.0
"""Commands that read an image, when its server is in the power of whoever made the image."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.commands import wait_for
from tests.support.lyingserver import ENDS, ESCAPE, FORBIDDEN_NAMES, ODD_NAMES, penstock_with

ALL_NAMES = FORBIDDEN_NAMES + ODD_NAMES
TOOK_TOO_LONG = 10.0


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return path


def servers_of(way: str) -> list[str]:
    """Process numbers of lying servers of this kind that still run."""
    wanted = f"lyingserver.py\0{way}\0".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if wanted in line:
                found.append(entry)
    return found


@pytest.mark.parametrize("way", ENDS)
def test_a_lie_ends_the_command_in_one_line(image: Path, way: str) -> None:
    command = "info" if way.startswith("description") else "ls"
    begun = time.monotonic()
    done = penstock_with(way, command, image)
    assert time.monotonic() - begun < TOOK_TOO_LONG
    *before, last = done.stderr.splitlines()
    assert last.startswith(f"penstock: {image}: the server ")
    assert re.search(ENDS[way].text, last)
    assert done.returncode in ENDS[way].codes
    assert set(before) <= {"penstock: again and again"}
    assert len(before) < 200
    assert (done.stdout, ESCAPE in done.stderr) == ("", False)
    wait_for(lambda: not servers_of(way), "the end of its server")


@pytest.mark.parametrize("command", ["cat IMAGE:/f", "cp IMAGE o", "info IMAGE"])
@pytest.mark.parametrize("way", ["silent", "crashes", "noise", "closes"])
def test_every_command_ends(image: Path, way: str, command: str) -> None:
    done = penstock_with(way, *command.replace("IMAGE", str(image)).split())
    assert re.search(ENDS[way].text, done.stderr)
    assert done.returncode in ENDS[way].codes
    assert done.stderr.count("\n") == 1
    assert os.listdir() == []


@pytest.mark.parametrize("way", ["silent_stream", "stream_of_noise", "dies_in_the_middle"])
def test_a_copy_that_loses_its_server(image: Path, way: str) -> None:
    done = penstock_with(way, "cp", image, "o")
    assert done.returncode in ENDS[way].codes
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("ls -R IMAGE", "IMAGE:/:\na\nb\nc\nd\n\nIMAGE:/a:\nx\ny\n\nIMAGE:/b:\nfatal\n"),
        ("ls -lR IMAGE:/c", ""),
        ("ls --json -R IMAGE", ""),
        ("cat IMAGE:/a/x /a/y /b/fatal /a/x", "xx"),
        ("cp IMAGE out", ""),
        ("cp IMAGE:/a /b /d .", ""),
    ],
)
def test_a_server_that_is_lost_on_the_way(image: Path, words: str, shown: str) -> None:
    """What was there is shown, then one line says it, and nothing more is tried."""
    done = penstock_with("dies_later", *words.replace("IMAGE", str(image)).split())
    assert done.stderr == f"penstock: {image}: the server was killed (SIGKILL)\n"
    assert done.returncode == 137
    assert done.stdout == shown.replace("IMAGE", str(image))
    assert not list(Path().rglob("fatal"))  # half a file is worse than none


def test_a_missing_layer(image: Path) -> None:
    done = penstock_with("without_a_layer", "ls", "-o", "sandbox=strict", image)
    assert done.returncode == 2
    assert done.stderr == (
        f"penstock: {image}: sandbox=strict: a layer is missing: landlock: not here\n"
    )
    done = penstock_with("without_a_layer", "ls", image)
    assert done.stderr == f"penstock: {image}: seen\n"


# Names


@pytest.mark.parametrize("number", range(len(FORBIDDEN_NAMES)))
def test_what_no_file_can_be_called(image: Path, tmp_path: Path, number: int) -> None:
    way = f"hostile_name:{number}"
    name = FORBIDDEN_NAMES[number]
    silent = name in {b".", b".."}  # are in every directory, and left out of every listing
    for option in ("-la", "-aR", "--json"):
        done = penstock_with(way, "ls", option, image)
        assert done.returncode == (0 if silent else 2)
        assert done.stderr.count("\n") == (0 if silent else 1)
        assert "good" in done.stdout
        assert "escaped" not in done.stdout
        assert "x" * 256 not in done.stdout
    done = penstock_with(way, "cp", image, "o")
    assert done.returncode == (0 if silent else 2)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert made == {"disk.img", "work", "work/o", "work/o/good"}
    assert not os.path.exists("/tmp/penstock-escaped")


@pytest.mark.parametrize("number", range(len(FORBIDDEN_NAMES), len(ALL_NAMES)))
def test_what_a_file_had_better_not_be_called(image: Path, number: int) -> None:
    way = f"hostile_name:{number}"
    name = ALL_NAMES[number]
    done = penstock_with(way, "ls", "--json", image)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert done.stdout.replace("\n", "").isprintable()
    paths = [os.fsencode(row["path"]) for row in json.loads(done.stdout)]
    assert paths == sorted([b"/good", b"/" + name])
    done = penstock_with(way, "cp", image, "o")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(b"o")) == sorted([b"good", name])


@pytest.mark.parametrize("number", range(len(FORBIDDEN_NAMES), len(ALL_NAMES)))
def test_nothing_acts_on_a_terminal(image: Path, number: int) -> None:
    way = f"hostile_name:{number}"
    for option in ("-l", "-R"):
        shown = on_a_terminal(way, "ls", option, image)
        assert b"good" in shown
        text = shown.decode("utf-8")  # what is no UTF-8 is not shown either
        assert text.replace("\r\n", "").isprintable()


def on_a_terminal(way: str, *words: str | Path) -> bytes:
    """What a command writes to a terminal, and that it has succeeded."""
    ours, theirs = os.openpty()
    try:
        done = penstock_with(way, *words, stdout=theirs)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # EIO: nobody has the other end any more
        pass
    finally:
        os.close(ours)
    return shown


# Trees


def test_no_copy_leads_out_or_brings_powers(image: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "victim").mkdir()
    done = penstock_with("hostile_links", "cp", image, "o")
    assert done.returncode == 2  # for what has the link's name
    assert os.listdir("victim") == []
    made = Path("o")
    assert os.readlink(made / "link") == "../victim"
    assert sorted(os.listdir(made)) == ["dir", "file", "link", "shown", "suid"]
    assert stat.S_IMODE(os.stat(made / "suid").st_mode) == 0o755
    assert done.stderr.count("left out: a device node") == 2
    assert ESCAPE not in done.stderr


@pytest.mark.requires("root")
def test_what_root_can_ask_for(image: Path) -> None:
    done = penstock_with("hostile_links", "cp", "--preserve=all", image, "o")
    assert done.returncode == 2
    assert stat.S_IMODE(os.stat("o/suid").st_mode) == 0o6755
    assert os.stat("o/null").st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(os.stat("o/disk").st_mode)


# Descriptions


def test_a_description_is_harmless(image: Path) -> None:
    done = penstock_with("description_with_escapes", "info", image)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace("\n", "").isprintable()
    assert "8.0 KiB (8192 bytes)" in done.stdout  # of the image's size the server is not asked
    done = penstock_with("description_with_escapes", "info", "--json", image)
    assert done.stdout.isascii()
    assert done.stdout.replace("\n", "").isprintable()
    described = json.loads(done.stdout)
    assert (described["size"], described["label"]) == (8192, ESCAPE)


def test_lying_servers_are_programs_of_their_own(image: Path) -> None:
    """What the tests above see is not for want of a server: this one answers."""
    done = penstock_with("hostile_links", "cat", f"{image}:/file")
    assert (done.returncode, done.stdout, done.stderr) == (0, "f", "")
    assert isinstance(done, subprocess.CompletedProcess)
