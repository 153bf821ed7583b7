"""Locks between forkyard processes: shared or exclusive, gone when the last holder dies.

A lock is an advisory ``flock`` on a file in the cache. The kernel drops it when every process holding the
open file is gone, so a killed run never leaves a stale lock; and because a build hands the open file on to
its compilers, the lock lives until the last compiler it started is gone as well.
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
_held: set[int] = set()


def held_locks() -> tuple[int, ...]:
    """File descriptors of every lock this process holds.

    A program that writes into what a lock protects must inherit them: it may outlive a forkyard that is killed.
    """
    return tuple(_held)


@dataclass(frozen=True)
class Held:
    """A lock that is held; ``fd`` may be passed to child processes so that they hold it too."""

    path: Path
    fd: int


def _owner(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "unknown"
    return text or "unknown"


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
        waiting: called once, with the present owner's description, before waiting starts.

    Raises:
        BusyError: the time ran out.
        StorageError: the lock file cannot be made.
    """
    with explained("create a lock file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        started = time.monotonic()
        told = False
        while True:
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told and waiting is not None:
                    waiting(_owner(path))
                    told = True
                if timeout_s is not None and time.monotonic() - started > timeout_s:
                    raise BusyError(
                        f"waited {timeout_s:.0f} s for another forkyard",
                        where=str(path),
                        why=f"it is held by {_owner(path)}",
                        next_step="wait for it to end, or end it, then run again",
                    ) from None
                time.sleep(_POLL_S)
        if not shared:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()}\n".encode(), 0)
        _held.add(fd)
        yield Held(path, fd)
    finally:
        _held.discard(fd)
        # Closing our copy drops the lock unless a child still holds the same open file.
        os.close(fd)
