"""Changing several files of the project as one: after a kill at any instant it is all of them or none.

What is to be written is first put aside completely; the last step of that is one rename. From then on the change will
happen: whoever opens the project next finishes it. Before, it has not happened.

The world does not stand still between a kill and the next command. So the record also holds what each file was: only a
file that is as the change found it is written over. One that somebody has touched since is theirs and stays.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from forkyard.cache import explained, write_atomic
from forkyard.console import Reporter, Silent
from forkyard.errors import StorageError
from forkyard.locks import hold
from forkyard.network import without_secrets

STATE = ".forkyard"
"""Folder in the project for work that is under way; git ignores it."""
LEFT = "left"
"""Folder in it for what a change would have written over somebody's edit."""
_JOURNAL = "journal"
_SCHEMA = 2
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_LISTED = 30
"""So many files are named in a message; git names the others."""


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
        StorageError: no space or permission; nothing has changed then. Or somebody changed one of the files in the very
            moment it was to be written; that file is left as it is.
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
        write_atomic(staged / "list.json", json.dumps(_listing(root, todo)).encode())
        os.rename(staged, folder)
    done = finish_changes(root)
    if done is not None and done.left:
        msg = "files were changed while they were to be written"
        raise StorageError(msg, where=str(root), why=done.describe(root))
    return todo.paths


@dataclass(frozen=True)
class Unfinished:
    """A change that was cut off after its rename, held against what lies in the project now."""

    command: str
    """Which command made it, as a person would type it."""
    paths: tuple[str, ...]
    """Files that are as the change wants them, or will be: they are as it found them."""
    left: tuple[str, ...]
    """Files that somebody has touched since. They stay as they are."""

    def describe(self, root: Path) -> str:
        """What was finished and what was not, for a person; it is called after it was done."""
        lines = [f"`{self.command}` was cut off while it changed the project"]
        if self.paths:
            lines.append(f"  finished now: {_listed(self.paths)}")
        if self.left:
            lines.append(f"  left alone, somebody has changed it since: {_listed(self.left)}")
            if any((root / STATE / LEFT / path.lstrip("/")).exists() for path in self.left):
                lines.append(f"  what the command would have written there is in {root / STATE / LEFT}")
        lines.append("  next:  look at `git diff`; run the command again if its work is not complete")
        return "\n".join(lines)


def unfinished(root: Path) -> Unfinished | None:
    """The change that waits to be finished, if there is one; writes nothing.

    Raises:
        StorageError: its record cannot be read, is damaged, or is another version's.
    """
    record = _read(root)
    if record is None:
        return None
    left = tuple(one.path for one in record.steps if not one.ours(root))
    return Unfinished(record.command, tuple(one.path for one in record.steps if one.path not in left), left)


def finish_changes(root: Path, reporter: Reporter | None = None) -> Unfinished | None:
    """Finish a change that was cut off; the caller holds :func:`project_lock`.

    Only files that are as the change found them are written or deleted. A kill meanwhile costs nothing: the next call
    goes on.

    Args:
        reporter: told what was finished and what was left alone.

    Returns:
        what was done; ``None`` if there was nothing to finish.

    Raises:
        StorageError: its record is damaged (then nothing was done), or there is no space, permission or place.
    """
    record = _read(root)
    if record is None:
        return None
    done: list[str] = []
    left: list[str] = []
    for one in record.steps:
        if one.data is not None and _place(root, one.path) == one.through:
            _sweep(root / one.path)
        if not one.ours(root):
            left.append(one.path)
            if one.data is not None:
                write_atomic(root / STATE / LEFT / one.path.lstrip("/"), one.data)
            continue
        done.append(one.path)
        try:
            one.take(root)
        except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            msg = "a change cannot be finished: something else is where one of its files goes"
            raise StorageError(
                msg,
                where=str(root / one.path),
                why=error.strerror,
                next_step="move it away, then run any forkyard again",
            ) from error
    with explained("forget a change that is finished"):
        folder = root / STATE / _JOURNAL
        gone = folder.with_name(f"{_JOURNAL}.done")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
    finished = Unfinished(record.command, tuple(done), tuple(left))
    if reporter is not None:
        reporter.warn(finished.describe(root))
    return finished


def recover(root: Path, reporter: Reporter | None = None, *, timeout_s: float | None = None) -> Unfinished | None:
    """Finish a change another forkyard was killed in; costs one look when there is none.

    Args:
        reporter: told what was finished and what was left alone.

    Returns:
        what was done; ``None`` if there was nothing to finish.

    Raises:
        BusyError: another one is at it for longer than ``timeout_s`` seconds.
        StorageError: see :func:`finish_changes`; or the project is read-only.
    """
    if not (root / STATE / _JOURNAL).is_dir():
        return None
    said = reporter or Silent()
    try:
        with project_lock(
            root, timeout_s=timeout_s, waiting=lambda who: said.note(f"waiting for another forkyard here ({who})")
        ):
            return finish_changes(root, reporter)
    except StorageError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _NOT_WRITABLE:
            raise
        msg = "a change of the project was cut off, and it cannot be finished here: the project cannot be written"
        raise StorageError(
            msg,
            where=str(root),
            why=f"{error.why}; until it is finished the files are half old and half new",
            next_step="run `forkyard status` once as somebody who may write there",
        ) from error


