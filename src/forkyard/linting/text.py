"""Rules about the characters of lines we write: ASCII, blanks at line ends, tabs, line ends, length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from forkyard.linting.model import Finding
from forkyard.linting.reading import DiffLine, FileDiff
from forkyard.linting.subject import Case, Place
from forkyard.linting.upstream_style import TextStyle, UpstreamStyle


@dataclass(frozen=True)
class _Rule:
    name: str
    broken: Callable[[bytes, TextStyle], bool]
    what: str
    why: str
    next: str


_RULES = (
    _Rule(
        "ascii",
        lambda line, style: not line.isascii(),
        "holds characters that are not ASCII",
        "upstream's sources are ASCII",
        "write them in ASCII, or as an escape where the program needs them",
    ),
    _Rule(
        "trailing-space",
        lambda line, style: style.trim and line.rstrip(b"\r")[-1:] in (b" ", b"\t"),
        "ends in white space",
        "upstream's .editorconfig check refuses it",
        "delete the blanks",
    ),
    _Rule(
        "indent",
        lambda line, style: style.indent == "space" and b"\t" in line,
        "holds a tab",
        "upstream's .editorconfig asks for spaces in this file",
        "write spaces, four a level",
    ),
    _Rule(
        "indent",
        lambda line, style: style.indent == "tab" and line.startswith(b" ") and bool(line.strip()),
        "is indented by spaces",
        "upstream's .editorconfig asks for tabs in this file",
        "write tabs",
    ),
    _Rule(
        "line-end",
        lambda line, style: style.line_feeds and line.endswith(b"\r"),
        "ends in a carriage return",
        "upstream's line ends are line feeds alone",
        "convert the line ends",
    ),
    _Rule(
        "line-length",
        lambda line, style: style.longest is not None and len(line) > style.longest,
        "is longer than upstream's .editorconfig allows",
        "upstream's own check refuses it",
        "break the line",
    ),
)


def check(case: Case, style: UpstreamStyle) -> Iterator[Finding]:
    """All findings about the lines a case adds, in upstream's files and in whole files of ours."""
    for patch in case.patches:
        for file in patch.text.files:
            asked = style.of_text(file.path)
            yield from _lines(patch, file.path, ((line.number, line.text) for line in file.added()), asked)
            cut = _cut(file) if asked.final_newline else None
            if cut is not None:
                yield _no_newline(patch, file.path, cut.number)
    for own in case.whole:
        # Data, not text.
        if b"\0" in own.data:
            continue
        asked = style.of_text(own.target)
        lines = own.data.split(b"\n")
        yield from _lines(own, own.target, enumerate(lines, start=1), asked)
        if asked.final_newline and lines[-1]:
            yield _no_newline(own, own.target, len(lines))


def _lines(place: Place, path: str, lines: Iterable[tuple[int, bytes]], style: TextStyle) -> Iterator[Finding]:
    """One finding a rule and file: it stands at the first line, and names some of the others."""
    broken: dict[_Rule, list[int]] = {}
    for number, line in lines:
        for rule in _RULES:
            if rule.broken(line, style):
                broken.setdefault(rule, []).append(number)
    for rule, (first, *others) in broken.items():
        listed = ", ".join(str(number) for number in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        also = f"; the same in line {listed}{more}" if others else ""
        yield place.finding(
            rule.name, "error", first, f"a line we add to {path} {rule.what}{also}", rule.why, rule.next
        )


def _cut(file: FileDiff) -> DiffLine | None:
    """The added last line without a line feed, if upstream's own last line had one or is not there."""
    for hunk in file.hunks:
        added = [line for line in hunk.lines if line.cut and line.kind == "+"]
        if added and not any(line.cut and line.kind == "-" for line in hunk.lines):
            return added[0]
    return None


def _no_newline(place: Place, path: str, line: int) -> Finding:
    return place.finding(
        "final-newline",
        "error",
        line,
        f"{path} ends without a line feed",
        "upstream's .editorconfig check refuses it",
        "end its last line",
    )
