"""Replaying series on a new base: all patches in one run, whatever happens to each.

The series are first applied exactly on the old base. So every blob a three-way merge needs is in the store, and each
patch is carried over by what it changes and not by where its context happens to be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from forkyard.gitstore import GitFailure, Store
from forkyard.gitstore.history import CommitFacts, changed_paths, commits, is_ancestor, patch_ids, touching
from forkyard.gitstore.merging import merge_trees, standing, taken_back
from forkyard.gitstore.patching import steps
from forkyard.rebasing.carrying import Carried, carry
from forkyard.rebasing.culprits import Culprit, find_culprit
from forkyard.rebasing.resolutions import Resolutions
from forkyard.rebasing.verdicts import MERGED, Upstreamed, Verdict, judge
from forkyard.stacks.applying import AppliedPatch, PatchedTree, base_commit

CLEAN, RESOLVED, CONFLICT, DROPPED = "clean", "resolved", "conflict", "dropped"


@dataclass(frozen=True)
class Base:
    """An upstream commit that series stand on."""

    commit: str
    tree: str
    date: str


@dataclass(frozen=True)
class Outcome:
    """What became of one patch."""

    stack: str
    name: str
    subject: str
    status: str
    """``clean``, ``resolved`` (from records), ``conflict``, ``dropped`` (by a person, or nothing is left of it)."""
    verdict: Verdict
    commit: str
    """The new commit; the one before where the patch was dropped, and from the first conflict on."""
    before: str
    """Tree the patch was carried onto."""
    carried: Carried | None = None
    culprits: tuple[Culprit, ...] = ()
    follows_conflict: bool = False
    """A patch before it conflicts, so this was tried on a provisional tree."""
    follows_dropped: tuple[str, ...] = ()
    """Patches (``stack/name``) without which it conflicts: they were left out, though not all of them is upstream."""

    @property
    def key(self) -> tuple[str, str]:
        """Stack and patch name."""
        return self.stack, self.name


@dataclass(frozen=True)
class Replay:
    """A whole replay."""

    old: PatchedTree
    base: str
    """The commit made from the new base's tree."""
    outcomes: tuple[Outcome, ...]
    tree: str
    """Tree after the last patch; provisional while there are conflicts."""
    chain: tuple[tuple[str, str, CommitFacts], ...] = ()
    """Stack, patch name and new commit of every patch that is kept, in order; see :attr:`Outcome.commit`."""
    history: bool = False
    """Whether upstream's commits between the bases are known."""

    @property
    def conflicts(self) -> tuple[Outcome, ...]:
        """Patches that wait for a person."""
        return tuple(one for one in self.outcomes if one.status == CONFLICT)


def replay(
    store: Store,
    engine: str,
    old: PatchedTree,
    old_base: Base,
    new_base: Base,
    resolutions: Callable[[str], Resolutions],
    *,
    dropped: Collection[tuple[str, str]] = (),
    retire: bool = False,
    additive: bool = False,
    blame: bool = True,
    until: tuple[str, str] | None = None,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _name: None,
) -> Replay:
    """Carry every patch of ``old`` over to ``new_base``.

    Args:
        resolutions: the records of a stack.
        dropped: patches (stack, name) to leave out.
        retire: leave out patches whose verdict is that they can go, too.
        additive: see :func:`forkyard.rebasing.carrying.carry`.
        blame: look for the upstream commits that cause conflicts, where history is known.
        until: the last patch (stack, name) to look at; those after it are left out of the result.

    Raises:
        GitFailure: objects are missing.
    """
    history = _History(store, old_base.commit, new_base.commit)
    upstreamed = history.same_changes(old, old_base.tree)
    base = base_commit(store, engine, new_base.commit, new_base.date, new_base.tree)
    commit, tree, provisional = base, new_base.tree, False
    before = old_base.tree
    outcomes: list[Outcome] = []
    chain: list[tuple[str, str, CommitFacts]] = []
    left_out: list[tuple[str, str, str]] = []
    facts = {one.commit: one for one in commits(store, f"{old.base}..{old.commit}")} if old.patches else {}
    for number, patch in enumerate(old.patches):
        progress(number, len(old.patches), patch.name)
        carried = carry(store, before, tree, patch.tree, resolutions(patch.stack), additive=additive)
        change = (before, patch.tree)
        same = upstreamed.get(patch.commit)
        verdict = judge(
            store,
            patch.trailers.retire_when,
            old_base.tree,
            new_base.tree,
            empty=carried.empty,
            resolved=bool(carried.conflicts),
            upstreamed=None if same is None else history.as_it_stands(same, change, tree, empty=carried.empty),
            reachable=history.reachable,
            was_reachable=history.was_reachable,
            taken_back=partial(taken_back, store, tree=new_base.tree),
            brought=partial(history.brought, change),
        )
        unwanted = verdict.word == MERGED or (retire and verdict.retires)
        goes = carried.empty or unwanted or (patch.stack, patch.name) in dropped
        status = DROPPED if goes else carried.status
        made = facts[patch.commit]
        if not goes:
            if not provisional and status != CONFLICT:
                message = made.message.encode("utf-8", "surrogateescape")
                commit = store.commit(carried.tree, commit, made.author, message)
            chain.append((patch.stack, patch.name, replace(made, commit=commit, tree=carried.tree)))
        outcome = Outcome(
            patch.stack, patch.name, patch.subject, status, verdict, commit, tree, carried, follows_conflict=provisional
        )
        if status == CONFLICT and blame and history.known:
            outcome = replace(outcome, culprits=_culprits(store, old_base, new_base, before, patch, carried))
        if status == CONFLICT:
            outcome = replace(outcome, follows_dropped=_needed(store, left_out, carried, before, tree, patch.tree))
        elif goes and not carried.empty:
            left_out.append((f"{patch.stack}/{patch.name}", before, patch.tree))
        outcomes.append(outcome)
        provisional = provisional or status == CONFLICT
        tree = tree if goes else carried.tree
        before = patch.tree
        if (patch.stack, patch.name) == until:
            break
    progress(len(old.patches), len(old.patches), "")
    return Replay(old, base, tuple(outcomes), tree, tuple(chain), history.known)


