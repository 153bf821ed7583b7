"""Search a space of settings for the fastest one, beside the default, without harm to any test.

First a coordinate descent from the default, the dimensions in their order of importance: it finds candidates with few
measurements. Then the best of them are finalists: they are measured afresh, as the figures that chose them are too good
(the winner's curse), and each leaves the race once it is surely worse than the leader. What remains is recommended only
if it is surely faster than the default and surely loses nothing in any test.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .statistics import TIE, bounds

__all__ = ["Dimension", "Failure", "Found", "Outcome", "Point", "Space", "Standing", "search"]

Point = tuple[str, ...]
"""One value of each dimension, in the order of the space's dimensions."""
Failure = str
"""Why a point could not be measured: a crash, a hang, out of memory, refused."""
Outcome = Mapping[str, float] | Failure
"""For each test the speed as a ratio to the default's, measured beside it; or why there is none."""
Evaluator = Callable[[Sequence[Point], bool], Sequence[Outcome]]
"""Measures points once, beside the default; true: the samples must be none that chose them before."""

ERROR = 0.02
"""How likely one of all finalists may pass for faster, or for harmless, when it is not."""
HARM = 0.03
"""A loss of so much in any test must be ruled out."""
FINALISTS = 4
ROUNDS = (10, 24)
"""Fresh samples of a finalist: at least, and at most."""
_SCREENING = 0.5
"""Share of the time that screening may take; finalists need the rest."""
_LEADER = 0.75
"""From this share of the time on only the leader and rivals race: one that is known is worth more than four that are
not."""
_PASSES = 3
"""Descents over all dimensions; the later ones measure only what is new."""
_CLOSE = 0.04
"""Values of a dimension that are so near to the best one are measured twice before one is chosen."""
_COARSE = 5
"""An ordered dimension with more values is looked at in steps, then around the best."""


@dataclass(frozen=True)
class Dimension:
    """One setting."""

    name: str
    values: tuple[str, ...]
    ordered: bool = False
    """Whether neighbours are alike, as numbers of threads are."""


@dataclass(frozen=True)
class Space:
    """What can be chosen."""

    dimensions: tuple[Dimension, ...]
    """The most important first."""
    default: Point
    allowed: Callable[[Point], bool] = lambda _: True

    def changes(self, point: Point) -> dict[str, str]:
        """What differs from the default."""
        triples = zip(self.dimensions, point, self.default, strict=True)
        return {dimension.name: value for dimension, value, old in triples if value != old}

    def along(self, point: Point, index: int) -> list[Point]:
        """The allowed points that differ from `point` in one dimension, and `point`, in the order of the values."""
        points = [(*point[:index], value, *point[index + 1 :]) for value in self.dimensions[index].values]
        return [one for one in points if one in (point, self.default) or self.allowed(one)]


@dataclass(frozen=True)
class Standing:
    """What fresh samples say of a finalist, relative to the default."""

    point: Point
    speedup: float
    """Of the whole workload; the median."""
    interval: tuple[float, float]
    tests: Mapping[str, tuple[float, float, float]]
    """Test -> median and interval."""
    rounds: int
    safe: bool
    """Whether it is surely faster, and surely loses nothing in any test."""


@dataclass
class Found:
    """What a search came to."""

    best: Point
    """The default, if nothing is surely better."""
    standings: list[Standing] = field(default_factory=list)
    """Finalists, the fastest first."""
    failed: dict[Point, Failure] = field(default_factory=dict)
    effects: dict[str, float] = field(default_factory=dict)
    """Dimension -> fastest value's speed over the slowest one's, all else equal, where it was screened."""
    unseen: list[str] = field(default_factory=list)
    """Dimensions that there was no time to look at."""
    measurements: int = 0
    complete: bool = True
    """False if the budget ended before the finalists were known."""


def search(
    space: Space,
    shares: Mapping[str, float],
    evaluate: Evaluator,
    *,
    budget: int,
    rivals: Sequence[Point] = (),
    go_on: Callable[[float], bool] = lambda _: True,
    on_best: Callable[[Point, float], None] = lambda *_: None,
) -> Found:
    """The fastest point that harms no test.

    The same outcomes lead to the same questions: a run is resumed by answering them from what was recorded.

    Args:
        shares: test -> its share of the default's seconds; they sum up to 1.
        budget: measurements of points at most; those of the default beside them do not count.
        rivals: points that are finalists whatever screening says of them, such as the engine's own `--fit`.
        go_on: whether there is time left, if so great a share of all of it may be used.
        on_best: gets the best point so far and its estimated speed-up.
    """
    return _Search(space, shares, evaluate, budget, rivals, go_on, on_best).run()


