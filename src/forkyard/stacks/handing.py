"""A series for use outside forkyard: complete mails in a folder, or a branch in somebody's clone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import explained, write_atomic
from forkyard.errors import UsageError
from forkyard.gitstore import Store
from forkyard.gitstore.clone import Clone
from forkyard.gitstore.history import commits
from forkyard.stacks.exporting import Exported
from forkyard.stacks.importing import Imported


def write_mails(store: Store, exported: Exported, folder: Path) -> list[Path]:
    """Write every patch with the whole files it adds in its diff, numbered, as ``git am`` takes them.

    Raises:
        UsageError: the folder holds something already.
        StorageError: no space or permission.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder.name} is not empty"
        raise UsageError(msg, where=str(folder), next_step="give a new folder")
    written = []
    with explained(f"make {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    for number, patch in enumerate(exported.patches, start=1):
        path = folder / f"{number:04d}-{patch.name}"
        write_atomic(path, store.export(patch.commit) if patch.adds else patch.data)
        written.append(path)
    return written


@dataclass(frozen=True)
class Given:
    """A branch that was made in a clone."""

    branch: str
    tip: str
    standing_on: str | None
    """Upstream's commit it stands on; ``None`` where the clone or the store has not got it, and the branch begins with
    a commit of its own that holds the pin's tree."""


def give_branch(
    store: Store, repository: Path, branch: str, pin: str, imported: Imported, *, force: bool = False
) -> Given:
    """Make a branch with a commit for each patch in a clone, on the pin's own commit where the clone has it.

    What the series is made on, the stacks before it, is part of the branch.

    Args:
        force: move a branch that is there.

    Raises:
        UsageError: it is no clone, or the branch is there and may not be moved.
    """
    clone = Clone(repository)
    clone.check()
    old = clone.branch(branch)
    if old is not None and not force:
        msg = f"the clone has a branch {branch} already"
        raise UsageError(msg, where=str(repository), next_step="choose another name, or --force to move it")
    if old is not None and clone.checked_out(branch):
        msg = f"the clone has {branch} checked out"
        raise UsageError(
            msg, where=str(repository), why="moving it would leave its work tree behind", next_step="check out another"
        )
    tip, ground = imported.tip, None
    if clone.has_commit(pin) and store.has(pin, "commit"):
        tip = ground = pin
        # The first commit of a chain of ours holds the pin's tree and no parent: here it has a better one.
        for one in commits(store, imported.tip)[1:]:
            tip = store.commit(one.tree, tip, one.author, one.message.encode())
    clone.give(store, tip, branch, standing_on=ground, old=old)
    return Given(branch, tip, ground)
