"""Comparing two builds on a machine that is never quite the same twice: interleaved pairs and medians."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Compared:
    """Throughput before and after, pair by pair."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the pairs of after to before; above 1 the branch is faster."""
        return median([new / old for old, new in zip(self.before, self.after, strict=True)])

    @property
    def spread(self) -> float:
        """How far apart the runs of one side are, relative to their median; of the worse side."""
        return max((max(side) - min(side)) / median(side) for side in (self.before, self.after))

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "before": list(self.before),
            "after": list(self.after),
            "median_before": median(self.before),
            "median_after": median(self.after),
            "median_ratio_of_pairs": round(self.ratio, 5),
            "spread": round(self.spread, 5),
        }
