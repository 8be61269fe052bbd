# SPDX-License-Identifier: Apache-2.0
"""The sandbox, as far as no privilege is needed to see it; tests/root has the rest.

What changes a process for good is done in a child.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from penstock.abi.capability import Capability
from penstock.abi.landlock import LADDER, AccessFs
from penstock.abi.process import CloneFlag
from penstock.abi.seccomp import SOCK_FILTER, Action, Bpf
from penstock.cli.probes.base import attempt
from penstock.contain.profile import IMAGE_SERVER
from penstock.contain.sandbox import LAYERS, close, close_threads
from penstock.sys import capabilities, landlock, namespaces, seccomp

ALLOW_ALL = SOCK_FILTER.pack(Bpf.RETURN, 0, 0, Action.ALLOW)
needs_landlock = pytest.mark.requires("landlock")


def child(action: Callable[[], Any]) -> Any:
    """What an action returns, done in a child; JSON can carry it."""
    found = attempt(action, seconds=30)
    assert not found.reason, found.reason
    return found.value


def failure(action: Callable[[], Any]) -> int:
    """With which errno an action fails."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


# What it takes to load it


def test_the_sandbox_loads_no_parser() -> None:
    """It is imported by processes that must not have one in their memory."""
    program = (
        "import sys, penstock.contain.sandbox\n"
        "print(*sorted({name.split('.')[1] for name in sys.modules if name[:9] == 'penstock.'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"abi", "contain", "sys", "_version"}


# Closing


def test_without_layers_nothing_is_closed() -> None:
    def closing() -> Any:
        reports = close(IMAGE_SERVER, layers=frozenset())
        return [*reports, state()]

    def state() -> list[str]:
        """What layers would change."""
        names = ("Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters")
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        found = [line for line in status if line.partition(":")[0] in names]
        limits = Path("/proc/self/limits").read_text(encoding="ascii")
        return [*found, limits, os.readlink("/proc/self/root"), str(namespaces.namespace_ids())]

    assert child(closing) == [state()]


def test_a_process_with_threads_is_refused() -> None:
    def closing() -> str:
        go = threading.Event()
        threading.Thread(target=go.wait, args=(30,), daemon=True).start()
        with pytest.raises(RuntimeError) as caught:
            close(IMAGE_SERVER, layers=frozenset())
        return str(caught.value)

    assert child(closing) == "a sandbox is closed before there are threads"


@needs_landlock
def test_what_needs_no_privilege_is_closed_for_everybody() -> None:
    def closing() -> Any:
        layers = frozenset({"no_new_privs", "landlock", "limits", "seccomp"})
        reports = close(IMAGE_SERVER, layers=layers)
        refused = [failure(lambda: os.stat("/")), failure(lambda: os.open("/dev/null", 0))]
        refused += [failure(os.pipe), failure(lambda: os.memfd_create("x"))]
        later = close_threads(IMAGE_SERVER)
        with pytest.raises(RuntimeError):
            threading.Thread(target=time.sleep, args=(0,)).start()
        return [[report.name for report in reports if report.in_force], refused, later.in_force]

    assert child(closing) == [
        ["no_new_privs", "landlock", "limits", "seccomp"],
        [errno.EPERM] * 4,
        True,
    ]


def test_threads_can_be_closed_for_a_process_with_threads_only_as_a_whole() -> None:
    """A thread with a filter of its own would stay as it is, so it is said."""

    def closing() -> Any:
        capabilities.no_new_privs()
        go = threading.Event()
        installed = threading.Event()

        def other() -> None:
            seccomp.install(ALLOW_ALL)
            installed.set()
            go.wait(30)

        threading.Thread(target=other, daemon=True).start()
        assert installed.wait(30)
        return close_threads(IMAGE_SERVER)

    name, in_force, detail = child(closing)
    assert (name, in_force) == ("seccomp", False)
    assert "threads can still start: seccomp: thread" in detail


def test_reports_without_proc() -> None:
    """Where /proc cannot be read, it is said what cannot be told."""

    def closing() -> Any:
        refusal = PermissionError(errno.EACCES, "Permission denied")
        mock.patch("penstock.sys.namespaces.namespace_ids", side_effect=refusal).start()
        layers = frozenset({"namespaces", "root", "limits"})
        return close(IMAGE_SERVER, layers=layers)

    reports = {name: (in_force, detail) for name, in_force, detail in child(closing)}
    assert reports["namespaces"][0] is False
    assert reports["namespaces"][1].startswith("/proc cannot be read")
    assert reports["root"] == (False, "Permission denied")
    assert reports["limits"][0] is True


def test_a_limit_that_cannot_be_set_is_reported() -> None:
    def closing() -> Any:
        refusal = ValueError("not allowed to raise maximum limit")
        mock.patch("resource.setrlimit", side_effect=refusal).start()
        return close(IMAGE_SERVER, layers=frozenset({"limits"}))

    assert child(closing) == [["limits", False, "not allowed to raise maximum limit"]]


def test_limits_are_never_raised() -> None:
    def closing() -> Any:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
        (report,) = close(IMAGE_SERVER, layers=frozenset({"limits"}))
        return [resource.getrlimit(resource.RLIMIT_NOFILE), report.detail]

    limit, detail = child(closing)
    assert limit == [60, 60]
    assert ", 60 descriptors," in detail


def test_layers_are_known_by_name() -> None:
    assert len(set(LAYERS)) == len(LAYERS) == 8
    assert LAYERS[-1] == "seccomp"  # all others need calls that it forbids


# What Python needs

_ZONE = b"TZif" + bytes(16) + struct.pack(">6I", 0, 0, 0, 0, 1, 4) + struct.pack(">iBB", 3600, 0, 0)


def test_the_time_zone_stays(tmp_path: Path) -> None:
    """The C library must not look at the zone's file again."""
    zone = tmp_path / "zone"
    zone.write_bytes(_ZONE + b"TST\0")
    program = (
        "import os, sys, time\n"
        "from penstock.contain.warm import import_all\n"
        "import_all()\n"
        "os.unlink(sys.argv[1])\n"
        "print(time.strftime('%Z'), time.strftime('%z'), time.localtime().tm_zone)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(zone)],
        env={**os.environ, "TZ": f":{zone}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["TST", "+0100", "TST"]


def test_the_hosts_time_zone_is_named() -> None:
    """Without a name the C library looks at the host's file each time."""
    program = "import os; from penstock.contain.warm import import_all as a; a(); print(os.environ)"
    environment = {name: value for name, value in os.environ.items() if name != "TZ"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert "'TZ': ':/etc/localtime'" in done.stdout


# System calls


@needs_landlock
@pytest.mark.parametrize("version", [*range(1, len(LADDER) + 1), 99])
def test_each_step_of_landlocks_ladder(version: int) -> None:
    """A newer kernel takes what older ones were asked for; one from the future, what is known."""
    if version <= len(LADDER) and landlock.abi_version() < version:
        version = landlock.abi_version()

    def restrict() -> Any:
        capabilities.no_new_privs()
        with mock.patch.object(landlock, "abi_version", return_value=version):
            found, step = landlock.restrict_everything()
        here = [failure(lambda: os.open("/dev/null", os.O_RDONLY)), failure(os.getcwd)]
        return [found, step.version, *here]

    known = min(version, len(LADDER))
    assert child(restrict) == [version, known, errno.EACCES, 0]


def test_landlocks_ladder_only_grows() -> None:
    for lower, higher in itertools.pairwise(LADDER):
        assert higher.version == lower.version + 1
        assert higher.size >= lower.size
        assert higher.fs & lower.fs == lower.fs
        assert higher.net & lower.net == lower.net
        assert higher.scopes & lower.scopes == lower.scopes
    assert LADDER[0].fs == AccessFs(0x1FFF)
    assert LADDER[-1].fs == AccessFs(0xFFFF)


def test_filters_that_are_none() -> None:
    def install() -> Any:
        capabilities.no_new_privs()
        endless = SOCK_FILTER.pack(Bpf.LOAD, 0, 0, 0)
        return [failure(lambda: seccomp.install(b"")), failure(lambda: seccomp.install(endless))]

    assert child(install) == [errno.EINVAL, errno.EINVAL]


def test_machines_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seccomp.machine.cache_clear()
    name = mock.Mock(machine="riscv64")
    monkeypatch.setattr(os, "uname", lambda: name)
    with pytest.raises(OSError, match="no table of system calls for riscv64") as caught:
        seccomp.machine()
    assert caught.value.errno == errno.ENOSYS


def test_what_a_process_says_of_itself() -> None:
    def change() -> Any:
        before = capabilities.is_dumpable()
        capabilities.set_name("nobody-knows-me-by-that")
        capabilities.set_dumpable(dumpable=False)
        capabilities.no_new_privs()
        name = Path("/proc/thread-self/comm").read_text(encoding="ascii").strip()
        return [before, capabilities.is_dumpable(), capabilities.has_no_new_privs(), name]

    assert child(change) == [True, False, True, "nobody-knows-me"]
    assert not capabilities.has_no_new_privs()


def test_dropping_capabilities_is_never_refused() -> None:
    def drop() -> Any:
        capabilities.drop_all()
        return [sorted(capabilities.effective()), failure(capabilities.drop_bounding)]

    assert child(drop) == [[], errno.EPERM]


@pytest.mark.requires("root")
def test_some_capabilities_are_kept() -> None:
    def keep() -> Any:
        capabilities.keep_only({Capability.SETPCAP, Capability.CHECKPOINT_RESTORE})
        kept = sorted(capabilities.effective())
        before = len(capabilities.bounding())
        capabilities.drop_bounding()
        capabilities.lock_securebits()
        again = failure(lambda: capabilities.keep_only({Capability.CHOWN}))
        return [kept, before > 30, sorted(capabilities.bounding()), again]

    assert child(keep) == [[8, 40], True, [], errno.EPERM]


@pytest.mark.requires("root")
def test_the_servers_of_filesystems_do_not_wait_for_themselves() -> None:
    """PR_SET_IO_FLUSHER takes CAP_SYS_RESOURCE, which not every root has."""

    def flush() -> Any:
        first = failure(lambda: capabilities.io_flusher(flusher=True))
        capabilities.drop_all()
        return [first, failure(lambda: capabilities.io_flusher(flusher=False))]

    may = Capability.SYS_RESOURCE in capabilities.effective()
    assert child(flush) == [0 if may else errno.EPERM, errno.EPERM]


def test_namespaces_have_numbers() -> None:
    found = namespaces.namespace_ids()
    assert {"mnt", "net", "pid", "user"} <= found.keys()
    assert not [name for name in found if name.endswith("_for_children")]
    assert found["mnt"] == os.stat("/proc/self/ns/mnt").st_ino


@pytest.mark.requires("root")
def test_a_time_namespace_is_entered() -> None:
    def enter() -> Any:
        before = namespaces.namespace_ids()
        namespaces.enter_time_namespace()
        namespaces.unshare(CloneFlag.NEWUTS)
        after = namespaces.namespace_ids()
        return sorted(name for name in before if before[name] != after[name])

    if not Path("/proc/self/ns/time").exists():
        assert failure(namespaces.enter_time_namespace) in {errno.EINVAL, errno.ENOENT}
        return
    assert child(enter) == ["time", "uts"]
