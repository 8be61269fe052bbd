# SPDX-License-Identifier: Apache-2.0
"""How long to look for the next request before sleeping.

Facts about waking up
    - A caller that finds the server asleep pays for waking it on another CPU, and again for being
      woken: a LOOKUP took 56 µs that way and 23 µs with the server already looking.
    - Looking costs a CPU. So it lasts a short time after each request only, as long as requests
      have lately come that soon, and never on a machine with one CPU.

    - Where others want the CPU, whoever looks is taken off it in the middle of it, and then waits
      for its turn when the next request comes; a sleeper would have been woken at once. So looking
      ends for a while when that has happened.

The window follows what the kernel's own halt polling does for virtual CPUs (virt/kvm,
halt_poll_ns): it doubles when a request came after the window but soon enough to have been worth
waiting for, and halves when none did.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["Polling", "parse_poll"]

_START: Final = 20_000
_LONGEST: Final = 200_000
"""Longest adaptive window, nanoseconds."""
HELD_UP: Final = 700_000
"""Nanoseconds between two looks that say that the CPU was given to somebody else meanwhile: less
than the scheduler's shortest turn, more than an interrupt."""
_PENALTY: Final = 50_000_000
_LONGEST_PENALTY: Final = 1_600_000_000
LONGEST_FIXED: Final = 5_000
"""Longest window that may be asked for, microseconds: polling never outlasts 5 ms of silence."""


def parse_poll(word: str) -> str | int:
    """The value of ``-o poll=``: ``auto``, ``off``, or microseconds.

    Raises:
        ValueError: anything else, or more than 5000 µs.
    """
    if word in ("auto", "off"):
        return word
    if word.isdecimal() and int(word) <= LONGEST_FIXED:
        return int(word)
    raise ValueError(f"poll={word}: not auto, off, or microseconds up to {LONGEST_FIXED}")


class Polling:
    """The window of one transport, in nanoseconds.

    Args:
        mode: ``auto``, ``off``, or a fixed window in microseconds.
    """

    def __init__(self, mode: str | int = "auto") -> None:
        self._adaptive = mode == "auto" and len(os.sched_getaffinity(0)) > 1
        fixed = mode * 1000 if isinstance(mode, int) else 0
        self.window = min(fixed, LONGEST_FIXED * 1000)
        self._penalty = _PENALTY
        self._not_before = -1 << 62

    def held_up(self, now: int) -> None:
        """Looking was interrupted for longer than :data:`HELD_UP`, at ``now`` nanoseconds."""
        if not self._adaptive:
            return
        again = now < self._not_before + 2 * self._penalty
        self._penalty = min(self._penalty * 2, _LONGEST_PENALTY) if again else _PENALTY
        self._not_before = now + self._penalty
        self.window = 0

    def slept(self, gap: int, now: int = 0) -> None:
        """A request came after sleeping, at ``now`` nanoseconds, and ``gap`` after the last one was
        answered."""
        if not self._adaptive or now < self._not_before:
            return
        if gap <= _LONGEST:
            self.window = min(max(self.window * 2, _START), _LONGEST)
        else:
            halved = self.window // 2
            self.window = halved if halved >= _START else 0
