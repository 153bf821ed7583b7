"""test-backend-ops on every backend the branch's build has.

Run without a backend's name it passes over the CPU and calls that passed; so the CPU is always named, where it is
compared with its own reference implementation. A run in which no test ran has failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from forkyard.building import default_jobs
from forkyard.console import Reporter
from forkyard.pullrequest.evidence.builds import AFTER, BACKEND_OPS, Engine, missing_engine
from forkyard.pullrequest.evidence.model import FAIL, PASS, Evidence, Ledger, key_of, not_run, tail
from forkyard.pullrequest.evidence.tools import Ran

NAME, TITLE = "backend-ops", "Operators: test-backend-ops"
QUICK_OPERATORS = "ADD,CPY,GET_ROWS,ROPE,SET_ROWS,SOFT_MAX"
"""What ``--quick`` runs; everything takes many minutes."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TESTING = re.compile(r"^Testing (\d+) devices")
_DEVICE = re.compile(r"^Backend \d+/\d+: (\S+)")
_TESTS = re.compile(r"^\s*(\d+)/(\d+) tests passed")


def gather_operators(
    engines: Mapping[str, Engine], ledger: Ledger, reporter: Reporter, *, wanted: bool, quick: bool
) -> Evidence:
    """Run the branch's test-backend-ops.

    Args:
        wanted: whether it was built at all.
        quick: only :data:`QUICK_OPERATORS`.
    """
    if not wanted:
        return not_run(NAME, TITLE, f"the tree at the target has no {BACKEND_OPS} that is built here")
    lacking = missing_engine(NAME, TITLE, engines, (AFTER,))
    if lacking is not None:
        return lacking
    engine = engines[AFTER]
    threads = default_jobs()
    filters = ["-o", QUICK_OPERATORS] if quick else []
    arguments = ["test", "-b", "CPU", "-j", str(threads), *filters]
    key = key_of(NAME, engine.key, arguments)
    known = ledger.found(NAME, key)
    if known is not None:
        return known
    ran = Ran(ledger.folder.parent)
    with reporter.step("running test-backend-ops", "tests") as step:
        count = 0

        def listen(line: str) -> None:
            nonlocal count
            count += ": " in line
            step.update(count)

        outcome = ran.run(engine, BACKEND_OPS, arguments, f"{NAME}.log", on_line=listen)
        devices, results = read_output(outcome.lines)
        status, why, last = outcome.status, outcome.why, outcome.lines
        if status == 0 and devices > 1:
            # Every other backend, compared with the CPU.
            others = ran.run(engine, BACKEND_OPS, ["test", *filters], f"{NAME}-others.log", on_line=listen)
            results = {**read_output(others.lines)[1], **results}
            status, why, last = others.status, others.why, others.lines
    backends = sorted(name for name, (_, total) in results.items() if total)
    data = {
        "backends": backends,
        "tests": {name: {"passed": passed, "run": total} for name, (passed, total) in results.items()},
        "complete": not quick,
        "operators": QUICK_OPERATORS.split(",") if quick else "all",
    }
    part = f" ({QUICK_OPERATORS} only: --quick)" if quick else ""
    if status != 0:
        state, reason = FAIL, f"{why}: {tail([_plain(line) for line in last])}"
    elif not backends:
        state, reason = FAIL, "it ended well, but ran no test"
    elif any(passed != total for passed, total in results.values()):
        state, reason = FAIL, "it ended well, but not all of its tests passed"
    else:
        counted = ", ".join(f"{name} {results[name][1]} tests" for name in backends)
        state, reason = PASS, f"all passed on {counted}{part}"
    piece = Evidence(NAME, TITLE, state, reason, tuple(ran.commands), tuple(ran.logs), ran.seconds, data, key)
    return ledger.keep(piece)


def _plain(line: str) -> str:
    return _ANSI.sub("", line)


def read_output(lines: list[str]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Devices there are, and (passed, run) of each backend that ran tests, from test-backend-ops' output."""
    devices, current = 0, ""
    results: dict[str, tuple[int, int]] = {}
    for line in map(_plain, lines):
        if match := _TESTING.match(line):
            devices = int(match[1])
        elif match := _DEVICE.match(line):
            current = match[1]
        elif (match := _TESTS.match(line)) and current:
            results[current] = (int(match[1]), int(match[2]))
    return devices, results