def _needed(
    store: Store, left_out: Sequence[tuple[str, str, str]], carried: Carried, before: str, tree: str, patch: str
) -> tuple[str, ...]:
    """Of the patches that were left out (label, trees before and after), those without which a change conflicts."""
    paths = {one.path for one in carried.open}
    found = []
    for label, was, became in left_out:
        if paths & set(changed_paths(store, was, became)):
            there = carry(store, was, tree, became).tree
            if len(paths & {one.path for one in carry(store, before, there, patch).open}) < len(paths):
                found.append(label)
    return tuple(found)


def _culprits(
    store: Store, old: Base, new: Base, before: str, patch: AppliedPatch, carried: Carried
) -> tuple[Culprit, ...]:
    found = []
    for one in carried.open:
        culprit = find_culprit(store, old.commit, new.commit, one.conflict, before, patch.tree)
        if culprit is not None:
            found.append(culprit)
    return tuple(found)


class _History:
    """What is known of upstream's commits between two bases."""

    def __init__(self, store: Store, old: str, new: str) -> None:
        self._store, self._old, self._new = store, old, new
        try:
            self.known = old != new and is_ancestor(store, old, new)
        except GitFailure:
            self.known = False

    def same_changes(self, old: PatchedTree, tree: str) -> Mapping[str, str]:
        """Our commit -> the last upstream commit with the same patch id.

        Args:
            tree: of the base ``old`` stands on.
        """
        ours = [patch.commit for patch in old.patches]
        if not self.known or not ours:
            return {}
        question = ("same changes", self._old, self._new, tree, *ours)
        found: dict[str, str] = self._store.answers.ask(question, lambda: self._same_changes(old, tree))
        return found

    def _same_changes(self, old: PatchedTree, tree: str) -> dict[str, str]:
        ours = [patch.commit for patch in old.patches]
        mine = patch_ids(self._store, ours)
        trees = [tree, *(patch.tree for patch in old.patches)]
        paths = sorted({path for step in steps(self._store, trees) for path in step.changed})
        upstream = touching(self._store, self._old, self._new, paths)
        theirs = patch_ids(self._store, upstream)
        by_id = {theirs[other]: other for other in upstream if other in theirs}
        return {commit: by_id[mine[commit]] for commit in ours if mine.get(commit) in by_id}

    def as_it_stands(self, commit: str, change: tuple[str, str], tree: str, *, empty: bool) -> Upstreamed:
        """What became of a change (trees before and after it) that an upstream commit made as well.

        Args:
            tree: what it is carried onto.
            empty: carrying it left nothing.
        """
        if empty:
            return Upstreamed(commit)
        left = self._first(commit, change, lambda nothing_left: not nothing_left)
        return Upstreamed(commit, left, standing(self._store, *change, tree))

    def brought(self, change: tuple[str, str]) -> str | None:
        """The upstream commit since which carrying a change leaves nothing."""
        return self._first(self._old, change, lambda nothing_left: nothing_left) if self.known else None

    def _first(self, since: str, change: tuple[str, str], wanted: Callable[[bool], bool]) -> str | None:
        """The first commit after ``since`` from which on nothing, or something, is left of a change."""

        def nothing_left(commit: str) -> bool:
            tree = self._store.tree_of(commit)
            merge = merge_trees(self._store, change[0], tree, change[1])
            return not merge.conflicts and merge.tree == tree

        try:
            candidates = touching(self._store, since, self._new, changed_paths(self._store, *change))
            if not candidates or wanted(nothing_left(since)) or not wanted(nothing_left(candidates[-1])):
                return None
            low, high = 0, len(candidates) - 1
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if wanted(nothing_left(candidates[middle])) else (middle + 1, high)
            # History is no line, and a change may come and go.
            return candidates[low] if not wanted(nothing_left(f"{candidates[low]}^")) else None
        except GitFailure:
            return None

    def reachable(self, commit: str) -> bool | None:
        """Whether the new base contains a commit."""
        return self._contains(self._new, commit)

    def was_reachable(self, commit: str) -> bool | None:
        """Whether the old base contains a commit."""
        return self._contains(self._old, commit)

    def _contains(self, tip: str, commit: str) -> bool | None:
        if tip.startswith(commit):
            return True
        try:
            if is_ancestor(self._store, commit, tip):
                return True
        except GitFailure:
            if self._store.has(commit, "commit") or not self._store.has(tip, "commit"):
                return None
        # A shallow store may have cut off where it would be.
        return None if (self._store.path / "shallow").exists() else False
