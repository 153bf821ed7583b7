"""The answer of the scenario ``kv``: one table, the same for machines, and a plot of error against memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .numa_table import SCHEMA
from .quality import Quality
from .running import Measured
from .statistics import Gain, Summary
from .subject import Subject
from .tables import figures, markdown, speed_text

BASELINE = "f16"
"""The row, of the first engine, that factors are relative to."""
SINKS = 4
"""Tokens at the beginning that a cache with a tail keeps as well."""


@dataclass(frozen=True)
class Cache:
    """One way to keep K and V."""

    name: str
    """As the user writes it."""
    k: str
    v: str
    tail: int
    """f16 copies of the newest tokens."""
    way: tuple[str, ...] = ()
    """More arguments."""

    @property
    def plain(self) -> tuple[str, ...]:
        """The arguments of both programs, without :attr:`way`."""
        tail = ("--kv-tail-tokens", str(self.tail), "--kv-sink-tokens", str(SINKS)) if self.tail else ()
        return ("-ctk", self.k, "-ctv", self.v, *tail)

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments of both programs."""
        return (*self.plain, *self.way)


@dataclass(frozen=True, eq=False)
class Row:
    """A cache of one engine."""

    subject: Subject
    cache: Cache
    absent: Mapping[str, str]
    """Test -> why this engine cannot measure it."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.subject.label}, {self.cache.name}"


@dataclass(frozen=True)
class Line:
    """A row of the table with its figures."""

    row: Row
    quality: Quality | None = None
    best: bool = False
    """Whether no other cache of the engine has at most its memory and at most its error, and less of one."""
    tests: Mapping[str, Summary] = field(default_factory=dict)
    gains: Mapping[str, Gain] = field(default_factory=dict)
    """Test -> against the baseline; empty for the baseline itself, and without one."""
    refused: str | None = None
    """Why it could not be measured."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        cache = self.row.cache
        return {
            "engine": self.row.subject.label,
            "cache": cache.name,
            "type_k": cache.k,
            "type_v": cache.v,
            "tail_tokens": cache.tail,
            "sink_tokens": SINKS if cache.tail else 0,
            "arguments": list(cache.words),
            "quality": self.quality.as_json() if self.quality else None,
            "on_the_front": self.best,
            "tests": {name: one.as_json() for name, one in self.tests.items()},
            "gains": {name: one.as_json() for name, one in self.gains.items()},
            "not_measurable": dict(self.row.absent),
            "refused": self.refused,
        }


