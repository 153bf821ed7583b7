"""Running the tests of a unit against its wheel, in a process of their own with scratch of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from forkyard.cache import Cache
from forkyard.console import Reporter
from forkyard.errors import ToolchainError
from forkyard.process import stream
from forkyard.verifying.records import Failure, Problem, Result, Tally
from forkyard.verifying.selecting import payload_variable
from forkyard.verifying.units import Unit

TEST_TIMEOUT_S = 2 * 3600.0
_PROGRESS = re.compile(r"^forkyard-test: (\d+) (\d+) (.*)$")
_TAIL_LINES = 8
# pytest's: all passed, some failed, none collected. Others mean that it could not do its work.
_RAN = (0, 1, 5)


def check_pytest() -> None:
    """Refuse to start what cannot test.

    Raises:
        ToolchainError: pytest is not installed.
    """
    if importlib.util.find_spec("pytest") is None:
        msg = "the tests of stacks are run by pytest, which is not installed"
        raise ToolchainError(
            msg,
            where=sys.executable,
            next_step="install it, use `nox -s stack-verify`, or leave tests out with --no-tests",
        )


def run_tests(
    unit: Unit,
    wheel: Path,
    root: Path,
    cache: Cache,
    scratch: Path,
    reporter: Reporter,
    so_far: Result,
    *,
    keep_open: Sequence[int] = (),
) -> Result:
    """Run the tests of a unit.

    Args:
        wheel: the engine to be tested.
        scratch: an empty folder for whatever tests write.
        so_far: what is known of the unit from the stages before.
        keep_open: locks that live as long as the tests do.

    Returns:
        ``so_far`` with what the tests found.
    """
    plan, selection = unit.plan, unit.selection
    report = scratch / "report.json"
    log = cache.logs / f"verify-{plan.workspace}-{plan.variant.name}.log"
    words = [
        *selection.files,
        f"--rootdir={root}",
        f"--confcutdir={root}",
        f"--basetemp={scratch / 'tmp'}",
        f"--patches={','.join(selection.patches)}",
        *(["--patches-complete"] if selection.complete else []),
        *([f"--patches-about={selection.about}"] if selection.about else []),
        *("-p", "no:cacheprovider", "--color=no", "--tb=short"),
    ]
    environment = {
        **os.environ,
        payload_variable(plan.recipe.series): str(wheel),
        "FORKYARD_TEST_VARIANT": plan.variant.name,
        "FORKYARD_CACHE": str(cache.root),
    }
    tail: list[str] = []
    with reporter.step(f"testing {unit.name}", "tests") as step:

        def on_line(line: str) -> None:
            if match := _PROGRESS.match(line):
                step.update(int(match[1]), int(match[2]), match[3].rsplit("/", 1)[-1][-40:])
            elif line.strip():
                tail[:] = [*tail[-_TAIL_LINES:], line]

        log.unlink(missing_ok=True)
        status = stream(
            [sys.executable, "-m", "forkyard.verifying.child", str(os.getpid()), str(report), *words],
            log=log,
            on_line=on_line,
            timeout_s=TEST_TIMEOUT_S,
            cwd=root,
            env=environment,
            keep_open=keep_open,
        )
    tests = _read(report)
    if tests is None or status not in _RAN:
        how = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
        why = "\n".join(f"         {line[:300]}" for line in tail[-_TAIL_LINES:])
        lost = Problem(
            "its tests could not be run",
            f"log: {log}",
            f"{how}\n{why}",
            f"run them by hand: pytest {' '.join(selection.files)}",
        )
        return replace(so_far, state="bad", stage="test", problem=lost, tests=tests)
    if tests.failed or status == 1:
        ids = [failure.id for failure in tests.failures]
        shown = "\n".join(f"         {name}" for name in ids[:10])
        more = f"\n         and {len(ids) - 10} more" if len(ids) > 10 else ""
        first = "\n".join(f"         | {line[:300]}" for line in (tests.failures[0].why if ids else "").splitlines())
        failed = Problem(
            f"{tests.failed} of its {tests.executed} tests fail",
            f"log: {log}",
            f"{shown}{more}\n{first}".strip(),
            "make the patch pass its tests, or mark each test with the patch from which on it holds",
        )
        return replace(so_far, state="bad", stage="test", problem=failed, tests=tests)
    return replace(so_far, state="good" if tests.executed else "no test", stage="test", tests=tests)


def _read(report: Path) -> Tally | None:
    try:
        facts = json.loads(report.read_bytes())
        return Tally(**{**facts, "failures": tuple(Failure(**failure) for failure in facts["failures"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
