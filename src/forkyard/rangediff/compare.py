"""Comparing two revisions of a stack: each applied where its patches are exact, or carried to another base."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from forkyard.cache import Cache
from forkyard.console import Reporter
from forkyard.errors import ForkyardError, NetworkError, PatchError, RecipeError, SourceError, UsageError
from forkyard.gitstore import Store
from forkyard.gitstore.history import commits
from forkyard.gitstore.project import ProjectRepository
from forkyard.locks import hold
from forkyard.nextsteps import command, source_word
from forkyard.rangediff.model import SHORT, Comparison, Fact, Place, differing
from forkyard.rangediff.pairing import Range, pair_up
from forkyard.rangediff.revisions import ProjectAt, Wanted, read_word
from forkyard.rebasing.carrying import carry
from forkyard.rebasing.resolutions import FOLDER, Resolutions
from forkyard.recipes import Recipe, family_of
from forkyard.sources import Obtained, obtain, recorded
from forkyard.sources.targets import obtain_target, refuse_other_engine, target_recipe
from forkyard.stacks import PatchedTree, Stack, apply_stacks, stack_names
from forkyard.stacks.applying import AppliedPatch, base_commit
from forkyard.stacks.combining import home_of


@dataclass(frozen=True)
class Choices:
    """What the command line may say besides the stack and the revisions."""

    engine: str | None = None
    recipe: str | None = None
    creation_factor: int | None = None
    """``None`` for git's usual one, raised where that makes two of one patch."""
    source: str | None = None
    offline: bool = False


def compare_revisions(
    root: Path,
    cache: Cache,
    reporter: Reporter,
    stack: str,
    old: str,
    new: str = "worktree",
    choices: Choices = Choices(),
) -> list[Comparison]:
    """Compare a stack at two revisions of the project, for every engine it has patches for at either.

    Args:
        old, new: as :func:`forkyard.rangediff.revisions.read_word` reads them.

    Raises:
        UsageError: no such revision, no repository, or an engine the stack is not for.
        RecipeError: no such stack in either, or one of them is not valid there.
        PatchError: a patch is not exact at home, or conflicts where it was to be carried.
        SourceError, NetworkError: a pin cannot be had.
    """
    project = ProjectRepository(root)
    first = read_word(old, project)
    second = read_word(new, project, usual=first)
    with ProjectAt.open(first, project, cache) as was, ProjectAt.open(second, project, cache) as now:
        stacks = was.stack(stack), now.stack(stack)
        if stacks == (None, None):
            raise _no_stack(stack, was, now)
        found, elsewhere = [], list[_ElsewhereError]()
        for engine in _engines(stack, stacks, was, now, choices):
            try:
                found.append(_compare(stack, engine, (was, stacks[0]), (now, stacks[1]), cache, reporter, choices))
            except _ElsewhereError as error:
                elsewhere.append(error)
        if not found:
            raise elsewhere[0].cause
        for other in elsewhere:
            # A commit belongs to one engine.
            reporter.note(f"{other.engine} is not compared: {other.cause.what}")
        return found


class _ElsewhereError(Exception):
    """An upstream commit that was asked for is none of an engine's."""

    def __init__(self, engine: str, cause: ForkyardError) -> None:
        super().__init__(cause.what)
        self.engine, self.cause = engine, cause


def _no_stack(name: str, was: ProjectAt, now: ProjectAt) -> RecipeError:
    known = sorted({*stack_names(was.root), *stack_names(now.root)})
    near = difflib.get_close_matches(name, known, n=1)
    places = " and ".join(dict.fromkeys((was.wanted.label, now.wanted.label)))
    msg = f"there is no stack {name!r} at {places}"
    return RecipeError(
        msg,
        why=f"stacks there: {', '.join(known) or 'none'}",
        next_step=f"did you mean {near[0]!r}?" if near else None,
    )


