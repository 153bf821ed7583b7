"""Recipe locks: what a recipe resolved to with its default stacks, compared with what it resolves to now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from forkyard.cache import Cache
from forkyard.console import Reporter
from forkyard.errors import PatchError, RecipeError
from forkyard.nextsteps import command
from forkyard.recipes import LocalSource, Lock, Recipe, RegistrySource, Source, read_lock, write_lock
from forkyard.recipes.lock import Changed, LockedFile, LockedSource, LockedStack, changed_since_lock, verify, way_on
from forkyard.sources import Obtained, obtain
from forkyard.stacks import PatchedTree, Stack, load_stacks
from forkyard.trees import patch


def make_lock(
    recipe: Recipe, obtained: Obtained, stacks: list[Stack] | tuple[Stack, ...], patched: PatchedTree
) -> Lock:
    """The lock that describes this result."""
    locked = []
    for stack in stacks:
        series = stack.series(recipe.series)
        names = {
            file.source for item in patched.patches if item.stack == stack.name for file in item.trailers.adds_files
        }
        locked.append(
            LockedStack(
                name=stack.name,
                patches=tuple(
                    LockedFile(path=f"{recipe.series}/{item.name}", sha256=item.sha256) for item in series.patches
                ),
                files=tuple(LockedFile(path=f"src/{name}", sha256=_digest(stack, name)) for name in sorted(names)),
            )
        )
    return Lock.model_validate(
        {
            "schema": 1,
            "recipe": recipe.name,
            "family": recipe.family,
            "base-commit": obtained.commit,
            "base-tree": obtained.tree,
            "patched-commit": patched.commit,
            "patched-tree": patched.tree,
            "sources": tuple(_source(source) for source in recipe.sources if not isinstance(source, LocalSource)),
            "stacks": tuple(locked),
        }
    )


def _digest(stack: Stack, name: str) -> str:
    return hashlib.sha256(stack.whole_file(name)).hexdigest()


def _source(source: Source) -> LockedSource:
    if isinstance(source, RegistrySource):
        return LockedSource(kind="registry", location=f"{source.project}=={source.version}", sha256=source.sha256)
    assert not isinstance(source, LocalSource)
    return LockedSource(kind="git", location=source.url)


def check(
    recipe: Recipe,
    obtained: Obtained,
    stacks: tuple[Stack, ...],
    patched: PatchedTree,
    reporter: Reporter,
    *,
    strict: bool,
) -> None:
    """Compare a result with the recipe's lock.

    A recipe without a lock, or built with other stacks than its own, has nothing to compare. A patched commit that
    differs although every input is as locked is always an error: the result must be a function of the inputs.

    Raises:
        RecipeError: ``strict`` and something differs.
        PatchError: the same inputs gave another commit.
    """
    path = recipe.lock_path()
    if {stack.name for stack in stacks} != set(recipe.stacks):
        return
    if not path.exists():
        if strict:
            msg = f"{recipe.name} has no lock"
            raise RecipeError(msg, where=str(path), next_step=f"write one with `{command('lock', recipe.word)}`")
        return
    found = make_lock(recipe, obtained, stacks, patched)
    differences = verify(read_lock(path), found)
    if not differences:
        return
    why = "\n         ".join(str(difference) for difference in differences)
    if all(difference.key in ("the patched commit", "the patched tree") for difference in differences):
        msg = f"{recipe.name} patched to another commit than the lock says, from the same inputs"
        raise PatchError(
            msg, where=str(path), why=why, next_step="please report this with your git version: it must not happen"
        )
    if strict:
        msg = f"{recipe.name} is not as it was locked"
        raise RecipeError(
            msg, where=str(path), why=why, next_step=f"run `{command('lock', recipe.word)}` if the change is meant"
        )
    reporter.warn(
        f"{recipe.name} is not as it was locked\n         {why}\n"
        f"  next:  run `{command('lock', recipe.word)}` if the change is meant"
    )


def refuse_changed(recipe: Recipe, root: Path) -> None:
    """See that the patches are those of the lock, before something is made of them that renews it.

    Raises:
        RecipeError: one differs; names it.
    """
    changed = changed_since_lock(recipe, root)
    if changed:
        msg = f"{_named(changed)} not what the lock of {recipe.name} says"
        raise RecipeError(msg, where=changed[0].path, why=changed[0].why, next_step=way_on(changed))


def warn_changed(recipes: Iterable[Recipe], root: Path, reporter: Reporter) -> None:
    """Tell of patches that are not those of the locks, before anything that is made of them fails.

    Raises:
        RecipeError: a lock cannot be read.
    """
    for recipe in recipes:
        changed = changed_since_lock(recipe, root)
        if changed:
            reporter.warn(
                f"{_named(changed)} not what the lock of {recipe.name} says\n"
                f"  why:   {changed[0].why}\n  next:  {way_on(changed)}"
            )


def _named(changed: Sequence[Changed]) -> str:
    more = f" and {len(changed) - 1} more are" if len(changed) > 1 else " is"
    return changed[0].path + more


def lock_recipe(
    recipe: Recipe, root: Path, cache: Cache, reporter: Reporter, *, check_only: bool, offline: bool = False
) -> bool:
    """Write the recipe's lock, or with ``check_only`` compare it.

    Returns:
        whether the file was changed.

    Raises:
        RecipeError: ``check_only`` and it differs.
    """
    obtained = obtain(recipe, cache, reporter, offline=offline)
    stacks = tuple(load_stacks(root, recipe.stacks, recipe.series))
    patched = patch(recipe, obtained, stacks, cache)
    if check_only:
        check(recipe, obtained, stacks, patched, reporter, strict=True)
        return False
    return write_lock(make_lock(recipe, obtained, stacks, patched), recipe.lock_path())
