"""Verifying recipes: which unit is run, taken from the cache, or not run, and which patch is the first bad one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from forkyard.console import Reporter
from forkyard.locks import hold
from forkyard.recipes import Recipe
from forkyard.scratch import owned_folder
from forkyard.verifying.changes import Baseline, keys_before
from forkyard.verifying.records import Level, Problem, Records, Result
from forkyard.verifying.testing import check_pytest
from forkyard.verifying.trial import Bench
from forkyard.verifying.units import Planned, Unit, base_unit, default_variant, plan_units
from forkyard.workshop import Workshop

OutcomeState = Literal["good", "bad", "no test", "not run", "not touched"]


@dataclass(frozen=True)
class Options:
    """How to verify."""

    stacks: tuple[str, ...] = ()
    """Only what has to do with these; none for all."""
    variant: str | None = None
    """``None`` for the best usual one of this machine."""
    level: Level = "test"
    changed: bool = False
    """Only what differs from ``base``."""
    base: str | None = None
    first: bool = False
    """Stop at the first bad unit."""
    cached_failures: bool = False
    """Believe a recorded failure instead of running it again."""
    source: str | None = None
    offline: bool = False
    jobs: int | None = None
    use_ccache: bool = True


@dataclass(frozen=True)
class Outcome:
    """A unit and what became of it."""

    unit: Unit
    key: str
    state: OutcomeState
    result: Result | None = None
    cached: bool = False
    reason: str | None = None
    """Why it was not run, or why a unit without tests is an error."""

    @property
    def error(self) -> bool:
        """Whether a person has to do something about it."""
        untested = self.state == "no test" and self.unit.complete and bool(self.unit.selection.files)
        return self.state == "bad" or untested

    @property
    def unbuilt(self) -> bool:
        """Whether it did not get as far as its tests."""
        return self.state == "bad" and self.result is not None and self.result.stage != "test"


@dataclass(frozen=True)
class FirstBad:
    """The first patch of a series with which it is bad."""

    stack: str
    patch: str
    number: int
    of: int
    stage: Level
    problem: Problem


@dataclass(frozen=True)
class Blocked:
    """A series that could not be judged, because what it stands on is bad."""

    stack: str
    by: str


@dataclass
class Verified:
    """What was found of one recipe."""

    recipe: Recipe
    variant: str
    planned: Planned
    outcomes: list[Outcome] = field(default_factory=list)
    first_bad: list[FirstBad] = field(default_factory=list)
    blocked: list[Blocked] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing has to be done."""
        return not self.blocked and not any(outcome.error for outcome in self.outcomes)


