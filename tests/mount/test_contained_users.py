# SPDX-License-Identifier: Apache-2.0
"""Contained mounts of callers with few rights, and where a layer of the sandbox cannot be had."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from penstock.sys.mountinfo import find_mount
from tests.support.commands import good, is_gone, mount_flags, wait_for
from tests.support.images import copy_image
from tests.support.ordinary import OrdinaryUser
from tests.support.withoutusers import without_user_namespaces

pytestmark = [
    pytest.mark.requires("mke2fs", "user-namespaces"),
]

LAYERS = {
    "namespaces", "root", "identity", "capabilities", "no_new_privs", "landlock", "limits",
    "seccomp",
}  # fmt: skip
NAMESPACES = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}
ORDINARY = pytest.mark.requires("root", "ordinary-user", "fusermount3")


class Theirs(NamedTuple):
    """What an ordinary user has."""

    user: OrdinaryUser
    image: Path
    place: Path


@pytest.fixture
def theirs(image: Path, ordinary_user: OrdinaryUser, dev_fuse_for_all: None) -> Iterator[Theirs]:
    copy = copy_image(image, ordinary_user.home / "contained.img")
    copy.chmod(0o444)
    place = ordinary_user.folder("contained")
    yield Theirs(ordinary_user, copy, place)
    while find_mount(str(place)) is not None:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
    place.rmdir()
    copy.unlink()


def status(pid: int) -> dict[str, str]:
    """Lines of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return {name: value.strip() for name, _, value in (s.partition(":") for s in text.splitlines())}


def missing(statistics: dict[str, Any]) -> set[str]:
    """The layers that are not in force."""
    layers = statistics["sandbox"]["layers"]
    assert set(layers) == LAYERS
    assert all(layer["detail"] for layer in layers.values())
    return {name for name, layer in layers.items() if not layer["in_force"]}


def assert_contained(statistics: dict[str, Any], mode: str) -> None:
    """All layers are there; and what the kernel says of the server agrees."""
    assert missing(statistics) == set()
    assert (statistics["sandbox"]["mode"], statistics["sandbox"]["active"]) == (mode, True)
    assert set(statistics["sandbox"]["layers"]["namespaces"]["detail"].split()) == NAMESPACES
    (server,) = statistics["servers"]
    fields = status(server["pid"])
    assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
    assert {fields[name].strip("0") for name in fields if name.startswith("Cap")} == {""}
    if os.geteuid() == 0:
        assert str(Path(f"/proc/{server['pid']}/root").readlink()) != "/"
        held = {os.readlink(link) for link in Path(f"/proc/{server['pid']}/fd").iterdir()}
        kinds = {name.partition(":")[0] for name in held}
        assert kinds <= {
            "pipe", "socket", "anon_inode", "/fuse", "/null", "/dev/fuse", "/dev/null",
            statistics["source"],
        }, held  # fmt: skip


@pytest.mark.requires("root")
@pytest.mark.parametrize("mode", ["yes", "strict"])
def test_root(image: Path, mountpoint: Path, mode: str) -> None:
    good("mount", "-o", f"sandbox={mode}", image, mountpoint)
    statistics = json.loads(good("stats", "--json", mountpoint))
    assert_contained(statistics, mode)
    assert statistics["mounted_by"] == "fsmount"
    server = statistics["servers"][0]["pid"]
    (user,) = set(status(server)["Uid"].split())
    assert int(user) >= 1_900_000_000
    assert {"nosuid", "nodev"} <= mount_flags(mountpoint)
    good("umount", mountpoint)


@ORDINARY
@pytest.mark.parametrize("mode", ["yes", "strict"])
def test_ordinary_user(tree: Path, theirs: Theirs, mode: str) -> None:
    """Mount, read, ask, unmount: everything but what takes a right of root's, and that is said."""
    user, image, place = theirs

    def run(*words: str) -> str:
        done = user.run([*user.penstock, *words])
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert run("mount", "-o", f"sandbox={mode}", str(image), str(place)) == ""
    shown = user.run(["cat", str(place / "size300001")], check=True).stdout
    assert shown == (tree / "size300001").read_text()
    assert {"nosuid", "nodev"} <= mount_flags(place)
    statistics = json.loads(run("stats", "--json", str(place)))
    assert_contained(statistics, mode)
    assert statistics["mounted_by"] == "fusermount3"
    assert "CAP_SYS_ADMIN" in statistics["datapath_reasons"]["passthrough"]
    assert statistics["reads"]["copy"]["bytes"] + statistics["reads"]["splice"]["bytes"] >= 300001
    shown = run("stats", str(place))
    assert "namespaces, root, identity" in shown
    assert "not passthrough" in shown
    assert "CAP_SYS_ADMIN" in shown
    pids = [statistics["pid"], statistics["keeper"], statistics["servers"][0]["pid"]]
    assert {status(pid)["Uid"].split()[0] for pid in pids} == {str(user.uid)}
    assert run("umount", str(place)) == ""
    assert find_mount(str(place)) is None
    wait_for(lambda: all(map(is_gone, pids)), "end of the processes")
    assert run("list") == ""
    assert not Path(f"/tmp/penstock-{user.uid}").exists()


