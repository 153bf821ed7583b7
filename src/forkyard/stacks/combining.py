"""Choosing other stacks than a recipe's: each patch carried over from where it is exact to where it is wanted.

A patch is exact in one place, its stack's *home*: after the stacks that come before it in the recipe, or, for a stack
the recipe does not name, after those it requires. Anywhere else its line numbers and object ids may be others. There it
is applied as a three-way merge with its home as the base, which is clean or an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from forkyard.errors import PatchError
from forkyard.gitstore import Store
from forkyard.gitstore.merging import merge_trees
from forkyard.stacks.applying import AppliedPatch, PatchedTree, apply_stacks, base_commit
from forkyard.stacks.model import Stack, WholeFile


def home_of(stack: Stack, usual: Sequence[Stack], known: Sequence[Stack]) -> list[Stack]:
    """The stacks that are applied before ``stack`` in the place where its patches are exact.

    Args:
        usual: the recipe's stacks, in order.
        known: stacks that may be required, in order.
    """
    names = [one.name for one in usual]
    if stack.name in names:
        return list(usual[: names.index(stack.name)])
    wanted: set[str] = set()
    todo = list(stack.about.requires)
    by_name = {one.name: one for one in known}
    while todo:
        name = todo.pop()
        if name not in wanted and name in by_name:
            wanted.add(name)
            todo += by_name[name].about.requires
    return [one for one in known if one.name in wanted]


def combine_stacks(
    store: Store,
    family: str,
    pin: str,
    date: str,
    tree: str,
    usual: Sequence[Stack],
    chosen: Sequence[Stack],
) -> PatchedTree:
    """Apply stacks that are not the recipe's usual ones.

    Args:
        usual: the recipe's stacks for this engine, in order.
        chosen: those to apply, in order.

    Raises:
        PatchError: a patch is not exact at home, or conflicts here.
    """
    base = base_commit(store, family, pin, date, tree)
    commit, current = base, tree
    applied: list[AppliedPatch] = []
    files: dict[str, tuple[WholeFile, ...]] = {}
    for stack in chosen:
        home = apply_stacks(store, family, pin, date, tree, [*home_of(stack, usual, chosen), stack])
        own = [patch for patch in home.patches if patch.stack == stack.name]
        before = _before(home, stack, tree)
        for patch in own:
            merge = merge_trees(store, before, current, patch.tree)
            if merge.conflicts:
                first = merge.conflicts[0]
                msg = f"{stack.name}/{patch.name} does not apply without the stacks it was made on"
                raise PatchError(
                    msg,
                    where=first.path,
                    why=first.message or first.kind,
                    next_step=f"add {_missing(home, stack, chosen)} to the chosen stacks, "
                    f"or name what it needs in {stack.name}'s `requires`",
                )
            author, message, _ = store.mail_info(_data(stack, family, patch.name))
            commit, current, before = store.commit(merge.tree, commit, author, message), merge.tree, patch.tree
            applied.append(replace(patch, commit=commit, tree=current))
        files[stack.name] = home.files[stack.name]
    return PatchedTree(base, commit, current, tuple(applied), files)


def _before(home: PatchedTree, stack: Stack, tree: str) -> str:
    earlier = [patch for patch in home.patches if patch.stack != stack.name]
    return earlier[-1].tree if earlier else tree


def _data(stack: Stack, family: str, name: str) -> bytes:
    return next(patch.data for patch in stack.series(family).patches if patch.name == name)


def _missing(home: PatchedTree, stack: Stack, chosen: Sequence[Stack]) -> str:
    here = {one.name for one in chosen}
    names = [name for name in home.files if name != stack.name and name not in here]
    return " or ".join(names) or "another stack"
