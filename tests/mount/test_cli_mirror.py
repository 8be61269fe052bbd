# SPDX-License-Identifier: Apache-2.0
"""``penstock mount DIRECTORY MOUNTPOINT``: its words, what other commands say of it, and that an
ordinary user has it too."""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from penstock.contain.sandbox import LAYERS
from penstock.sys.mountinfo import find_mount
from tests.support.commands import good, is_gone, mount_flags, penstock, refused, wait_for
from tests.support.images import MIB, cached_image
from tests.support.ordinary import OrdinaryUser

ORDINARY = pytest.mark.requires("root", "ordinary-user", "fusermount3", "landlock")
OF_A_USER = {"capabilities", "no_new_privs", "landlock", "limits", "seccomp"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    (made / "folder").mkdir(parents=True)
    (made / "file").write_text("content\n")
    return made


def mounted(source: Path, mountpoint: Path, *options: str) -> dict[str, Any]:
    """Mount; what stats says."""
    words = ["-o", ",".join(options)] if options else []
    good("mount", *words, source, mountpoint)
    answer: dict[str, Any] = json.loads(good("stats", "--json", mountpoint))
    return answer


def test_a_directory_is_served_and_written_to(source: Path, mountpoint: Path) -> None:
    statistics = mounted(source, mountpoint)
    assert (statistics["type"], statistics["source"]) == ("mirror", str(source))
    assert (mountpoint / "file").read_text() == "content\n"
    (mountpoint / "folder" / "new").write_text("new\n")
    os.rename(mountpoint / "file", mountpoint / "folder" / "moved")
    assert (source / "folder" / "new").read_text() == "new\n"
    assert (source / "folder" / "moved").read_text() == "content\n"
    (row,) = (r for r in json.loads(good("list", "--json")) if r["mountpoint"] == str(mountpoint))
    assert (row["type"], row["state"], row["source"]) == ("mirror", "mounted", str(source))
    good("umount", mountpoint)
    assert find_mount(str(mountpoint)) is None


def test_type_may_be_said(source: Path, mountpoint: Path) -> None:
    good("mount", "-t", "mirror", source, mountpoint)
    assert (mountpoint / "file").exists()
    good("umount", mountpoint)


@pytest.mark.parametrize("words", [["-o", "ro"], ["-r"], ["-o", "rw", "-r"], ["-o", "rw,ro"]])
def test_read_only(source: Path, mountpoint: Path, words: list[str]) -> None:
    good("mount", *words, source, mountpoint)
    assert "ro" in mount_flags(mountpoint)
    with pytest.raises(OSError, match=r".") as caught:
        (mountpoint / "new").touch()
    assert caught.value.errno == errno.EROFS
    good("umount", mountpoint)


def test_read_write_is_the_default_and_may_be_said(source: Path, mountpoint: Path) -> None:
    good("mount", "-o", "ro,rw", source, mountpoint)
    assert "rw" in mount_flags(mountpoint)
    good("umount", mountpoint)


def test_an_image_stays_read_only(mountpoint: Path) -> None:
    done = penstock("mount", "-o", "rw", cached_image(size=8 * MIB), mountpoint)
    assert done.returncode == 0
    assert "-o rw: accepted, but images are mounted read-only" in done.stderr
    assert "ro" in mount_flags(mountpoint)
    good("umount", mountpoint)


@pytest.mark.parametrize("word", ["splice", "copy"])
def test_data_paths_are_chosen_by_words(source: Path, mountpoint: Path, word: str) -> None:
    statistics = mounted(source, mountpoint, f"datapath={word}")
    assert statistics["datapath"] == word
    (mountpoint / "big").write_bytes(b"x" * MIB)
    assert (source / "big").read_bytes() == b"x" * MIB
    good("umount", mountpoint)


def test_words_of_the_mirror(source: Path, mountpoint: Path) -> None:
    for words in (
        "cache=none",
        "cache=immutable",
        "timeout=0",
        "locks=local",
        "noacl",
        "uid=7,gid=8",
    ):
        good("mount", "-o", words, source, mountpoint)
        assert (mountpoint / "file").read_text() == "content\n"
        if "uid" in words:
            found = (mountpoint / "file").stat()
            assert (found.st_uid, found.st_gid) == (7, 8)
        good("umount", mountpoint)


def test_max_write(source: Path, mountpoint: Path) -> None:
    statistics = mounted(source, mountpoint, "max_write=65536", "datapath=copy")
    with open(mountpoint / "file", "wb", buffering=0) as file:
        file.write(b"x" * 262144)
    statistics = json.loads(good("stats", "--json", mountpoint))
    assert statistics["requests"]["WRITE"]["count"] >= 4
    good("umount", mountpoint)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["-o", "datapath=reflink"], 1, "datapath=reflink: is for images"),
        (["-o", "datapath=iomap"], 1, "datapath=iomap: takes a kernel"),
        (["-o", "datapath=odd"], 1, "not one of auto, passthrough, lens, splice, copy"),
        (["-o", "cache=odd"], 1, "cache=odd: not one of mirror, immutable, none"),
        (["-o", "odd"], 1, "unknown option 'odd' for mirror"),
        (["-o", "partition=1"], 1, "unknown option 'partition' for mirror"),
        (["-o", "max_write=1"], 1, "max_write=1: is not in"),
        (["-t", "ext4"], 32, "is a directory, which -t ext4 does not serve"),
    ],
)
@pytest.mark.parametrize("sandbox", ["yes", "no"])
def test_refusals(
    source: Path, mountpoint: Path, words: list[str], code: int, text: str, sandbox: str
) -> None:
    got, said = refused("mount", *words, "-o", f"sandbox={sandbox}", source, mountpoint)
    assert text in said
    assert got == code
    assert find_mount(str(mountpoint)) is None


