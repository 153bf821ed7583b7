"""Rules about stack.toml: that a stack says how it is tested, measured and reported, and which work it answers."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from forkyard.linting.model import Finding, Level
from forkyard.linting.subject import Case, shown
from forkyard.recipes.toml_positions import positions
from forkyard.stacks import Stack

_FIXES = "fixes"
"""The stack that mends faults: it adds no capability."""


class _About:
    """One stack.toml, for findings at its keys."""

    def __init__(self, root: Path, stack: Stack) -> None:
        self.root, self.stack = root, stack
        path = stack.folder / "stack.toml"
        self._file = shown(root, path)
        self._lines = positions(path.read_text(encoding="utf-8"))

    def finding(
        self,
        rule: str,
        level: Level,
        key: Sequence[str | int],
        what: str,
        why: str,
        step: str,
        engine: str | None = None,
    ) -> Finding:
        place = tuple(key)
        line = self._lines.get(place) or self._lines.get(place[:1]) or 1
        return Finding(rule, level, self.stack.name, engine, None, self._file, line, what, why, step)


def check(root: Path, stack: Stack, others: Mapping[str, Stack]) -> Iterator[Finding]:
    """All findings about what a stack says of itself.

    Args:
        others: every stack of the project, by name.
    """
    about, file = stack.about, _About(root, stack)
    yield from _tests(root, stack, file)
    if not about.measure.strip():
        yield file.finding(
            "measure",
            "error",
            ["measure"],
            "the stack does not say how its effect is measured",
            "without a figure nobody can tell whether a rebase kept it",
            "name the command and the figure in `measure`",
        )
    if about.capability is None and stack.name != _FIXES:
        yield file.finding(
            "capability",
            "error",
            ["capability"],
            "the stack adds no capability",
            "the bindings could not tell a payload that has it from one that has not",
            "name what they report in `capability`",
        )
    for number, address in enumerate(about.answers):
        if not _is_url(address):
            yield file.finding(
                "answers",
                "error",
                ["answers", number],
                f"{address[:80]!r} is no address",
                "the public work a stack answers is cited so that anybody can read it",
                "write its URL, with https://",
            )
    yield from _relations(stack, others, file)


def check_headers(case: Case) -> Iterator[Finding]:
    """Headers of the stack's C API that its series for an engine does not bring."""
    if any(patch.trailers is None for patch in case.patches):
        # What such a patch adds is not known, and it is a finding already.
        return
    brought = {own.target for own in case.whole}
    for number, header in enumerate(case.stack.about.headers):
        if header in brought:
            continue
        near = difflib.get_close_matches(header, brought, n=1)
        yield _About(case.root, case.stack).finding(
            "headers",
            "error",
            ["headers", number],
            f"no patch for {case.engine} adds the header {header}",
            "a payload's bindings would lack the stack's functions, so it is not built",
            f"did you mean {near[0]}?" if near else "name it in an Adds-Files trailer of a patch, or correct the path",
            case.engine,
        )


def check_series(case: Case) -> Iterator[Finding]:
    """An engine that the stack is for, and that has no patch."""
    if not case.patches:
        listing = case.stack.folder / case.engine / "series"
        yield case.finding(
            "empty-series",
            "warning",
            listing,
            f"the stack is for {case.engine} and has no patch for it",
            "a recipe that names the stack would get nothing",
            "list a patch, or take the engine out of stack.toml",
        )


def _tests(root: Path, stack: Stack, file: _About) -> Iterator[Finding]:
    if not any(path.strip() for path in stack.about.test):
        yield file.finding(
            "test",
            "error",
            ["test"],
            "the stack has no test",
            "what nothing tests is lost at the next rebase without anybody noticing",
            "name the test files in `test`",
        )
    for number, path in enumerate(stack.about.test):
        # A single test may be named, as pytest does.
        target = root / path.split("::", 1)[0]
        if not path.strip() or not _is_inside(root, target) or not target.exists():
            yield file.finding(
                "test",
                "error",
                ["test", number],
                f"there is no test {path[:80]!r}",
                "the path starts at the project's folder, and nothing is there",
                "correct the path",
            )


def _is_inside(root: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError):
        return False


def _is_url(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and "." in parts.netloc and not any(map(str.isspace, address))


def _relations(stack: Stack, others: Mapping[str, Stack], file: _About) -> Iterator[Finding]:
    about = stack.about
    for key, names in (("requires", about.requires), ("conflicts", about.conflicts)):
        for number, name in enumerate(names):
            if name == stack.name or name not in others:
                yield file.finding(
                    key,
                    "error",
                    [key, number],
                    f"`{key}` names the stack itself" if name == stack.name else f"there is no stack {name[:80]!r}",
                    f"the other stacks are {', '.join(sorted(others.keys() - {stack.name})) or 'none'}",
                    "correct the name",
                )
            elif key == "requires" and (others[name].about.order, name) > (about.order, stack.name):
                yield file.finding(
                    "requires",
                    "error",
                    [key, number],
                    f"{name} is required, but applies later",
                    f"its order is {others[name].about.order}, this stack's is {about.order}",
                    "give this stack the higher `order`",
                )
    same = sorted(name for name, other in others.items() if other.about.order == about.order and name != stack.name)
    if same:
        yield file.finding(
            "order",
            "warning",
            ["order"],
            f"{', '.join(same)} {'has' if len(same) == 1 else 'have'} the same order, {about.order}",
            "the names decide then, and renaming a stack changes every tree",
            "give each stack an `order` of its own",
        )
