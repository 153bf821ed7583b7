"""For all tests: Ctrl-C means what it means on a terminal, and tests can be chosen by the patches they are about.

``--patches a,b`` is how ``forkyard stack verify`` runs the tests of a stack on an engine that has the patches a and b
alone. A test says from which patch on it holds: ``@pytest.mark.patch("a")``; it then runs wherever all the patches it
names are there. ``@pytest.mark.patch()`` runs on any engine. A test without the mark is about the whole stack and runs
only with ``--patches-complete``. Without ``--patches`` everything runs.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# A runner that starts us in the background leaves SIGINT ignored, and programs we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("patches", "tests chosen by the patches that are in the engine")
    group.addoption("--patches", metavar="NAMES", help="Comma-separated names, without .patch, of what the engine has.")
    group.addoption("--patches-about", metavar="NAME", help="Of those only tests that name this patch.")
    group.addoption("--patches-complete", action="store_true", help="The engine has all patches of the stack.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "patch(*names): holds on an engine that has these patches")


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