@dataclass(frozen=True)
class _Step:
    """One file of a recorded change."""

    path: str
    before: str
    """How the change found it, in the words of :func:`_found`."""
    through: str
    """Where its folder was, see :func:`_place`."""
    data: bytes | None
    """What it is to hold; ``None`` if it is to be gone."""
    executable: bool

    @property
    def after(self) -> str:
        """How it is when this is done."""
        return "nothing" if self.data is None else _content_words(self.data, executable=self.executable)

    def ours(self, root: Path) -> bool:
        """Whether the file is as the change found it, or as it makes it: nobody else has touched it."""
        return _place(root, self.path) == self.through and _found(root / self.path) in (self.before, self.after)

    def take(self, root: Path) -> None:
        """Do it, unless it is done."""
        target = root / self.path
        if _found(target) == self.after:
            return
        if self.data is None:
            with explained("delete what was replaced"):
                target.unlink(missing_ok=True)
            return
        write_atomic(target, self.data, mode=0o755 if self.executable else 0o644)


@dataclass(frozen=True)
class _Record:
    command: str
    steps: tuple[_Step, ...]


def _read(root: Path) -> _Record | None:
    folder = root / STATE / _JOURNAL
    if not folder.is_dir():
        return None
    by_hand = f"look at `git status`, put the project right, then delete {folder}"
    try:
        with explained("read the record of an unfinished change"):
            listing = json.loads((folder / "list.json").read_bytes())
            writes = [(_path(path), str(digest), bool(mode)) for path, digest, mode in listing["writes"]]
            deletes = [_path(path) for path in listing["deletes"]]
            contents = {digest: _content(folder, digest) for _, digest, _ in writes}
            version = listing.get("schema")
            if version == _SCHEMA:
                before = {path: (str(words), str(through)) for path, (words, through) in listing["before"].items()}
                steps = [_Step(path, *before[path], contents[digest], mode) for path, digest, mode in writes]
                steps += [_Step(path, *before[path], None, executable=False) for path in deletes]
                return _Record(str(listing["command"]), tuple(steps))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = "the record of an unfinished change is damaged"
        raise StorageError(msg, where=str(folder), why=_reason(error), next_step=by_hand) from error
    msg = "another version of forkyard was cut off while it changed the project"
    raise StorageError(
        msg,
        where=str(folder),
        why="its record does not say how the files were, so nobody can tell an edit of yours from the old state",
        next_step=f"finish it with that version, or {by_hand}",
    )


def _path(value: object) -> str:
    path = str(value)
    if not isinstance(value, str) or not path or ".." in PurePosixPath(path).parts:
        msg = f"{value!r} is no path of a file"
        raise ValueError(msg)
    return path


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _found(path: Path) -> str:
    """What is at a path, in words that differ whenever it does."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return f"link to {os.readlink(path)}"
        if stat.S_ISDIR(mode):
            return "folder"
        if not stat.S_ISREG(mode):
            return "no ordinary file"
        return _content_words(path.read_bytes(), executable=bool(mode & 0o100))
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except OSError as error:
        # A file that nobody may read here is not known to be ours.
        return f"unreadable: {error.strerror}"


def _content_words(data: bytes, *, executable: bool) -> str:
    return f"{'program' if executable else 'file'} {hashlib.sha256(data).hexdigest()}"


def _place(root: Path, path: str) -> str:
    """Where a path's folder really is, if a link leads there; empty if it is where it says."""
    top = os.path.realpath(root)
    said = os.path.normpath(os.path.join(top, os.path.dirname(path)))
    real = os.path.realpath(said)
    return "" if real == said else os.path.relpath(real, top)


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


def _listing(root: Path, changes: Changes) -> dict[str, object]:
    return {
        "schema": _SCHEMA,
        "command": _command(),
        "writes": [
            [path, hashlib.sha256(data).hexdigest(), path in changes.executable]
            for path, data in sorted(changes.writes.items())
        ],
        "deletes": sorted(changes.deletes),
        "before": {path: [_found(root / path), _place(root, path)] for path in changes.paths},
    }


def _command() -> str:
    """The command line of this process, without secrets."""
    program, *words = sys.argv or [""]
    name = PurePosixPath(program).name
    if name in ("", "-c", "-m", "__main__.py"):
        name = "forkyard"
    return shlex.join([name, *map(without_secrets, words)])


def _listed(paths: tuple[str, ...]) -> str:
    shown = ", ".join(paths[:_LISTED])
    return shown + (f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else "")
