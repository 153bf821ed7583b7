"""The scenario's answer: the table that two-socket owners know, and the same for machines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forkyard.benching.engine import Engine
from forkyard.benching.foretelling import Foretold
from forkyard.benching.running import Measured
from forkyard.benching.scenario import BASELINE, Scenario
from forkyard.benching.statistics import Gain, Summary, compare, summarize

SCHEMA = 1
_FAKE_NOTE = (
    "The nodes are pretended: all memory is equally near, so the figures show that it works and what it costs, "
    "not what it gains."
)


@dataclass(frozen=True)
class Line:
    """One test, all modes."""

    test: str
    modes: Mapping[str, Summary]
    gains: Mapping[str, Gain]
    """Mode -> against the baseline; empty without a baseline."""
    local: Mapping[str, float]
    """Mode -> median percent read from the own node, where counted."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "test": self.test,
            "modes": {name: one.as_json() for name, one in self.modes.items()},
            "gains": {name: one.as_json() for name, one in self.gains.items()},
            "local_percent": dict(self.local),
        }


@dataclass(frozen=True)
class Answer:
    """Everything that is known after a measurement."""

    engine: Engine
    scenario: Scenario
    measured: Measured
    lines: tuple[Line, ...]
    machine: Mapping[str, Any]
    model: str
    """File name."""
    foretold: Foretold | None

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        scenario = self.scenario
        return {
            "schema": SCHEMA,
            "scenario": "numa",
            "engine": {"name": self.engine.name, "wheel": self.engine.wheel, "build_key": self.engine.build_key},
            "machine": dict(self.machine),
            "model": {"file": self.model, "type": self.measured.model},
            "rounds": self.measured.rounds,
            "threads_per_node": scenario.threads_per_node,
            "nodes": scenario.nodes,
            "fake_nodes": scenario.fake,
            "baseline": BASELINE if BASELINE in self.measured.speeds else None,
            "commands": self.measured.commands,
            "rows": [line.as_json() for line in self.lines],
            "prediction": self.foretold.as_json() if self.foretold else None,
        }


def answer(
    engine: Engine,
    scenario: Scenario,
    measured: Measured,
    machine: Mapping[str, Any],
    model: str,
    foretold: Foretold | None,
) -> Answer:
    """Turn samples into an answer."""
    lines = []
    for test in scenario.tests:
        speeds = {mode.name: measured.speeds[mode.name][test] for mode in scenario.modes}
        baseline = speeds.get(BASELINE)
        lines.append(
            Line(
                test,
                {name: summarize(samples) for name, samples in speeds.items()},
                {name: compare(samples, baseline) for name, samples in speeds.items() if name != BASELINE}
                if baseline
                else {},
                {
                    name: float(statistics.median(tests[test]))
                    for name, tests in measured.local.items()
                    if tests.get(test)
                },
            )
        )
    return Answer(engine, scenario, measured, tuple(lines), machine, model, foretold)


def as_text(found: Answer) -> str:
    """A Markdown table and what has to be known to read it."""
    scenario = found.scenario
    names = [mode.name for mode in scenario.modes]
    titles = ["model", "test", *(f"{mode.name} t/s" for mode in scenario.modes)]
    gaining = [name for name in names if name != BASELINE] if BASELINE in names else []
    titles += [f"{name} gain" for name in gaining]
    rows = [
        [
            found.model,
            line.test,
            *(f"{line.modes[name].median:.2f}" for name in names),
            *(gain_text(line.gains[name]) for name in gaining),
        ]
        for line in found.lines
    ]
    threads = ", ".join(
        f"{mode.name} {mode.threads(scenario.threads_per_node, scenario.nodes)}" for mode in scenario.modes
    )
    text = [
        f"{found.engine.name} ({found.engine.wheel})",
        f"{found.machine.get('cpu', 'unknown')}, {scenario.nodes} {'pretended ' if scenario.fake else ''}memory nodes; "
        f"threads: {threads}; medians of {found.measured.rounds} rounds",
        "",
        *markdown(titles, rows),
        "",
    ]
    if gaining:
        text.append(f"Gains are relative to {BASELINE}, in brackets where they lie at 95 %.")
    text += _intervals(found)
    text += [
        f"read from the own node, {line.test}: "
        + ", ".join(f"{name} {percent:.1f} %" for name, percent in line.local.items())
        for line in found.lines
        if line.local
    ]
    if found.foretold is not None:
        told = found.foretold
        text += [
            f"predicted generation at {told.bandwidth / 1e9:.1f} GB/s a node, {told.bytes_per_token / 1e9:.2f} GB a "
            "token: " + ", ".join(f"{name} {told.speeds[name]:.2f} t/s" for name in names if name in told.speeds)
        ]
    if found.machine.get("numa_balancing") not in (None, "0"):
        text.append("numa_balancing is on: the kernel moves pages while they are measured; write 0 to turn it off.")
    if scenario.fake:
        text.append(_FAKE_NOTE)
    return "\n".join(text)


def gain_text(gain: Gain) -> str:
    """A gain as a cell: ``1.42x (1.39 to 1.44)``, or ``tie``."""
    low, high = gain.interval
    return f"{'tie, ' if gain.verdict == 'tie' else ''}{gain.ratio:.2f}x ({low:.2f} to {high:.2f})"


def figures(
    speeds: Mapping[str, Sequence[float]], against: Mapping[str, Sequence[float]]
) -> tuple[dict[str, Summary], dict[str, Gain]]:
    """Of samples by test: what they say, and what they gain where the baseline has the test as well."""
    summaries = {test: summarize(samples) for test, samples in speeds.items()}
    return summaries, {test: compare(samples, against[test]) for test, samples in speeds.items() if test in against}


def speed_text(one: Summary, gain: Gain | None, *, base: bool) -> str:
    """A speed as a cell: ``56.12 (55.80 to 56.40) 1.40x``; a bare 1 for what gains are relative to."""
    text = f"{one.median:.2f} ({one.interval[0]:.2f} to {one.interval[1]:.2f})"
    if base:
        return f"{text} 1"
    return text if gain is None else f"{text} {gain.ratio:.2f}x{' (tie)' if gain.verdict == 'tie' else ''}"


def markdown(titles: list[str], rows: list[list[str]], left: int = 2) -> list[str]:
    """A table; the first ``left`` columns to the left, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(titles, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        padded = [
            f"{cell:<{width}}" if number < left else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (width - 1)}{'-' if number < left else ':'}" for number, width in enumerate(widths)]
    return [line(titles), f"| {' | '.join(rule)} |", *(line(row) for row in rows)]


def _intervals(found: Answer) -> list[str]:
    """Where the medians lie."""
    lines = []
    for line in found.lines:
        parts = [
            f"{name} {one.median:.2f} ({one.interval[0]:.2f} to {one.interval[1]:.2f})"
            for name, one in line.modes.items()
        ]
        lines.append(f"t/s at 95 %, {line.test}: {', '.join(parts)}")
    return lines
