# SPDX-License-Identifier: Apache-2.0
"""The sandbox, closed: each layer as it is seen from outside and felt inside, for root and for an
ordinary user, and what is said where a layer is missing.

What a taken-over server may try is another matter; see the attack tests. Here it is what a sound
server needs, and whether the reports are true.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.contain.sandbox import LAYERS, LayerReport
from tests.support.insandbox import Sandboxed, sandboxed
from tests.support.ordinary import OrdinaryUser

pytestmark = pytest.mark.requires("landlock", "user-namespaces")

Who = OrdinaryUser | None
BOTH = ("user", "pid")
NAMESPACES = "cgroup ipc mnt net pid time user uts"


@pytest.fixture(params=["root", "ordinary user"])
def who(request: pytest.FixtureRequest) -> Who:
    """Whoever starts the sandboxed process; None: root."""
    if request.param == "root":
        return None
    user: OrdinaryUser = request.getfixturevalue("ordinary_user")
    return user


def missing(reports: dict[str, LayerReport]) -> dict[str, str]:
    """Layers that are not in force, and what is said of them."""
    return {name: report.detail for name, report in reports.items() if not report.in_force}


# All layers


def test_all_layers_are_in_force(who: Who) -> None:
    with sandboxed(user=who) as inside:
        reports = inside.reports()
        assert tuple(reports) == LAYERS
        assert not missing(reports)
        assert reports["namespaces"].detail == NAMESPACES
        look_at_identity(inside, reports["identity"], who)
        look_at_status(inside)
        look_at_namespaces(inside)
        look_at_limits(inside)
        assert inside.link("root") == "/sealed"
        assert inside.link("cwd") == "/sealed"
        assert not os.listdir(f"/proc/{inside.pid}/root")
        assert set(os.listdir(f"/proc/{inside.pid}/fd")) == {"0", "1", "2"}
        inside.go()
        assert inside.line() == {"result": None}
        assert inside.status() == 0


def look_at_identity(inside: Sandboxed, report: LayerReport, who: Who) -> None:
    assert inside.field("Uid").split() == ["65534"] * 4
    assert inside.field("Gid").split() == ["65534"] * 4
    assert inside.field("Groups").split() == ([] if who is None else ["65534"])
    words = "user and group 65534" if who is None else "user 65534, with no right"
    assert report.detail.startswith(words)


def look_at_status(inside: Sandboxed) -> None:
    for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(inside.field(field), 16) == 0
    assert inside.field("NoNewPrivs") == "1"
    assert inside.field("Seccomp") == "2"


def look_at_namespaces(inside: Sandboxed) -> None:
    for name in NAMESPACES.split():
        assert inside.link(f"ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    assert inside.proc("mountinfo") == ""  # its root directory lies inside the only mount
    flags = os.statvfs(f"/proc/{inside.pid}/root").f_flag
    for flag in (os.ST_RDONLY, os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC):
        assert flags & flag


def look_at_limits(inside: Sandboxed) -> None:
    found = {}
    for line in inside.proc("limits").splitlines()[1:]:
        columns = re.split(r"  +", line.strip())
        found[columns[0]] = columns[1]
        assert columns[1] == columns[2] or columns[0] == "Max cpu time"
    assert found["Max data size"] == str(1 << 30)
    assert found["Max address space"] == str(4 << 30)
    assert found["Max open files"] == "256"
    assert found["Max processes"] == "96"
    for name in (
        "Max core file size", "Max file size", "Max locked memory", "Max msgqueue size",
        "Max nice priority", "Max realtime priority",
    ):  # fmt: skip
        assert found[name] == "0"


def test_closing_takes_few_milliseconds() -> None:
    """The best of several: what it costs, not what the machine does besides."""
    taken = []
    for _ in range(5):
        with sandboxed() as inside:
            inside.reports()
            taken.append(inside.seconds)
    assert min(taken) < 0.015


def test_python_works_inside(who: Who) -> None:
    with sandboxed("work", user=who) as inside:
        assert not missing(inside.reports())
        done = inside.result()
    assert done["threads"] == [8 << 18] * 4
    assert done["memory"] == 200_200
    assert done["poll"] == [0, 1, 1]
    assert done["pipe"] == "x"
    assert done["locks"] == [False, False]
    assert done["slept"]
    assert done["json"] == {"a": [1, 2.5, None, "é"]}
    assert done["received"] == ["m", 1]
    assert done["read"] == [10, 100, True, 100]
    assert done["splice"] == [4096, 4096]
    assert done["nonblocking"]
    assert done["random"] == 8
    name, in_force, detail = done["later"]
    assert (name, in_force) == ("seccomp", True)
    assert "no new threads" in detail
    assert done["refused"] == ["RuntimeError: can't start new thread"] * 4
    assert done["log"].count("Traceback (most recent call last)") >= 14
    for words in ("ZeroDivisionError", "RecursionError", "SyntaxError", "ValueError: 日本"):
        assert words in done["log"]
    assert done["tried"] == ["nowhere"]  # nothing but what was asked for was imported


# Limits


def test_memory_ends_at_the_limit(who: Who) -> None:
    with sandboxed("grow", user=who, profile={"memory": 256 << 20}) as inside:
        inside.reports()
        grown = inside.result()
    assert 150 < grown["mebibytes"] < 256
    assert grown["after"] == ""


def test_threads_are_counted_for_each_server_by_itself(who: Who) -> None:
    """Servers of one user, each in a user namespace of its own, do not take each other's."""
    limits = {"threads": 5}
    with (
        sandboxed("threads", user=who, profile=limits) as one,
        sandboxed("threads", user=who, profile=limits) as other,
    ):
        for inside in (one, other):
            inside.reports()
            inside.go()
        for inside in (one, other):
            said = inside.line()
            assert said["threads"] == 4  # and the first one
            assert said["later"][1]
            assert int(inside.field("Threads")) == 5
            assert "Seccomp_filters:\t2" in inside.proc("status")
            for task in Path(f"/proc/{inside.pid}/task").iterdir():
                assert "Seccomp_filters:\t2" in (task / "status").read_text()
        for inside in (one, other):
            assert inside.result() == {"threads": 4}


