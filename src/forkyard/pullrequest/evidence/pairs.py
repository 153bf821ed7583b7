"""Comparing two builds on a machine that is never quite the same twice: interleaved pairs and medians."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forkyard.pullrequest.evidence.builds import AFTER, BEFORE


def pair_order(number: int) -> tuple[str, str]:
    """Which side goes first in pair ``number``: by turns, so that a drift of the machine favours neither."""
    return (BEFORE, AFTER) if number % 2 == 0 else (AFTER, BEFORE)


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(statistics.median(values))


def chance(count: int, left_out: int) -> float:
    """How likely the true median lies beyond one side of ``count`` values less ``left_out`` of them."""
    return sum(math.comb(count, number) for number in range(left_out + 1)) / float(2**count)


def left_out_of(count: int) -> int:
    """How many of ``count`` sorted values to leave out on each side: as many as leave an interval of 95 %, or none."""
    return max((number for number in range(count // 2) if chance(count, number) <= 0.025), default=0)


@dataclass(frozen=True)
class Compared:
    """Throughput before and after, pair by pair."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """After to before of each pair, sorted; above 1 the branch is faster."""
        return sorted(new / old for old, new in zip(self.before, self.after, strict=True))

    @property
    def ratio(self) -> float:
        """Their median."""
        return median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true median lies, at 95 % or as nearly as so few pairs allow.

        The order statistics of the sign test: nothing is assumed of how the noise is distributed.
        """
        ratios = self.ratios
        left_out = left_out_of(len(ratios))
        return ratios[left_out], ratios[-1 - left_out]

    @property
    def spread(self) -> float:
        """How far apart the runs of one side are, relative to their median; of the worse side."""
        return max((max(side) - min(side)) / median(side) for side in (self.before, self.after))

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        count = len(self.before)
        return {
            "before": list(self.before),
            "after": list(self.after),
            "median_before": median(self.before),
            "median_after": median(self.after),
            "median_ratio_of_pairs": round(self.ratio, 5),
            "interval": [round(limit, 5) for limit in self.interval],
            "confidence": round(1 - 2 * chance(count, left_out_of(count)), 4),
            "spread": round(self.spread, 5),
        }
