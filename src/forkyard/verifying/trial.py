"""Taking one unit through its stages: apply, build, test. What is the patches' fault becomes a result, nothing else."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from forkyard.building import build
from forkyard.cache import Cache
from forkyard.console import Reporter
from forkyard.errors import BuildError, ForkyardError, GateError, PatchError, RecipeError
from forkyard.plan import Plan, check_obtained
from forkyard.sources import obtain
from forkyard.trees import patch
from forkyard.verifying.records import Level, Problem, Result
from forkyard.verifying.selecting import Selection
from forkyard.verifying.testing import run_tests
from forkyard.verifying.units import Unit


@dataclass
class Bench:
    """Where units are tried, and what is already known of the trees they give."""

    root: Path
    cache: Cache
    scratch: Path
    """A folder that lives as long as the whole run."""
    reporter: Reporter
    level: Level
    source: str | None = None
    offline: bool = False
    jobs: int | None = None
    use_ccache: bool = True
    _results: dict[tuple[str, str, Level, Selection], tuple[str, Result]] = field(default_factory=dict)
    _plans: dict[tuple[str, str], Plan] = field(default_factory=dict)

    def remember(self, unit: Unit, result: Result) -> None:
        """Take note of a result from elsewhere, so that the same tree is not verified again."""
        if result.tree is not None:
            self._results.setdefault(
                (result.tree, unit.plan.variant.name, self.level, unit.selection), (unit.name, result)
            )

    def attempt(self, unit: Unit, *, keep_open: Sequence[int] = ()) -> Result:
        """Verify a unit.

        Args:
            keep_open: locks that the tests keep as long as they live.

        Raises:
            ForkyardError: what no patch is to blame for: the source, the compiler, the disk, the network.
        """
        plan, seconds = unit.plan, dict[str, float]()
        obtained = obtain(plan.recipe, self.cache, self.reporter, source=self.source, offline=self.offline)
        check_obtained(plan, obtained)
        result = Result("good", "apply")
        try:
            with _timed(seconds, "apply"):
                patched = patch(plan.recipe, obtained, plan.stacks, self.cache, plan.usual)
        except (PatchError, RecipeError) as error:
            return replace(result, state="bad", problem=self._problem(error), seconds=seconds)
        result = replace(result, tree=patched.tree, commit=patched.commit, seconds=seconds)
        same = self._results.get((patched.tree, plan.variant.name, self.level, unit.selection))
        if same is not None:
            return replace(same[1], commit=patched.commit, same_as=same[0], compiled=0, seconds=seconds)
        if self.level != "apply":
            result = self._build(
                unit, self._plans.setdefault((patched.tree, plan.variant.name), plan), result, seconds, keep_open
            )
        self.remember(unit, result)
        return result

    def _build(
        self, unit: Unit, plan: Plan, result: Result, seconds: dict[str, float], keep_open: Sequence[int]
    ) -> Result:
        result = replace(result, stage="build")
        out = self.scratch / "out"
        try:
            with _timed(seconds, "build"):
                built = build(
                    plan,
                    self.cache,
                    out,
                    self.root,
                    self.reporter,
                    source=self.source,
                    offline=self.offline,
                    jobs=self.jobs,
                    use_ccache=self.use_ccache,
                )
        except (PatchError, BuildError, GateError) as error:
            return replace(result, state="bad", problem=self._problem(error), seconds=seconds)
        result = replace(result, wheel_sha256=built.sha256, compiled=built.compiled, seconds=seconds)
        if self.level == "test":
            if not unit.selection.files:
                return replace(result, state="no test")
            folder = self.scratch / "tests"
            folder.mkdir()
            try:
                with _timed(seconds, "test"):
                    result = run_tests(
                        unit,
                        built.wheel,
                        self.root,
                        self.cache,
                        folder,
                        self.reporter,
                        result,
                        keep_open=keep_open,
                    )
            except BuildError as error:
                # Past its time; the tests' programs are ended.
                result = replace(result, state="bad", stage="test", problem=self._problem(error))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return replace(result, seconds=seconds)

    def _problem(self, error: ForkyardError) -> Problem:
        full = self.cache.out_of_room("verify", error.what)
        if full is not None:
            raise full from error
        return Problem(error.what, error.where, error.why, error.next_step)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = time.perf_counter() - started
