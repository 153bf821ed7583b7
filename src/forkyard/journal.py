"""Changing several files of the project as one: after a kill at any instant it is all of them or none.

What is to be written is first put aside completely; the last step of that is one rename. From then on the change will
happen: whoever opens the project next finishes it. Before, it has not happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from forkyard.cache import explained, write_atomic
from forkyard.errors import StorageError
from forkyard.locks import hold

STATE = ".forkyard"
"""Folder in the project for work that is under way; git ignores it."""
_JOURNAL = "journal"


@dataclass
class Changes:
    """Files of the project to write or delete, by path below its root."""

    writes: dict[str, bytes] = field(default_factory=dict)
    executable: set[str] = field(default_factory=set)
    deletes: set[str] = field(default_factory=set)

    def write(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """Have ``path`` hold ``data``."""
        self.writes[path] = data
        (self.executable.add if executable else self.executable.discard)(path)
        self.deletes.discard(path)

    def delete(self, path: str) -> None:
        """Have ``path`` be gone."""
        self.writes.pop(path, None)
        self.executable.discard(path)
        self.deletes.add(path)

    def effective(self, root: Path) -> Changes:
        """Only what would differ from what is there."""
        left = Changes()
        for path, data in self.writes.items():
            target, executable = root / path, path in self.executable
            same = target.is_file() and target.read_bytes() == data
            if not same or bool(target.stat().st_mode & 0o100) != executable:
                left.write(path, data, executable=executable)
        for path in self.deletes:
            if (root / path).exists() or (root / path).is_symlink():
                left.delete(path)
        return left

    @property
    def paths(self) -> list[str]:
        """Everything that is touched, sorted."""
        return sorted([*self.writes, *self.deletes])

    def __bool__(self) -> bool:
        return bool(self.writes or self.deletes)


@contextlib.contextmanager
def project_lock(
    root: Path, *, timeout_s: float | None = None, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Be the only forkyard that changes this project, for the length of the block.

    Raises:
        BusyError: another one is at it for longer than ``timeout_s`` seconds.
    """
    with hold(root / STATE / "project.lock", timeout_s=timeout_s, waiting=waiting):
        yield


def commit_changes(root: Path, changes: Changes) -> list[str]:
    """Make the changes, all or none; the caller holds :func:`project_lock`.

    Returns:
        the paths that really changed.

    Raises:
        StorageError: no space or permission; nothing has changed then.
    """
    finish_changes(root)
    todo = changes.effective(root)
    if not todo:
        return []
    folder = root / STATE / _JOURNAL
    staged = folder.with_name(f"{_JOURNAL}.new")
    with explained("put the changes aside"):
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        for data in todo.writes.values():
            write_atomic(staged / hashlib.sha256(data).hexdigest(), data)
        write_atomic(staged / "list.json", json.dumps(_listing(todo)).encode())
        os.rename(staged, folder)
    finish_changes(root)
    return todo.paths


def finish_changes(root: Path) -> bool:
    """Finish a change that was cut off; returns whether there was one. The caller holds :func:`project_lock`.

    Raises:
        StorageError: its record is damaged (then nothing was done), or there is no space, permission or place.
    """
    folder = root / STATE / _JOURNAL
    if not folder.is_dir():
        return False
    try:
        listing = json.loads((folder / "list.json").read_bytes())
        writes = [(str(path), str(digest), bool(mode)) for path, digest, mode in listing["writes"]]
        deletes = [str(path) for path in listing["deletes"]]
        contents = {digest: _content(folder, digest) for _, digest, _ in writes}
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = "the record of an unfinished change is damaged"
        raise StorageError(
            msg,
            where=str(folder),
            why=str(error),
            next_step=f"look at `git status`, put the project right, then delete {folder}",
        ) from error
    try:
        for path, digest, executable in writes:
            _sweep(root / path)
            write_atomic(root / path, contents[digest], mode=0o755 if executable else 0o644)
        with explained("delete what was replaced"):
            for path in deletes:
                (root / path).unlink(missing_ok=True)
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        msg = "a change cannot be finished: something else is where one of its files goes"
        raise StorageError(
            msg, where=str(root / path), why=error.strerror, next_step="move it away, then run any forkyard again"
        ) from error
    with explained("forget a change that is finished"):
        gone = folder.with_name(f"{_JOURNAL}.done")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
    return True


def recover(root: Path, *, timeout_s: float | None = None) -> bool:
    """Finish a change another forkyard was killed in; costs one look when there is none.

    Raises:
        BusyError: another one is at it for longer than ``timeout_s`` seconds.
        StorageError: see :func:`finish_changes`.
    """
    if not (root / STATE / _JOURNAL).is_dir():
        return False
    with project_lock(root, timeout_s=timeout_s):
        return finish_changes(root)


def _sweep(path: Path) -> None:
    """Delete what a killed run left of a file it was writing; nobody else writes here."""
    stray = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    with contextlib.suppress(OSError):
        for other in path.parent.iterdir():
            if stray.fullmatch(other.name):
                other.unlink()


def _content(folder: Path, digest: str) -> bytes:
    data = (folder / digest).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        msg = f"{digest} is not what its name says"
        raise ValueError(msg)
    return data


def _listing(changes: Changes) -> Mapping[str, object]:
    return {
        "writes": [
            [path, hashlib.sha256(data).hexdigest(), path in changes.executable]
            for path, data in sorted(changes.writes.items())
        ],
        "deletes": sorted(changes.deletes),
    }
