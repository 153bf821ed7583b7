"""Whether a patch is still needed, by trial: the engine is built without it on the new base, and its tests are run.

A test that fails then says that upstream still lacks what the patch gives. Tests that pass say that upstream has it in
some form. A test belongs to a patch when it is marked with it, ``@pytest.mark.patch("<name>")``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from forkyard.cache import Cache
from forkyard.console import Reporter
from forkyard.plan import make_plan
from forkyard.rebasing.copies import copy_project
from forkyard.rebasing.replaying import CLEAN, RESOLVED, Outcome, Replay
from forkyard.rebasing.session import Rebased
from forkyard.rebasing.verdicts import MODIFIED, NEEDED, UNKNOWN, Verdict
from forkyard.scratch import owned_folder
from forkyard.verifying import Result, Role, Unit, default_variant
from forkyard.verifying.selecting import Selection
from forkyard.verifying.testing import check_pytest
from forkyard.verifying.trial import Bench
from forkyard.workshop import Workshop

_SHOWN = 3
Without = Callable[[tuple[str, str]], Replay]
"""Replays everything less one patch (stack, name)."""


def prove(
    root: Path,
    cache: Cache,
    reporter: Reporter,
    rebased: Rebased,
    without: Without,
    *,
    variant: str | None = None,
    offline: bool = False,
) -> Rebased:
    """Find out by building and testing what evidence alone left ``unknown``. The project is only read.

    Args:
        variant: what to build; ``None`` for the best usual one of this machine.

    Raises:
        ToolchainError: pytest is missing.
        ForkyardError: what is not a patch's doing, as a full disk.
    """
    check_pytest()
    outcomes = []
    for outcome in rebased.replay.outcomes:
        open_question = outcome.verdict.word == UNKNOWN and outcome.status in (CLEAN, RESOLVED)
        if open_question and not outcome.follows_conflict:
            verdict = _try(root, cache, reporter, rebased, outcome, without(outcome.key), variant, offline)
            outcome = replace(outcome, verdict=verdict)
        outcomes.append(outcome)
    return replace(rebased, replay=replace(rebased.replay, outcomes=tuple(outcomes)))


def _try(
    root: Path,
    cache: Cache,
    reporter: Reporter,
    rebased: Rebased,
    outcome: Outcome,
    less: Replay,
    variant: str | None,
    offline: bool,
) -> Verdict:
    known = tuple(line for line in outcome.verdict.evidence if "were not run" not in line)
    if less.conflicts:
        first = less.conflicts[0]
        return Verdict(UNKNOWN, (*known, f"{first.name} builds on it, so it cannot be left out alone to test"))
    with owned_folder(cache.scratch, "necessity-") as scratch:
        file = copy_project(root, cache, replace(rebased, replay=less), scratch / "project")
        shop = Workshop.open(root=scratch / "project", out=scratch / "out")
        recipe = shop.recipe(str(file))
        chosen = variant or default_variant(shop.variants, recipe.family, shop.toolchain)
        plan = make_plan(recipe, shop.variants, chosen, shop.root, shop.toolchain, stacks=list(recipe.stacks))
        stack = next(one for one in rebased.stacks if one.name == outcome.stack)
        name = outcome.name.removesuffix(".patch")
        names = [one.name.removesuffix(".patch") for one in less.outcomes]
        selection = Selection(tuple(stack.about.test), tuple(names), complete=False, about=name)
        unit = Unit((Role("combination", (f"all but {name}",)),), plan, selection)
        bench = Bench(shop.root, cache, scratch, reporter, "test", offline=offline)
        result = bench.attempt(unit)
    return _verdict(known, result)


def _verdict(known: tuple[str, ...], result: Result) -> Verdict:
    tests = result.tests
    if result.state == "bad" and result.stage == "test" and tests is not None and tests.failed:
        ids = ", ".join(failure.id.rsplit("/", 1)[-1] for failure in tests.failures[:_SHOWN])
        more = f" and {tests.failed - _SHOWN} more" if tests.failed > _SHOWN else ""
        return Verdict(NEEDED, (*known, f"without it {tests.failed} of its {tests.executed} tests fail: {ids}{more}"))
    if result.state == "good" and tests is not None:
        return Verdict(MODIFIED, (*known, f"its {tests.executed} tests pass without it"))
    if result.state == "bad":
        what = result.problem.what if result.problem else "no reason given"
        return Verdict(UNKNOWN, (*known, f"without it there is nothing to test: {what}"))
    return Verdict(UNKNOWN, (*known, "no test is marked with it"))
