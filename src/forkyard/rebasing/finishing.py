"""The end of a rebase: patches, series, resolutions, recipe and lock, proved on a copy and written as one change."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import Cache, explained, write_atomic
from forkyard.errors import PatchError
from forkyard.gitstore import Store
from forkyard.journal import Changes, commit_changes
from forkyard.locking import make_lock
from forkyard.rebasing.recipefile import moved_recipe
from forkyard.rebasing.replaying import Replay
from forkyard.rebasing.resolutions import FOLDER
from forkyard.rebasing.state import State
from forkyard.rebasing.undoing import remember
from forkyard.rebasing.wholefiles import shared_notes, with_true_trailers
from forkyard.recipes import Recipe, load_recipe
from forkyard.recipes.lock import render
from forkyard.scratch import owned_folder
from forkyard.sources import Obtained, recorded
from forkyard.stacks import Stack, apply_stacks, load_stacks
from forkyard.stacks.exporting import export_commits
from forkyard.stacks.writing import series_changes, unused_files


@dataclass(frozen=True)
class Finished:
    """What a rebase wrote."""

    paths: tuple[str, ...]
    """Files of the project, or of the output folder, that changed."""
    patched_commit: str
    out: Path | None
    notes: tuple[str, ...] = ()


def finish(
    store: Store,
    root: Path,
    cache: Cache,
    recipe: Recipe,
    target: Recipe,
    state: State,
    done: Replay,
    stacks: Sequence[Stack],
    *,
    out: Path | None,
) -> Finished:
    """Write a replay that has no conflicts.

    Args:
        out: write the patches there, laid out as in ``patches/``, and leave the project alone.

    Raises:
        PatchError: the result does not apply exactly where it should; nothing was written.
        StorageError: no space or permission; nothing was written.
    """
    assert not done.conflicts
    if out is not None:
        changes = Changes()
        notes = _series(store, changes, root, recipe, done, stacks)
        for path, data in changes.writes.items():
            target_path = out / path.removeprefix("patches/")
            write_atomic(target_path, data, mode=0o755 if path in changes.executable else 0o644)
        with explained("delete what is in no series"):
            for path in changes.deletes:
                # Of an earlier rebase to the same folder.
                (out / path.removeprefix("patches/")).unlink(missing_ok=True)
        tip = done.chain[-1][2].commit if done.chain else done.base
        return Finished(tuple(sorted(changes.writes)), tip, out, tuple(notes))
    with owned_folder(cache.scratch, "rebase-") as scratch:
        changes, commit, notes = lay_out(store, root, cache, recipe, target, state, done, stacks, scratch)
    changes = changes.effective(root)
    if changes:
        remember(root, recipe.name, state.old.commit, state.new.commit, changes)
    written = commit_changes(root, changes)
    return Finished(tuple(written), commit, None, tuple(notes))


def lay_out(
    store: Store,
    root: Path,
    cache: Cache,
    recipe: Recipe,
    target: Recipe,
    state: State,
    done: Replay,
    stacks: Sequence[Stack],
    scratch: Path,
) -> tuple[Changes, str, list[str]]:
    """A copy of the project in ``scratch`` as it is after the rebase, proved by patching the new pin with it.

    Returns:
        the changes, the patched commit, and notes for a person.

    Raises:
        PatchError: the result does not apply exactly where it should.
    """
    changes = Changes()
    notes = _series(store, changes, root, recipe, done, stacks)
    obtained = recorded(target, cache)
    assert obtained is not None, "the target was obtained before it was replayed on"
    text, moved = moved_recipe(recipe, target, state.new)
    changes.write(_below(root, recipe.path), text)
    commit = _prove(store, scratch, root, recipe, obtained, changes)
    return changes, commit, [*notes, *moved]


def _below(root: Path, path: Path) -> str:
    """A path as the journal names it; a recipe of the user's own may lie anywhere."""
    full = path.resolve()
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else str(full)


def _series(
    store: Store, changes: Changes, root: Path, recipe: Recipe, done: Replay, stacks: Sequence[Stack]
) -> list[str]:
    parent = done.base
    notes: list[str] = []
    for stack in stacks:
        kept = [(name, facts) for owner, name, facts in done.chain if owner == stack.name]
        kept, said = with_true_trailers(store, parent, kept)
        # A rebase changes where patches stand, not how they are written: what a patch adds itself, it goes on adding.
        exported = export_commits(
            store, parent, [facts for _, facts in kept], [name for name, _ in kept], whole_files=False
        )
        parent = exported.patches[-1].commit if exported.patches else parent
        gone = unused_files(stack, recipe.series, exported)
        series_changes(changes, root, stack, recipe.series, exported, gone=gone)
        notes += [*said, *exported.notes, *shared_notes(stack, recipe.series, exported)]
        folder = (stack.folder / recipe.series / FOLDER).relative_to(root).as_posix()
        for outcome in done.outcomes:
            for one in outcome.carried.conflicts if outcome.carried and outcome.stack == stack.name else ():
                if one.known is not None:
                    changes.write(f"{folder}/{one.known.file_name}", one.known.render())
    return notes


def _prove(store: Store, scratch: Path, root: Path, recipe: Recipe, obtained: Obtained, changes: Changes) -> str:
    """Apply the changes to a copy of the project and patch the new pin with it, exactly; adds the new lock.

    Returns:
        the patched commit.
    """
    with explained("copy the project"):
        for name in ("recipes", "patches"):
            shutil.copytree(root / name, scratch / name, ignore=shutil.ignore_patterns(".*"))
    for path, data in changes.writes.items():
        if not path.startswith("/"):
            write_atomic(scratch / path, data, mode=0o755 if path in changes.executable else 0o644)
    for path in changes.deletes:
        (scratch / path).unlink(missing_ok=True)
    place = _below(root, recipe.path)
    if place.startswith("/"):
        place = f"recipes/{recipe.name}.toml"
        write_atomic(scratch / place, changes.writes[_below(root, recipe.path)])
    moved = load_recipe(scratch / place, scratch)
    stacks = load_stacks(scratch, moved.stacks, moved.series)
    facts = (obtained.commit, obtained.date, obtained.tree)
    try:
        patched = apply_stacks(store, moved.series, *facts, stacks)
    except PatchError as error:
        # Not the user's doing: what was exported a moment ago must apply.
        msg = "the rebased series does not apply exactly; nothing was written"
        raise PatchError(
            msg, where=re.sub(re.escape(str(scratch)), str(root), str(error.where)), why=f"{error.what}: {error.why}",
            next_step="please report this with the patch it names",
        ) from error  # fmt: skip
    if recipe.lock_path().exists():
        lock = make_lock(moved, obtained, stacks, patched)
        changes.write(_below(root, recipe.lock_path()), render(lock).encode())
        write_atomic(scratch / Path(place).with_suffix(".lock.toml"), render(lock).encode())
    return patched.commit
