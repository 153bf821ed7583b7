"""For all tests: what Ctrl-C means, two tiers, the time of each folder, and the choice by patches.

Tests marked ``deep`` run in ``nox -s tests-deep``; the others in ``nox -s tests``, which has 45 minutes on 2 cores.

``--patches a,b`` is how ``forkyard stack verify`` runs the tests of a stack on an engine that has the patches a and b
alone. A test says from which patch on it holds: ``@pytest.mark.patch("a")``; it then runs wherever all the patches it
names are there. ``@pytest.mark.patch()`` runs on any engine. A test without the mark is about the whole stack and runs
only with ``--patches-complete``. Without ``--patches`` everything runs.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from pathlib import Path

import pytest

# A runner that starts us in the background leaves SIGINT ignored, and programs we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Folder -> seconds in set-up (builds are there), seconds in tests and their clearing up.
_times: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many as compiles at a time; each may hold a model, and what it starts is not single-threaded either."""
    # Not for every pytest that a test starts.
    from forkyard.building import default_jobs

    return min(4, default_jobs())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    folder = os.path.dirname(report.nodeid.partition("::")[0])
    _times[folder][report.when != "setup"] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # One folder: the last line has its time.
    if len(_times) < 2:
        return
    terminalreporter.section("time of each folder")
    terminalreporter.write_line("  set-up   tests  (seconds)")
    for folder, (setup, rest) in sorted(_times.items(), key=lambda row: -sum(row[1])):
        terminalreporter.write_line(f"{setup:8.1f}{rest:8.1f}  {folder}")
    setup, rest = (sum(column) for column in zip(*_times.values(), strict=True))
    terminalreporter.write_line(f"{setup:8.1f}{rest:8.1f}  together")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("patches", "tests chosen by the patches that are in the engine")
    group.addoption("--patches", metavar="NAMES", help="Comma-separated names, without .patch, of what the engine has.")
    group.addoption("--patches-about", metavar="NAME", help="Of those only tests that name this patch.")
    group.addoption("--patches-complete", action="store_true", help="The engine has all patches of the stack.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "patch(*names): holds on an engine that has these patches")
    config.addinivalue_line("markers", "deep: runs in nox -s tests-deep alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    known = {path.stem for path in (Path(__file__).parents[1] / "patches").glob("*/*/*.patch")}
    option = config.getoption("--patches")
    there = {name for name in (option or "").split(",") if name}
    about = config.getoption("--patches-about")
    # A patch that upstream has taken over is in no stack any more, and its tests hold all the same.
    known |= there
    kept, left_out = [], []
    for item in items:
        marks = list(item.iter_markers("patch"))
        names = {str(name) for mark in marks for name in mark.args}
        if unknown := sorted(names - known):
            # It would be left out for ever without anybody noticing.
            raise pytest.UsageError(f"{item.nodeid} is marked with {unknown[0]!r}, which is no patch of any stack")
        runs = names <= there if marks else config.getoption("--patches-complete")
        runs = runs and (about is None or about in names)
        (kept if option is None or runs else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
