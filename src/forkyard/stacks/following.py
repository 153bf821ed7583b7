"""What else a changed series reaches: stacks applied after it, the other engines' series, and locks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from forkyard.cache import Cache
from forkyard.errors import ForkyardError, PatchError, UsageError
from forkyard.gitstore import Store
from forkyard.gitstore.history import commits
from forkyard.gitstore.merging import merge_trees
from forkyard.journal import Changes
from forkyard.locks import hold
from forkyard.nextsteps import command
from forkyard.recipes import Recipe, load_recipe, read_lock, recipe_names
from forkyard.sources import Obtained, recorded
from forkyard.stacks.applying import apply_stacks
from forkyard.stacks.exporting import Exported, export_commits
from forkyard.stacks.importing import Home, home, import_series, recipe_for, recipe_option
from forkyard.stacks.model import Stack, load_stack, load_stacks, stack_names
from forkyard.stacks.writing import overlaid, series_changes, sources_of, unused_files


@dataclass(frozen=True)
class Follower:
    """A stack that was exported again because one before it changed."""

    stack: str
    patches: tuple[str, ...]
    """Those whose bytes changed."""


def carry_followers(
    store: Store, root: Path, place: Home, obtained: Obtained, exported: Exported, base: str, changes: Changes
) -> tuple[list[Follower], list[str]]:
    """Export the stacks that are applied after one again, on its new state; adds them to ``changes``.

    Args:
        place: of the stack that changed, as it still is in the project.
        exported: its new series.
        base: the commit it is made on.

    Returns:
        what was exported again, and notes.

    Raises:
        PatchError: one conflicts with the new state; names stack, patch and files.
    """
    stacks = [*place.before, place.stack, *place.after]
    done = apply_stacks(store, place.series, obtained.commit, obtained.date, obtained.tree, stacks)
    standing = [
        patch for patch in done.patches if patch.stack in {stack.name for stack in [*place.before, place.stack]}
    ]
    before_commit, before = (standing[-1].commit, standing[-1].tree) if standing else (done.base, obtained.tree)
    parent = exported.patches[-1].commit if exported.patches else base
    current = exported.patches[-1].tree if exported.patches else store.tree_of(base)
    followers: list[Follower] = []
    notes: list[str] = []
    if before == current:
        return followers, notes
    for stack in place.after:
        own = [patch for patch in done.patches if patch.stack == stack.name]
        facts = commits(store, f"{before_commit}..{own[-1].commit}") if own else []
        carried = []
        for patch, one in zip(own, facts, strict=True):
            merge = merge_trees(store, before, current, one.tree)
            if merge.conflicts:
                paths = "\n         ".join(f"{conflict.path} ({conflict.kind})" for conflict in merge.conflicts)
                msg = f"{stack.name}/{patch.name} conflicts with what {place.stack.name} is now; nothing was written"
                raise PatchError(
                    msg,
                    where=str(stack.folder / place.series / patch.name),
                    why=paths,
                    next_step=f"change {place.stack.name} so that they agree, or write it alone with --only:"
                    f" then {stack.name} does not apply until its own patches are put right",
                )
            if merge.tree == current and one.tree != before:
                notes.append(f"{stack.name}/{patch.name} changes nothing any more")
            carried.append(replace(one, tree=merge.tree))
            current, before = merge.tree, one.tree
        before_commit = own[-1].commit if own else before_commit
        new = export_commits(store, parent, carried, [patch.name for patch in own], whole_files=False)
        parent = new.patches[-1].commit if new.patches else parent
        series_changes(changes, root, stack, place.series, new, gone=unused_files(stack, place.series, new))
        data = {patch.name: patch.data for patch in stack.series(place.series).patches}
        different = tuple(patch.name for patch in new.patches if data[patch.name] != patch.data)
        if different:
            followers.append(Follower(stack.name, different))
        notes += [f"{stack.name}/{note}" for note in new.notes]
    return followers, notes


def prove(store: Store, root: Path, place: Home, obtained: Obtained, changes: Changes, scratch: Path) -> str:
    """Apply the recipe's stacks, and the changed one, as they will be; returns the commit after the last.

    Raises:
        PatchError: something would not apply exactly; nothing was written.
    """
    with overlaid(root, changes, scratch) as copy:
        recipe = place.recipe
        stacks = load_stacks(copy, recipe.stacks, recipe.series)
        if place.stack.name not in recipe.stacks:
            before = [load_stack(copy, stack.name) for stack in place.before]
            stacks = [*before, load_stack(copy, place.stack.name)]
        try:
            return apply_stacks(store, recipe.series, obtained.commit, obtained.date, obtained.tree, stacks).commit
        except PatchError as error:
            raise PatchError(
                f"{error.what}; nothing was written",
                where=(error.where or "").replace(str(copy), str(root)) or None,
                why=error.why,
                next_step="put that stack right first, or write this one alone with --only",
            ) from error


def dependents(root: Path, place: Home) -> list[str]:
    """Stacks outside the recipe whose patches are made on this one."""
    inside = {place.stack.name, *place.recipe.stacks}
    found = []
    for name in stack_names(root):
        if name in inside or place.series not in load_stack(root, name).about.engines:
            continue
        if place.stack.name in (stack.name for stack in home(root, place.recipe, name).before):
            found.append(name)
    return found


def check_other_engines(
    root: Path, cache: Cache, stack: Stack, series: str, changes: Changes
) -> tuple[list[str], list[str]]:
    """See that other engines' series still apply with whole files that changed.

    Returns:
        engines that were checked, and notes about those that could not be.

    Raises:
        PatchError: one does not apply any more.
    """
    src = stack.src.relative_to(root).as_posix() + "/"
    touched = {path.removeprefix(src) for path in changes.effective(root).paths if path.startswith(src)}
    checked: list[str] = []
    notes: list[str] = []
    for engine in stack.about.engines:
        shared = sorted(touched & sources_of(stack, engine)) if engine != series else []
        if not shared:
            continue
        notes.append(f"{engine} adds {', '.join(shared)} as well and gets the new content")
        try:
            recipe = recipe_for(root, engine)
        except UsageError as error:
            check = command("stack", "export", stack.name, engine=engine, check=True)
            notes.append(f"{engine} also adds {', '.join(shared)} and was not checked: {error.what}; run `{check}`")
            continue
        named = {"engine": recipe.family, "recipe": recipe_option(root, recipe)}
        obtained = recorded(recipe, cache)
        store = Store(cache.store(recipe.family))
        if obtained is None or not store.has(obtained.tree, "tree"):
            check = command("stack", "export", stack.name, **named, check=True)
            notes.append(
                f"{engine} also adds {', '.join(shared)} and was not checked: its pin is not here; run `{check}`"
            )
            continue
        with hold(cache.locks / f"store-{recipe.family}.lock"), overlaid(root, changes, cache.scratch) as copy:
            try:
                import_series(store, home(copy, load_recipe(recipe.name, copy), stack.name), obtained)
            except ForkyardError as error:
                msg = f"{stack.name} would not apply to {engine} any more; nothing was written"
                raise PatchError(
                    msg,
                    where=(error.where or "").replace(str(copy), str(root)) or None,
                    why=f"it also adds {', '.join(shared)}: {error.what}",
                    next_step=f"keep what a later patch for {engine} changes there, or use --only and put it right with"
                    f" `{command('stack', 'edit', stack.name, **named)}`",
                ) from error
        checked.append(engine)
    return checked, notes


def stale_locks(root: Path, changes: Changes) -> list[Recipe]:
    """Recipes whose lock some changes make out of date."""
    found = []
    for name in recipe_names(root):
        recipe = load_recipe(name, root)
        if not recipe.lock_path().is_file():
            continue
        lock = read_lock(recipe.lock_path())
        held = {f"patches/{stack.name}/{file.path}" for stack in lock.stacks for file in (*stack.patches, *stack.files)}
        series = {f"patches/{stack}/{recipe.series}/series" for stack in recipe.stacks}
        new = {f"patches/{stack}/{recipe.series}/" for stack in recipe.stacks}
        paths = changes.effective(root).paths
        if any(path in held or path in series or path.startswith(tuple(new)) for path in paths):
            found.append(recipe)
    return found
