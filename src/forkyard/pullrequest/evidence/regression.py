"""The stack's own tests, run on the engine before and after: some must fail before, all must pass after.

A test finds the engines as it does in `forkyard stack verify`:
``FORKYARD_PAYLOAD_<FAMILY>`` is the wheel of the one under test, ``FORKYARD_PAYLOAD_<FAMILY>_STOCK``
that of upstream as it is, ``FORKYARD_TEST_VARIANT`` their variant.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkyard.console import Reporter, Step
from forkyard.pullrequest.evidence.builds import AFTER, BEFORE, SIDES, Engine, missing_engine
from forkyard.pullrequest.evidence.model import FAIL, PASS, Evidence, Ledger, key_of, not_run, tail
from forkyard.pullrequest.evidence.tools import QUIET_ABORT, Ran
from forkyard.scratch import owned_folder
from forkyard.verifying.selecting import TestFiles, payload_variable

NAME, TITLE = "regression", "The stack's tests: failing before, passing after"
_TIMEOUT_S = 2 * 3600.0
_PROGRESS = re.compile(r"^forkyard-test: (\d+) (\d+) (.*)$")


@dataclass(frozen=True)
class Results:
    """What one run of pytest found, by the test's id."""

    outcomes: Mapping[str, str]
    """``passed``, ``failed``, ``error`` or ``skipped``."""

    def having(self, *outcomes: str) -> list[str]:
        """Tests that ended so, sorted."""
        return sorted(name for name, outcome in self.outcomes.items() if outcome in outcomes)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        counts = {word: len(self.having(word)) for word in ("passed", "failed", "error", "skipped")}
        return {**counts, "failing": self.having("failed", "error"), "skipping": self.having("skipped")}


def payload_variables(family: str, engine: Engine, stock: Engine) -> dict[str, str]:
    """The environment by which tests find the engine under test and the unpatched one."""
    return {
        payload_variable(family): str(engine.wheel),
        payload_variable(f"{family}-stock"): str(stock.wheel),
        "FORKYARD_TEST_VARIANT": engine.variant,
    }


def gather_regression(
    root: Path,
    family: str,
    tests: Sequence[str],
    patches: Sequence[str],
    engines: Mapping[str, Engine],
    ledger: Ledger,
    reporter: Reporter,
    *,
    whole_stack: bool,
) -> Evidence:
    """Run the test files that stack.toml names on both builds.

    Args:
        patches: file names of the branch's patches: tests marked as about others are left out.
        whole_stack: whether these are all of the stack, so that tests about none in particular count as well.
    """
    lacking = _cannot(root, tests, engines)
    if lacking is not None:
        return lacking
    out = ledger.folder.parent
    key = key_of(NAME, [engines[side].key for side in SIDES], TestFiles(root).digest(tests), list(patches), whole_stack)
    words = _selecting(root, tests, patches, whole_stack=whole_stack)
    known = ledger.found(NAME, key)
    if known is not None:
        return known
    ran = Ran(out)
    results: dict[str, Results] = {}
    for side in SIDES:
        with reporter.step(f"running the stack's tests on the engine {side}", "tests") as step:
            found = _run(root, family, [*tests, *words], engines, side, ran, step)
        if isinstance(found, str):
            reason = f"{side}: {found}"
            return ledger.keep(
                Evidence(NAME, TITLE, FAIL, reason, tuple(ran.commands), tuple(ran.logs), ran.seconds, {}, key)
            )
        results[side] = found
    state, reason, data = judge(results[BEFORE], results[AFTER])
    piece = Evidence(NAME, TITLE, state, reason, tuple(ran.commands), tuple(ran.logs), ran.seconds, data, key)
    return ledger.keep(piece)


