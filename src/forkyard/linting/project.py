"""Everything under ``patches/`` that can be read, and what cannot; and the combinations its stacks are checked in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forkyard.errors import ForkyardError, PatchError, RecipeError
from forkyard.linting.model import Finding
from forkyard.linting.subject import Case, read_case, shown
from forkyard.recipes import Recipe
from forkyard.stacks import Stack, load_stacks, stack_names
from forkyard.stacks.model import load_stack

_PLACE = re.compile(r"^(?P<file>.+?)(?::(?P<line>\d+))?$", re.DOTALL)


@dataclass(frozen=True)
class Project:
    """The stacks of a project."""

    root: Path
    stacks: dict[str, Stack]
    """Every stack that can be read."""
    chosen: tuple[str, ...]
    """Names of those to be checked, readable or not."""
    cases: dict[tuple[str, str], Case]
    """By stack and engine, those whose series can be read."""
    faults: tuple[Finding, ...]


@dataclass(frozen=True)
class Combination:
    """Stacks that are applied together, in order."""

    stacks: tuple[Stack, ...]
    fresh: tuple[str, ...]
    """Those of the chosen ones that no combination before this one holds."""


def read_project(root: Path, chosen: Sequence[str]) -> Project:
    """Read every stack.

    Args:
        chosen: names of the stacks to be checked; none means all.

    Raises:
        RecipeError: there is no stack of a name.
    """
    known = stack_names(root)
    for name in chosen:
        if name not in known:
            load_stack(root, name)
    stacks: dict[str, Stack] = {}
    cases: dict[tuple[str, str], Case] = {}
    faults: list[Finding] = []
    for name in known:
        file = root / "patches" / name / "stack.toml"
        try:
            stacks[name] = load_stack(root, name)
        except (RecipeError, ValueError, OSError) as error:
            faults.append(fault("stack-toml", root, error, file, stack=name))
            continue
        for engine in stacks[name].about.engines:
            try:
                cases[name, engine] = read_case(root, stacks[name], engine)
            except (PatchError, ValueError, OSError) as error:
                listing = stacks[name].folder / engine / "series"
                faults.append(fault("series", root, error, listing, stack=name, engine=engine))
    return Project(root, stacks, tuple(dict.fromkeys(chosen)) or tuple(known), cases, tuple(faults))


def fault(
    rule: str, root: Path, error: Exception, file: Path, *, stack: str | None = None, engine: str | None = None
) -> Finding:
    """An exception as a finding.

    Args:
        file: where it is, unless the exception knows better.
    """
    explained = error if isinstance(error, ForkyardError) else ForkyardError("it cannot be read", why=str(error))
    place = _PLACE.match(explained.where or "")
    found = shown(root, Path(place["file"])) if place else shown(root, file)
    line = int(place["line"]) if place and place["line"] else None
    step = explained.next_step or "correct it"
    return Finding(rule, "error", stack, engine, None, found, line, explained.what, explained.why or "", step)


def combinations(project: Project, recipe: Recipe) -> tuple[list[Combination], list[Finding]]:
    """What is applied to a recipe's pin so that every chosen stack is, once.

    First the recipe's own stacks, all together; then each other stack with what it requires. Where the recipe's
    cannot stand together, each of them goes the second way.
    """
    engine = recipe.series
    chosen = [name for name in project.chosen if (name, engine) in project.cases]
    found: list[Combination] = []
    faults: list[Finding] = []
    done: set[str] = set()

    def combine(names: Sequence[str], stack: str | None) -> None:
        try:
            stacks = load_stacks(project.root, names, engine)
        except (RecipeError, ValueError, OSError) as error:
            faults.append(fault("combination", project.root, error, recipe.path, stack=stack, engine=engine))
            return
        fresh = [item.name for item in stacks if item.name in chosen and item.name not in done]
        done.update(fresh)
        found.append(Combination(tuple(stacks), tuple(fresh)))

    if any(name in chosen for name in recipe.stacks):
        combine(recipe.stacks, None)
    for name in chosen:
        if name not in done:
            combine(_closure(project, name), name)
    return found, faults


def _closure(project: Project, name: str) -> list[str]:
    """A stack and all that it requires."""
    names = [name]
    for wanted in names:
        stack = project.stacks.get(wanted)
        names += [other for other in (stack.about.requires if stack is not None else ()) if other not in names]
    return names
