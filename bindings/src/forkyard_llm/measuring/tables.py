"""Figures as cells, and cells as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .statistics import Gain, Summary, compare, summarize

__all__ = ["figures", "gain_text", "markdown", "speed_text"]


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
    """A table; the first `left` columns to the left, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(titles, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        padded = [
            f"{cell:<{width}}" if number < left else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (width - 1)}{'-' if number < left else ':'}" for number, width in enumerate(widths)]
    return [line(titles), f"| {' | '.join(rule)} |", *(line(row) for row in rows)]