def test_one_server(source: Path, mountpoint: Path) -> None:
    code, said = refused("mount", "-o", "processes=2", source, mountpoint)
    assert (code, "processes=2: a directory has one server" in said) == (1, True)


def test_a_file_is_no_directory(source: Path, mountpoint: Path) -> None:
    code, said = refused("mount", "-t", "mirror", source / "file", mountpoint)
    assert (code, "is no directory" in said) == (32, True)
    code, said = refused("mount", "-t", "mirror", source / "absent", mountpoint)
    assert (code, "no such file" in said.lower()) == (32, True)


@pytest.mark.parametrize("command", ["info", "ls", "cat", "cp"])
def test_what_reads_images_refuses_directories(source: Path, command: str) -> None:
    words = [f"{source}:/file"] if command != "info" else [str(source)]
    if command == "cp":
        words.append(str(source / "copy"))
    code, said = refused(command, *words)
    assert "is a directory, not a disk image: ls(1) shows what is in it" in said
    assert code != 0


def test_without_a_sandbox(source: Path, mountpoint: Path) -> None:
    statistics = mounted(source, mountpoint, "sandbox=no")
    assert statistics["type"] == "mirror"
    assert statistics["sandbox"] == {"mode": "no", "active": False, "layers": {}}
    (mountpoint / "new").write_text("new\n")
    assert (source / "new").read_text() == "new\n"
    good("umount", mountpoint)


def test_help_names_the_words() -> None:
    said = good("mount", "-o", "help")
    for word in ("cache=", "locks=", "datapath=", "max_write=", "trusted"):
        assert word in said


# An ordinary user


class Theirs(NamedTuple):
    """What an ordinary user has."""

    user: OrdinaryUser
    source: Path
    place: Path

    def penstock(self, *words: str) -> str:
        """What a command prints; it must work and complain of nothing."""
        done = self.user.run([*self.user.penstock, *words])
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def shell(self, script: str) -> str:
        """What a line of shell prints; it must work."""
        words = ["sh", "-ec", script, "sh", str(self.source), str(self.place)]
        done = self.user.run(words)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout


@pytest.fixture
def theirs(ordinary_user: OrdinaryUser, dev_fuse_for_all: None) -> Iterator[Theirs]:
    made = Theirs(ordinary_user, ordinary_user.folder("source"), ordinary_user.folder("mirrored"))
    made.shell('echo content >"$1/file"; mkdir "$1/inside"')
    yield made
    for place in (made.place, made.source / "inside"):
        while find_mount(str(place)) is not None:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
    subprocess.run(["rm", "-rf", made.source, made.place], check=True)