@dataclass(frozen=True)
class Answer:
    """Everything that is known after a measurement."""

    lines: tuple[Line, ...]
    baseline: str | None
    measured: Measured
    machine: Mapping[str, Any]
    model: str
    """File name."""
    text: str
    """File name."""
    context: int
    windows: int
    tests: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The engines, in the order of the rows."""
        return tuple(dict.fromkeys(line.row.subject for line in self.lines))

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "schema": SCHEMA,
            "scenario": "kv",
            "engines": [subject.as_json() for subject in self.subjects],
            "machine": dict(self.machine),
            "model": {"file": self.model, "type": self.measured.model},
            "quality": {"text": self.text, "context": self.context, "windows": self.windows},
            "rounds": self.measured.rounds,
            "baseline": self.baseline,
            "tests": list(self.tests),
            "commands": self.measured.commands,
            "rows": [line.as_json() for line in self.lines],
            "remarks": list(self.remarks),
        }


def answer(
    rows: Sequence[Row],
    qualities: Mapping[Row, Quality],
    refused: Mapping[Row, str],
    measured: Measured,
    *,
    machine: Mapping[str, Any],
    model: str,
    text: str,
    context: int,
    windows: int,
    tests: tuple[str, ...],
    notes: Sequence[str],
) -> Answer:
    """Turn samples into an answer."""
    base = next((row for row in rows if row.cache.name == BASELINE and row.subject is rows[0].subject), None)
    against = measured.speeds.get(base.name, {}) if base else {}
    lines = []
    for row in rows:
        speeds = measured.speeds.get(row.name, {}) if row not in refused else {}
        measures, gains = figures(speeds, {} if row is base else against)
        lines.append(Line(row, qualities.get(row), _best(row, qualities), measures, gains, refused.get(row)))
    name = base.name if base and against else None
    return Answer(tuple(lines), name, measured, machine, model, text, context, windows, tests, tuple(notes))


def _best(row: Row, qualities: Mapping[Row, Quality]) -> bool:
    if row not in qualities:
        return False
    mine = (qualities[row].mib, qualities[row].mean or 0.0)
    others = [(one.mib, one.mean or 0.0) for other, one in qualities.items() if other.subject is row.subject]
    return not any(one != mine and one[0] <= mine[0] and one[1] <= mine[1] for one in others)


def as_text(found: Answer) -> str:
    """A Markdown table and what has to be known to read it."""
    text = [
        f"{found.model}{f' ({found.measured.model})' if found.measured.model else ''}, "
        f"{found.machine.get('cpu', 'unknown')}"
        + (f"; speeds are medians of {found.measured.rounds} rounds" if found.tests else ""),
        *(f"{subject.label} ({subject.engine.wheel})" for subject in found.subjects),
        "",
        *markdown(
            [
                *("engine", "K", "V", "cache", f"MiB at {found.context}", "KLD", "median", "99.9 %", "same top %"),
                *(f"{test} t/s" for test in found.tests),
            ],
            [_cells(found, line) for line in found.lines],
            left=4,
        ),
        "",
        f"KLD is the mean KL divergence from the same engine with f16, {found.windows} windows of {found.context} "
        f"tokens of {found.text}; ± one standard error of its tokens.",
        "* marks the best: no other cache of the engine has less of memory or error and no more of the other.",
    ]
    if found.baseline:
        text.append(f"Factors are relative to {found.baseline}, round by round; in brackets where medians lie at 95 %.")
    text += [f"{line.row.name} was refused: {line.refused}" for line in found.lines if line.refused]
    for line in found.lines:
        whole = not line.refused and set(found.tests) <= line.row.absent.keys()
        text += [f"{line.row.name} has no speeds: {why}" for why in dict.fromkeys(line.row.absent.values()) if whole]
    lacking = {
        (test, why): None
        for line in found.lines
        for test, why in line.row.absent.items()
        if not set(found.tests) <= line.row.absent.keys()
    }
    text += [f"{test} could not be measured: {why}" for test, why in lacking]
    return "\n".join([*text, *found.remarks])


def _cells(found: Answer, line: Line) -> list[str]:
    cache, one = line.row.cache, line.quality
    ways = [f"tail {cache.tail}"] if cache.tail else []
    ways += [cache.name.partition(":")[2]] if cache.way else []
    cells = [line.row.subject.label, cache.k, cache.v, ", ".join(ways)]
    if one is None:
        cells += ["refused"] + [""] * 4
    elif one.mean is None:
        cells += [f"{one.mib:.2f} *" if line.best else f"{one.mib:.2f}", *("0", "0", "0", "100")]
    else:
        cells += [
            f"{one.mib:.2f}{' *' if line.best else ''}",
            f"{one.mean:.4f} ± {one.error:.4f}",
            *("" if value is None else f"{value:.4f}" for value in (one.median, one.high)),
            "" if one.same is None else f"{one.same:.1f}",
        ]
    return cells + [_speed(found, line, test) for test in found.tests]


def _speed(found: Answer, line: Line, test: str) -> str:
    if line.refused:
        return "refused"
    if test not in line.tests:
        return "not measurable"
    return speed_text(line.tests[test], line.gains.get(test), base=line.row.name == found.baseline)


def check_plot(path: Path) -> None:
    """What can be said of ``--plot`` before anything is measured.

    Raises:
        UsageError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        msg = "matplotlib is not installed, which draws the plot"
        raise UsageError(msg, why=str(error), next_step="pip install matplotlib, or leave out --plot") from error
    if path.is_dir() or path.suffix.removeprefix(".").lower() not in FigureCanvasBase.get_supported_filetypes():
        msg = f"no plot can be written to {path}"
        raise UsageError(msg, next_step="give --plot the name of a file that ends in .svg or .png")


def plot(found: Answer, path: Path) -> None:
    """Draw error against memory, and against the speed of the last generation test where there is one.

    Args:
        path: as :func:`check_plot` wants it.
    """
    from matplotlib.figure import Figure

    generation = [test for test in found.tests if test.startswith("tg")]
    figure = Figure(figsize=(12 if generation else 6.5, 5.5), layout="constrained")
    axes = figure.subplots(1, 2 if generation else 1, squeeze=False, sharey=True)[0]
    for subject in found.subjects:
        points = [
            (line, line.quality.mib, line.quality.mean, line.quality.error or 0.0)
            for line in found.lines
            if line.row.subject is subject and line.quality and line.quality.mean
        ]
        front = sorted((mib, mean) for line, mib, mean, _ in points if line.best)
        (drawn,) = axes[0].plot([mib for mib, _ in front], [mean for _, mean in front], "--", label=subject.label)
        for line, mib, mean, error in points:
            speed = [line.tests[generation[-1]].median] if generation and generation[-1] in line.tests else []
            for axis, x in zip(axes, [mib, *speed], strict=False):
                axis.errorbar([x], [mean], yerr=[error], fmt="o", color=drawn.get_color())
                axis.annotate(line.row.cache.name, (x, mean), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes[0].set(
        xlabel=f"MiB of the cache at {found.context} tokens", ylabel="mean KL divergence from f16", yscale="log"
    )
    axes[0].legend()
    if generation:
        axes[1].set(xlabel=f"{generation[-1]}, tokens/s")
    figure.suptitle(f"{found.model}, {found.machine.get('cpu', 'unknown')}", fontsize=10)
    figure.savefig(path)
