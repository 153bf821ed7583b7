"""One rebase from its start over any number of conflicts to its end, resumable at every instant.

The project is written to once, at the end, as one change. Until then there is a record of decisions, a work tree with
the conflict that waits, and the resolutions made so far, all in folders that git ignores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from forkyard.cache import Cache, write_atomic
from forkyard.console import Reporter
from forkyard.errors import PatchError, UsageError
from forkyard.gitstore import Entry, Store
from forkyard.gitstore.work import WorkRepository
from forkyard.journal import STATE, project_lock, recover
from forkyard.rebasing.carrying import OpenConflict, resolution_of
from forkyard.rebasing.finishing import Finished, finish
from forkyard.rebasing.replaying import Base, Outcome, Replay, replay
from forkyard.rebasing.resolutions import FOLDER, Resolutions
from forkyard.rebasing.state import (
    State,
    Waiting,
    clear_state,
    none_under_way,
    read_state,
    remove_folder,
    state_folder,
    write_state,
)
from forkyard.recipes import Recipe, load_known_pins, load_recipe
from forkyard.sources import Obtained, obtain
from forkyard.sources.targets import connect_history, obtain_target, target_recipe, with_pin
from forkyard.stacks import PatchedTree, Stack, apply_stacks, load_stacks, stack_names
from forkyard.stacks.combining import combine_stacks

BUSY_S = 5.0
"""How long a rebase waits for another one of the same project before it says so."""


@dataclass(frozen=True)
class Rebased:
    """Where a rebase stands after a command."""

    recipe: Recipe
    target: Recipe
    state: State
    replay: Replay
    stacks: tuple[Stack, ...]
    finished: Finished | None = None
    """What was written; ``None`` while there are conflicts, and after a dry run."""
    worktree: Path | None = None
    """Where the conflict that waits is to be resolved."""
    notes: tuple[str, ...] = field(default=())


class Session:
    """The rebase of one recipe in one project.

    Args:
        root: the project.
        ref: the recipe's name or path.
    """

    def __init__(self, root: Path, ref: str, cache: Cache, reporter: Reporter) -> None:
        recover(root)
        self._root, self._cache, self._reporter = root, cache, reporter
        self._recipe = load_recipe(ref, root, stacks=stack_names(root))
        self._store = Store(cache.store(self._recipe.family))

    @property
    def worktree(self) -> Path:
        """Where conflicts are shown."""
        return self._root / "work" / f"rebase-{self._recipe.name}"

    @property
    def folder(self) -> Path:
        """Where state and report lie."""
        return state_folder(self._root, self._recipe.name)

    # -- what the commands do ------------------------------------------------------------------------

    def start(
        self,
        to: str,
        *,
        stacks: Sequence[str] = (),
        source: str | None = None,
        offline: bool = False,
        retire: bool = False,
        dry_run: bool = False,
        out: Path | None = None,
    ) -> Rebased:
        """Replay everything on another commit; write it if nothing conflicts, else show the first conflict.

        Args:
            to: see :func:`forkyard.sources.targets.target_recipe`.
            stacks: only these; the recipe's pin then stays where it is and ``out`` gets the patches.
            retire: leave out patches that upstream has in another form or has superseded.
            dry_run: only tell; neither files nor state change.

        Raises:
            UsageError: a rebase is under way already, or stacks were chosen without ``out``.
            BusyError: another forkyard is rebasing.
            ForkyardError: sources and patches, as said there.
        """
        with project_lock(self._root, timeout_s=BUSY_S):
            if not dry_run and read_state(self._root, self._recipe.name) is not None:
                msg = f"a rebase of {self._recipe.name} is under way"
                raise UsageError(
                    msg,
                    where=str(self.folder),
                    next_step=f"`forkyard rebase {self._recipe.name} --continue`, or --abort to give it up",
                )
            options = {"source": source, "offline": offline}
            target = target_recipe(self._recipe, to, self._root, self._cache, self._reporter, **options)  # type: ignore[arg-type]
            chosen = self._stacks(stacks)
            whole = [stack.name for stack in chosen] == [stack.name for stack in self._stacks(())]
            old = obtain(self._recipe, self._cache, self._reporter, offline=offline)
            new = obtain_target(target, self._cache, self._reporter, source=source, offline=offline)
            state = State(
                recipe=self._recipe.name,
                old=_base(old),
                new=_base(new),
                stacks=tuple(stack.name for stack in chosen),
                whole=whole,
                series=_digest(chosen, self._recipe.family),
                source=source,
                offline=offline,
                retire=retire,
            )
            if not dry_run:
                remove_folder(self.worktree)
            return self._go_on(state, target, old, dry_run=dry_run, out=out)

    def resume(self, *, skip: bool = False, out: Path | None = None) -> Rebased:
        """Take over what a person resolved, and go on to the next conflict or the end.

        Args:
            skip: leave the patch that waits out of its series instead.

        Raises:
            UsageError: there is nothing to resume, or the conflict is not resolved.
            PatchError: the stacks were changed meanwhile.
        """
        with project_lock(self._root, timeout_s=BUSY_S):
            state = self._under_way()
            if state.new.commit == self._recipe.pin.commit and state.whole:
                # Killed after everything was written: only the record was left.
                self._forget()
                msg = f"the rebase of {self._recipe.name} is done already"
                raise UsageError(msg, next_step="look at `git status`")
            target = self._target(state)
            old = obtain(self._recipe, self._cache, self._reporter, offline=state.offline)
            if _digest(self._stacks(state.stacks), self._recipe.family) != state.series:
                msg = "the stacks were changed since the rebase began"
                raise PatchError(
                    msg,
                    where=str(self._root / "patches"),
                    next_step=f"put them back, or `forkyard rebase {state.recipe} --abort` and start again: "
                    "resolutions made so far are kept and used",
                )
            if state.waiting is not None:
                waiting = state.waiting
                if skip:
                    state = state.with_dropped(waiting.stack, waiting.patch)
                else:
                    self._take_resolution(state, waiting, target, old)
                    state = state.with_waiting(None)
                # The resolution is recorded: from here on a kill costs nothing.
                remove_folder(self.worktree)
                write_state(self._root, state)
            elif skip:
                msg = "no patch waits to be skipped"
                raise UsageError(msg, next_step=f"`forkyard rebase {state.recipe} --continue`")
            return self._go_on(state, target, old, dry_run=False, out=out)

    def abort(self) -> State:
        """Give the rebase up; the project is as it was, and resolutions made so far are kept for the next time."""
        with project_lock(self._root, timeout_s=BUSY_S):
            try:
                state = self._under_way()
            finally:
                self._forget()
            return state

    def status(self) -> State:
        """The rebase under way."""
        return self._under_way()

    # -- its parts -----------------------------------------------------------------------------------

    def _under_way(self) -> State:
        state = read_state(self._root, self._recipe.name)
        if state is None:
            raise none_under_way(self._recipe.name)
        return state

    def _forget(self) -> None:
        remove_folder(self.worktree)
        clear_state(self._root, self._recipe.name)

    def _stacks(self, names: Sequence[str]) -> list[Stack]:
        return load_stacks(self._root, names or self._recipe.stacks, self._recipe.family)

    def _target(self, state: State) -> Recipe:
        known = load_known_pins(self._root, self._recipe.family)
        target = with_pin(self._recipe, state.new.commit, known)
        obtain_target(target, self._cache, self._reporter, source=state.source, offline=state.offline)
        return target

    def _patched(self, old: Obtained, chosen: Sequence[Stack]) -> PatchedTree:
        usual = self._stacks(())
        facts = (self._store, self._recipe.family, old.commit, old.date, old.tree)
        if [stack.name for stack in chosen] == [stack.name for stack in usual]:
            return apply_stacks(*facts, chosen)
        return combine_stacks(*facts, usual, chosen)

    def _local_resolutions(self, stack: str) -> Path:
        return self._root / STATE / FOLDER / stack / self._recipe.family

    def _resolutions(self, stacks: Sequence[Stack]) -> dict[str, Resolutions]:
        family = self._recipe.family
        return {
            stack.name: Resolutions([self._local_resolutions(stack.name), stack.folder / family / FOLDER])
            for stack in stacks
        }

    def _replay(self, state: State, target: Recipe, old: Obtained, *, blame: bool) -> tuple[Replay, list[Stack]]:
        chosen = self._stacks(state.stacks)
        patched = self._patched(old, chosen)
        if blame and patched.patches:
            connect_history(
                self._recipe, target, self._cache, self._reporter, source=state.source, offline=state.offline
            )
        records = self._resolutions(chosen)
        with self._reporter.step(f"replaying on {state.new.commit[:12]}", "patches") as step:
            done = replay(
                self._store,
                self._recipe.family,
                patched,
                state.old,
                state.new,
                records.__getitem__,
                dropped=state.dropped,
                retire=state.retire,
                blame=blame,
                progress=step.update,
            )
        return done, chosen

    def _go_on(self, state: State, target: Recipe, old: Obtained, *, dry_run: bool, out: Path | None) -> Rebased:
        done, chosen = self._replay(state, target, old, blame=True)
        result = Rebased(self._recipe, target, state, done, tuple(chosen))
        if dry_run:
            return result
        if done.conflicts:
            first = done.conflicts[0]
            state = state.with_waiting(Waiting(first.stack, first.name, first.before, str(self.worktree)))
            # Recorded first: a work tree without a record would be taken for rubbish.
            write_state(self._root, state)
            self._show(first, done)
            return replace(result, state=state, worktree=self.worktree)
        if not state.whole and out is None:
            self._forget()
            notes = ("only some of the recipe's stacks were rebased: nothing was written; --out DIR keeps the patches",)
            return replace(result, notes=notes)
        finished = finish(
            self._store, self._root, self._cache, self._recipe, target, state, done, chosen,
            out=None if state.whole else out,
        )  # fmt: skip
        self._forget()
        return replace(result, finished=finished)

    def _show(self, outcome: Outcome, done: Replay) -> None:
        """Make the work tree in which a person resolves a patch's conflicts."""
        if WorkRepository(self.worktree).exists:
            return
        remove_folder(self.worktree)
        store, carried = self._store, outcome.carried
        assert carried is not None
        head = next((one.commit for one in _before(done, outcome)), done.base)
        old = next(one for one in done.old.patches if (one.stack, one.name) == outcome.key)
        author, _, _ = store.mail_info(self._data(outcome))
        marked = store.commit(carried.marked, head, author, f"{outcome.name} with conflicts\n".encode())
        with self._reporter.step(f"laying out the conflict of {outcome.name}"):
            self.worktree.parent.mkdir(exist_ok=True)
            refs = {"refs/forkyard/base": done.base}
            repository = WorkRepository.make(self.worktree, store, head, "rebase", refs)
            repository.bring(store, marked, old.commit)
            stages = [pair for one in carried.open for pair in _stages(one)]
            files = {one.path: store.read_file(carried.marked, one.path) for one in carried.open}
            repository.show_conflict(
                carried.marked, stages, {path: data for path, data in files.items() if data is not None}
            )

    def _data(self, outcome: Outcome) -> bytes:
        (stack,) = (one for one in self._stacks((outcome.stack,)) if one.name == outcome.stack)
        return next(one.data for one in stack.series(self._recipe.family).patches if one.name == outcome.name)

    def _take_resolution(self, state: State, waiting: Waiting, target: Recipe, old: Obtained) -> None:
        done, _ = self._replay(state, target, old, blame=False)
        outcome = next((one for one in done.outcomes if one.key == (waiting.stack, waiting.patch)), None)
        repository = WorkRepository(self.worktree)
        if outcome is None or outcome.carried is None or outcome.status != "conflict":
            # Another record, pulled in meanwhile, has resolved it.
            return
        if not repository.exists or outcome.before != waiting.onto:
            remove_folder(self.worktree)
            self._show(outcome, done)
            msg = f"the conflict of {waiting.patch} was laid out anew"
            raise UsageError(msg, where=str(self.worktree), next_step="resolve it there, then --continue again")
        if (operation := repository.operation()) is not None:
            msg = f"a {operation} of your own is unfinished in the work tree"
            raise UsageError(msg, where=str(self.worktree), next_step=f"finish or abort it: git {operation} --abort")
        commit = repository.keep_snapshot()
        self._store.take(self.worktree, commit)
        tree = self._store.tree_of(commit)
        records, left = resolution_of(
            self._store, outcome.carried, tree, waiting.patch, state.old.commit[:12], state.new.commit[:12]
        )
        unmerged = repository.unmerged()
        for one in outcome.carried.open:
            untouched = self._store.read_file(tree, one.path) == self._store.read_file(outcome.carried.marked, one.path)
            if not one.conflict.textual and one.path in unmerged and untouched:
                left.append(one.path)
        if left:
            msg = f"{waiting.patch} is not resolved: {', '.join(sorted(left))}"
            raise UsageError(
                msg,
                where=str(self.worktree),
                why="there are conflict markers, or a file that is neither added nor removed",
                next_step="edit the files (or `git rm` one), `git add` them, then --continue; "
                "--skip leaves the patch out",
            )
        for record in records:
            write_atomic(self._local_resolutions(waiting.stack) / record.file_name, record.render())


def _base(obtained: Obtained) -> Base:
    return Base(obtained.commit, obtained.tree, obtained.date)


def _before(done: Replay, outcome: Outcome) -> list[Outcome]:
    """The outcome just before one, if there is any."""
    number = [one.key for one in done.outcomes].index(outcome.key)
    return [done.outcomes[number - 1]] if number else []


def _stages(one: OpenConflict) -> list[tuple[int, Entry]]:
    """Index entries of a conflict as git numbers its sides, at the path it has in the new tree."""
    sides = enumerate((one.conflict.before, one.conflict.upstream, one.conflict.patch), start=1)
    return [(number, replace(entry, path=one.path)) for number, entry in sides if entry is not None]


def _digest(stacks: Sequence[Stack], family: str) -> str:
    """What the stacks consist of for an engine, as one digest."""
    whole = hashlib.sha256()
    for stack in stacks:
        parts = [stack.folder / "stack.toml", stack.folder / family / "series"]
        parts += [patch.path for patch in stack.series(family).patches]
        parts += sorted(path for path in stack.src.rglob("*") if path.is_file()) if stack.src.is_dir() else []
        for path in parts:
            whole.update(f"{path.relative_to(stack.folder.parent).as_posix()}\0".encode())
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()
