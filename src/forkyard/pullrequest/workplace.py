"""The folder a person works in: an ordinary repository with the branch, which forkyard never changes once they did."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkyard.cache import explained
from forkyard.errors import SourceError
from forkyard.gitstore import Store
from forkyard.gitstore.history import commits
from forkyard.gitstore.running import GitFailure
from forkyard.gitstore.shallow import cut_history
from forkyard.gitstore.work import WorkRepository
from forkyard.locks import hold
from forkyard.pullrequest.branch import Prepared
from forkyard.pullrequest.policy import MARKER

_RECORD = "refs/forkyard/"
"""Refs that say what was prepared; they are there from the moment the folder is."""


@dataclass(frozen=True)
class Workplace:
    """The repository, and how far it is from what was prepared."""

    folder: Path
    branch: str
    fresh: bool
    """Whether this run made it."""
    touched: bool
    """Whether a person has committed or changed something."""
    same_tree: bool
    """Whether the branch still has the prepared tree, so that the evidence is about it."""
    markers: tuple[str, ...]
    """Commits whose message a person has still to write: the first lines."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "folder": str(self.folder),
            "name": self.branch,
            "made_now": self.fresh,
            "changed_by_a_person": self.touched,
            "tree_as_prepared": self.same_tree,
            "messages_to_write": list(self.markers),
        }


def workplace_path(root: Path, stack: str, engine: str) -> Path:
    """Where the branch of a stack for an engine is put."""
    return root / "work" / f"pr-{stack}-{engine}"


def place_branch(root: Path, engine: str, store: Store, prepared: Prepared) -> Workplace:
    """Have the prepared branch in its folder.

    A folder that nobody touched is made anew when the branch has changed; one that somebody worked in is left alone.

    Raises:
        SourceError: somebody worked in it, and it was prepared from something else.
        StorageError: no space or permission.
    """
    path = workplace_path(root, prepared.stack, engine)
    with explained("make the work folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.parent / f".{path.name}.lock"):
        repository = WorkRepository(path)
        wanted = {"tip": prepared.tip, "base": prepared.base, "below": prepared.below}
        fresh = False
        if path.exists() and (not repository.exists or _record(repository) != wanted):
            _refuse_if_touched(repository)
            with explained(f"replace {path.name}"):
                doomed = path.with_name(f".{path.name}.old")
                shutil.rmtree(doomed, ignore_errors=True)
                path.rename(doomed)
                shutil.rmtree(doomed)
        if not path.exists():
            refs = {f"{_RECORD}{name}": commit for name, commit in wanted.items()}
            refs[f"refs/heads/{prepared.stack}-base"] = prepared.below
            if prepared.beneath:
                refs["refs/heads/upstream-base"] = prepared.base
            repository = WorkRepository.make(path, store, prepared.tip, prepared.stack, refs)
            fresh = True
        cut_history(repository, store)
        return _look(repository, prepared, fresh=fresh)


def _look(repository: WorkRepository, prepared: Prepared, *, fresh: bool) -> Workplace:
    try:
        tip = repository.resolve(f"refs/heads/{prepared.stack}")
        own = commits(repository, f"{prepared.below}..{tip}")
        tree = own[-1].tree if own else prepared.below_tree
    except GitFailure as error:
        msg = f"the branch {prepared.stack} is gone from {repository.path.name}"
        raise SourceError(
            msg, where=str(repository.path), why=error.text.strip(), next_step="move the folder away, then run again"
        ) from error
    return Workplace(
        repository.path,
        prepared.stack,
        fresh,
        tip != prepared.tip or bool(repository.dirty()),
        tree == prepared.tree,
        tuple(commit.subject for commit in own if commit.subject.startswith(MARKER)),
    )


def _record(repository: WorkRepository) -> dict[str, str]:
    try:
        lines = (
            repository._git("for-each-ref", "--format=%(refname) %(objectname)", _RECORD).decode("utf-8").split("\n")
        )
    except GitFailure:
        return {}
    return dict(line.removeprefix(_RECORD).split(" ", 1) for line in lines if " " in line)


def _refuse_if_touched(repository: WorkRepository) -> None:
    why = _touched(repository)
    if why is not None:
        msg = f"{repository.path.name} holds somebody's work and was prepared from another base or series"
        raise SourceError(
            msg, where=str(repository.path), why=why, next_step="move the folder away or delete it, then run again"
        )


def _touched(repository: WorkRepository) -> str | None:
    """What in a folder is not as it was prepared; ``None`` if all is."""
    record = _record(repository) if repository.exists else {}
    if not record:
        return "it is not a folder that this command made"
    try:
        dirty = repository.dirty()
        if dirty:
            return f"{dirty[0]} is changed"
        heads = repository._git("for-each-ref", "--format=%(objectname)", "refs/heads").decode("ascii").split()
        strange = [head for head in [*heads, repository.resolve("HEAD")] if head not in record.values()]
        if strange:
            return f"it has commits of its own ({strange[0][:12]})"
    except GitFailure as error:
        return error.text.strip() or "git cannot read it"
    operation = repository.operation()
    return f"a {operation} is under way" if operation else None
