"""A lint from beginning to end: every rule on every chosen stack, on the pins that are at hand, one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from forkyard.cache import Cache
from forkyard.console import Reporter
from forkyard.errors import NetworkError, SourceError
from forkyard.gitstore import GitFailure, Store
from forkyard.gitstore.contents import read_blobs
from forkyard.gitstore.history import changed_paths, is_ancestor
from forkyard.linting import about, applying, dependencies, formatting, metadata, needless, sizes, text
from forkyard.linting.model import Finding, Pin, Report, Size
from forkyard.linting.origins import trace
from forkyard.linting.pin import PinTree
from forkyard.linting.project import Combination, Project, combinations, read_project
from forkyard.linting.remembering import Memory
from forkyard.linting.subject import Case, is_c, shown, with_owners
from forkyard.linting.upstream_style import UpstreamStyle
from forkyard.recipes import Recipe, load_recipe, recipe_names
from forkyard.recipes.lock import changed_since_lock, way_on
from forkyard.sources import obtain
from forkyard.stacks import PatchedTree


def lint(
    root: Path,
    cache: Cache,
    reporter: Reporter,
    *,
    stacks: Sequence[str] = (),
    engine: str | None = None,
    fetch: bool = False,
) -> Report:
    """Check stacks against every rule.

    Args:
        stacks: their names; none means all of the project.
        engine: look at this engine family alone.
        fetch: get pins that are not in the cache, over the network.

    Raises:
        RecipeError: a recipe is wrong, or there is no stack of a name.
        NetworkError, SourceError: with ``fetch``, no source delivered a pin.
        StorageError: the cache cannot be written.
    """
    started = time.monotonic()
    project = read_project(root, stacks)
    cases = [case for key, case in project.cases.items() if key[0] in project.chosen and engine in (None, key[1])]
    findings = [*project.faults, *_of_stacks(project, cases)]
    pins: list[Pin] = []
    measured: dict[tuple[str, str], Size] = {}
    for recipe in [load_recipe(name, root) for name in recipe_names(root)]:
        if engine not in (None, recipe.family) or not any(case.engine == recipe.series for case in cases):
            continue
        pin, problem = _obtained(recipe, root, cache, reporter, fetch=fetch)
        pins.append(Pin(recipe.name, recipe.series, recipe.pin.commit, pin is not None))
        found, faults = combinations(project, recipe)
        findings += [*problem, *faults, *_changed_since_lock(project, recipe)]
        memory = Memory(cache.root / "lint" / f"{recipe.family}.json")
        with UpstreamStyle.of(pin) as style:
            for combination in found:
                group = _cases(project, combination, recipe.series)
                findings += _of_combination(combination, group, pin, style, cache, memory)
                for case in group:
                    measured.setdefault((case.stack.name, case.engine), sizes.measure(case))
        memory.save()
    for case in cases:
        if (case.stack.name, case.engine) not in measured:
            findings += _without_recipe(case)
            measured[case.stack.name, case.engine] = sizes.measure(with_owners([case])[0])
    kept = [
        finding
        for finding in dict.fromkeys(findings)
        if finding.stack in (None, *project.chosen) and engine in (None, finding.engine or engine)
    ]
    return Report(
        tuple(sorted(_without_consequences(kept), key=_order)),
        tuple(measured[case.stack.name, case.engine] for case in cases),
        tuple(pins),
        project.chosen,
        sum(len(case.patches) for case in cases),
        time.monotonic() - started,
    )


# What makes other findings comes before them; the rest stands in the order of files.
_CAUSES = ("stack-toml", "series", "patch-file", "lock", "hunk-counts", "combination", "apply")


def _order(finding: Finding) -> tuple[str | int, ...]:
    rank = _CAUSES.index(finding.rule) if finding.rule in _CAUSES else len(_CAUSES)
    # Patches that do not apply stay in the order in which they were tried: the first may be the reason of the others.
    tried = finding.rule == "apply"
    place = () if tried else (finding.stack or "", finding.engine or "", finding.file, finding.line or 0, finding.rule)
    return (finding.level, rank, *place, *(() if tried else (finding.what,)))


def _without_consequences(findings: Sequence[Finding]) -> list[Finding]:
    """Of a patch file that is no patch only that: what the other rules say of it follows from it."""
    broken = {finding.file for finding in findings if finding.rule == "patch-file"}
    return [finding for finding in findings if finding.file not in broken or finding.rule == "patch-file"]


def _of_stacks(project: Project, cases: Sequence[Case]) -> Iterator[Finding]:
    """What no pin is needed for."""
    for name in project.chosen:
        stack = project.stacks.get(name)
        if stack is None:
            continue
        yield from about.check(project.root, stack, project.stacks)
        keys = [(name, engine) for engine in stack.about.engines]
        # A series that cannot be read might use any file.
        if all(key in project.cases for key in keys):
            yield from needless.check_unused(stack, [project.cases[key] for key in keys])
    for case in cases:
        yield from about.check_headers(case)
        yield from about.check_series(case)
        yield from applying.check_files(case)


def _changed_since_lock(project: Project, recipe: Recipe) -> Iterator[Finding]:
    for changed in changed_since_lock(recipe, project.root):
        case = project.cases.get((changed.stack, recipe.series))
        patch = next((one for one in case.patches if one.file == changed.path), None) if case is not None else None
        name = patch.patch.name if patch is not None else None
        yield Finding(
            "lock", "error", changed.stack, recipe.series, name, changed.path, None,
            f"it is not what the lock of {recipe.name} says", changed.why, way_on([changed]),
        )  # fmt: skip


def _obtained(
    recipe: Recipe, root: Path, cache: Cache, reporter: Reporter, *, fetch: bool
) -> tuple[PinTree | None, list[Finding]]:
    try:
        obtained = obtain(recipe, cache, reporter, offline=not fetch)
    except (NetworkError, SourceError) as error:
        if fetch:
            raise
        why = f"{error.what}; so nothing was applied, and upstream's style and files are not known"
        place = shown(root, recipe.path)
        step = "run `forkyard stack lint --fetch`"
        what = f"the pin of {recipe.name} is not in the cache"
        return None, [Finding("not-checked", "warning", None, recipe.series, None, place, None, what, why, step)]
    return PinTree(Store(cache.store(recipe.family)), recipe, obtained), []


def _cases(project: Project, combination: Combination, engine: str) -> list[Case]:
    known = [project.cases.get((stack.name, engine)) for stack in combination.stacks]
    return with_owners([case for case in known if case is not None])


def _of_combination(
    combination: Combination,
    cases: Sequence[Case],
    pin: PinTree | None,
    style: UpstreamStyle,
    cache: Cache,
    memory: Memory,
) -> Iterator[Finding]:
    fresh = [case for case in cases if case.stack.name in combination.fresh]
    ours = {own.target for case in cases for own in case.whole}
    ours |= {file.path for case in cases for patch in case.patches for file in patch.text.files if file.new}
    if pin is not None:
        # All that is going to be read, by one git.
        subjects = [c.subject for case in fresh for patch in case.patches for c in metadata.conditions(patch)]
        pin.load([*subjects, *_formatted(cases, style)])
    for case in fresh:
        yield from metadata.check(case, pin, _reachable(pin))
        yield from text.check(case, style)
        yield from needless.check(case)
        yield from dependencies.check(case, pin, ours)
    if pin is None:
        return
    if len(cases) < len(combination.stacks):
        yield from _unapplied(fresh, "the series of a stack it goes with cannot be read")
        return
    patched, failures = applying.apply(pin, cache, combination.stacks, {case.stack.name: case for case in cases})
    yield from failures
    if patched is not None:
        yield from _of_result(pin, patched, cases, combination.fresh, style, memory)
        return
    failed = {finding.stack for finding in failures}
    innocent = [case for case in fresh if case.stack.name not in failed]
    yield from _unapplied(innocent, f"patches of {', '.join(sorted(map(str, failed)))} do not apply")


def _formatted(cases: Sequence[Case], style: UpstreamStyle) -> set[str]:
    paths = {file.path for case in cases for patch in case.patches for file in patch.text.files}
    return {path for path in paths if is_c(path) and style.formats(path)}


def _unapplied(cases: Sequence[Case], why: str) -> Iterator[Finding]:
    for case in cases:
        yield case.finding(
            "not-checked",
            "warning",
            case.stack.folder / case.engine / "series",
            "what the series makes of the pin was not looked at",
            why,
            "mend that first, then run the lint again",
        )


def _of_result(
    pin: PinTree,
    patched: PatchedTree,
    cases: Sequence[Case],
    fresh: Sequence[str],
    style: UpstreamStyle,
    memory: Memory,
) -> Iterator[Finding]:
    """What only the patched tree shows."""
    before = pin.obtained.tree
    for case in cases:
        trees = [patch.tree for patch in patched.patches if patch.stack == case.stack.name]
        after = trees[-1] if trees else before
        if case.stack.name in fresh:
            yield from needless.check_result(case, set(changed_paths(pin.store, before, after)))
        before = after
    traced = trace(cases, pin, lambda path: is_c(path) and style.formats(path))
    for path, origins in traced.items():
        traced[path] = [item if item is not None and item.stack in fresh else None for item in origins]
    traced = {path: origins for path, origins in traced.items() if any(origins)}
    if traced:
        oids = {entry.path: entry.oid for entry in pin.store.entries(patched.tree) if entry.path in traced}
        blobs = read_blobs(pin.store, oids.values())
        contents = {path: blobs[oid] for path, oid in oids.items() if oid in blobs}
        yield from formatting.check(style, memory, contents, traced)


def _without_recipe(case: Case) -> Iterator[Finding]:
    """A case that no recipe and no combination reaches: only its files can be looked at."""
    with UpstreamStyle.of(None) as style:
        alone = with_owners([case])[0]
        yield from metadata.check(alone, None, _reachable(None))
        yield from text.check(alone, style)
        yield from needless.check(alone)
        yield from dependencies.check(alone, None, ())
    yield from _unapplied(
        [case], "it could be applied to no pin: no recipe has the engine, or its stacks do not combine"
    )


def _reachable(pin: PinTree | None) -> Callable[[str], bool | None]:
    """Whether the pin's history contains a commit, as far as the store knows it."""

    def ask(commit: str) -> bool | None:
        if pin is None:
            return None
        if pin.obtained.commit.startswith(commit):
            return True
        try:
            if is_ancestor(pin.store, commit, pin.obtained.commit):
                return True
        except GitFailure:
            return None
        return None if (pin.store.path / "shallow").exists() else False

    return ask
