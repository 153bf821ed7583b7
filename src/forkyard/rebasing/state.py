"""A rebase that is under way: what was asked for, what was decided, and which conflict waits.

Replaying gives the same result each time, so only decisions are kept. What was worked out on the way lies beside them
and may be deleted at any time: the next run works it out again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from forkyard.cache import explained, write_atomic
from forkyard.errors import RecipeError, UsageError
from forkyard.journal import STATE
from forkyard.nextsteps import command
from forkyard.rebasing.replaying import Base
from forkyard.rebasing.resolutions import FOLDER
from forkyard.stacks import Stack

_SCHEMA = 1


@dataclass(frozen=True)
class Waiting:
    """The conflict a person is asked to resolve."""

    stack: str
    patch: str
    onto: str
    """Tree the patch is carried onto; if it is another one now, the work tree shows the wrong conflict."""
    folder: str


@dataclass(frozen=True)
class State:
    """One rebase of one recipe."""

    recipe: str
    old: Base
    new: Base
    stacks: tuple[str, ...]
    """In the order they apply."""
    whole: bool
    """Nothing was chosen: all stacks of the recipe are rebased, and its pin moves with them."""
    series: str
    """Digest of the stacks as they were at the start."""
    source: str | None = None
    offline: bool = False
    retire: bool = False
    additive: bool = False
    out: str | None = None
    """Folder the patches go to, instead of the project."""
    dropped: tuple[tuple[str, str], ...] = ()
    waiting: Waiting | None = None

    def with_waiting(self, waiting: Waiting | None) -> State:
        """The state with another waiting conflict."""
        return replace(self, waiting=waiting)

    def with_dropped(self, stack: str, patch: str) -> State:
        """The state with one more patch left out."""
        return replace(self, dropped=(*self.dropped, (stack, patch)), waiting=None)


def state_folder(root: Path, recipe: str) -> Path:
    """Where a rebase of a recipe keeps its state."""
    return root / STATE / "rebase" / recipe


def local_resolutions(root: Path, stack: str, engine: str) -> Path:
    """Where this machine keeps resolutions that the project does not hold (yet)."""
    return root / STATE / FOLDER / stack / engine


def read_state(root: Path, recipe: str, word: str | None = None) -> State | None:
    """The rebase under way for a recipe, if there is one.

    Args:
        word: what names the recipe in a command, if not its name.

    Raises:
        RecipeError: its file is damaged.
    """
    path = state_folder(root, recipe) / "state.json"
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        if data.pop("schema") != _SCHEMA:
            msg = "another version"
            raise ValueError(msg)
        waiting = data.pop("waiting")
        return State(
            **{
                **data,
                "old": Base(**data["old"]),
                "new": Base(**data["new"]),
                "stacks": tuple(data["stacks"]),
                "dropped": tuple((str(stack), str(patch)) for stack, patch in data["dropped"]),
            },
            waiting=Waiting(**waiting) if waiting else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        msg = "the record of the rebase under way cannot be read"
        raise RecipeError(
            msg,
            where=str(path),
            why=str(error),
            next_step=f"`{command('rebase', word or recipe, abort=True)}` forgets it; resolutions and patches are kept"
            " elsewhere",
        ) from None


def write_state(root: Path, state: State) -> None:
    """Record a rebase that is under way."""
    data = {"schema": _SCHEMA, **asdict(state)}
    write_atomic(state_folder(root, state.recipe) / "state.json", json.dumps(data, indent=1).encode())


def clear_state(root: Path, recipe: str) -> None:
    """Forget the rebase of a recipe, its report apart."""
    with explained("forget the rebase"):
        for name in ("state.json", "answers.json"):
            (state_folder(root, recipe) / name).unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a work tree of ours; renamed first, so that a kill leaves nothing half-deleted under its name."""
    with explained(f"delete {path}"):
        doomed = path.with_name(f".{path.name}.deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        if path.exists():
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def series_digest(stacks: Sequence[Stack], engine: str) -> str:
    """What the stacks consist of for an engine, as one digest."""
    whole = hashlib.sha256()
    for stack in stacks:
        parts = [stack.folder / "stack.toml", stack.folder / engine / "series"]
        parts += [patch.path for patch in stack.series(engine).patches]
        parts += sorted(path for path in stack.src.rglob("*") if path.is_file()) if stack.src.is_dir() else []
        for path in parts:
            executable = "x" if path.stat().st_mode & 0o100 else "-"
            whole.update(f"{path.relative_to(stack.folder.parent).as_posix()}\0{executable}\0".encode())
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def none_under_way(recipe: str, word: str | None = None) -> UsageError:
    """The error for continuing what was not begun."""
    msg = f"no rebase of {recipe} is under way"
    return UsageError(msg, next_step=f"start one with `{command('rebase', word or recipe, to='COMMIT')}`")
