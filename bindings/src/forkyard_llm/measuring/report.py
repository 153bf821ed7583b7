"""Write runs as one HTML page that needs nothing else: tables, plots, commands, and how restless the machine was.

Runs may come from a stranger's bundle: every text of theirs is escaped, and the page's own policy forbids scripts and
anything from outside.
"""

from __future__ import annotations

import datetime
import html
import io
import json
import re
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..cache import write_atomic
from ..errors import UsageError
from .exporting import WIDE
from .records import Arm, Recorded
from .scenarios import conclusions, verdicts
from .statistics import summarize

__all__ = ["write_report"]

# Okabe and Ito's colours, which people who see few colours tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = "os^Dvpx"
_NUMERIC = ("threads", "parallel", "batch threads", "ubatch")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    # A dollar sign in a name begins no mathematics.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_DEPTH = re.compile(r"(.+?)(?: @ d(\d+))?")
_MOST_BARS = 24


@dataclass(frozen=True)
class _Plot:
    svg: str
    """Its texts are escaped."""
    caption: str


def write_report(runs: Sequence[Recorded], path: Path) -> None:
    """Write the page. The same runs give the same bytes.

    Raises:
        UsageError: jinja2 or matplotlib is not installed, or the file cannot be written.
    """
    lacking = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if lacking:
        msg = f"reports need the packages jinja2 and matplotlib, and {' and '.join(lacking)} is not installed:"
        raise UsageError(f"{msg} pip install 'forkyard-llm[report]'")
    import jinja2

    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    names = list(dict.fromkeys(run.info.title or run.info.scenario for run in runs))
    page = template.render(title=f"Measured: {', '.join(names)}", runs=[_run(run) for run in runs])
    try:
        write_atomic(path, page.encode("utf-8", "replace"))
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}"
        raise UsageError(msg) from error


def _run(run: Recorded) -> dict[str, Any]:
    info = run.info
    when = datetime.datetime.fromtimestamp(info.created, datetime.timezone.utc)
    return {
        "name": f"{info.title or info.scenario} ({info.id[:8]})",
        "model": info.model + (f" ({info.model_type})" if info.model_type else ""),
        "cpu": str(info.machine.get("cpu", "an unknown processor")),
        "when": f"{when:%Y-%m-%d %H:%M} UTC",
        "said": [*conclusions(run), *info.remarks],
        "plots": list(_plots(run)),
        "tests": _tests(run),
        "rows": list(_rows(run)),
        "anchor": info.anchor,
        "noise": list(_noise(run)),
        "failed": sorted(run.failed.items()),
        "commands": [(arm.name, _command(arm)) for arm in run.arms],
        "machine": [
            (name, value if isinstance(value, str) else json.dumps(value)) for name, value in info.machine.items()
        ],
    }


def _tests(run: Recorded) -> list[str]:
    return list(dict.fromkeys(test for arm in run.arms for test in arm.tests))


def _command(arm: Arm) -> str:
    return shlex.join([*(f"{name}={value}" for name, value in arm.environment.items()), *arm.command])


def _rows(run: Recorded) -> Iterator[dict[str, Any]]:
    gains = verdicts(run)
    for arm in run.arms:
        cells: list[dict[str, str] | None] = []
        for test in _tests(run):
            speeds = [] if arm.name in run.failed else run.speeds(arm.name, test)
            if not speeds:
                cells.append(None)
                continue
            one, gain = summarize(speeds), gains.get((arm.name, test))
            text = "" if gain is None else f"{gain.ratio:.2f}x" + (", a tie" if gain.verdict == "tie" else "")
            low, high = one.interval
            cells.append(
                {
                    "median": f"{one.median:.2f}",
                    "interval": f"{low:.2f} to {high:.2f}",
                    "gain": "1" if arm.name == run.info.anchor else text,
                    "verdict": gain.verdict if gain else "tie",
                }
            )
        yield {"name": arm.name, "cells": cells}


def _noise(run: Recorded) -> Iterator[str]:
    dropped = sum(not one.kept for one in run.samples)
    if dropped:
        yield f"{dropped} of {len(run.samples)} samples were not counted: the machine's speed changed around them."
    loads = [one.load for one in run.samples]
    if loads:
        yield f"Load average when runs began: {statistics.median(loads):.1f} (median), {max(loads):.1f} at most."
    for arm in run.arms:
        for test in arm.tests:
            speeds = [] if arm.name in run.failed else run.speeds(arm.name, test)
            if speeds:
                one = summarize(speeds)
                reach = max(one.interval[1] - one.median, one.median - one.interval[0]) / one.median
                if reach > WIDE:
                    yield f"{arm.name}, {test}: the interval reaches {100 * reach:.0f} % from the median."


# -- plots -------------------------------------------------------------------------------------------------------------


