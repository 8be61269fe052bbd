# SPDX-License-Identifier: Apache-2.0
"""Do the rounds: every session of every contender, contenders in turn, samples collected by row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import image as images
from bench.contenders import Contender, memory, mounted
from bench.plan import COLD, MEMORY, MOUNT_ROW, Session, Sizes, sessions

__all__ = ["Samples", "measure"]

CLIENT = Path(__file__).with_name("client.py")


@dataclass
class Samples:
    """Everything measured.

    Attributes:
        seconds: contender → row → one sample a round, in the order of the rounds.
        counts: row → how many things (files, bytes) a sample is for.
        memory: contender → (peak resident, proportional) in MiB.
        absent: contender → why it did not take part, or dropped out.
        still_cached: the largest part of the image that dropping left in the cache.
    """

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    memory: dict[str, tuple[float, float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    still_cached: float = 0.0

    def add(self, contender: str, row: str, seconds: float, count: int) -> None:
        """One sample more."""
        self.seconds.setdefault(contender, {}).setdefault(row, []).append(seconds)
        self.counts[row] = count


def _client(point: Path, session: Session) -> list[tuple[float, int]]:
    order = {"root": str(point), "steps": [[s.call, s.arguments] for s in session.steps]}
    done = subprocess.run(
        [sys.executable, "-I", str(CLIENT)],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    return list(zip(result["samples"], result["counts"], strict=True))


@dataclass
class _Rounds:
    """The state of a run; ``taking_part`` shrinks when a contender fails."""

    samples: Samples
    image: Path
    point: Path
    taking_part: list[Contender]
    progress: Callable[[str], None]

    def turn(self, number: int) -> list[Contender]:
        """The contenders, another one first in each round."""
        shift = number % max(1, len(self.taking_part))
        return self.taking_part[shift:] + self.taking_part[:shift]

    def attempt(self, contender: Contender, session: Session) -> None:
        """One mount, its steps, and what they took; a failure takes the contender out."""
        try:
            with mounted(contender, self.image, self.point) as mount:
                results = _client(mount.point, session)
                used = memory(mount) if session is MEMORY else None
        except subprocess.CalledProcessError as error:
            words = str(error.stderr or error).strip().splitlines()
            self.samples.absent[contender.name] = words[-1] if words else "failed without a word"
            self.samples.seconds.pop(contender.name, None)
            self.taking_part.remove(contender)
            return
        if used is not None:
            self.samples.memory[contender.name] = used
        if session.name == "files":
            self.samples.add(contender.name, MOUNT_ROW.name, mount.seconds, 1)
        for step, (seconds, count) in zip(session.steps, results, strict=True):
            self.samples.add(contender.name, step.row, seconds, count)

    def cached(self, number: int, rounds: int, plan: tuple[Session, ...]) -> None:
        """One round of the sessions with the image in the page cache."""
        for session in plan:
            images.fill(self.image)
            for contender in self.turn(number):
                self.progress(f"round {number + 1} of {rounds}, {session.name}: {contender.title}")
                self.attempt(contender, session)

    def dropped(self, number: int, rounds: int) -> None:
        """One round of the session with the image not in the page cache."""
        for contender in self.turn(number):
            self.progress(f"round {number + 1} of {rounds}, image not cached: {contender.title}")
            left = images.drop(self.image)
            self.samples.still_cached = max(self.samples.still_cached, left)
            self.attempt(contender, COLD)


def measure(
    entries: list[Contender],
    sizes: Sizes,
    rounds: int,
    point: Path,
    progress: Callable[[str], None],
) -> Samples:
    """Measure all that can take part; one that fails drops out with its reason.

    Args:
        rounds: how many samples each row gets.
        point: an empty folder to mount at.
        progress: told what is going on, a line at a time.
    """
    samples = Samples(absent={c.name: c.absent for c in entries if c.absent is not None})
    progress("making the image (kept for the next run)")
    taking_part = [c for c in entries if c.absent is None]
    work = _Rounds(samples, images.image(sizes), point, taking_part, progress)
    for number in range(rounds):
        work.cached(number, rounds, sessions(sizes, seed=number))
    for number in range(rounds):
        work.dropped(number, rounds)
    images.fill(work.image)
    for contender in [c for c in taking_part if c.server]:
        progress(f"memory: {contender.title}")
        work.attempt(contender, MEMORY)
    return samples
