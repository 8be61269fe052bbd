# SPDX-License-Identifier: Apache-2.0
"""Carry all attempts out, and write what came of them into docs/security.md.

    python -m tests.support.attackmatrix            write the document, say what is wrong
    python -m tests.support.attackmatrix --every    try each attempt against each layer, and list
                                                    those that stop it though it is not promised

Needs root. All of it happens in namespaces of its own, and takes some ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from penstock.abi.seccomp import Action
from penstock.contain.imagecalls import ALLOWED
from penstock.contain.sandbox import IMAGE_SERVER, LAYERS
from penstock.sys import landlock
from tests.support.attackhost import Host
from tests.support.attackrun import BROKER, Outcome, Run, carry_out
from tests.support.attacks import Attempt, load
from tests.support.requirements import PROJECT, absent_reason

__all__ = ["ALL", "Measured", "is_absent", "measure", "problems", "uses_only_allowed"]

ALL: Final = frozenset({*LAYERS, BROKER})
"""What a mount has."""

_UNSHARE: Final = (
    "unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--mount-proc",
    "--kill-child", "--propagation", "private",
)  # fmt: skip
_INSIDE: Final = "--inside"
_NUMBERS_TO_SKIP: Final = 300


class Measured(NamedTuple):
    """One attempt, carried out under some layers."""

    attempt: str
    layers: frozenset[str]
    threads: bool
    """No more threads could be started."""
    ordinary: bool
    """An ordinary user has mounted."""
    outcome: Outcome
    detail: str
    missing: dict[str, str]
    errno: int

    @property
    def succeeded(self) -> bool:
        """Whether the attack went through."""
        return self.outcome is Outcome.SUCCEEDED

    @property
    def title(self) -> str:
        """For messages."""
        under = "all layers" if self.layers == ALL else "+".join(self.layers) or "no layer"
        under += ", threads closed" if self.threads else ""
        under += ", of an ordinary user" if self.ordinary else ""
        return f"{self.attempt} ({under}): {self.outcome.value} {self.detail}"


def plan(attempts: Iterable[Attempt], *, every: bool) -> list[Run]:
    """What is to be tried: with no layer, with each layer that promises, with all.

    Args:
        attempts: the table.
        every: with each layer, promised or not.
    """
    runs = []
    ordinary = not every and absent_reason("ordinary-user") is None
    version = landlock.abi_version()
    later = {entry.name for entry in IMAGE_SERVER.calls_later}
    for attempt in attempts:
        layers = [*LAYERS, BROKER] if every else attempt.stopped_by
        able = [name for name in layers if name != "landlock" or attempt.landlock <= version]
        runs += [Run(attempt), *(Run(attempt, frozenset({name})) for name in able)]
        if not attempt.later:
            runs.append(Run(attempt, ALL, exact=True))
        if attempt.later or later & {*attempt.calls}:
            runs.append(Run(attempt, ALL, exact=True, threads=True))
        if ordinary:
            runs.append(Run(attempt, ALL, ordinary=True, threads=attempt.later))
    return runs


def measure(*, every: bool = False) -> list[Measured]:
    """Carry out the plan, in a process of its own.

    Raises:
        RuntimeError: that process failed.
    """
    words = [sys.executable, "-m", "tests.support.attackmatrix", _INSIDE]
    done = subprocess.run(
        [*_UNSHARE, *words, *(["--every"] if every else [])],
        stdout=subprocess.PIPE,
        check=False,
        cwd=PROJECT,
    )
    if done.returncode:
        raise RuntimeError(f"the attacked host ended with status {done.returncode}")
    rows = json.loads(done.stdout)
    return [
        Measured(name, frozenset(layers), threads, ordinary, Outcome(outcome), *rest)
        for name, layers, threads, ordinary, outcome, *rest in rows
    ]


def uses_only_allowed(attempt: Attempt) -> bool:
    """Whether it takes no system call but those that servers may make."""
    allowed = {entry.name for entry in ALLOWED if entry.action == Action.ALLOW}
    return allowed.issuperset(attempt.calls)


def is_absent(attempt: Attempt, row: Measured) -> bool:
    """Whether this kernel does not have what is attacked."""
    return row.outcome is Outcome.STOPPED and row.errno in attempt.absent


def problems(rows: Sequence[Measured]) -> list[str]:
    """Where a promise is not kept; empty if all is well."""
    attempts = load()
    found = [f"broken: {row.title}" for row in rows if row.outcome is Outcome.BROKEN]
    found += [f"not in force: {row.title}: {row.missing}" for row in rows if row.missing]
    absent = {
        row.attempt for row in rows if not row.layers and is_absent(attempts[row.attempt], row)
    }
    for row in rows:
        if row.layers and row.outcome is Outcome.SUCCEEDED:
            found.append(f"not stopped: {row.title}")
        if not row.layers and row.outcome is Outcome.STOPPED and row.attempt not in absent:
            found.append(f"not real: {row.title}")
    return found


# --- the command


def _inside(*, every: bool) -> None:
    """In namespaces of our own: carry the plan out, tell the results on standard output.

    The host is a child with a high number, so that no number of its processes is that of another
    one in an attacker's pid namespace.
    """
    for _ in range(_NUMBERS_TO_SKIP):
        _end_of(os.fork() or os._exit(0))
    child = os.fork()
    if child:
        sys.exit(_end_of(child))
    with Host() as host:
        rows = [
            (run.attempt.name, sorted(run.layers), run.threads, run.ordinary, result.outcome.value,
             result.detail, result.missing, result.errno)
            for run, result in carry_out(host, plan(load().values(), every=every))
        ]  # fmt: skip
    sys.stdout.write(json.dumps(rows))


def _end_of(child: int) -> int:
    """Its exit status; whoever else ends meanwhile is waited for too."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Carry out what the command line says."""
    parser = argparse.ArgumentParser(prog="attackmatrix", description="see the module's docstring")
    parser.add_argument("--every", action="store_true")
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _inside(every=options.every)
        return
    from tests.support.attackdocument import documents

    rows = measure(every=options.every)
    if options.every:
        attempts = load()
        found = [
            f"not promised: {row.title}"
            for row in rows
            if len(row.layers) == 1
            and row.outcome is Outcome.STOPPED
            and not row.layers <= {*attempts[row.attempt].stopped_by}
        ]
    else:
        found = problems(rows)
        for path, text in documents(rows).items():
            path.write_text(text, encoding="utf-8")
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