def _plots(run: Recorded) -> Iterator[_Plot]:
    arms = [arm for arm in run.arms if arm.name not in run.failed and any(run.speeds(arm.name, t) for t in arm.tests)]
    if not arms:
        return
    grid = _grid(arms)
    numeric = next((name for name in _NUMERIC if len(_numbers(arms, name)) > 2), None)
    depths = {depth for test in _tests(run) if (depth := _depth(test)[1])}
    if grid:
        yield _drawn(run, f"Speed by {grid[0]} and {grid[1]}", lambda figure: _heat(figure, run, arms, *grid))
    elif numeric:
        yield _drawn(run, f"Speed against {numeric}", lambda figure: _lines(figure, run, arms, numeric))
    if depths:
        yield _drawn(run, "Speed against tokens in the cache", lambda figure: _by_depth(figure, run, arms))
    if not (grid or numeric or depths):
        yield _drawn(run, "Speed", lambda figure: _bars(figure, run, arms[:_MOST_BARS]))
    divergence = run.info.facts.get("kld")
    if isinstance(divergence, Mapping) and len(divergence) > 1:
        yield _drawn(run, "Quality against speed and memory", lambda figure: _pareto(figure, run, arms, divergence))


def _drawn(run: Recorded, caption: str, draw: Callable[[Any], str]) -> _Plot:
    """A figure as SVG that can stand in a page beside others; `draw` returns what it shows, in words."""
    import matplotlib
    from matplotlib.figure import Figure

    salt = f"{run.info.id} {caption}"
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(layout="constrained")
        words = draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    # Names such as axes_1 are the same in every figure.
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    label = html.escape(f"{caption}. {words}", quote=True)
    return _Plot(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1), caption)


def _depth(test: str) -> tuple[str, int]:
    match = _DEPTH.fullmatch(test)
    return (match[1], int(match[2] or 0)) if match else (test, 0)


def _plain(text: str) -> str:
    """A text as it fits beside a plot."""
    shown = "".join(one if one.isprintable() else "?" for one in text)
    return shown if len(shown) < 60 else shown[:57] + "..."


def _numbers(arms: Sequence[Arm], name: str) -> set[int]:
    return {int(arm.values[name]) for arm in arms if arm.values.get(name, "").isdigit()}


def _grid(arms: Sequence[Arm]) -> tuple[str, str] | None:
    """Two numeric dimensions most of whose pairs were measured."""
    for at, one in enumerate(_NUMERIC):
        for other in _NUMERIC[at + 1 :]:
            pairs = {(arm.values.get(one), arm.values.get(other)) for arm in arms}
            sizes = len(_numbers(arms, one)), len(_numbers(arms, other))
            if min(sizes) > 1 and len(pairs) > 0.5 * sizes[0] * sizes[1]:
                return one, other
    return None


def _group(arm: Arm) -> str:
    return " ".join(arm.values[name] for name in ("engine", "payload", "variant") if name in arm.values) or "all"