def test_without_a_user_namespace_threads_are_not_limited() -> None:
    with sandboxed("threads", namespaces=["pid"], profile={"threads": 1}) as inside:
        assert "threads not limited" in inside.reports()["limits"].detail
        assert "unlimited" not in inside.proc("limits").split("Max data size")[1].split("\n")[0]
        inside.go()
        assert inside.line()["threads"] > 100
        assert inside.result()["threads"] > 100


# Ends


@pytest.mark.parametrize(
    "call", ["execve", "unshare", "ptrace", "bpf", "mount", "keyctl", "setuid", "kill"]
)
def test_calls_that_kill(call: str) -> None:
    """Also the first process of a pid namespace, which ignores most signals."""
    with sandboxed(call) as inside:
        inside.reports()
        inside.go()
        assert inside.line() == {"status": -signal.SIGSYS}


def test_abort_ends_it_and_leaves_no_core() -> None:
    with sandboxed("abort") as inside:
        inside.reports()
        inside.go()
        assert inside.status() in {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGILL}


def test_end_of_the_parent_ends_it(who: Who) -> None:
    with sandboxed(user=who) as inside:
        inside.reports()
        inside.kill_parent()
        assert inside.wait_end(10)


def test_a_process_with_threads_is_refused() -> None:
    with sandboxed("with threads") as inside:
        assert inside.status() == 1
        assert "RuntimeError: a sandbox is closed before there are threads" in inside.errors()


# One layer alone


def facts(folder: Path, *layers: str, namespaces: Sequence[str] = BOTH) -> dict[str, Any]:
    with sandboxed("facts", layers=layers, namespaces=namespaces, folder=folder) as inside:
        reports = inside.reports()
        assert tuple(reports) == tuple(name for name in LAYERS if name in layers)
        assert not missing(reports)
        found: dict[str, Any] = inside.result()
        return found


def test_no_layer(tmp_path: Path) -> None:
    found = facts(tmp_path)
    assert found["listing"]
    assert found["file"] == ""
    assert found["ids"] == [0] * 6
    assert found["tcp"] == ""
    assert found["made"] == ""
    assert found["limits"] != [0, 0]


def test_namespaces_alone(tmp_path: Path) -> None:
    found = facts(tmp_path, "namespaces")
    assert found["interfaces"] == ["lo"]
    assert found["hostname"] == ""  # that of its own namespace
    assert os.uname().nodename != "inside"
    assert found["file"] == ""


def test_root_alone(tmp_path: Path) -> None:
    found = facts(tmp_path, "root")
    assert found["listing"] == []
    assert found["file"].startswith("FileNotFoundError")
    assert found["made"].startswith("FileNotFoundError")
    assert found["made in root"].startswith("OSError: [Errno 30] Read-only file system")
    assert found["ids"] == [0] * 6


def test_identity_alone(tmp_path: Path) -> None:
    found = facts(tmp_path, "identity", namespaces=())
    assert found["ids"] == [65534] * 6
    assert found["groups"] == []
    assert found["made"].startswith("PermissionError")
    assert found["file"] == ""  # everybody may read it


