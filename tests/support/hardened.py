# SPDX-License-Identifier: Apache-2.0
"""Runs a program with what a unit's hardening leaves to it, as far as that can be had without a
service manager: ``python -m tests.support.hardened UNIT COMMAND…``, as root.

Taken from the unit: SystemCallFilter (its groups are expanded by systemd-analyze),
RestrictNamespaces, RestrictAddressFamilies=none, MemoryDenyWriteExecute, NoExecPaths and ExecPaths,
ProcSubset and ProtectProc, PrivateNetwork, PrivateIPC, PrivateMounts, an identity without rights.
A directive of these that is missing in the unit is not applied. All mounts are made in a mount
namespace of the program's own.
"""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from penstock.abi.process import CloneFlag
from penstock.abi.seccomp import Action
from penstock.contain.filter import Entry, assemble
from penstock.sys import capabilities, namespaces, seccomp
from penstock.sys.libc import call

NOBODY = 65534
PR_SET_MDWE = 65
PR_MDWE_REFUSE_EXEC_GAIN = 1

Directives = Mapping[str, list[str]]


def directives(unit: Path) -> Directives:
    """The assignments of a unit, in their order."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in unit.read_text("utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name].append(value)
    return found


def groups() -> dict[str, list[str]]:
    """The groups of system calls that systemd knows."""
    command = ["systemd-analyze", "--no-pager", "syscall-filter"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("@"):
            name = line.strip()
            found[name] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            found[name].append(line.strip())
        elif not line.startswith((" ", "#")):
            name = ""
    return found


def allowed_calls(lines: list[str]) -> set[str]:
    """What SystemCallFilter= lines allow together, the first one being a list of what is."""
    known = groups()

    def expanded(word: str) -> set[str]:
        if not word.startswith("@"):
            return {word}
        return set().union(*map(expanded, known[word]))

    allowed = expanded("@default")
    for line in lines:
        names = set().union(*map(expanded, line.removeprefix("~").split()))
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def entries(unit: Directives) -> list[Entry]:
    """The filter's entries; what is not named gets SystemCallErrorNumber."""
    names = allowed_calls(unit["SystemCallFilter"])
    found = {name: Entry(name, "") for name in sorted(names)}
    if unit["RestrictNamespaces"] == ["yes"]:
        for name in ("unshare", "setns"):
            found[name] = Entry(name, "", action=Action.ERRNO | errno.EPERM)
        found["clone3"] = Entry("clone3", "", action=Action.ERRNO | errno.ENOSYS)
    if unit["RestrictAddressFamilies"] == ["none"]:
        found["socket"] = Entry("socket", "", action=Action.ERRNO | errno.EAFNOSUPPORT)
    return list(found.values())


def private(unit: Directives) -> None:
    """Namespaces and mounts."""
    flags = CloneFlag.NEWNS
    for name, flag in (
        ("PrivateNetwork", CloneFlag.NEWNET),
        ("PrivateIPC", CloneFlag.NEWIPC),
        ("ProtectHostname", CloneFlag.NEWUTS),
    ):
        if unit[name] == ["yes"]:
            flags |= flag
    namespaces.unshare(flags)
    mount("--make-rprivate", "/")
    if unit["ProcSubset"] == ["pid"]:
        mount("-t", "proc", "-o", "subset=pid,hidepid=invisible", "proc", "/proc")
    if unit["NoExecPaths"] == ["/"]:
        for word in shlex.split(" ".join(unit["ExecPaths"])):
            path = word.removeprefix("-")
            if os.path.exists(path):
                mount("--bind", path, path)
        mount("-o", "remount,bind,noexec", "/")  # the others keep what / had


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def become_nobody() -> None:
    capabilities.drop_bounding()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    capabilities.drop_all()
    capabilities.no_new_privs()
    os.umask(0o777)


def main(path: str, *command: str) -> None:
    unit = directives(Path(path))
    program = assemble(
        entries(unit),
        seccomp.machine(),
        default=Action.ERRNO | getattr(errno, unit["SystemCallErrorNumber"][0]),
    )
    private(unit)
    become_nobody()
    if unit["MemoryDenyWriteExecute"] == ["yes"]:
        call("prctl", PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
    os.chdir("/")
    seccomp.install(program)
    os.execv(command[0], command)  # noqa: S606  this is what it is for


if __name__ == "__main__":
    main(*sys.argv[1:])
