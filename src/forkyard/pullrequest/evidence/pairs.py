"""Comparing two builds on a machine that is never quite the same twice: interleaved pairs and medians."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from forkyard_llm.measuring.statistics import summarize

from forkyard.pullrequest.evidence.builds import AFTER, BEFORE


def pair_order(number: int) -> tuple[str, str]:
    """Which side goes first in pair ``number``: by turns, so that a drift of the machine favours neither."""
    return (BEFORE, AFTER) if number % 2 == 0 else (AFTER, BEFORE)


@dataclass(frozen=True)
class Compared:
    """Throughput before and after, pair by pair."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """After to before of each pair; above 1 the branch is faster."""
        return [new / old for old, new in zip(self.before, self.after, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median."""
        return summarize(self.ratios).median

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true median lies, at 95 % or as nearly as so few pairs allow."""
        return summarize(self.ratios).interval

    @property
    def spread(self) -> float:
        """How far apart the runs of one side are, relative to their median; of the worse side."""
        return max((max(side) - min(side)) / statistics.median(side) for side in (self.before, self.after))

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "before": list(self.before),
            "after": list(self.after),
            "median_before": statistics.median(self.before),
            "median_after": statistics.median(self.after),
            "median_ratio_of_pairs": round(self.ratio, 5),
            "interval": [round(limit, 5) for limit in self.interval],
            "spread": round(self.spread, 5),
        }