def _engines(name: str, stacks: Sequence[Stack | None], was: ProjectAt, now: ProjectAt, choices: Choices) -> list[str]:
    known: list[str] = list(
        dict.fromkeys(engine for stack in stacks if stack is not None for engine in stack.about.engines)
    )
    wanted = choices.engine
    if choices.recipe is not None and wanted is None:
        # It may have come, or gone, together with the stack.
        project = now if stacks[1] is not None else was
        wanted = project.series_of(choices.recipe)
    if wanted is None:
        return known
    if wanted not in known:
        msg = f"stack {name!r} has nothing for {wanted}"
        raise UsageError(msg, why=f"it is for {', '.join(known)}", next_step="name one of those with --engine")
    return [wanted]


def _compare(
    name: str,
    engine: str,
    old: tuple[ProjectAt, Stack | None],
    new: tuple[ProjectAt, Stack | None],
    cache: Cache,
    reporter: Reporter,
    choices: Choices,
) -> Comparison:
    sides = [
        (project, stack if stack is not None and engine in stack.about.engines else None)
        for project, stack in (old, new)
    ]
    ranges = [_range(project, stack, engine, cache, reporter, choices) for project, stack in sides]
    there = next(one for one in ranges if one is not None)
    places = [
        one.place if one is not None else Place(project.wanted.label, project.wanted.commit, None, None)
        for one, (project, _) in zip(ranges, sides, strict=True)
    ]
    # A stack that was not there is an empty range on any commit.
    was, now = (one or replace(there, tip=there.base, patches=()) for one in ranges)
    store = Store(cache.store(family_of(engine)))
    with reporter.step(f"comparing {name} for {engine}"), hold(cache.locks / f"store-{family_of(engine)}.lock"):
        pairs, factor = pair_up(store, was, now, choices.creation_factor)
    metadata = _metadata(old[1], new[1]) if old[1] is not None and new[1] is not None else []
    contents = [project.files(stack) if stack is not None else {} for project, stack in (old, new)]
    files = list(differing(*({path: _content(*facts) for path, facts in content.items()} for content in contents)))
    return Comparison(name, engine, places[0], places[1], pairs, tuple(metadata), tuple(files), factor)


def _metadata(old: Stack, new: Stack) -> list[Fact]:
    """What stack.toml says differently; of lists, what came and went, or the whole where only the order did."""
    one, other = old.about.model_dump(), new.about.model_dump()
    found: list[Fact] = []
    for key in one:
        was, now = one[key], other[key]
        if was == now:
            continue
        if isinstance(was, tuple) and sorted(was) != sorted(now):
            found += [Fact(key, item, None) for item in was if item not in now]
            found += [Fact(key, None, item) for item in now if item not in was]
        elif isinstance(was, tuple):
            found.append(Fact(key, ", ".join(was), ", ".join(now)))
        else:
            found.append(Fact(key, *(None if value in (None, "") else str(value) for value in (was, now))))
    return found


def _content(digest: str, executable: bool) -> str:
    return digest[:SHORT] + (" executable" if executable else "")


# -- one side ------------------------------------------------------------------------------------


def _range(
    project: ProjectAt, stack: Stack | None, engine: str, cache: Cache, reporter: Reporter, choices: Choices
) -> Range | None:
    """Apply a revision's series where it is exact; ``None`` where there is none."""
    if stack is None:
        return None
    recipe = project.recipe(engine, stack.name, choices.recipe)
    usual, known = project.before(stack, recipe)
    home = home_of(stack, usual, known)
    with project.explained():
        # A source given by hand is for what is not at hand.
        source = choices.source if recorded(recipe, cache) is None else None
        obtained = obtain(recipe, cache, reporter, source=source, offline=choices.offline)
    store = Store(cache.store(recipe.family))
    with (
        project.explained(),
        reporter.step(f"applying {stack.name} as at {project.wanted.label}"),
        hold(cache.locks / f"store-{recipe.family}.lock"),
    ):
        patched = apply_stacks(store, engine, obtained.commit, obtained.date, obtained.tree, [*home, stack])
    if project.wanted.target is None:
        return _own(project.wanted, stack, home, obtained, patched.base, patched.patches)
    target = _target(project, recipe, obtained.tree, cache, reporter, choices)
    with (
        reporter.step(f"carrying {stack.name} to {target.commit[:SHORT]}"),
        hold(cache.locks / f"store-{recipe.family}.lock"),
    ):
        source = source_word(choices.source)
        again = command("rebase", recipe.word, to=target.commit, source=source, offline=choices.offline)
        records = {one.name: Resolutions([one.folder / engine / FOLDER]) for one in (*home, stack)}
        base, carried, notes = _carry(store, engine, obtained, patched, target, again, records)
    own = _own(project.wanted, stack, home, target, base, carried)
    return replace(own, place=replace(own.place, notes=notes))


