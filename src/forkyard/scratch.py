"""Unfinished files and folders that belong to a living process; what a killed one left is swept away.

Ownership is an ``flock`` on the file or folder itself: the kernel drops it when its process dies, however it dies, so
neither process ids nor ages have to be trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def sweep(parent: Path, prefix: str = "") -> None:
    """Delete what is in ``parent`` under a name with ``prefix`` and has no living owner."""
    for path in parent.glob(f"{prefix}*") if parent.is_dir() else ():
        # Gone already, or not ours to delete: no reason to fail whatever work comes after.
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(handle)


@contextlib.contextmanager
def owned_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``parent`` for the length of the block; ``parent`` is swept first.

    Raises:
        OSError: it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        if (handle := _own(path, os.O_RDONLY | os.O_DIRECTORY)) is not None:
            break
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


@contextlib.contextmanager
def owned_file(parent: Path, prefix: str) -> Iterator[Path]:
    """A new empty file in ``parent``, deleted at the block's end if it still has its name; others' leftovers go first.

    Raises:
        OSError: it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent, prefix)
    while True:
        made, name = tempfile.mkstemp(prefix=prefix, dir=parent)
        os.close(made)
        if (handle := _own(Path(name), os.O_RDWR)) is not None:
            break
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
        os.close(handle)


def _own(path: Path, flags: int) -> int | None:
    """Lock what was just made; ``None`` if a sweeper was quicker."""
    try:
        handle = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except FileNotFoundError:
        pass
    os.close(handle)
    return None
