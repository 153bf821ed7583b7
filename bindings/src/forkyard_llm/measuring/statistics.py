"""Medians, intervals by bootstrap, and when two arms are called a tie."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RESAMPLES = 2000
CONFIDENCE = 0.95
TIE = 0.01
"""Ratios nearer to 1 than this are a tie whatever the interval says: no machine is the same twice to one percent."""
FEWEST = 5
"""With fewer rounds everything is a tie: all of them lie on one side of 1 by chance in 1 of 16 cases with five, and in
1 of 4 with three."""
_SEED = 20261124


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
    """Median and interval of at least one sample."""
    return Summary(tuple(samples), float(statistics.median(samples)), bootstrap(samples))


def compare(arm: Sequence[float], baseline: Sequence[float]) -> Gain:
    """An arm against a baseline, round by round.

    Raises:
        ValueError: they were not measured in the same number of rounds.
    """
    ratios = [new / old for new, old in zip(arm, baseline, strict=True)]
    ratio = float(statistics.median(ratios))
    low, high = bootstrap(ratios)
    if len(ratios) < FEWEST or low <= 1 <= high or abs(ratio - 1) < TIE:
        verdict = "tie"
    else:
        verdict = "faster" if ratio > 1 else "slower"
    return Gain(ratio, (low, high), verdict)


def compare_unpaired(arm: Sequence[float], baseline: Sequence[float]) -> Gain:
    """An arm against a baseline that was measured at another time: the ratio of medians, both resampled."""
    ratio = float(statistics.median(arm) / statistics.median(baseline))
    if min(len(arm), len(baseline)) < FEWEST:
        low, high = min(arm) / max(baseline), max(arm) / min(baseline)
        return Gain(ratio, (low, high), "tie")
    source = random.Random(_SEED)  # noqa: S311
    ratios = sorted(
        statistics.median(source.choices(arm, k=len(arm)))
        / statistics.median(source.choices(baseline, k=len(baseline)))
        for _ in range(RESAMPLES)
    )
    cut = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    low, high = float(ratios[cut]), float(ratios[-1 - cut])
    tie = low <= 1 <= high or abs(ratio - 1) < TIE
    return Gain(ratio, (low, high), "tie" if tie else "faster" if ratio > 1 else "slower")


def bootstrap(samples: Sequence[float]) -> tuple[float, float]:
    """The percentile interval of the median: B. Efron (1979), with resamples that are the same every time."""
    if len(samples) < FEWEST:
        return min(samples), max(samples)
    source = random.Random(_SEED)  # noqa: S311
    medians = sorted(statistics.median(source.choices(samples, k=len(samples))) for _ in range(RESAMPLES))
    cut = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return float(medians[cut]), float(medians[-1 - cut])