def _axes(figure: Any, count: int, height: float) -> list[Any]:
    figure.set_size_inches(10, height * (1 if count < 3 else -(-count // 2)))
    rows, columns = (1, count) if count < 3 else (-(-count // 2), 2)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return axes[:count]


def _lines(figure: Any, run: Recorded, arms: Sequence[Arm], name: str) -> str:
    tests, words = _tests(run), []
    for axis, test in zip(_axes(figure, len(tests), 4), tests, strict=True):
        for index, group in enumerate(dict.fromkeys(map(_group, arms))):
            points = sorted(
                (int(arm.values[name]), run.speeds(arm.name, test))
                for arm in arms
                if _group(arm) == group and arm.values.get(name, "").isdigit() and run.speeds(arm.name, test)
            )
            _line(axis, [(at, speeds) for at, speeds in points], index, group)
            words += [f"{group}, {at} {name}: {summarize(speeds).median:.1f} ({test})" for at, speeds in points]
        axis.set(xlabel=name, ylabel="tokens/s", title=_plain(test), ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False)
    return "; ".join(words)


def _line(axis: Any, points: Sequence[tuple[int, list[float]]], index: int, label: str) -> None:
    if not points:
        return
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    summaries = [summarize(speeds) for _, speeds in points]
    at = [place for place, _ in points]
    axis.plot(at, [one.median for one in summaries], color=colour, marker=marker, label=_plain(label))
    axis.fill_between(
        at, [one.interval[0] for one in summaries], [one.interval[1] for one in summaries], color=colour, alpha=0.18
    )
    for place, speeds in points:
        axis.plot([place] * len(speeds), speeds, ".", color=colour, alpha=0.4, markersize=3)


def _by_depth(figure: Any, run: Recorded, arms: Sequence[Arm]) -> str:
    kinds = list(dict.fromkeys(_depth(test)[0] for test in _tests(run)))
    words = []
    for axis, kind in zip(_axes(figure, len(kinds), 4), kinds, strict=True):
        for index, arm in enumerate(arms[: len(_COLOURS)]):
            points = sorted(
                (_depth(test)[1], run.speeds(arm.name, test)) for test in arm.tests if _depth(test)[0] == kind
            )
            points = [(depth, speeds) for depth, speeds in points if speeds]
            _line(axis, points, index, arm.name)
            words += [
                f"{arm.name}, {depth} tokens: {summarize(speeds).median:.1f} ({kind})" for depth, speeds in points
            ]
        axis.set(xlabel="tokens in the cache", ylabel="tokens/s", title=_plain(kind), ylim=(0, None))
        axis.legend(frameon=False)
    return "; ".join(words)


def _bars(figure: Any, run: Recorded, arms: Sequence[Arm]) -> str:
    tests, words = _tests(run), []
    axes = _axes(figure, len(tests), 1.2 + 0.35 * len(arms))
    for number, (axis, test) in enumerate(zip(axes, tests, strict=True)):
        shown = [(arm, run.speeds(arm.name, test)) for arm in arms]
        for place, (arm, speeds) in enumerate(shown):
            if speeds:
                one = summarize(speeds)
                reach = [[one.median - one.interval[0]], [one.interval[1] - one.median]]
                colour = "#888888" if arm.name == run.info.anchor else _COLOURS[0]
                axis.barh(place, one.median, color=colour, xerr=reach, error_kw={"ecolor": "#000000", "capsize": 3})
                axis.plot(speeds, [place] * len(speeds), ".", color="#000000", alpha=0.4, markersize=3)
                words.append(f"{arm.name}: {one.median:.1f} ({test})")
        axis.set_yticks(
            range(len(shown)), [_plain(arm.name) for arm, _ in shown] if number % 2 == 0 else [""] * len(shown)
        )
        axis.invert_yaxis()
        axis.set(xlabel="tokens/s", title=_plain(test), xlim=(0, None))
    return "; ".join(words)


def _heat(figure: Any, run: Recorded, arms: Sequence[Arm], one: str, other: str) -> str:
    tests, words = _tests(run), []
    columns, rows = sorted(_numbers(arms, one)), sorted(_numbers(arms, other))
    for axis, test in zip(_axes(figure, len(tests), 4), tests, strict=True):
        best: dict[tuple[int, int], float] = {}
        for arm in arms:
            place = arm.values.get(other, ""), arm.values.get(one, "")
            speeds = run.speeds(arm.name, test)
            if speeds and place[0].isdigit() and place[1].isdigit():
                key = int(place[0]), int(place[1])
                best[key] = max(best.get(key, 0.0), summarize(speeds).median)
        cells = [[best.get((row, column), float("nan")) for column in columns] for row in rows]
        edges = [at - 0.5 for at in range(max(len(columns), len(rows)) + 1)]
        axis.pcolormesh(edges[: len(columns) + 1], edges[: len(rows) + 1], cells, cmap="viridis")
        top = max(best.values(), default=1.0)
        for (row, column), speed in best.items():
            colour = "#000000" if speed > 0.6 * top else "#ffffff"
            axis.text(columns.index(column), rows.index(row), f"{speed:.0f}", ha="center", va="center", color=colour)
            words.append(f"{one} {column}, {other} {row}: {speed:.1f} ({test})")
        axis.set_xticks(range(len(columns)), map(str, columns))
        axis.set_yticks(range(len(rows)), map(str, rows))
        axis.set(xlabel=one, ylabel=other, title=_plain(f"{test}, tokens/s, the best of all else"))
    return "; ".join(words)


def _pareto(figure: Any, run: Recorded, arms: Sequence[Arm], divergence: Mapping[str, Any]) -> str:
    test = next((one for one in reversed(_tests(run)) if one.startswith("tg")), _tests(run)[-1])
    points: list[tuple[str, float, float, float | None]] = []
    for arm in arms:
        found, speeds = divergence.get(arm.name), run.speeds(arm.name, test)
        known = found if isinstance(found, Mapping) else {}
        mean, size = known.get("mean"), known.get("mib")
        if speeds and isinstance(mean, (int, float)) and mean > 0:
            mib = float(size) if isinstance(size, (int, float)) else None
            points.append((arm.name, mean, summarize(speeds).median, mib))
    sized = [one for one in points if one[3] is not None]
    axes = _axes(figure, 2 if sized else 1, 5)
    for name, mean, speed, mib in points:
        for axis, at in zip(axes, (speed, mib), strict=False):
            if at is not None:
                axis.errorbar([at], [mean], fmt="o", color=_COLOURS[0])
                axis.annotate(_plain(name), (at, mean), xytext=(6, 4), textcoords="offset points", fontsize=8)
    for axis, label in zip(axes, (f"{_plain(test)}, tokens/s", "MiB of the KV cache"), strict=False):
        axis.set(xlabel=label, ylabel="mean KL divergence", yscale="log" if points else "linear")
        # Plain numbers: powers of ten would be mathematics. Between them 2 and 5, as all would lie on each other.
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[:2] in ("2.", "5.") else "")
    return "; ".join(
        f"{name}: {speed:.1f} tokens/s, {mean:.4f}" + ("" if mib is None else f", {mib:.1f} MiB")
        for name, mean, speed, mib in points
    )
