"""Trying a recipe on another upstream commit without touching the project: rebase, build, test, on a copy."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from forkyard.console import Reporter
from forkyard.errors import ForkyardError
from forkyard.rebasing.copies import copy_project
from forkyard.rebasing.replaying import DROPPED
from forkyard.rebasing.session import Rebased, Session
from forkyard.scratch import owned_folder
from forkyard.verifying import Level, Result, default_variant, plan_units
from forkyard.verifying.testing import check_pytest
from forkyard.verifying.trial import Bench
from forkyard.workshop import Workshop

GOOD, CONFLICTS, BAD, UNTESTED, ERROR = "good", "conflicts", "bad", "no test", "error"


@dataclass(frozen=True)
class Watched:
    """What became of one recipe."""

    recipe: str
    state: str
    """``good``, ``conflicts``, ``bad`` (does not build or pass), ``no test`` (nothing tested it), ``error``."""
    rebased: Rebased | None = None
    result: Result | None = None
    """Of building and testing all stacks together; ``None`` if it did not come to that."""
    variant: str | None = None
    error: ForkyardError | None = None
    """What kept it from being tried."""
    seconds: dict[str, float] = field(default_factory=dict)


def watch(
    shop: Workshop,
    ref: str,
    reporter: Reporter,
    *,
    to: str,
    source: str | None = None,
    offline: bool = False,
    variant: str | None = None,
    level: Level = "test",
    jobs: int | None = None,
) -> Watched:
    """Try a recipe's stacks, all together, on another commit. The project is only read.

    Args:
        to: as for a rebase.
        level: how far: ``apply``, ``build`` or ``test``.

    Raises:
        ToolchainError: tests are wanted and pytest is missing.
    """
    if level == "test":
        check_pytest()
    seconds: dict[str, float] = {}
    rebased: Rebased | None = None
    started = time.perf_counter()
    try:
        session = Session(shop.root, ref, shop.cache, reporter)
        rebased = session.start(to, source=source, offline=offline, dry_run=True)
        seconds["rebase"] = time.perf_counter() - started
        if rebased.replay.conflicts:
            return Watched(ref, CONFLICTS, rebased, seconds=seconds)
        with owned_folder(shop.cache.scratch, "canary-") as scratch:
            file = copy_project(shop.root, shop.cache, rebased, scratch / "project")
            result, chosen = _try(rebased, file, scratch, reporter, variant, level, offline, jobs)
    except ForkyardError as error:
        return Watched(ref, ERROR, rebased, error=error, seconds=seconds)
    state = {"good": GOOD, "bad": BAD}.get(result.state, UNTESTED if level == "test" else GOOD)
    return Watched(ref, state, rebased, result, chosen, seconds={**seconds, **result.seconds})


def _try(
    rebased: Rebased,
    file: Path,
    scratch: Path,
    reporter: Reporter,
    variant: str | None,
    level: Level,
    offline: bool,
    jobs: int | None,
) -> tuple[Result, str]:
    copy = Workshop.open(root=file.parent.parent, out=scratch / "out")
    recipe = copy.recipe(str(file))
    chosen = variant or default_variant(copy.variants, recipe.family, copy.toolchain)
    planned = plan_units(recipe, copy.variants, chosen, copy.root, copy.toolchain)
    together = next(
        (unit for unit in planned.units if any(role.kind == "combination" for role in unit.roles)), planned.units[-1]
    )
    # What upstream has taken over must pass its tests as before, though no patch of ours gives it any more.
    gone = tuple(one.name.removesuffix(".patch") for one in rebased.replay.outcomes if one.status == DROPPED)
    together = replace(together, selection=replace(together.selection, patches=(*together.selection.patches, *gone)))
    bench = Bench(copy.root, copy.cache, scratch, reporter, level, offline=offline, jobs=jobs)
    return bench.attempt(together), chosen
