# SPDX-License-Identifier: Apache-2.0
"""Samples to medians, ratios and verdicts. Pure: numbers in, numbers out.

A ratio is taken within one round (the contenders of a round run one after the other), and its
median and its whole interval over the rounds are reported. A target is missed only when the whole
interval is beyond the bound; when only the median is, the run cannot tell, and says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.plan import Target

__all__ = ["Spread", "Verdict", "judge", "ratio"]


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of some samples."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Of at least one sample.

        Raises:
            statistics.StatisticsError: no samples.
        """
        return cls(statistics.median(samples), min(samples), max(samples))


@dataclass(frozen=True)
class Verdict:
    """How a target came out."""

    target: Target
    outcome: Literal["met", "unclear", "missed", "absent"]
    spread: Spread | None


def ratio(samples: Sequence[float], others: Sequence[float]) -> Spread:
    """How many times the others' time each sample is, round by round.

    One that took part in fewer rounds did so in the first ones; only those count.

    Raises:
        statistics.StatisticsError: no round in common.
    """
    return Spread.of([mine / other for mine, other in zip(samples, others, strict=False)])


def judge(target: Target, samples: Sequence[float], others: Sequence[float] | None) -> Verdict:
    """Compare with the bound.

    Args:
        samples: the subject's, in the unit of the bound when it is absolute.
        others: of the contender that the target names; empty when that one is absent.
    """
    if not samples or (target.against is not None and not others):
        return Verdict(target, "absent", None)
    if others is None or target.against is None:
        spread = Spread.of(samples)
    elif target.kind == "faster":
        spread = ratio(others, samples)
    elif target.kind == "more":
        spread = Spread.of([mine - other for mine, other in zip(samples, others, strict=False)])
    else:
        spread = ratio(samples, others)
    if target.kind == "faster":
        met, possible = spread.median >= target.bound, spread.high >= target.bound
    else:
        met, possible = spread.median <= target.bound, spread.low <= target.bound
    return Verdict(target, "met" if met else "unclear" if possible else "missed", spread)