def judge(before: Results, after: Results) -> tuple[str, str, dict[str, Any]]:
    """State, reason and figures of the two runs together."""
    turned = sorted(set(before.having("failed")) & set(after.having("passed")))
    broken = after.having("failed", "error")
    data = {"before": before.as_json(), "after": after.as_json(), "fail_before_pass_after": turned}
    if broken:
        return FAIL, f"{len(broken)} fail on the branch, the first is {broken[0]}", data
    if before.having("error") and not turned:
        return FAIL, f"on upstream {before.having('error')[0]} could not even be tried, which shows no fault", data
    if not turned:
        return FAIL, "no test fails on upstream and passes on the branch: they do not notice the change", data
    skipped = after.having("skipped")
    reason = f"{len(turned)} tests fail on upstream and pass on the branch; of {len(after.outcomes)} none fails there"
    return PASS, reason + (f", {len(skipped)} were skipped" if skipped else ""), data


def _cannot(root: Path, tests: Sequence[str], engines: Mapping[str, Engine]) -> Evidence | None:
    if not tests:
        return not_run(NAME, TITLE, "stack.toml names no test")
    gone = [path for path in tests if not (root / path.split("::", 1)[0]).exists()]
    if gone:
        return Evidence(NAME, TITLE, FAIL, f"stack.toml names {gone[0]}, which is not there")
    if importlib.util.find_spec("pytest") is None:
        return not_run(NAME, TITLE, "pytest is not installed here: it comes with forkyard's `dev` extra")
    return missing_engine(NAME, TITLE, engines)


def _selecting(root: Path, tests: Sequence[str], patches: Sequence[str], *, whole_stack: bool) -> list[str]:
    """The options that leave out tests of other patches, where the project's tests know them."""
    above = {parent for name in tests for parent in (root / name.split("::", 1)[0]).parents if root in parent.parents}
    files = [path / "conftest.py" for path in above]
    if not any(file.is_file() and "--patches" in file.read_text(encoding="utf-8") for file in files):
        return []
    names = ",".join(name.removesuffix(".patch") for name in patches)
    return [f"--patches={names}", *(["--patches-complete"] if whole_stack else [])]


def _run(
    root: Path, family: str, words: Sequence[str], engines: Mapping[str, Engine], side: str, ran: Ran, step: Step
) -> Results | str:
    report = ran.out / "logs" / f"{NAME}-{side}.xml"
    report.unlink(missing_ok=True)
    options = ["-p", "no:cacheprovider", "--color=no", f"--rootdir={root}"]
    variables = payload_variables(family, engines[side], engines[BEFORE])
    named = " ".join(f"{name}={Path(value).name}" for name, value in variables.items())

    def listen(line: str) -> None:
        if match := _PROGRESS.match(line):
            step.update(int(match[1]), int(match[2]), match[3].rsplit("/", 1)[-1][-40:])

    with owned_folder(ran.out / "scratch", f"{side}-") as scratch:
        # The child ends when forkyard does, even by SIGKILL.
        child = [sys.executable, "-m", "forkyard.verifying.child", str(os.getpid()), str(scratch / "report.json")]
        outcome = ran.command(
            [*child, *words, *options, f"--basetemp={scratch / 'tmp'}", f"--junitxml={report}"],
            f"{NAME}-{side}.log",
            on_line=listen,
            timeout_s=_TIMEOUT_S,
            cwd=root,
            env={**os.environ, **QUIET_ABORT, **variables},
            shown=f"{named} python -m pytest {' '.join(words)}",
        )
    # 1: some tests failed; everything above says that pytest itself had a problem.
    if outcome.status not in (0, 1):
        return f"pytest: {outcome.why}: {tail(outcome.lines)}"
    try:
        return Results(read_report(report))
    except (OSError, ElementTree.ParseError) as error:
        return f"pytest left no report that can be read: {error}"


def read_report(path: Path) -> dict[str, str]:
    """Outcome of each test in a JUnit report of pytest's, by ``module::name``.

    Raises:
        OSError: there is none.
        ElementTree.ParseError: it is cut off.
    """
    outcomes: dict[str, str] = {}
    # Our own pytest wrote it a moment ago.
    for case in ElementTree.parse(path).getroot().iter("testcase"):  # noqa: S314
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        new = {"failure": "failed", "error": "error", "skipped": "skipped"}[kinds[0]] if kinds else "passed"
        # A test that passes and whose tear-down breaks is there twice.
        outcomes[name] = new if new == "error" else outcomes.get(name, new)
    return outcomes
