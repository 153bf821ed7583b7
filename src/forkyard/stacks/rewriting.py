"""Taking a new state of a series into the project: everything it reaches is worked out first, then written as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from forkyard.cache import Cache
from forkyard.errors import UsageError
from forkyard.gitstore import Store
from forkyard.gitstore.history import CommitFacts, commits
from forkyard.gitstore.patching import steps
from forkyard.journal import Changes, commit_changes
from forkyard.nextsteps import command
from forkyard.sources import Obtained
from forkyard.stacks.comparing import PatchOutcome, compare_series
from forkyard.stacks.editing import Side, Work, read_work, restored, settle, side_of
from forkyard.stacks.exporting import Exported, OldPatch, export_commits, match_names
from forkyard.stacks.folding import fold
from forkyard.stacks.following import Follower, carry_followers, check_other_engines, dependents, prove, stale_locks
from forkyard.stacks.importing import Home, Imported, import_loosely
from forkyard.stacks.patchfile import parse_trailers
from forkyard.stacks.writing import series_changes, unused_files


@dataclass(frozen=True)
class Ground:
    """What everything here needs: the project, and a stack at its home in the object store."""

    root: Path
    cache: Cache
    store: Store
    place: Home
    obtained: Obtained


@dataclass(frozen=True)
class Rewrite:
    """A new state of a series with all it reaches."""

    patches: tuple[PatchOutcome, ...]
    paths: tuple[str, ...]
    """Files of the project that differ from what is there; after :func:`write`, that were written or deleted."""
    followers: tuple[Follower, ...] = ()
    checked_engines: tuple[str, ...] = ()
    """Other engines that share a whole file that changed, and still apply."""
    stale: tuple[str, ...] = ()
    """Recipes whose lock is out of date with it."""
    notes: tuple[str, ...] = ()
    changes: Changes = field(default_factory=Changes, repr=False)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "patches": [patch.as_json() for patch in self.patches],
            "written": list(self.paths),
            "followers": [{"stack": one.stack, "patches": list(one.patches)} for one in self.followers],
            "checked_engines": list(self.checked_engines),
            "stale_locks": list(self.stale),
            "notes": list(self.notes),
        }


def plan_rewrite(ground: Ground, imported: Imported, exported: Exported, *, only: bool = False) -> Rewrite:
    """Work out what has to be written for a series to become the exported one; writes nothing.

    Args:
        imported: the series as it is.
        only: let stacks after it and other engines be.

    Raises:
        PatchError: a stack after it, or another engine's series, would not apply any more.
    """
    root, place, stack = ground.root, ground.place, ground.place.stack
    changes = Changes()
    gone = unused_files(stack, place.series, exported)
    series_changes(changes, root, stack, place.series, exported, gone=gone)
    data = {patch.name: patch.data for patch in stack.series(place.series).patches}
    old = {name: (one.subject, data[name]) for name, one in zip(imported.names, imported.commits, strict=True)}
    outcomes = compare_series(old, exported)
    notes = [*exported.notes]
    notes += [f"{path} is a new whole file" for path in sorted(exported.files) if not (stack.src / path).exists()]
    notes += [f"{path} is no whole file of the stack any more" for path in sorted(gone)]
    followers: list[Follower] = []
    checked: list[str] = []
    if changes.effective(root) and not only:
        if imported.exact:
            followers, more = carry_followers(
                ground.store, root, place, ground.obtained, exported, imported.base, changes
            )
            notes += more
        checked, more = check_other_engines(root, ground.cache, stack, place.series, changes)
        notes += more
        prove(ground.store, root, place, ground.obtained, changes, ground.cache.scratch)
    if changes.effective(root):
        named = {"engine": place.recipe.family, "recipe": place.named, "check": True}
        notes += [
            f"{name} is made on {stack.name}, outside the recipe: see `{command('stack', 'export', name, **named)}`"
            for name in dependents(root, place)
        ]
        if only and place.after:
            names = " ".join(one.name for one in place.after)
            notes.append(f"not looked at, and perhaps out of place now: {names}")
    effective = changes.effective(root)
    return Rewrite(
        tuple(outcomes),
        tuple(effective.paths),
        tuple(followers),
        tuple(checked),
        tuple(recipe.name for recipe in stale_locks(root, effective)),
        tuple(notes),
        effective,
    )


def write(ground: Ground, rewrite: Rewrite) -> None:
    """Write it, all or nothing; the caller holds the project's lock.

    Raises:
        StorageError: no space or permission; nothing has changed then.
    """
    commit_changes(ground.root, rewrite.changes)


def reexport(ground: Ground, imported: Imported, commits: Sequence[CommitFacts] | None = None) -> Exported:
    """The series of some commits, or of those that were imported, each patch under the name it had.

    A file that a patch adds in its diff stays there; one that is new becomes a whole file of ours.
    """
    chain = imported.commits if commits is None else commits
    old = [
        OldPatch(name, one.subject, one.author.email, one.author.date)
        for name, one in zip(imported.names, imported.commits, strict=True)
    ]
    names = list(imported.names) if commits is None else match_names(old, chain)
    return export_commits(ground.store, imported.base, chain, names, inline=_inline(ground.store, imported))


def _inline(store: Store, imported: Imported) -> dict[str, set[str]]:
    """Files that patches add in their diffs, without naming them in a trailer."""
    trees = [imported.base_tree, *(one.tree for one in imported.commits)]
    found = {}
    for name, one, step in zip(imported.names, imported.commits, steps(store, trees), strict=True):
        declared = {file.target for file in parse_trailers(one.message, name).adds_files}
        found[name] = {entry.path for entry in step.added} - declared
    return found


def refresh(ground: Ground, path: Path, *, folded: bool = False, only: bool = False) -> Rewrite:
    """Write the commits of an edit back to the project; the caller holds the project's lock and the store's.

    Args:
        path: the edit's folder.
        folded: later edits of whole files go into the commit that adds them.
        only: see :func:`plan_rewrite`.

    Raises:
        UsageError: the edit is in no state to be taken over, or the series changed meanwhile.
        PatchError: a commit that cannot be a patch, or a stack that would not apply any more; nothing was written.
        StorageError: no space or permission; nothing was written.
    """
    work = read_work(path, ground.place)
    imported = import_loosely(ground.store, ground.place, ground.obtained)
    side = side_of(ground.store, ground.obtained, imported)
    if side.base != work.base:
        raise _moved(ground.place, "what the stack is made on (its pin, or a stack before it) is another by now")
    chain = _commits(ground, work, side)
    notes: list[str] = []
    if folded:
        chain, notes = fold(ground.store, imported.base_tree, chain)
    exported = reexport(ground, imported, chain)
    tip = exported.patches[-1].commit if exported.patches else imported.base
    # Where the project has these very patches already, an earlier refresh was cut off before it could note so.
    if side.tip != work.imported and (tip != imported.tip or exported.names != imported.names):
        raise _moved(ground.place, "the series, or a whole file of it, was changed in the project")
    rewrite = plan_rewrite(ground, imported, exported, only=only)
    write(ground, rewrite)
    new = Imported(imported.base, imported.base_tree, (), exported.names)
    if exported.patches:
        made = tuple(commits(ground.store, f"{imported.base}..{tip}"))
        new = Imported(imported.base, imported.base_tree, made, exported.names)
    after = side_of(ground.store, ground.obtained, new)
    settle(work, ground.store, after, move=after.tip if folded else None)
    return replace(rewrite, notes=(*notes, *rewrite.notes))


def _commits(ground: Ground, work: Work, side: Side) -> list[CommitFacts]:
    """The person's commits, in the store, with what the source did not deliver."""
    if work.head == work.base:
        return []
    ground.store.take(work.repository.path, work.head)
    return restored(ground.store, commits(ground.store, f"{work.base}..{work.head}"), side.absent)


def _moved(place: Home, why: str) -> UsageError:
    again = place.command("edit")
    return UsageError(
        f"{place.stack.name} has changed since its edit began; nothing was written",
        why=why,
        next_step=f"`{again}` brings the new state into the edit and says how to go on from there",
    )
