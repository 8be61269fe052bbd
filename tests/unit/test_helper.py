# SPDX-License-Identifier: Apache-2.0
"""The mount helper's words: what mount(8) gives to it, and what becomes of that."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from penstock.cli.errors import ExitCode, Failure
from penstock.cli.helper import ARGUMENTS, mount_words, parse_call
from penstock.cli.options import parse_words
from tests.support.requirements import PROJECT

FOUND_OUT = ("fuse.penstock", "penstock", "fuse", "auto", "")
"""Types that say nothing of the image."""


def translated(*words: str) -> list[str]:
    return mount_words(parse_call(words))


@pytest.mark.parametrize(
    ("words", "becomes"),
    [
        # Each as util-linux calls a helper: for a line of fstab, for -o, for -s, for a subtype.
        ("/img /mnt -o rw", ["/img", "/mnt"]),
        ("/img /mnt", ["/img", "/mnt"]),
        ("/img /mnt -o rw,uid=5,nofail,_netdev", ["/img", "/mnt", "-o", "uid=5,nofail,_netdev"]),
        (
            "/img /mnt -o ro,noatime,noexec,nosuid,nodev,partition=2,nofail,user",
            ["/img", "/mnt", "-o", "ro,noatime,noexec,nosuid,nodev,partition=2,nofail,user"],
        ),
        ("/img /mnt -s -f -n -v -o rw", ["/img", "/mnt"]),
        ("/img /mnt -sfnv -o ro,rw", ["/img", "/mnt", "-o", "ro"]),
        ("-v -o ro /img -n /mnt", ["/img", "/mnt", "-o", "ro"]),
        ("/img /mnt -o ro -o noexec", ["/img", "/mnt", "-o", "ro,noexec"]),
        ("/img /mnt -o rw -t fuse.penstock.ext4", ["/img", "/mnt", "-t", "ext4"]),
        ("/img /mnt -t penstock.ext4", ["/img", "/mnt", "-t", "ext4"]),
        ("/img /mnt -t ext4", ["/img", "/mnt", "-t", "ext4"]),
        (r"/img /mnt -o fsname=a\,b\\c", ["/img", "/mnt", "-o", r"fsname=a\,b\\c"]),
        ("-- -img -mnt", ["./-img", "./-mnt"]),
    ],
)
def test_words_of_mount(words: str, becomes: list[str]) -> None:
    assert translated(*words.split(" ")) == becomes


@pytest.mark.parametrize("type", FOUND_OUT)
def test_types_that_are_found_out(type: str) -> None:
    assert parse_call(["/img", "/mnt", "-t", type]).type is None


def test_flags() -> None:
    call = parse_call(["/img", "/mnt", "-N", "/proc/1/ns/mnt", "-v"])
    assert (call.namespace, call.sloppy, call.fake, call.verbose) == (
        "/proc/1/ns/mnt", False, False, True,
    )  # fmt: skip


def test_sloppy_leaves_out_what_nobody_knows() -> None:
    words = ["/img", "/mnt", "-o", "bogus,ro,partition=2,other=1,nofail,X-mount.mkdir"]
    assert translated(*words)[3] == words[3]
    assert translated(*words, "-s")[3] == "ro,partition=2,nofail"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "SOURCE and DIR are needed"),
        (["/img"], "SOURCE and DIR are needed"),
        (["/img", ""], "SOURCE and DIR are needed"),
        (["/img", "/mnt", "/more"], "SOURCE and DIR are needed"),
        (["/img", "/mnt", "-x"], "option -x not recognized"),
        (["/img", "/mnt", "-o"], "option -o requires argument"),
        (["/img", "/mnt", "-o", "remount,ro"], "cannot be mounted anew"),
    ],
)
def test_wrong_calls(words: list[str], message: str) -> None:
    with pytest.raises(Failure, match=message) as caught:
        parse_call(words)
    assert caught.value.code == ExitCode.USAGE


LINES = [
    "defaults",
    "ro,noauto,x-systemd.automount,nofail",
    "rw,user,noauto,x-gvfs-show",
    "nofail,_netdev,x-systemd.requires=network-online.target,x-systemd.device-timeout=30",
    "users,noexec,nosuid,nodev,relatime",
    "owner,group,nouser,comment=a b,auto,noiversion,lazytime,strictatime",
    "nodiratime,noatime,async,dirsync,mand,silent,loud,X-mount.mkdir=0755,user=somebody",
]


@pytest.mark.parametrize("line", LINES)
def test_words_of_fstab_say_nothing(line: str) -> None:
    """They reach the server's options neither as its own words nor as warnings."""
    call = parse_call(["/img", "/mnt", "-o", line])
    words = parse_words(mount_words(call)[3:])
    assert (words.server, words.notes) == ({}, [])
    assert set(words.generic) <= {"ro", "noexec", "nosuid", "nodev"}


def program(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock.cli.helper", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_help_names_every_flag() -> None:
    done = program("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for argument in ARGUMENTS:
        assert argument.names[0] in done.stdout


def test_failures_are_one_line_and_codes_of_mount(tmp_path: Path) -> None:
    done = program(tmp_path / "none", tmp_path, "-o", "ro")
    assert (done.returncode, done.stdout) == (32, "")
    assert done.stderr == f"penstock: {tmp_path}/none: no such file or directory\n"
    done = program("/img", "/mnt", "-o", "remount")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_nofail_allows_what_is_missing(tmp_path: Path) -> None:
    done = program(tmp_path / "none", tmp_path, "-o", "nofail")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / "there").write_bytes(bytes(4096))
    assert program(tmp_path / "there", tmp_path, "-o", "nofail").returncode == 32


def test_fake_checks_words_and_mounts_nothing(tmp_path: Path) -> None:
    done = program(tmp_path / "none", tmp_path, "-f", "-v", "-o", "ro,partition=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"mount.penstock: {tmp_path}/none mounted on {tmp_path}\n"
    done = program("/img", tmp_path, "-f", "-o", "bogus")
    assert done.returncode == 1
    assert "unknown option 'bogus'" in done.stderr
    assert program("/img", tmp_path, "-f", "-s", "-o", "bogus").returncode == 0
    done = program("/img", tmp_path, "-f", "-o", "workers=none")
    assert (done.returncode, "is not a number" in done.stderr) == (1, True)


def test_call_of_the_helper_for_fuse(tmp_path: Path) -> None:
    """libfuse's helper runs ``penstock SOURCE DIR -o WORDS`` and appends dev and suid."""
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    command = [
        sys.executable,
        "-m",
        "penstock",
        str(image),
        str(tmp_path),
        "-o",
        "rw,noauto,dev,suid",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 32
    assert done.stderr.startswith(f"penstock: {image}: ")
    assert "filesystem" in done.stderr


def test_entry_points_are_declared() -> None:
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    for name in ("mount.penstock", "mount.fuse.penstock"):
        assert scripts[name] == "penstock.cli.helper:main"
