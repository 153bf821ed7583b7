"""Choosing other stacks than a recipe's: each patch carried over from where it is exact to where it is wanted.

A patch is exact in one place, its stack's *home*: after the stacks that come before it in the recipe, or, for a stack
the recipe does not name, after those it requires. Anywhere else its line numbers and object ids may be others. There it
is applied as a three-way merge with its home as the base, which is clean or an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from forkyard.errors import PatchError, RecipeError
from forkyard.gitstore import Store
from forkyard.gitstore.merging import merge_trees
from forkyard.stacks.applying import AppliedPatch, Chain, PatchedTree, base_commit
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
    wanted = required_by([stack], known) - {stack.name}
    return [one for one in known if one.name in wanted]


def required_by(stacks: Sequence[Stack], known: Sequence[Stack]) -> set[str]:
    """Names of the stacks that some stacks require, directly or not, as far as they are among ``known``."""
    by_name = {one.name: one for one in known}
    wanted: set[str] = set()
    todo = [name for stack in stacks for name in stack.about.requires]
    while todo:
        name = todo.pop()
        if name not in wanted and name in by_name:
            wanted.add(name)
            todo += by_name[name].about.requires
    return wanted


def at_home(usual: Sequence[Stack], chosen: Sequence[Stack]) -> bool:
    """Whether every one of the chosen stacks stands where its patches are exact."""
    return all(_names(home_of(stack, usual, chosen)) == _names(chosen[:number]) for number, stack in enumerate(chosen))


def missing_homes(usual: Sequence[Stack], chosen: Sequence[Stack]) -> list[Stack]:
    """The recipe's stacks that are not chosen, but stand before one that is: where chosen patches are carried from."""
    names, here = _names(usual), set(_names(chosen))
    last = max((names.index(name) for name in here if name in names), default=-1)
    return [stack for stack in usual[: last + 1] if stack.name not in here]


def combine_stacks(
    store: Store,
    engine: str,
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
        RecipeError: stacks require each other.
    """
    base = base_commit(store, engine, pin, date, tree)
    ground = PatchedTree(base, base, tree)
    return _Combining(store, engine, ground, tuple(usual), tuple(chosen)).after(tuple(chosen))


class _Combining:
    """Trees after some stacks, each made once."""

    def __init__(
        self, store: Store, engine: str, ground: PatchedTree, usual: tuple[Stack, ...], known: tuple[Stack, ...]
    ) -> None:
        self._store, self._engine, self._usual, self._known = store, engine, usual, known
        self._done: dict[tuple[str, ...], PatchedTree] = {(): ground}
        self._wanted: list[tuple[str, ...]] = []

    def after(self, stacks: tuple[Stack, ...]) -> PatchedTree:
        """The tree after these stacks in this order."""
        names = tuple(_names(stacks))
        if names in self._done:
            return self._done[names]
        if names in self._wanted:
            msg = f"stacks {' and '.join(sorted(set(names)))} require each other"
            raise RecipeError(msg, next_step="take one of them out of the other's `requires` in its stack.toml")
        self._wanted.append(names)
        *before, stack = stacks
        ground = self.after(tuple(before))
        home = tuple(home_of(stack, self._usual, self._known))
        if _names(home) == list(names[:-1]):
            done = self._exact(ground, stack)
        else:
            done = self._carried(ground, stack, self.after(home), self.after((*home, stack)))
        self._wanted.pop()
        self._done[names] = done
        return done

    def _exact(self, ground: PatchedTree, stack: Stack) -> PatchedTree:
        applied: list[AppliedPatch] = []
        added: list[WholeFile] = []
        with Chain.on(self._store, ground.commit, ground.tree) as chain:
            for patch in stack.series(self._engine).patches:
                done, new = chain.add_patch(stack, patch)
                applied.append(done)
                added += new
            chain.check_exports()
            return _grown(ground, stack, chain.commit, chain.tree, applied, added)

    def _carried(self, ground: PatchedTree, stack: Stack, home: PatchedTree, at_home: PatchedTree) -> PatchedTree:
        commit, current, before = ground.commit, ground.tree, home.tree
        data = {patch.name: patch.data for patch in stack.series(self._engine).patches}
        applied: list[AppliedPatch] = []
        for patch in at_home.patches:
            if patch.stack != stack.name:
                continue
            merge = merge_trees(self._store, before, current, patch.tree)
            if merge.conflicts:
                first = merge.conflicts[0]
                there = {one.stack for one in ground.patches}
                lacks = [name for name in home.files if name not in there]
                beyond = [name for name in ground.files if name not in home.files]
                raise _Conflict(f"{stack.name}/{patch.name}", lacks, beyond).error(
                    first.path, first.message or first.kind, stack.name
                )
            author, message, _ = self._store.mail_info(data[patch.name])
            commit, current = self._store.commit(merge.tree, commit, author, message), merge.tree
            before = patch.tree
            applied.append(replace(patch, commit=commit, tree=current))
        return _grown(ground, stack, commit, current, applied, at_home.files[stack.name])


@dataclass(frozen=True)
class _Conflict:
    """A patch that cannot be carried from its home to where it is wanted."""

    label: str
    lacks: list[str]
    """Stacks of its home that are not there."""
    beyond: list[str]
    """Stacks that are there and not at its home."""

    def error(self, where: str, why: str, stack: str) -> PatchError:
        if self.lacks:
            msg = f"{self.label} does not apply without {' and '.join(self.lacks)}"
            step = (
                f"add {' or '.join(self.lacks)} to the chosen stacks; "
                f"a stack it cannot do without belongs in {stack}'s `requires`"
            )
        else:
            msg = f"{self.label} does not apply together with {' and '.join(self.beyond) or 'the others'}"
            step = f"take one of them out, or name the other in {stack}'s `requires` and refresh it on top"
        return PatchError(msg, where=where, why=why, next_step=step)


def _grown(
    ground: PatchedTree,
    stack: Stack,
    commit: str,
    tree: str,
    applied: Sequence[AppliedPatch],
    added: Sequence[WholeFile],
) -> PatchedTree:
    return PatchedTree(
        ground.base, commit, tree, (*ground.patches, *applied), {**ground.files, stack.name: tuple(added)}
    )


def _names(stacks: Sequence[Stack]) -> list[str]:
    return [stack.name for stack in stacks]
