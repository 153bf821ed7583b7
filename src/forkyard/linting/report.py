"""The report as people read it."""

from __future__ import annotations

from forkyard.linting.model import Finding, Report, Size


def as_text(report: Report) -> str:
    """Findings, errors first; then sizes; then one line that sums up."""
    blocks = ["\n".join(_finding(finding)) for finding in report.findings]
    if report.sizes:
        blocks.append("\n".join(_sizes(report.sizes)))
    blocks.append(_summary(report))
    return "\n\n".join(blocks)


def _finding(finding: Finding) -> list[str]:
    place = " ".join(part for part in (finding.stack, finding.engine) if part)
    return [
        f"{finding.level}: {finding.what}",
        f"  rule:  {finding.rule} ({place})",
        f"  where: {finding.where}",
        f"  why:   {_indented(finding.why)}",
        f"  next:  {_indented(finding.next)}",
    ]


def _indented(text: str) -> str:
    return text.strip("\n").replace("\n", "\n         ")


def _sizes(sizes: tuple[Size, ...]) -> list[str]:
    heads = ("stack", "engine", "patches", "upstream files", "added", "removed", "our files", "our lines", "ours")
    rows = [
        (
            size.stack,
            size.engine,
            str(size.patches),
            str(size.upstream_files),
            str(size.added),
            str(size.removed),
            str(size.whole_files),
            str(size.whole_lines),
            "-" if size.ratio is None else f"{size.ratio:.0%}",
        )
        for size in sizes
    ]
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in (heads, *rows))
    ]


def _summary(report: Report) -> str:
    pins = [pin.engine for pin in report.pins if pin.checked]
    on = f"on the pin{'s' * (len(pins) != 1)} of {' and '.join(dict.fromkeys(pins))}" if pins else "on no pin"
    return (
        f"{_count(report.errors, 'error')}, {_count(report.warnings, 'warning')} in {_count(report.patches, 'patch')} "
        f"of {_count(len(report.stacks), 'stack')}, checked {on} in {report.seconds:.1f} s"
    )


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{number} {noun if number == 1 else plural}"
