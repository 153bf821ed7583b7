"""Taking a finished rebase back: only what it wrote, and only where that still lies there as it wrote it.

What a rebase replaces is put aside before it writes. ``git checkout`` would take back everything else as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import explained, write_atomic
from forkyard.errors import RecipeError, UsageError
from forkyard.journal import Changes, commit_changes
from forkyard.rebasing.resolutions import FOLDER
from forkyard.rebasing.state import local_resolutions, state_folder

_RECORD = "undo"


@dataclass(frozen=True)
class Undone:
    """What was put back."""

    old: str
    """The commit the recipe is at again."""
    new: str
    paths: tuple[str, ...]
    """Files that are as they were before the rebase."""
    left: tuple[str, ...]
    """Files that were changed since the rebase wrote them, and were left alone."""


def remember(root: Path, recipe: str, old: str, new: str, changes: Changes) -> None:
    """Put aside what some changes will replace; the caller makes them next.

    Args:
        old, new: the upstream commits a rebase leads from and to.

    Raises:
        StorageError: no space or permission.
    """
    folder = state_folder(root, recipe) / _RECORD
    fresh = folder.with_name(f"{_RECORD}.new")
    files = []
    with explained("put aside what the rebase replaces"):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for path in changes.paths:
            place, data = root / path, changes.writes.get(path)
            was = place.read_bytes() if place.is_file() else None
            if was is not None:
                write_atomic(fresh / _digest(was), was)
            executable = was is not None and bool(place.stat().st_mode & 0o100)
            digests = [None if one is None else _digest(one) for one in (was, data)]
            files.append({"path": path, "was": digests[0], "executable": executable, "is": digests[1]})
        write_atomic(fresh / "list.json", json.dumps({"old": old, "new": new, "files": files}, indent=1).encode())
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def undo(root: Path, recipe: str) -> Undone:
    """Put everything back as it was before the last finished rebase of a recipe; the caller holds the project's lock.

    Resolutions that the rebase wrote go from the project, and are kept among this machine's for the next time.

    Raises:
        UsageError: there is no finished rebase, or nothing of it is left to take back.
        RecipeError: its record is damaged.
        StorageError: no space or permission; nothing has changed then.
    """
    folder = state_folder(root, recipe) / _RECORD
    if not folder.is_dir():
        msg = f"there is no rebase of {recipe} to undo"
        raise UsageError(msg, next_step="only the last finished one can be undone, once, where it was done")
    changes, left = Changes(), list[str]()
    try:
        record = json.loads((folder / "list.json").read_bytes())
        for file in record["files"]:
            path = str(file["path"])
            place = root / path
            now = _digest(place.read_bytes()) if place.is_file() else None
            if now == file["was"]:
                continue
            if now != file["is"]:
                left.append(path)
            elif file["was"] is None:
                changes.delete(path)
            else:
                data = (folder / file["was"]).read_bytes()
                if _digest(data) != file["was"]:
                    raise ValueError(f"{file['was']} is not what its name says")
                changes.write(path, data, executable=file["executable"])
        old, new = str(record["old"]), str(record["new"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = "the record of what the rebase replaced cannot be read"
        raise RecipeError(
            msg, where=str(folder), why=str(error), next_step="use git to put recipes and patches back"
        ) from None
    if not changes and left:
        msg = "nothing that the rebase wrote is there as it wrote it; nothing was changed"
        raise UsageError(msg, where=str(root), why=", ".join(left), next_step="look at `git diff`")
    for path in changes.deletes:
        _keep_resolution(root, path)
    paths = commit_changes(root, changes)
    for path in changes.deletes:
        # A folder that the rebase made for it goes too; one that holds anything stays.
        with contextlib.suppress(OSError):
            (root / path).parent.rmdir()
    with explained("forget the rebase"):
        shutil.rmtree(folder)
    return Undone(old, new, tuple(paths), tuple(left))


def _keep_resolution(root: Path, path: str) -> None:
    parts = Path(path).parts
    if len(parts) == 5 and parts[0] == "patches" and parts[3] == FOLDER:
        write_atomic(local_resolutions(root, parts[1], parts[2]) / parts[4], (root / path).read_bytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