def _target(
    project: ProjectAt, recipe: Recipe, pinned: str, cache: Cache, reporter: Reporter, choices: Choices
) -> Obtained:
    assert project.wanted.target is not None
    to, source, offline = project.wanted.target, choices.source, choices.offline
    try:
        target = target_recipe(recipe, to, project.now, cache, reporter, source=source, offline=offline)
        known = recorded(target, cache)
        found = obtain_target(target, cache, reporter, source=source if known is None else None, offline=offline)
        refuse_other_engine(Store(cache.store(recipe.family)), recipe, pinned, found)
    except (RecipeError, UsageError, NetworkError, SourceError) as error:
        raise _ElsewhereError(recipe.series, error) from error
    return found


def _own(
    wanted: Wanted,
    stack: Stack,
    home: Sequence[Stack],
    pin: Obtained,
    base: str,
    applied: Sequence[AppliedPatch],
) -> Range:
    """The stack's own part of what was applied from ``base``."""
    first = next((number for number, patch in enumerate(applied) if patch.stack == stack.name), len(applied))
    own = tuple(applied[first:])
    start = applied[first - 1].commit if first else base
    after = tuple(one.name for one in home)
    place = Place(wanted.label, wanted.commit, pin.commit, pin.date, after, len(own))
    return Range(place, start, own[-1].commit if own else start, own)


def _carry(
    store: Store,
    engine: str,
    home: Obtained,
    patched: PatchedTree,
    target: Obtained,
    rebase: str,
    known: Mapping[str, Resolutions],
) -> tuple[str, list[AppliedPatch], tuple[str, ...]]:
    """The same patches on another base, by three-way merges: the base's commit, the patches, and remarks.

    Args:
        rebase: the command that resolves conflicts.
        known: the resolutions of each stack at that revision.

    Raises:
        PatchError: one conflicts there.
    """
    made = {one.commit: one for one in commits(store, f"{patched.base}..{patched.commit}")} if patched.patches else {}
    base = commit = base_commit(store, engine, target.commit, target.date, target.tree)
    before, current = home.tree, target.tree
    carried: list[AppliedPatch] = []
    notes: list[str] = []
    for patch in patched.patches:
        merge = carry(store, before, current, patch.tree, known.get(patch.stack))
        if merge.open:
            first = merge.open[0].conflict
            msg = f"{patch.stack}/{patch.name} conflicts on {target.commit[:SHORT]}"
            raise PatchError(
                msg,
                where=first.path,
                why=first.message or first.kind,
                next_step=f"run `{rebase}`, resolve it there, and compare the two revisions of the project",
            )
        if merge.conflicts:
            notes.append(f"{patch.stack}/{patch.name} conflicts there, and a record in the project resolves it")
        if merge.tree == current and patch.tree != before:
            notes.append(f"{target.commit[:SHORT]} already has all that {patch.stack}/{patch.name} does")
        facts = made[patch.commit]
        commit = store.commit(merge.tree, commit, facts.author, facts.message.encode("utf-8", "surrogateescape"))
        carried.append(replace(patch, commit=commit, tree=merge.tree))
        before, current = patch.tree, merge.tree
    return base, carried, tuple(notes)
