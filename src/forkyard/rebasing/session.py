"""One rebase from its start over any number of conflicts to its end, resumable at every instant.

The project is written to once, at the end, as one change. Until then there is a record of decisions, a work tree with
the conflict that waits, and the resolutions made so far, all in folders that git ignores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from forkyard.cache import Cache, write_atomic
from forkyard.console import Reporter
from forkyard.errors import PatchError, RecipeError, UsageError
from forkyard.gitstore import Store
from forkyard.gitstore.project import uncommitted
from forkyard.journal import finish_changes, project_lock, recover
from forkyard.locking import refuse_changed
from forkyard.locks import hold
from forkyard.nextsteps import command
from forkyard.rebasing.conflicttree import ConflictTree
from forkyard.rebasing.finishing import Finished, finish
from forkyard.rebasing.recipefile import moved_recipe
from forkyard.rebasing.replaying import Base, Replay, replay
from forkyard.rebasing.resolutions import FOLDER, Resolutions
from forkyard.rebasing.state import (
    State,
    Waiting,
    clear_state,
    local_resolutions,
    none_under_way,
    read_state,
    series_digest,
    state_folder,
    write_state,
)
from forkyard.rebasing.undoing import Undone, undo
from forkyard.recipes import Recipe, load_known_pins, load_recipe
from forkyard.sources import Obtained, obtain, recorded
from forkyard.sources.targets import (
    connect_history,
    obtain_target,
    refuse_other_engine,
    target_recipe,
    with_pin,
)
from forkyard.stacks import PatchedTree, Stack, apply_stacks, load_stacks, stack_names
from forkyard.stacks.applying import patched_tree
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
    root: Path
    """The project."""
    finished: Finished | None = None
    """What was written; ``None`` while there are conflicts, and after a dry run."""
    worktree: Path | None = None
    """Where the conflict that waits is to be resolved."""
    notes: tuple[str, ...] = field(default=())


class AlreadyDoneError(UsageError):
    """A rebase that only its record says is under way: everything was written when it was cut off."""


class Session:
    """The rebase of one recipe in one project.

    Args:
        root: the project.
        ref: the recipe's name or path.

    Raises:
        RecipeError: there is no such recipe, or it is wrong.
    """

    def __init__(self, root: Path, ref: str, cache: Cache, reporter: Reporter) -> None:
        recover(root, reporter, timeout_s=BUSY_S)
        self._root, self._ref, self._cache, self._reporter = root, ref, cache, reporter
        self._recipe = load_recipe(ref, root, stacks=stack_names(root))
        self._store = Store(cache.store(self._recipe.family))
        self._looked = False
        """An earlier run of the rebase looked for upstream's history, and the store is still the same."""

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
        additive: bool = False,
        dry_run: bool = False,
        out: Path | None = None,
        allow_dirty: bool = False,
    ) -> Rebased:
        """Replay everything on another commit; write it if nothing conflicts, else show the first conflict.

        Args:
            to: see :func:`forkyard.sources.targets.target_recipe`.
            stacks: only these; the recipe's pin then stays where it is.
            retire: leave out patches that upstream has in another form or has superseded.
            additive: where both sides only added lines in the same places, keep both.
            dry_run: only tell; neither files nor state change.
            out: write the patches there; the project stays as it is.
            allow_dirty: also where files it writes have edits that are not committed.

        Raises:
            UsageError: a rebase is under way already, or there are such edits.
            BusyError: another forkyard is rebasing.
            ForkyardError: sources and patches, as said there.
        """
        with self._alone():
            if not dry_run:
                self._refuse_second()
            # A patch that was cut would be carried as it is, and the lock renewed over it.
            refuse_changed(self._recipe, self._root)
            place = (self._root, self._cache, self._reporter)
            target = target_recipe(self._recipe, to, *place, source=source, offline=offline)
            chosen = self._stacks(stacks)
            if not (dry_run or allow_dirty or stacks or out is not None):
                self._refuse_uncommitted(chosen)
            old = obtain(self._recipe, self._cache, self._reporter, offline=offline)
            new = obtain_target(target, self._cache, self._reporter, source=source, offline=offline)
            refuse_other_engine(self._store, self._recipe, old.tree, new)
            state = State(
                recipe=self._recipe.name,
                old=_base(old),
                new=_base(new),
                stacks=tuple(stack.name for stack in chosen),
                whole=not stacks and out is None,
                series=series_digest(chosen, self._recipe.series),
                source=source,
                offline=offline,
                retire=retire,
                additive=additive,
                out=str(out.absolute()) if out is not None else None,
            )
            if state.whole:
                # A recipe that cannot be moved is said now and not after an hour of resolving.
                moved_recipe(self._recipe, target, state.new)
            if not dry_run and (aside := self._tree.set_aside()) is not None:
                # It belongs to no rebase that is known of, but somebody made it.
                self._reporter.note(f"what was in {self.worktree} is in {aside.name} now")
            return self._go_on(state, target, old, dry_run=dry_run)

    def resume(self, *, skip: bool = False, out: Path | None = None) -> Rebased:
        """Take over what a person resolved, and go on to the next conflict or the end.

        Args:
            skip: leave the patch that waits out of its series instead.
            out: write the patches there instead of where the start said.

        Raises:
            UsageError: there is nothing to resume, or the conflict is not resolved.
            AlreadyDoneError: it was only the record that was left to delete; it is deleted.
            PatchError: the stacks were changed meanwhile.
        """
        with self._alone():
            state = self._under_way()
            if self._done(state):
                self._forget()
                raise self._already(state)
            self._refuse_changes(state)
            if out is not None:
                state = replace(state, out=str(out.absolute()), whole=False)
            with self._store_held():
                self._store.ensure()
                self._looked = self._store.answers.load(self._answers, self._git_version(), self._store.has_all)
            target = self._target(state)
            old = obtain(self._recipe, self._cache, self._reporter, offline=state.offline)
            if state.waiting is not None:
                waiting = state.waiting
                if skip:
                    state = state.with_dropped(waiting.stack, waiting.patch)
                else:
                    self._take_resolution(state, waiting, target, old)
                    state = state.with_waiting(None)
                # The resolution is recorded: from here on a kill costs nothing.
                self._tree.put_by()
                write_state(self._root, state)
            elif skip:
                msg = "no patch waits to be skipped"
                raise UsageError(msg, next_step=f"`{self._command('continue')}`")
            return self._go_on(state, target, old, dry_run=False)

    def abort(self) -> State | None:
        """Give the rebase up; the project is as it was, and resolutions made so far are kept for the next time.

        Returns:
            what it was; ``None`` if its record was damaged.

        Raises:
            UsageError: there is none.
            AlreadyDoneError: it was only the record that was left to delete; it is deleted.
        """
        with self._alone():
            try:
                state = self._under_way()
            except RecipeError:
                state = None
            self._forget()
            if state is not None and self._done(state):
                raise self._already(state)
            return state

    def undo(self) -> Undone | None:
        """Take back the rebase under way, or else the last one that was finished.

        Returns:
            what was put back; ``None`` if a rebase was under way: it has written nothing.

        Raises:
            UsageError: there is neither.
            ForkyardError: see :func:`forkyard.rebasing.undoing.undo`.
        """
        with self._alone():
            state = read_state(self._root, self._recipe.name)
            self._forget()
            if state is not None and not self._done(state):
                return None
            return undo(self._root, self._recipe.name)

    def status(self) -> State:
        """The rebase under way."""
        state = self._under_way()
        if self._done(state):
            raise self._already(state)
        return state

    def without(self, result: Rebased, patch: tuple[str, str]) -> Replay:
        """The same replay less one patch (stack, name)."""
        old = obtain(self._recipe, self._cache, self._reporter, offline=result.state.offline)
        return self._replay(result.state.with_dropped(*patch), result.target, old, blame=False)[0]

    # -- its parts -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with project_lock(self._root, timeout_s=BUSY_S):
            finish_changes(self._root, self._reporter)
            # Whoever was waited for may have moved the pin.
            self._recipe = load_recipe(self._ref, self._root, stacks=stack_names(self._root))
            yield

    def _command(self, option: str) -> str:
        return command("rebase", self._recipe.word, **{option: True})

    @property
    def _tree(self) -> ConflictTree:
        return ConflictTree(self.worktree, self._store)

    @property
    def _answers(self) -> Path:
        """What the runs of this rebase worked out, so that each does only what a resolution changes."""
        return self.folder / "answers.json"

    def _git_version(self) -> str:
        return self._store._line("version")

    def _under_way(self) -> State:
        state = read_state(self._root, self._recipe.name, self._recipe.word)
        if state is None:
            raise none_under_way(self._recipe.name, self._recipe.word)
        return state

    def _done(self, state: State) -> bool:
        """Whether everything was written, and only the record was left by a kill."""
        return state.whole and state.new.commit != state.old.commit and state.new.commit == self._recipe.pin.commit

    def _already(self, state: State) -> AlreadyDoneError:
        msg = f"the rebase of {state.recipe} to {state.new.commit[:12]} is done: everything is written"
        return AlreadyDoneError(
            msg, where=str(self._root), next_step=f"look at `git diff`; `{self._command('undo')}` undoes it"
        )

    def _refuse_second(self) -> None:
        state = read_state(self._root, self._recipe.name, self._recipe.word)
        if state is not None and self._done(state):
            self._forget()
        elif state is not None:
            msg = f"a rebase of {self._recipe.name} is under way"
            raise UsageError(
                msg,
                where=str(self.folder),
                next_step=f"`{self._command('continue')}`, or --abort to give it up",
            )

    def _refuse_uncommitted(self, stacks: Sequence[Stack]) -> None:
        """See that git can give back every file the rebase may write; others may be as they like."""
        engine = self._recipe.series
        paths = [self._recipe.path.absolute(), self._recipe.lock_path().absolute()]
        for stack in stacks:
            paths += [stack.folder / engine / "series", *(one.path for one in stack.series(engine).patches)]
            paths += [path for path in stack.src.rglob("*") if path.is_file()] if stack.src.is_dir() else []
        names = [str(path.relative_to(self._root)) if path.is_relative_to(self._root) else str(path) for path in paths]
        edited, alone = uncommitted(self._root, names)
        if edited:
            msg = "files that the rebase writes have edits that are not committed"
            raise UsageError(
                msg,
                where=str(self._root),
                why=", ".join(edited),
                next_step="commit them or put them aside first; --allow-dirty rebases them with the rest, and then git "
                "cannot take the two apart",
            )
        if alone:
            self._reporter.note("the project is not in git: it has nothing to compare with, or to go back to")

    def _refuse_changes(self, state: State) -> None:
        """See that the project is as it was when the rebase began."""
        step = f"put it back, or `{self._command('abort')}` and start again: resolutions made so far are kept and used"
        if self._recipe.pin.commit != state.old.commit:
            msg = "the recipe's pin was changed since the rebase began"
            why = f"it was {state.old.commit[:12]} and is {self._recipe.pin.commit[:12]}"
            raise RecipeError(msg, where=self._recipe.location_of("pin", "commit"), why=why, next_step=step)
        usual = [stack.name for stack in self._stacks(())]
        if state.whole and usual != list(state.stacks):
            msg = "the recipe's stacks were changed since the rebase began"
            why = f"they were {', '.join(state.stacks)} and are {', '.join(usual)}"
            raise RecipeError(msg, where=self._recipe.location_of("stacks"), why=why, next_step=step)
        if series_digest(self._stacks(state.stacks), self._recipe.series) != state.series:
            msg = "the stacks were changed since the rebase began"
            raise PatchError(msg, where=str(self._root / "patches"), next_step=step)

    def _forget(self) -> None:
        self._tree.remove()
        clear_state(self._root, self._recipe.name)

    def _stacks(self, names: Sequence[str]) -> list[Stack]:
        return load_stacks(self._root, names or self._recipe.stacks, self._recipe.series)

    def _target(self, state: State) -> Recipe:
        known = load_known_pins(self._root, self._recipe.family)
        target = with_pin(self._recipe, state.new.commit, known)
        if recorded(target, self._cache) is None or not self._store.has(state.new.tree, "tree"):
            obtain_target(target, self._cache, self._reporter, source=state.source, offline=state.offline)
        return target

    def _patched(self, old: Obtained, chosen: Sequence[Stack]) -> PatchedTree:
        """The stacks applied exactly where they are made; known already if none of it changed since the last time."""
        usual, engine = self._stacks(()), self._recipe.series
        digests = [[stack.name for stack in stacks] + [series_digest(stacks, engine)] for stacks in (usual, chosen)]
        question = ("patched", engine, old.commit, old.date, old.tree, *digests)
        return patched_tree(self._store.answers.ask(question, lambda: asdict(self._apply(old, usual, chosen))))

    def _apply(self, old: Obtained, usual: Sequence[Stack], chosen: Sequence[Stack]) -> PatchedTree:
        facts = (self._store, self._recipe.series, old.commit, old.date, old.tree)
        if [stack.name for stack in chosen] == [stack.name for stack in usual]:
            return apply_stacks(*facts, chosen)
        return combine_stacks(*facts, usual, chosen)

    @contextlib.contextmanager
    def _store_held(self) -> Iterator[None]:
        """Nobody cleans the store away meanwhile."""
        with hold(
            self._cache.locks / f"store-{self._recipe.family}.lock",
            waiting=lambda who: self._reporter.note(f"waiting for the object store (held by {who})"),
        ):
            yield

    def _local_resolutions(self, stack: str) -> Path:
        return local_resolutions(self._root, stack, self._recipe.series)

    def _resolutions(self, stacks: Sequence[Stack]) -> dict[str, Resolutions]:
        engine = self._recipe.series
        return {
            stack.name: Resolutions([self._local_resolutions(stack.name), stack.folder / engine / FOLDER])
            for stack in stacks
        }

    def _replay(
        self, state: State, target: Recipe, old: Obtained, *, blame: bool, until: tuple[str, str] | None = None
    ) -> tuple[Replay, list[Stack]]:
        chosen = self._stacks(state.stacks)
        if blame and not self._looked and any(stack.series(self._recipe.series).patches for stack in chosen):
            connect_history(
                self._recipe, target, self._cache, self._reporter, source=state.source, offline=state.offline
            )
        records = self._resolutions(chosen)
        with self._store_held(), self._reporter.step(f"replaying on {state.new.commit[:12]}", "patches") as step:
            patched = self._patched(old, chosen)
            done = replay(
                self._store,
                self._recipe.series,
                patched,
                state.old,
                state.new,
                records.__getitem__,
                dropped=state.dropped,
                retire=state.retire,
                additive=state.additive,
                blame=blame,
                until=until,
                progress=step.update,
            )
        return done, chosen

    def _go_on(self, state: State, target: Recipe, old: Obtained, *, dry_run: bool) -> Rebased:
        done, chosen = self._replay(state, target, old, blame=True)
        result = Rebased(self._recipe, target, state, done, tuple(chosen), self._root)
        if dry_run:
            return result
        if done.conflicts:
            first = done.conflicts[0]
            state = state.with_waiting(Waiting(first.stack, first.name, first.before, str(self.worktree)))
            # Recorded first: a work tree without a record would stay for ever.
            write_state(self._root, state)
            self._store.answers.save(self._answers, self._git_version())
            with self._store_held(), self._reporter.step(f"laying out the conflict of {first.name}"):
                self._tree.show(first, done, _upstream(state, done))
            return replace(result, state=state, worktree=self.worktree)
        if not state.whole and state.out is None:
            self._forget()
            notes = ("only some of the recipe's stacks were rebased: nothing was written; --out DIR keeps the patches",)
            return replace(result, notes=notes)
        if state.whole:
            # Replaying takes a while: what somebody edited meanwhile is not in it.
            self._refuse_changes(state)
        with self._store_held():
            finished = finish(
                self._store, self._root, self._cache, self._recipe, target, state, done, chosen,
                out=Path(state.out) if state.out is not None else None,
            )  # fmt: skip
        self._forget()
        if state.whole:
            self._forget_local(done)
        return replace(result, finished=finished)

    def _forget_local(self, done: Replay) -> None:
        """Delete this machine's copies of records that the project holds now."""
        for outcome in done.outcomes:
            for one in outcome.carried.conflicts if outcome.carried else ():
                if one.known is not None:
                    (self._local_resolutions(outcome.stack) / one.known.file_name).unlink(missing_ok=True)

    def _take_resolution(self, state: State, waiting: Waiting, target: Recipe, old: Obtained) -> None:
        done, _ = self._replay(state, target, old, blame=False, until=(waiting.stack, waiting.patch))
        outcome = next((one for one in done.outcomes if one.key == (waiting.stack, waiting.patch)), None)
        if outcome is None or outcome.carried is None or outcome.status != "conflict":
            # Another record, pulled in meanwhile, has resolved it.
            return
        tree = self._tree
        if not tree.ready or outcome.before != waiting.onto:
            # What the person did there may be dear to them even if it no longer answers the question.
            aside = tree.set_aside()
            write_state(self._root, state.with_waiting(replace(waiting, onto=outcome.before)))
            with self._store_held():
                tree.show(outcome, done, _upstream(state, done))
            msg = f"the conflict of {waiting.patch} was laid out anew"
            why = f"what was there is in {aside.name} now" if aside is not None else None
            raise UsageError(
                msg, where=str(self.worktree), why=why, next_step="resolve it there, then --continue again"
            )
        with self._store_held():
            records = tree.read(outcome, state.old, state.new)
        for record in records:
            write_atomic(self._local_resolutions(waiting.stack) / record.file_name, record.render())


def _upstream(state: State, done: Replay) -> dict[str, str]:
    """Commits of ours that hold upstream's trees, and the upstream commits they hold them of."""
    return {done.base: state.new.commit, done.old.base: state.old.commit}


def _base(obtained: Obtained) -> Base:
    return Base(obtained.commit, obtained.tree, obtained.date)
