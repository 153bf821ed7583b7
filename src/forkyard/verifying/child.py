"""The child process that runs a unit's tests: it ends when forkyard does, and writes down what each test did.

Run as ``python -m forkyard.verifying.child PARENT REPORT PYTEST-ARGUMENTS``. Prints ``forkyard-test: DONE TOTAL ID``
after each test.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from forkyard.runner import die_with_parent

_LINES = 8


class Recorder:
    """A pytest plugin that counts what really ran."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._outcomes: dict[str, str] = {}
        self._why: dict[str, str] = {}
        self._total = self._deselected = 0
        # pytest captures standard output; progress goes around that.
        self._progress = os.fdopen(os.dup(1), "w")

    def pytest_deselected(self, items: list[Any]) -> None:
        """Count tests that were left out."""
        self._deselected += len(items)

    def pytest_collection_finish(self, session: Any) -> None:
        """Note how many tests there are."""
        self._total = len(session.items)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be read is a failed test."""
        if report.failed:
            self._fail(report.nodeid or "collection", report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note what a test did; a skip is no execution, an expected failure is one."""
        if report.failed:
            self._fail(report.nodeid, report)
        elif report.when == "call" and (report.passed or hasattr(report, "wasxfail")):
            self._outcomes.setdefault(report.nodeid, "passed")
        elif report.skipped:
            self._outcomes.setdefault(report.nodeid, "passed" if hasattr(report, "wasxfail") else "skipped")
        if report.when == "teardown":
            self._progress.write(f"\nforkyard-test: {len(self._outcomes)} {self._total} {report.nodeid}\n")
            self._progress.flush()

    def _fail(self, node: str, report: Any) -> None:
        self._outcomes[node] = "failed"
        self._why.setdefault(node, "\n".join(report.longreprtext.strip().splitlines()[-_LINES:]))

    def write(self) -> None:
        """Write the report."""
        outcomes = list(self._outcomes.values())
        document = {
            **{name: outcomes.count(name) for name in ("passed", "failed", "skipped")},
            "deselected": self._deselected,
            "failures": [{"id": node, "why": why} for node, why in self._why.items()],
        }
        self._report.write_text(json.dumps(document), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run pytest with ``arguments[2:]``."""
    parent, report, *words = arguments
    die_with_parent(int(parent))
    # Imported late: the parent's death must be noticed from the first moment on.
    import pytest

    recorder = Recorder(Path(report))
    status = pytest.main(words, plugins=[recorder])
    recorder.write()
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
