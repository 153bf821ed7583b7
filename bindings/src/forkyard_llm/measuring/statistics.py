"""Medians, the intervals in which they lie, and when two arms are called a tie."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ERROR = 0.04
"""How likely an interval may miss the true median. Neighbours share a run of the anchor, which makes it 0.05."""
TIE = 0.01
"""Ratios nearer to 1 than this are a tie whatever the interval says: no machine is the same twice to one percent."""
FEWEST = 6
"""With fewer rounds everything is a tie: all of five lie on one side of 1 by chance in 1 of 16 cases."""


@dataclass(frozen=True)
class Summary:
    """Samples of one arm."""

    samples: tuple[float, ...]
    median: float
    interval: tuple[float, float]
    """Where the true median lies."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"samples": list(self.samples), "median": self.median, "interval": list(self.interval)}


@dataclass(frozen=True)
class Gain:
    """One arm relative to another, measured in the same rounds."""

    ratio: float
    """Median of the rounds' ratios; above 1 the arm is faster."""
    interval: tuple[float, float]
    verdict: str
    """``faster``, ``slower`` or ``tie``."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"ratio": self.ratio, "interval": list(self.interval), "verdict": self.verdict}


def summarize(samples: Sequence[float]) -> Summary:
    """Median and interval of at least one sample; of fewer than :data:`FEWEST` the interval is all of them."""
    low, high = bounds(samples, ERROR / 2)
    if not math.isfinite(high):
        low, high = min(samples), max(samples)
    return Summary(tuple(samples), float(statistics.median(samples)), (low, high))


def compare(arm: Sequence[float], baseline: Sequence[float]) -> Gain:
    """An arm against a baseline, round by round.

    Raises:
        ValueError: they were not measured in the same number of rounds.
    """
    ratios = summarize([new / old for new, old in zip(arm, baseline, strict=True)])
    return _judged(ratios.median, ratios.interval, len(ratios.samples))


def compare_unpaired(arm: Sequence[float], baseline: Sequence[float]) -> Gain:
    """An arm against a baseline that was measured at another time: the ratio of medians.

    The interval reaches from the one's lower bound over the other's upper one to the reverse, and is too wide rather
    than too narrow.
    """
    one, other = summarize(arm), summarize(baseline)
    interval = (one.interval[0] / other.interval[1], one.interval[1] / other.interval[0])
    return _judged(one.median / other.median, interval, min(len(arm), len(baseline)))


def _judged(ratio: float, interval: tuple[float, float], rounds: int) -> Gain:
    if rounds < FEWEST or interval[0] <= 1 <= interval[1] or abs(ratio - 1) < TIE:
        return Gain(ratio, interval, "tie")
    return Gain(ratio, interval, "faster" if ratio > 1 else "slower")


def bounds(values: Sequence[float], error: float) -> tuple[float, float]:
    """Between which the median lies, by order statistics: either bound is wrong with at most this likelihood.

    It holds whatever the distribution is (the sign test); with too few samples the bounds are 0 and infinity.
    """
    ordered, count = sorted(values), len(values)
    total, rank = 0.0, 0
    while rank < count:
        total += math.comb(count, rank) / 2**count
        if total > error:
            break
        rank += 1
    return (float(ordered[rank - 1]), float(ordered[-rank])) if rank else (0.0, math.inf)