def test_landlock_alone(tmp_path: Path) -> None:
    found = facts(tmp_path, "landlock")
    assert found["listing"].startswith("PermissionError")
    assert found["file"].startswith("PermissionError")
    assert found["made"].startswith("PermissionError")
    assert found["tcp"].startswith("PermissionError")
    assert found["ids"] == [0] * 6


def test_capabilities_alone() -> None:
    with sandboxed(layers=["capabilities"], namespaces=[]) as inside:
        assert not missing(inside.reports())
        for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(inside.field(field), 16) == 0
        assert inside.field("Uid").split() == ["0"] * 4
        assert inside.field("NoNewPrivs") == "0"


def test_no_new_privs_alone() -> None:
    with sandboxed(layers=["no_new_privs"], namespaces=[]) as inside:
        assert not missing(inside.reports())
        assert inside.field("NoNewPrivs") == "1"
        assert int(inside.field("CapEff"), 16) != 0


def test_not_dumpable_is_part_of_no_new_privs(ordinary_user: OrdinaryUser) -> None:
    """Files in /proc of a process that is not dumpable are root's, whoever it runs as."""
    for layers, owner in (((), ordinary_user.uid), (("no_new_privs",), 0)):
        with sandboxed(layers=layers, namespaces=[], user=ordinary_user) as inside:
            assert not missing(inside.reports())
            assert Path(f"/proc/{inside.pid}/environ").stat().st_uid == owner


def test_seccomp_alone() -> None:
    with sandboxed("unshare", layers=["seccomp"], namespaces=[]) as inside:
        assert not missing(inside.reports())
        assert inside.link("root") == "/"
        inside.go()
        assert inside.line() == {"status": -signal.SIGSYS}


# What is missing is said


def test_started_without_a_user_namespace() -> None:
    with sandboxed("work", namespaces=["pid"]) as inside:
        reports = inside.reports()
        assert missing(reports) == {
            "namespaces": "cgroup ipc mnt net pid time uts; missing: user: the process was "
            "started without"
        }
        assert reports["identity"].detail == "user and group 65534"
        assert inside.link("root") == "/sealed"
        assert inside.result()["threads"] == [8 << 18] * 4


def test_ordinary_user_without_namespaces(ordinary_user: OrdinaryUser) -> None:
    """As where user namespaces are forbidden."""
    with sandboxed("work", namespaces=[], user=ordinary_user) as inside:
        found = missing(inside.reports())
        assert set(found) == {"namespaces", "root", "identity"}
        words = "none; missing: cgroup ipc mnt net time uts: unshare: Operation not permitted; "
        assert found["namespaces"] == words + "pid user: the process was started without"
        assert found["root"] == "unshare: Operation not permitted"
        assert inside.link("root") == "/"
        look_at_status_of_ordinary_user(inside)
        assert inside.result()["threads"] == [8 << 18] * 4


def look_at_status_of_ordinary_user(inside: Sandboxed) -> None:
    for field in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(inside.field(field), 16) == 0
    assert inside.field("NoNewPrivs") == "1"
    assert inside.field("Seccomp") == "2"


REFUSALS: dict[str, tuple[str, int, Callable[[str], bool]]] = {
    "landlock": (
        "landlock.abi_version",
        errno.EOPNOTSUPP,
        lambda detail: detail == os.strerror(errno.EOPNOTSUPP),
    ),
    "seccomp": (
        "seccomp.install",
        errno.EINVAL,
        lambda detail: detail == os.strerror(errno.EINVAL),
    ),
    "root": (
        "namespaces.pivot_to_empty_root",
        errno.EINVAL,
        lambda detail: detail == os.strerror(errno.EINVAL),
    ),
    "no_new_privs": (
        "capabilities.no_new_privs",
        errno.EINVAL,
        lambda detail: detail == os.strerror(errno.EINVAL),
    ),
    "namespaces": (
        "namespaces.enter_time_namespace",
        errno.EINVAL,
        lambda detail: detail.endswith("missing: time: Invalid argument"),
    ),
}


@pytest.mark.parametrize("layer", sorted(REFUSALS))
def test_a_kernel_without_a_layer(layer: str) -> None:
    """All others are closed all the same, but for those that build on it."""
    function, number, is_right = REFUSALS[layer]
    with sandboxed(refused={function: number}) as inside:
        found = missing(inside.reports())
        assert is_right(found.pop(layer))
        # Without no_new_privs only a process with CAP_SYS_ADMIN may take the last two.
        assert set(found) == ({"landlock", "seccomp"} if layer == "no_new_privs" else set())
        assert inside.result() is None
