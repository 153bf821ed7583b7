"""The scenario's answer: the table that two-socket owners know, and the same for machines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .engine import Engine
from .numa_modes import BASELINE, Scenario
from .running import Measured
from .statistics import Gain, Summary, compare, summarize
from .tables import gain_text, markdown

SCHEMA = 1
_FAKE_NOTE = (
    "The nodes are pretended: all memory is equally near, so the figures show that it works and what it costs, "
    "not what it gains."
)
_BALANCED = "numa_balancing is on: the kernel moves pages while they are measured; write 0 to turn it off."


@dataclass(frozen=True)
class Foretold:
    """Tokens per second of generation, by mode, as a model predicts them; what it cannot predict is not there."""

    bandwidth: float
    """Bytes per second a node, as given."""
    bytes_per_token: float
    speeds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"bandwidth": self.bandwidth, "bytes_per_token": self.bytes_per_token, "speeds": self.speeds}


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

    @property
    def remarks(self) -> tuple[str, ...]:
        """What has to be known to read the figures."""
        said = [_FAKE_NOTE] if self.scenario.fake else []
        return tuple([_BALANCED, *said] if self.machine.get("numa_balancing") not in (None, "0") else said)

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
    return "\n".join([*text, *found.remarks])


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
