# SPDX-License-Identifier: Apache-2.0
"""Do the rounds: every session of every contender, contenders in turn, samples collected by row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.contenders import Contender
from bench.mounting import Memory, Mounted, memory, mounted, statistics
from bench.plan import MOUNT, Plan, Session

__all__ = ["BASE", "Samples", "Subject", "client", "measure"]

CLIENT = Path(__file__).with_name("client.py")
BASE = 60 << 20
PATIENCE = 600.0


class Subject(Protocol):
    """What is mounted: the image or the directory."""

    path: Path
    title: str

    def prepare(self, session: Session) -> None:
        """Called before the contenders have a session."""

    def before(self, session: Session) -> float:
        """Called before each one has it; the part of the data that is cached and should not be."""


@dataclass
class Samples:
    """Everything measured.

    Attributes:
        seconds: contender → row → one sample a round, in the order of the rounds. One that takes
            part in fewer rounds does so in the first ones.
        counts: row → how many things (files, bytes) a sample is for.
        amounts: contender → row → memory in bytes.
        absent: contender → why it did not take part.
        failures: contender → session → why it has no sample of it.
        datapaths: contender → the ways of data that its mounts reported.
        subject: where the data lies.
        still_cached: the largest part of the image that dropping left in the cache.
    """

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    amounts: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    datapaths: dict[str, list[str]] = field(default_factory=dict)
    subject: str = ""
    still_cached: float = 0.0

    def add(self, contender: str, row: str, seconds: float, count: int) -> None:
        """One sample more."""
        self.seconds.setdefault(contender, {}).setdefault(row, []).append(seconds)
        self.counts[row] = count

    def add_memory(self, contender: str, row: str, used: tuple[Memory, Memory], files: int) -> None:
        """What a walk over ``files`` entries did to the server's memory (before, after)."""
        before, after = used
        rows = self.amounts.setdefault(contender, {})
        rows[f"{row}-peak"] = [after.peak]
        rows[f"{row}-pss"] = [after.proportional]
        rows[f"{row}-growth"] = [(after.proportional - before.proportional) / files]
        rows[f"{row}-over"] = [max(0, after.proportional - BASE) / files]

    def fail(self, contender: str, session: Session, reason: str) -> None:
        """The contender has no part in a session any more."""
        self.failures.setdefault(contender, {})[session.name] = reason
        for step in session.steps:
            self.seconds.get(contender, {}).pop(step.row, None)


def client(point: Path, session: Session) -> list[tuple[float, int]]:
    """Do a session's steps in a process of their own: seconds and number of things for each.

    Raises:
        subprocess.CalledProcessError: a step failed; its ``stderr`` says why.
    """
    order = {"root": str(point), "steps": [[s.call, s.arguments] for s in session.steps]}
    done = subprocess.run(
        [sys.executable, "-I", str(CLIENT)],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    result = json.loads(done.stdout)
    return list(zip(result["samples"], result["counts"], strict=True))


def _reason(error: Exception) -> str:
    """Why something failed, in a line."""
    said = getattr(error, "stderr", None) or str(error)
    words = str(said).strip().splitlines()
    return words[-1] if words else "failed without a word"


@dataclass
class _Rounds:
    """The state of a run."""

    plan: Plan
    samples: Samples
    subject: Subject
    point: Path
    taking_part: list[Contender]
    progress: Callable[[str], None]

    def turn(self, number: int, session: Session) -> list[Contender]:
        """The contenders of a session, another one first in each round."""
        shift = number % max(1, len(self.taking_part))
        return [
            c
            for c in self.taking_part[shift:] + self.taking_part[:shift]
            if (c.rounds is None or number < c.rounds)
            and session.name not in c.skips
            and session.name not in self.samples.failures.get(c.name, {})
        ]

    def attempt(self, contender: Contender, session: Session) -> None:
        """One mount, its steps, and what they took; after a failure this session is over for it."""
        left = self.subject.before(session)
        self.samples.still_cached = max(self.samples.still_cached, left)
        try:
            with mounted(contender, self.subject.path, self.point) as mount:
                self._sample(contender, session, mount)
        except (subprocess.SubprocessError, OSError) as error:
            self.samples.fail(contender.name, session, _reason(error))

    def _sample(self, contender: Contender, session: Session, mount: Mounted) -> None:
        watched = session.state == "memory" and contender.server
        before = memory(mount) if watched else None
        results = client(mount.point, session)
        after = memory(mount) if watched else None
        told = statistics(contender, mount).get("datapath")
        known = self.samples.datapaths.setdefault(contender.name, [])
        if isinstance(told, str) and told not in known:
            known.append(told)
        if session.name == "files" and contender.command:
            self.samples.add(contender.name, MOUNT.name, mount.seconds, 1)
        for step, (seconds, count) in zip(session.steps, results, strict=True):
            if step.row:
                self.samples.add(contender.name, step.row, seconds, count)
        if before is not None and after is not None:
            count = results[-1][1]
            self.samples.add_memory(contender.name, session.name, (before, after), count)

    def all(self, rounds: int) -> None:
        """All rounds of the sessions of one state, then of the next one."""
        for state in ("cached", "dropped", "memory"):
            for number in range(rounds):
                for session in self.plan.sessions(number):
                    if session.state != state or number >= (session.rounds or rounds):
                        continue
                    self.subject.prepare(session)
                    for contender in self.turn(number, session):
                        where = f"{self.plan.name}, round {number + 1} of {rounds}"
                        self.progress(f"{where}, {session.name}: {contender.title}")
                        self.attempt(contender, session)


def measure(
    plan: Plan,
    entries: list[Contender],
    subject: Subject,
    rounds: int,
    point: Path,
    progress: Callable[[str], None],
) -> Samples:
    """Measure all that can take part; what one cannot do is noted with the reason.

    Args:
        entries: those of the plan's contenders that are wanted.
        rounds: how many samples each row gets.
        point: an empty folder to mount at.
        progress: told what is going on, a line at a time.
    """
    absent = {c.name: c.absent for c in entries if c.absent is not None}
    samples = Samples(absent=absent, subject=subject.title)
    taking_part = [c for c in entries if c.absent is None]
    _Rounds(plan, samples, subject, point, taking_part, progress).all(rounds)
    return samples