@dataclass
class Verification:
    """What was found of all recipes."""

    level: Level
    recipes: list[Verified] = field(default_factory=list)
    baseline: Baseline | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing has to be done."""
        return all(one.ok for one in self.recipes)


def verify(shop: Workshop, recipes: Sequence[Recipe], options: Options, reporter: Reporter) -> Verification:
    """Verify recipes, one after the other. What is found is recorded at once, so a run cut off goes on where it was.

    Raises:
        ForkyardError: what is not the patches' fault; recorded results stay.
    """
    started = time.perf_counter()
    if options.level == "test":
        check_pytest()
    shop.cache.prepare()
    verification = Verification(options.level)
    if options.changed:
        verification.baseline = Baseline.find(shop.root, options.base)
    with owned_folder(shop.cache.scratch, "verify-") as scratch:
        for recipe in recipes:
            variant = options.variant or default_variant(shop.variants, recipe.family, shop.toolchain)
            planned = plan_units(
                recipe, shop.variants, options.variant, shop.root, shop.toolchain, names=options.stacks
            )
            bench = Bench(
                shop.root,
                shop.cache,
                scratch,
                reporter,
                options.level,
                source=options.source,
                offline=options.offline,
                jobs=options.jobs,
                use_ccache=options.use_ccache,
            )
            verified = Verified(recipe, variant, planned)
            # Put there before it is filled: what was found so far is there whatever happens.
            verification.recipes.append(verified)
            run = _Run(shop, bench, options, reporter, verified)
            run.go(verification.baseline)
            if options.first and not verified.ok:
                break
    verification.seconds = time.perf_counter() - started
    return verification


class _Run:
    """One recipe being verified."""

    def __init__(self, shop: Workshop, bench: Bench, options: Options, reporter: Reporter, verified: Verified) -> None:
        self._shop, self._bench, self._options, self._reporter = shop, bench, options, reporter
        self._verified = verified
        self._records = Records(shop.cache, shop.root, options.level)
        self._bad: dict[str, FirstBad] = {}
        self._blocked: dict[str, str] = {}
        self._grounds: dict[tuple[str, ...], Outcome] = {}
        self._stopped = False

    def go(self, baseline: Baseline | None) -> None:
        """Fill in what was found."""
        units = self._verified.planned.units
        keys = [self._records.key(unit) for unit in units]
        untouched = set(keys) if baseline is not None and baseline.nothing else self._untouched(baseline)
        todo = sum(key not in untouched for key in keys)
        number = 0
        for unit, key in zip(units, keys, strict=True):
            if key in untouched:
                self._verified.outcomes.append(Outcome(unit, key, "not touched"))
                continue
            number += 1
            self._judge(self._one(unit, key, f"[{number}/{todo}]"))
        self._verified.first_bad = list(self._bad.values())
        self._verified.blocked = [Blocked(stack, by) for stack, by in self._blocked.items()]

    def _untouched(self, baseline: Baseline | None) -> set[str]:
        if baseline is None:
            return set()
        verified, shop = self._verified, self._shop
        before = keys_before(
            baseline, verified.recipe, self._options.variant, shop.root, shop.cache, shop.toolchain, self._options.level
        )
        if isinstance(before, str):
            self._reporter.note(f"{verified.recipe.name}: all is verified, as the base cannot be compared: {before}")
            return set()
        return before

    def _one(self, unit: Unit, key: str, counter: str) -> Outcome:
        reason = self._why_not(unit)
        if reason is not None:
            return Outcome(unit, key, "not run", reason=reason)
        known = self._known(unit, key)
        if known is not None:
            return known
        plan, cache = unit.plan, self._shop.cache

        def told(who: str) -> None:
            self._reporter.note(f"waiting for another verify of {plan.distribution} ({who})")

        lock = cache.locks / f"attempt-{plan.workspace}-{plan.variant.name}.lock"
        with hold(lock, waiting=told) as held:
            # Whoever held the lock may have verified this very unit.
            known = self._known(unit, key)
            if known is not None:
                return known
            self._reporter.note(f"{counter} {plan.recipe.name}: {', '.join(str(role) for role in unit.roles)}")
            result = self._bench.attempt(unit, keep_open=held.fds)
            self._records.write(key, unit, result)
        return self._outcome(unit, key, result, cached=False)

    def _known(self, unit: Unit, key: str) -> Outcome | None:
        found = self._records.read(key)
        if found is None:
            return None
        outcome = self._outcome(unit, key, found, cached=True)
        if outcome.error and not self._options.cached_failures:
            return None
        self._bench.remember(unit, found)
        return outcome

    @staticmethod
    def _outcome(unit: Unit, key: str, result: Result, *, cached: bool) -> Outcome:
        outcome = Outcome(unit, key, result.state, result, cached)
        if result.state != "no test":
            return outcome
        if not unit.selection.files:
            return replace(outcome, reason="stack.toml names no test")
        return replace(outcome, reason="none of the tests that stack.toml names ran")

    def _why_not(self, unit: Unit) -> str | None:
        if self._stopped:
            return "stopped at the first that is bad"
        series = unit.series
        if series is None or len(unit.roles) > 1:
            return None
        stack = series.stacks[0]
        if stack in self._blocked:
            return f"{self._blocked[stack]}, which it stands on, is bad"
        if series.partial and stack in self._bad:
            return f"comes after {self._bad[stack].patch}, which is bad"
        ground = self._grounds.get(unit.home)
        if ground is not None and ground.unbuilt:
            self._blocked[stack] = ground.unit.name
            return f"{ground.unit.name}, which it stands on, is bad"
        return None

    def _judge(self, outcome: Outcome) -> None:
        self._verified.outcomes.append(outcome)
        unit = outcome.unit
        if outcome.state == "not run":
            return
        if unit.complete:
            self._grounds.setdefault(tuple(stack.name for stack in unit.plan.stacks), outcome)
        if outcome.error:
            self._blame(outcome)
            self._stopped = self._stopped or self._options.first

    def _blame(self, outcome: Outcome) -> None:
        """Name the patch with which a series became bad, if this is where it did."""
        series, result = outcome.unit.series, outcome.result
        if series is None or result is None or result.problem is None:
            return
        stack = series.stacks[0]
        if stack in self._bad or stack in self._blocked:
            return
        if outcome.unbuilt and series.number == 1 and not self._stands(outcome.unit):
            self._blocked[stack] = self._grounds[outcome.unit.home].unit.name
            return
        self._bad[stack] = FirstBad(stack, series.patch or "", series.number, series.of, result.stage, result.problem)

    def _stands(self, unit: Unit) -> bool:
        """Whether what a series stands on builds; found out now if nobody has yet."""
        if unit.home and unit.home not in self._grounds:
            base = base_unit(unit, self._shop.root, self._shop.variants)
            if base is not None:
                key = self._records.key(base)
                outcome = self._one(base, key, "[base]")
                self._grounds[unit.home] = outcome
                self._verified.outcomes.append(outcome)
        ground = self._grounds.get(unit.home)
        return ground is None or not ground.unbuilt