class _Search:
    def __init__(
        self,
        space: Space,
        shares: Mapping[str, float],
        evaluate: Evaluator,
        budget: int,
        rivals: Sequence[Point],
        go_on: Callable[[float], bool],
        on_best: Callable[[Point, float], None],
    ) -> None:
        self._space, self._shares, self._evaluate = space, shares, evaluate
        self._budget, self._go_on, self._on_best = budget, go_on, on_best
        self._rivals = [one for one in dict.fromkeys(rivals) if one != space.default]
        self._seen: dict[Point, list[float]] = {}
        self._share = _SCREENING
        self._found = Found(space.default)
        # Two finalists, and all rivals, to the fewest rounds.
        self._reserve = min(budget // 2, ROUNDS[0] * (2 + len(self._rivals)))

    def run(self) -> Found:
        self._screen()
        self._share = 1.0
        self._final()
        return self._found

    def _speedup(self, ratios: Mapping[str, float]) -> float:
        """Of the whole workload: the default's seconds over these."""
        return 1 / sum(share / ratios[test] for test, share in self._shares.items())

    def _ask(self, points: Sequence[Point], left: int) -> Iterator[tuple[Point, Mapping[str, float]]]:
        """Measure points once, as many of them as may be; those that fail are out for good."""
        asked = [one for one in points if one not in self._found.failed and one != self._space.default]
        asked = asked[: max(0, left)] if self._go_on(self._share) else []
        if len(asked) < len([one for one in points if one not in self._found.failed and one != self._space.default]):
            self._found.complete = False
        if not asked:
            return
        self._found.measurements += len(asked)
        for point, outcome in zip(asked, self._evaluate(asked, self._share == 1), strict=True):
            if isinstance(outcome, str):
                self._found.failed[point] = outcome
                self._seen.pop(point, None)
            elif not all(math.isfinite(outcome.get(test, 0)) and outcome.get(test, 0) > 0 for test in self._shares):
                self._found.failed[point] = "it did not measure every test of the workload"
            else:
                yield point, outcome

    # -- screening ---------------------------------------------------------------------------------------------

    def _look(self, points: Sequence[Point]) -> None:
        left = self._budget - self._reserve - self._found.measurements
        for point, ratios in self._ask(points, left):
            self._seen.setdefault(point, []).append(self._speedup(ratios))

    def _estimate(self, point: Point) -> float:
        if point == self._space.default:
            return 1.0
        values = self._seen.get(point)
        return statistics.median(values) if values else 0.0

    def _screen(self) -> None:
        best = self._space.default
        for number in range(_PASSES):
            before = best
            for index in range(len(self._space.dimensions)):
                if not number and not self._go_on(self._share):
                    self._found.unseen.append(self._space.dimensions[index].name)
                best = self._descend(best, index, wide=not number)
                self._on_best(best, self._estimate(best))
            if best == before and number:
                break
        self._found.complete = True  # what screening left out is no fault of the finalists

    def _descend(self, point: Point, index: int, *, wide: bool) -> Point:
        """The best point along one dimension."""
        dimension, line = self._space.dimensions[index], self._space.along(point, index)
        here = line.index(point)
        if not dimension.ordered or (wide and len(line) <= _COARSE):
            wanted = line
        elif wide:
            step = math.ceil((len(line) - 1) / (_COARSE - 1))
            wanted = [one for at, one in enumerate(line) if at % step == 0 or one in (point, line[-1])]
        else:
            wanted = line[max(0, here - 1) : here + 2]
        self._look([one for one in wanted if one not in self._seen])
        best = max(line, key=self._estimate)
        while dimension.ordered:
            at = line.index(best)
            new = [one for one in line[max(0, at - 1) : at + 2] if one not in self._seen and one != self._space.default]
            new = [one for one in new if one not in self._found.failed]
            known = len(self._seen)
            self._look(new)
            best = max(line, key=self._estimate)
            if len(self._seen) == known:
                break
        top = self._estimate(best)
        close = [one for one in line if self._estimate(one) >= top * (1 - _CLOSE) and len(self._seen.get(one, ())) < 2]
        if len(close) > 1:
            self._look(close)
        best = max(line, key=self._estimate)
        known_speeds = [self._estimate(one) for one in line if self._estimate(one)]
        if wide and len(known_speeds) > 1:
            self._found.effects[dimension.name] = max(known_speeds) / min(known_speeds)
        # Of what is level the fewest changes.
        level = [one for one in line if self._estimate(one) >= self._estimate(best) * (1 - TIE)]
        return min(level, key=lambda one: (len(self._space.changes(one)), -self._estimate(one)))

    # -- finalists ---------------------------------------------------------------------------------------------

    def _final(self) -> None:
        ranked = sorted(self._seen, key=self._estimate, reverse=True)
        chosen = [one for one in ranked if self._estimate(one) > 1][:FINALISTS]
        finalists = list(dict.fromkeys([*chosen, *self._rivals]))
        fresh: dict[Point, list[Mapping[str, float]]] = {one: [] for one in finalists}
        racing = list(finalists)
        for number in range(ROUNDS[1]):
            left = self._budget - self._found.measurements
            if not racing or left < len(racing):
                self._found.complete = self._found.complete and not racing
                break
            for point, ratios in self._ask(racing, left):
                fresh[point].append(ratios)
            racing = [one for one in racing if one not in self._found.failed]
            if not self._go_on(_LEADER):
                racing = self._first(racing, fresh)
            if not self._go_on(self._share):
                self._found.complete = False
                break
            if number + 1 >= ROUNDS[0] // 2:
                racing = self._still(racing, fresh)
            if number + 1 >= ROUNDS[0] and self._decided(racing, fresh, len(finalists)):
                break
        standings = [
            self._standing(one, fresh[one], len(finalists))
            for one in finalists
            if fresh[one] and one not in self._found.failed
        ]
        standings.sort(key=lambda one: one.speedup, reverse=True)
        self._found.standings = standings
        safe = [one for one in standings if one.safe]
        if safe:
            level = [one for one in safe if one.speedup >= safe[0].speedup * (1 - TIE)]
            self._found.best = min(level, key=lambda one: (len(self._space.changes(one.point)), -one.speedup)).point

    def _still(self, racing: Sequence[Point], fresh: Mapping[Point, Sequence[Mapping[str, float]]]) -> list[Point]:
        """Those that are not surely worse than the leader; rivals stay, as what is said of them needs an interval."""
        speeds = {one: [self._speedup(ratios) for ratios in fresh[one]] for one in racing}
        if not speeds:
            return []
        leader = max(speeds, key=lambda one: statistics.median(speeds[one]))
        kept = []
        for one in racing:
            pairs = zip(speeds[one], speeds[leader], strict=True)
            worse = bounds([own / best for own, best in pairs], 0.05)[1] < 1 - TIE / 2
            if one == leader or one in self._rivals or not worse:
                kept.append(one)
        return kept

    def _first(self, racing: Sequence[Point], fresh: Mapping[Point, Sequence[Mapping[str, float]]]) -> list[Point]:
        """The leader, and rivals."""
        leader = max(
            racing, key=lambda one: statistics.median([self._speedup(ratios) for ratios in fresh[one]]), default=None
        )
        return [one for one in racing if one == leader or one in self._rivals]

    def _decided(
        self, racing: Sequence[Point], fresh: Mapping[Point, Sequence[Mapping[str, float]]], count: int
    ) -> bool:
        """Whether more rounds can hardly change the answer."""
        standings = [self._standing(one, fresh[one], count) for one in racing]
        if not standings:
            return True
        best = max(standings, key=lambda one: one.speedup)
        hopeless = all(one.interval[1] < 1 + TIE for one in standings)
        narrow = best.interval[1] / best.interval[0] < 1 + 4 * TIE
        return hopeless or (best.safe and narrow)

    def _standing(self, point: Point, fresh: Sequence[Mapping[str, float]], count: int) -> Standing:
        error = ERROR / max(1, count)
        speeds = [self._speedup(ratios) for ratios in fresh]
        low, high = bounds(speeds, error)
        tests = {
            test: (statistics.median(values), *bounds(values, error))
            for test in self._shares
            for values in [[ratios[test] for ratios in fresh]]
        }
        harmless = all(middle >= 1 - TIE and least >= 1 - HARM for middle, least, _ in tests.values())
        speedup = statistics.median(speeds)
        safe = len(fresh) >= ROUNDS[0] and low > 1 and speedup >= 1 + TIE and harmless
        return Standing(point, speedup, (low, high), tests, len(fresh), safe)
