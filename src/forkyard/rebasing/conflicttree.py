"""The work tree in which a person resolves a conflict: there completely or not at all, and never thrown away unread."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from forkyard.cache import explained
from forkyard.errors import SourceError, UsageError
from forkyard.gitstore import Entry, Store
from forkyard.gitstore.shallow import cut_history
from forkyard.gitstore.work import WorkRepository, lend
from forkyard.rebasing.carrying import OpenConflict, resolution_of
from forkyard.rebasing.replaying import Base, Outcome, Replay
from forkyard.rebasing.resolutions import LARGEST, Resolution
from forkyard.rebasing.state import remove_folder


class ConflictTree:
    """The work tree at ``path``, for conflicts of patches in ``store``."""

    def __init__(self, path: Path, store: Store) -> None:
        self.path, self._store = path, store
        self._repository = WorkRepository(path)

    @property
    def ready(self) -> bool:
        """Whether it is there, with its conflict."""
        return self._repository.exists

    def show(self, outcome: Outcome, done: Replay, upstream: Mapping[str, str]) -> None:
        """Lay out the conflicts of a patch, unless they are.

        Args:
            upstream: commits of ours that hold upstream's trees, and upstream's own, whose history is shown.

        Raises:
            UsageError: something that is not ours lies in the way.
            StorageError: no space or permission.
        """
        if self.ready:
            return
        self._refuse_strangers()
        store, carried = self._store, outcome.carried
        assert carried is not None
        number = [one.key for one in done.outcomes].index(outcome.key)
        head = done.outcomes[number - 1].commit if number else done.base
        old = next(one for one in done.old.patches if (one.stack, one.name) == outcome.key)
        # The conflict first, the name last: without its conflict the tree would read as "take nothing of the patch".
        unfinished = self._unfinished
        with explained(f"make {self.path}"):
            self.path.parent.mkdir(exist_ok=True)
        lend([store], self.path)
        refs = {"refs/forkyard/base": done.base, "refs/forkyard/patch": old.commit}
        made = WorkRepository(unfinished)
        if not self._started_again(made, head, refs):
            remove_folder(unfinished)
            made = WorkRepository.make(unfinished, store, head, "rebase", refs, lenders=[store], upstream=upstream)
            cut_history(made, store)
        made.show_conflict(carried.marked, [pair for one in carried.open for pair in _stages(one)], {})
        with explained(f"make {self.path}"):
            os.rename(unfinished, self.path)

    @staticmethod
    def _started_again(last: WorkRepository, head: str, refs: Mapping[str, str]) -> bool:
        """Whether the work tree of the conflict before this one could be taken for it."""
        if not last.exists:
            return False
        try:
            last.start_again(head, "rebase", refs)
        except SourceError:
            # A person's own configuration or lock is in the way.
            return False
        return True

    @property
    def _unfinished(self) -> Path:
        return self.path.with_name(f".{self.path.name}.unfinished")

    def read(self, outcome: Outcome, old: Base, new: Base) -> list[Resolution]:
        """How the person resolved the conflicts of a patch; what they have there is left as it is.

        Raises:
            UsageError: something is left to do; says what.
        """
        repository, store, carried = self._repository, self._store, outcome.carried
        assert carried is not None
        if (operation := repository.operation()) is not None:
            end = "git bisect reset" if operation == "bisect" else f"git {operation} --abort"
            msg = f"a {operation} of your own is unfinished in the work tree"
            raise UsageError(msg, where=str(self.path), next_step=f"finish it, or give it up: {end}")
        commit = repository.keep_snapshot()
        store.take(self.path, commit)
        tree = store.tree_of(commit)
        records, left = resolution_of(store, carried, tree, outcome.name, old.commit[:12], new.commit[:12])
        unmerged = repository.unmerged()
        for one in carried.open:
            untouched = store.read_file(tree, one.path) == store.read_file(carried.marked, one.path)
            if not one.conflict.textual and one.path in unmerged and untouched:
                left.append(one.path)
        if left:
            msg = f"{outcome.name} is not resolved: {', '.join(sorted(left))}"
            raise UsageError(
                msg,
                where=str(self.path),
                why="there are conflict markers, or a file that is neither added nor removed",
                next_step="edit the files (or `git rm` one), `git add` them, then --continue; "
                "--skip leaves the patch out",
            )
        for record in records:
            if len(record.render()) > LARGEST:
                msg = f"the resolution of {record.path} is too large to be kept: {len(record.render()) >> 20} MiB"
                raise UsageError(
                    msg,
                    where=str(self.path),
                    why="files that do not belong to the patch are in the work tree, perhaps",
                    next_step="look at `git status` there; delete them or add them to .git/info/exclude",
                )
        return records

    def set_aside(self) -> Path | None:
        """Move it out of the way, as what lies there no longer answers the conflict; ``None`` if nothing is there."""
        # Whatever was put by belongs to a rebase that is no more, or to a conflict that was another.
        remove_folder(self._unfinished)
        if not self.path.exists():
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        lend([self._store], aside)
        with explained(f"move {self.path}"):
            os.rename(self.path, aside)
        return aside

    def put_by(self) -> None:
        """Take it away as :meth:`remove` does, and keep it to lay out the next conflict in."""
        if self.ready:
            remove_folder(self._unfinished)
            with explained(f"move {self.path}"):
                os.rename(self.path, self._unfinished)

    def remove(self) -> None:
        """Delete it, if it is ours."""
        remove_folder(self._unfinished)
        if self.ready:
            remove_folder(self.path)

    def _refuse_strangers(self) -> None:
        if self.path.exists() or self.path.is_symlink():
            msg = f"{self.path.name} is in the way: it is not the work tree of a rebase, or no longer"
            raise UsageError(
                msg,
                where=str(self.path),
                next_step="take out of it what you need, delete it, then run the same command again",
            )


def _stages(one: OpenConflict) -> list[tuple[int, Entry]]:
    """Index entries of a conflict as git numbers its sides, at the path it has in the new tree."""
    sides = enumerate((one.conflict.before, one.conflict.upstream, one.conflict.patch), start=1)
    return [(number, replace(entry, path=one.path)) for number, entry in sides if entry is not None]
