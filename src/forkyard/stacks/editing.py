"""An edit of a stack: an ordinary git repository with a commit for each patch, made once and never thrown away unasked.

The repository remembers in refs of its own what it was made of, so that a series or base that changes meanwhile is
noticed, and nobody's work, neither here nor in the project, is written over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from forkyard.cache import explained
from forkyard.errors import UsageError
from forkyard.gitstore import Author, Entry, GitFailure, Store
from forkyard.gitstore.history import CommitFacts, commits, is_ancestor
from forkyard.gitstore.merging import edit_tree
from forkyard.gitstore.work import WorkRepository
from forkyard.sources import Obtained
from forkyard.stacks.importing import Home, Imported
from forkyard.stacks.joining import Chain, join

BASE = "refs/forkyard/base"
"""The home commit: what the first patch is made on."""
IMPORTED = "refs/forkyard/imported"
"""The last patch as the project has it."""
REFRESHED = "refs/forkyard/refreshed"
"""The person's commit that was written back last."""
BEFORE_JOIN = "refs/forkyard/before-join"
"""The person's last commit before it was brought together with a series that had changed meanwhile."""
_NOBODY = Author("Forkyard", "forkyard@users.noreply.invalid", "2000-01-01T00:00:00+00:00")
_SHOWN = 20

State = Literal["made", "as it was", "updated", "both changed", "joined"]


def place_of(root: Path, stack: str, series: str) -> Path:
    """Where the edit of a stack for an engine is, unless the person chose another folder."""
    return root / "work" / f"{stack}-{series}"


def branch_of(stack: str) -> str:
    """The branch of an edit."""
    return f"forkyard/{stack}"


def _mark(place: Home) -> str:
    return f"refs/forkyard/of/{place.series}/{place.stack.name}"


@dataclass(frozen=True)
class Side:
    """A series as commits a person can check out: without files of the pin that its source did not deliver."""

    base: str
    tip: str
    absent: tuple[Entry, ...] = ()
    """What was left out, to be put back when commits come back."""


def side_of(store: Store, obtained: Obtained, imported: Imported) -> Side:
    """The commits of a series for a work tree; the same ids for the same series."""
    absent = tuple(store.missing_blobs(obtained.tree)) if obtained.absent else ()
    if not absent:
        return Side(imported.base, imported.tip)
    paths = [entry.path for entry in absent]
    base = store.commit(store.without(imported.base_tree, paths), None, _NOBODY, b"base, as far as it was delivered\n")
    tip = base
    for facts in imported.commits:
        tip = store.commit(store.without(facts.tree, paths), tip, facts.author, facts.message.encode())
    return Side(base, tip, absent)


def restored(store: Store, facts: Sequence[CommitFacts], absent: Sequence[Entry]) -> list[CommitFacts]:
    """Commits from a work tree, with what :func:`side_of` left out put back."""
    if not absent:
        return list(facts)
    whole = []
    for one in facts:
        there = {entry.path for entry in store.entries(one.tree)}
        back = [(entry.path, entry) for entry in absent if entry.path not in there]
        whole.append(replace(one, tree=edit_tree(store, one.tree, back)))
    return whole


@dataclass(frozen=True)
class Edit:
    """An edit as it is after :func:`edit`."""

    path: Path
    state: State
    branch: str
    base: str
    tip: str
    patches: int


def edit(
    place: Home,
    obtained: Obtained,
    store: Store,
    path: Path,
    imported: Imported,
    *,
    fresh: bool = False,
    together: bool = False,
) -> Edit:
    """Have the work tree of an edit.

    One that is there is kept. If nothing was done in it, it follows a series that changed; if both changed, it is left
    alone unless asked to bring the two together.

    Args:
        fresh: throw away what is there.
        together: where both changed, take each patch from the side that changed it.

    Raises:
        UsageError: something else is in its place, or what is there is in no state to be joined.
        PatchError: the two contradict each other.
        StorageError: no space or permission.
    """
    side = side_of(store, obtained, imported)
    branch = branch_of(place.stack.name)
    repository = WorkRepository(path)

    def done(state: State) -> Edit:
        return Edit(path, state, branch, side.base, side.tip, len(imported.commits))

    if repository.exists:
        _check_owner(repository, place)
        if not fresh:
            state = _follow(repository, store, side)
            if state == "both changed" and together:
                _join(repository, store, place, side)
                state = "joined"
            return done(state)
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        msg = f"{path.name} is there and is no edit of a stack"
        raise UsageError(msg, where=str(path), next_step="move it away, or choose another folder with --path")
    elif path.exists():
        with explained(f"make {path}"):
            path.rmdir()
    discarded = path.with_name(f".{path.name}.discarded")
    with explained("put the old edit aside"):
        shutil.rmtree(discarded, ignore_errors=True)
        if path.exists():
            os.rename(path, discarded)
    refs = {BASE: side.base, IMPORTED: side.tip, _mark(place): side.base}
    WorkRepository.make(path, store, side.tip, branch, refs)
    shutil.rmtree(discarded, ignore_errors=True)
    return done("made")