def status(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return {name: value.strip() for name, _, value in (s.partition(":") for s in text.splitlines())}


@ORDINARY
@pytest.mark.parametrize("mode", ["yes", "strict"])
def test_ordinary_user(theirs: Theirs, mode: str) -> None:
    theirs.penstock("mount", "-o", f"sandbox={mode}", str(theirs.source), str(theirs.place))
    said = theirs.shell('cat "$2/file"; echo new >"$2/new"; ln -s /etc/passwd "$2/link"; ls "$1"')
    assert said.split() == ["content", "file", "inside", "link", "new"]
    (row,) = json.loads(theirs.penstock("list", "--json"))
    assert row["type"] == "mirror"
    statistics = json.loads(theirs.penstock("stats", "--json", str(theirs.place)))
    assert statistics["mounted_by"] == "fusermount3"
    sandbox = statistics["sandbox"]
    assert (sandbox["mode"], sandbox["active"]) == (mode, True)
    assert set(sandbox["layers"]) == set(LAYERS)
    for name, layer in sandbox["layers"].items():
        assert layer["in_force"] is layer["wanted"] is (name in OF_A_USER)
        assert layer["detail"]
    (server,) = statistics["servers"]
    fields = status(server["pid"])
    assert set(fields["Uid"].split()) == {str(theirs.user.uid)}
    assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(fields[name], 16) == 0
    assert "CAP_SYS_ADMIN" in statistics["datapath_reasons"]["passthrough"]
    theirs.penstock("umount", str(theirs.place))
    wait_for(lambda: is_gone(server["pid"]), "end of the server")


@ORDINARY
def test_owners_of_others_are_shown(theirs: Theirs) -> None:
    """No user namespace hides them."""
    other = theirs.source / "other"
    other.touch(mode=0o644)
    os.chown(other, 12345, 12346)
    theirs.penstock("mount", str(theirs.source), str(theirs.place))
    assert theirs.shell('stat -c "%u %g" "$2/other"') == "12345 12346\n"
    theirs.penstock("umount", str(theirs.place))


@ORDINARY
def test_mount_point_inside_the_source_of_an_ordinary_user(theirs: Theirs) -> None:
    """The server would wait for itself if it looked at the place; it answers EXDEV instead."""
    inside = theirs.source / "inside"
    theirs.penstock("mount", str(theirs.source), str(inside))
    assert theirs.shell('ls "$1/inside"').split() == ["file", "inside"]
    script = 'ls "$1/inside/inside" 2>&1; echo x >"$1/inside/new"; cat "$1/new"'
    assert os.strerror(errno.EXDEV) in theirs.shell(f"{{ {script}; }} || true")
    assert (theirs.source / "new").read_text() == "x\n"
    theirs.penstock("umount", str(inside))


@ORDINARY
def test_what_the_user_may_not_the_server_may_not(theirs: Theirs) -> None:
    hidden = theirs.source / "hidden"
    hidden.write_text("secret")
    hidden.chmod(0o600)
    theirs.penstock("mount", str(theirs.source), str(theirs.place))
    denied = theirs.user.run(["cat", str(theirs.place / "hidden")])
    assert (denied.returncode, denied.stdout) == (1, "")
    assert "Permission denied" in denied.stderr
    theirs.penstock("umount", str(theirs.place))


@ORDINARY
@pytest.mark.requires("user-namespaces")
def test_in_a_user_namespace(theirs: Theirs) -> None:
    """Root of one has the profile of root, as far as its rights go."""
    words = " ".join(map(shlex.quote, theirs.user.penstock))
    source, place = (shlex.quote(str(path)) for path in (theirs.source, theirs.place))
    script = (
        f"{words} mount -o sandbox=strict {source} {place} && cat {place}/file && "
        f"echo new >{place}/new && {words} stats --json {place} >{source}/stats && "
        f"{words} umount {place} && {words} mount {source} {source}/inside && "
        f"ls {source}/inside/inside && cat {source}/inside/new && {words} umount {source}/inside"
    )
    done = theirs.user.run(["unshare", "-Urm", "sh", "-c", script])
    assert (done.returncode, done.stdout, done.stderr) == (0, "content\nnew\n", "")
    statistics = json.loads((theirs.source / "stats").read_text())
    layers = statistics["sandbox"]["layers"]
    assert {name for name, layer in layers.items() if not layer["in_force"]} == {"identity"}
    assert stat.S_IMODE((theirs.source / "new").stat().st_mode) & 0o600 == 0o600


def test_a_mirror_of_a_mirror(source: Path, mountpoint: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    good("mount", source, mountpoint)
    try:
        good("mount", mountpoint, second)
        assert (second / "file").read_text() == "content\n"
        (second / "new").write_text("new\n")
        assert (source / "new").read_text() == (mountpoint / "new").read_text() == "new\n"
        os.rename(mountpoint / "new", mountpoint / "folder" / "moved")
        assert (second / "folder" / "moved").read_text() == "new\n"
        good("umount", second)
    finally:
        subprocess.run(["umount", "--lazy", second], check=False, stderr=subprocess.DEVNULL)
        good("umount", mountpoint)


def test_a_mirror_over_its_own_source(source: Path) -> None:
    good("mount", source, source)
    assert (source / "file").read_text() == "content\n"
    (source / "new").write_text("new\n")
    good("umount", source)
    assert (source / "new").read_text() == "new\n"