@ORDINARY
@pytest.mark.parametrize("word", ["suid", "dev"])
def test_what_is_root_s_alone(theirs: Theirs, word: str) -> None:
    user, image, place = theirs
    done = user.run([*user.penstock, "mount", "-o", word, str(image), str(place)])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"penstock: -o {word}: is for root only\n"
    assert find_mount(str(place)) is None


SCRIPT = """
set -e
penstock() {{ {penstock} "$@"; }}
penstock mount {words} {image} {place}
cat {place}/size4096 > /dev/null
penstock stats --json {place}
penstock umount {place}
! grep -q " {place} " /proc/mounts
"""


def script(theirs: Theirs, words: str) -> list[str]:
    """A shell that mounts, reads, asks, unmounts."""
    user, image, place = theirs
    text = SCRIPT.format(penstock=shlex.join(user.penstock), words=words, image=image, place=place)
    return ["sh", "-c", text]


@ORDINARY
@pytest.mark.parametrize("mode", ["yes", "strict"])
def test_in_a_user_namespace(theirs: Theirs, mode: str) -> None:
    """Its root mounts without any help."""
    theirs.place.chmod(0o777)
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    done = theirs.user.run([*command, *script(theirs, f"-o sandbox={mode}")])
    assert (done.returncode, done.stderr) == (0, "")
    statistics = json.loads(done.stdout)
    assert missing(statistics) == set()
    assert statistics["sandbox"]["mode"] == mode
    assert statistics["mounted_by"] == "fsmount"
    assert "no right that only" in statistics["sandbox"]["layers"]["identity"]["detail"]


@ORDINARY
@pytest.mark.parametrize("who", ["root", "user"])
def test_without_user_namespaces(theirs: Theirs, who: str) -> None:
    """What is left is closed, and what is missing is said: in the log and in the statistics."""
    user, image, place = theirs
    uid, gid = (user.uid, user.gid) if who == "user" else (0, 0)
    done = without_user_namespaces(uid, gid, script(theirs, ""), user.environment())
    assert (done.returncode, done.stderr) == (0, "")
    statistics = json.loads(done.stdout)
    layers = statistics["sandbox"]["layers"]
    assert statistics["sandbox"]["active"] is False
    if who == "root":
        assert missing(statistics) == {"namespaces"}
        assert layers["namespaces"]["detail"].startswith(
            "cgroup ipc mnt net pid time uts; missing:"
        )
        assert layers["identity"]["detail"] == "user and group 65534"
    else:
        assert missing(statistics) == {"namespaces", "root", "identity"}
        assert layers["namespaces"]["detail"].startswith("none; missing: ")
        assert "user 65534, the caller" in layers["identity"]["detail"]
    assert set(layers["namespaces"]["detail"].replace(";", " ").replace(":", " ").split()) > {
        *NAMESPACES, "missing", "started",
    }  # fmt: skip
    assert statistics["mounted_by"] == ("fsmount" if who == "root" else "fusermount3")

    refused = [*user.penstock, "mount", "-o", "sandbox=strict", str(image), str(place)]
    told = without_user_namespaces(uid, gid, refused, user.environment())
    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (32, "", 1)
    refusal = told.stderr
    assert refusal.startswith(f"penstock: {image}: sandbox=strict: a layer is missing: namespaces")
    assert ("root: " in refusal) == ("identity: " in refusal) == (who == "user")


@ORDINARY
def test_missing_layers_are_logged(theirs: Theirs) -> None:
    user, image, place = theirs
    text = (
        f"{shlex.join(user.penstock)} mount -d {image} {place} & "
        f"while ! grep -q ' {place} ' /proc/mounts; do :; done; "
        f"cat {place}/size59; {shlex.join(user.penstock)} umount {place}; wait $!"
    )
    done = without_user_namespaces(user.uid, user.gid, ["sh", "-c", text], user.environment())
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "the sandbox is without" in line]
    named = {
        line.removeprefix("penstock: the sandbox is without ").partition(":")[0] for line in told
    }
    assert named == {"namespaces", "root", "identity"}


def test_sandbox_no_is_said(image: Path, mountpoint: Path) -> None:
    good("mount", "-o", "sandbox=no", image, mountpoint)
    sandbox = json.loads(good("stats", "--json", mountpoint))["sandbox"]
    assert sandbox == {"mode": "no", "active": False, "layers": {}}
    assert "sandbox            none" in good("stats", mountpoint)
    good("umount", mountpoint)