def _check_owner(repository: WorkRepository, place: Home) -> None:
    if repository.ref(_mark(place)) is None or repository.ref(BASE) is None:
        msg = f"{repository.path.name} is not an edit of {place.stack.name} for {place.series}"
        raise UsageError(
            msg, where=str(repository.path), next_step="choose another folder with --path, or move that one away"
        )


def _follow(repository: WorkRepository, store: Store, side: Side) -> State:
    """Bring an edit that is there up to the series as it is now, if nothing was done in it."""
    if (repository.ref(BASE), repository.ref(IMPORTED)) == (side.base, side.tip):
        return "as it was"
    untouched = repository.ref("HEAD") in (repository.ref(IMPORTED), repository.ref(REFRESHED), side.tip)
    if not untouched or repository.operation() is not None or repository.dirty():
        return "both changed"
    store.allow_any_fetch()
    repository.bring(store, side.tip)
    # The branch first: a kill in between leaves refs that say less than what is there, never more.
    repository.move_to(side.tip)
    repository.set_refs({BASE: side.base, IMPORTED: side.tip, REFRESHED: side.tip})
    return "updated"


def _join(repository: WorkRepository, store: Store, place: Home, side: Side) -> None:
    """Bring the person's commits together with a series that changed meanwhile; both are kept as refs."""
    work = read_work(repository.path, place)
    again = place.command("edit")
    chains = []
    for base, tip in ((work.base, work.imported), (work.base, work.head), (side.base, side.tip)):
        if tip != side.tip:
            store.take(repository.path, tip)
        facts = commits(store, f"{base}..{tip}") if base != tip else []
        chains.append(Chain(store.tree_of(base), facts))
    next_step = f"begin another edit, `{again} --path FOLDER`, and cherry-pick from this one, which stays as it is"
    tip = side.base
    old, mine, theirs = chains
    for one in join(store, old, mine, theirs, next_step):
        tip = store.commit(one.tree, tip, one.author, one.message.encode("utf-8", "surrogateescape"))
    store.allow_any_fetch()
    repository.bring(store, tip, side.tip)
    repository.set_refs({BEFORE_JOIN: work.head})
    repository.move_to(tip)
    repository.set_refs({BASE: side.base, IMPORTED: side.tip})


@dataclass(frozen=True)
class Work:
    """What a person made of an edit."""

    repository: WorkRepository
    base: str
    imported: str
    head: str


def read_work(path: Path, place: Home) -> Work:
    """The person's commits, if they can be a series.

    Raises:
        UsageError: there is no edit, or it is in no state to be taken over; says what to do.
    """
    again = place.command("edit")
    repository = WorkRepository(path)
    if not repository.exists:
        msg = f"there is no edit of {place.stack.name} for {place.series}"
        raise UsageError(msg, where=str(path), next_step=f"begin one with `{again}`")
    _check_owner(repository, place)
    operation = repository.operation()
    if operation is not None:
        msg = f"a {operation} is not finished"
        raise UsageError(
            msg, where=str(path), next_step=f"finish it (`git {operation} --continue`) or give it up, then refresh"
        )
    dirty = repository.dirty()
    if dirty:
        shown = "\n         ".join(dirty[:_SHOWN])
        more = f"\n         and {len(dirty) - _SHOWN} more" if len(dirty) > _SHOWN else ""
        msg = "there are changes that are in no commit"
        raise UsageError(
            msg, where=str(path), why=shown + more, next_step="commit them, amend a commit with them, or put them away"
        )
    try:
        head = repository.resolve("HEAD")
    except GitFailure as error:
        msg = "the edit has no commit"
        raise UsageError(msg, where=str(path), next_step=f"begin again with `{again} --fresh`") from error
    base, imported = repository.resolve(BASE), repository.resolve(IMPORTED)
    if not is_ancestor(repository, base, head):
        msg = "the commits here do not stand on the stack's base any more"
        raise UsageError(
            msg,
            where=str(path),
            why=f"{BASE} ({base[:12]}) is not an ancestor of HEAD ({head[:12]})",
            next_step=f"`git rebase --onto {BASE} UPSTREAM` puts them back, UPSTREAM being the last commit not yours",
        )
    merges = commits(repository, "--min-parents=2", f"{base}..{head}")
    if merges:
        shown = "\n         ".join(f"{one.commit[:12]} {one.subject}" for one in merges[:_SHOWN])
        msg = "a series cannot hold merges"
        raise UsageError(
            msg, where=str(path), why=shown, next_step=f"make the history straight: `git rebase {BASE}`, then refresh"
        )
    return Work(repository, base, imported, head)


def settle(work: Work, store: Store, side: Side, *, move: str | None = None) -> None:
    """Note in an edit that its commits are in the project now.

    Args:
        move: a commit with the tree that is checked out, to put the person's branch on.
    """
    store.allow_any_fetch()
    work.repository.bring(store, side.tip)
    if move is not None:
        work.repository.relabel(move, "forkyard: folded later edits of whole files")
    work.repository.set_refs({BASE: side.base, IMPORTED: side.tip, REFRESHED: move or work.head})
