"""Locks between forkyard processes: shared or exclusive, gone when the last holder dies.

A lock is an advisory ``flock`` on a file in the cache. The kernel drops it when every process holding the
open file is gone, so a killed run never leaves a stale lock; and because a build hands the open file on to
its compilers, the lock lives until the last compiler it started is gone as well.

Whoever holds a lock shares its folder as well. So one who needs nobody at work, now or in a moment, takes the folder:
to take every lock that is there would leave out the one that another makes meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import explained
from forkyard.errors import BusyError

_POLL_S = 0.2
# Signed by who holds a whole folder of locks.
_SOLE = ".folder.lock"
_held: set[int] = set()


def held_locks() -> tuple[int, ...]:
    """File descriptors of every lock this process holds.

    A program that writes into what a lock protects must inherit them: it may outlive a forkyard that is killed.
    """
    return tuple(_held)


@dataclass(frozen=True)
class Held:
    """A lock that is held; ``fds`` may be passed to child processes so that they hold it too."""

    path: Path
    fd: int
    folder_fd: int

    @property
    def fds(self) -> tuple[int, int]:
        """What a child process has to inherit: the lock and the share of its folder."""
        return self.fd, self.folder_fd


def _owner(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "unknown"
    return text or "unknown"


def _owners(folder: Path) -> str:
    """Who holds locks of a folder alone; those who share one do not sign it."""
    found: set[str] = set()
    for path in folder.glob("*.lock"):
        with contextlib.suppress(OSError), _opened(path, os.O_RDONLY) as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.add(_owner(path))
    return ", ".join(sorted(found)) or "another forkyard"


@contextlib.contextmanager
def hold(
    path: Path,
    *,
    shared: bool = False,
    timeout_s: float | None = None,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[Held]:
    """Hold the lock at ``path`` for the length of the block.

    Args:
        path: the lock file; created when missing.
        shared: several holders at once, as long as none is exclusive.
        timeout_s: seconds to wait; ``None`` waits for ever (Ctrl-C ends it).
        waiting: called before waiting starts, with the present owner's description; a second time if the lock is held
            after whoever had the whole folder has let go of it.

    Raises:
        BusyError: the time ran out.
        StorageError: the lock file cannot be made.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        with explained("create a lock file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder_fd = stack.enter_context(_opened(path.parent, os.O_RDONLY | os.O_DIRECTORY))
            fd = stack.enter_context(_opened(path, os.O_RDWR | os.O_CREAT))
        sole = path.parent / _SOLE
        _wait(folder_fd, fcntl.LOCK_SH, path.parent, lambda: _owner(sole), started, timeout_s, waiting)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        _wait(fd, kind, path, lambda: _owner(path), started, timeout_s, waiting)
        if not shared:
            _sign(fd)
        stack.enter_context(_inherited(folder_fd, fd))
        yield Held(path, fd, folder_fd)


@contextlib.contextmanager
def hold_folder(
    folder: Path, *, timeout_s: float | None = None, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold every lock of a folder, those too that nobody has made yet.

    Must not be called by a process that holds one of them.

    Args:
        folder: where the lock files are; created when missing.
        timeout_s: see :func:`hold`.
        waiting: called once, with a present owner's description, before waiting starts.

    Raises:
        BusyError: the time ran out.
        StorageError: the folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        with explained("create a lock file"):
            folder.mkdir(parents=True, exist_ok=True)
            folder_fd = stack.enter_context(_opened(folder, os.O_RDONLY | os.O_DIRECTORY))
            fd = stack.enter_context(_opened(folder / _SOLE, os.O_RDWR | os.O_CREAT))
        _wait(folder_fd, fcntl.LOCK_EX, folder, lambda: _owners(folder), time.monotonic(), timeout_s, waiting)
        _sign(fd)
        yield


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        # Closing our copy drops the lock unless a child still holds the same open file.
        os.close(fd)


@contextlib.contextmanager
def _inherited(*fds: int) -> Iterator[None]:
    """Count these among :func:`held_locks`: only once they are locked, and only until they are closed."""
    _held.update(fds)
    try:
        yield
    finally:
        _held.difference_update(fds)


def _wait(
    fd: int,
    kind: int,
    path: Path,
    owner: Callable[[], str],
    started: float,
    timeout_s: float | None,
    waiting: Callable[[str], None] | None,
) -> None:
    told = False
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told and waiting is not None:
                waiting(owner())
                told = True
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise BusyError(
                    f"waited {timeout_s:.0f} s for another forkyard",
                    where=str(path),
                    why=f"it is held by {owner()}",
                    next_step="wait for it to end, or end it, then run again",
                ) from None
            time.sleep(_POLL_S)


def _sign(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"process {os.getpid()}\n".encode(), 0)
