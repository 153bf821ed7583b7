"""Where forkyard keeps what can be made again: one folder, safe to delete, safe to share between runs.

``FORKYARD_CACHE`` overrides the platform's cache folder. Every file in it appears by rename, so a run that
is killed leaves either the old file or the new one; a half-written file never has its final name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from forkyard.errors import StorageError
from forkyard.places import checked, expanded, settle
from forkyard.scratch import owned_file

_STORAGE_ERRNOS = {
    errno.ENOSPC: (
        "the disk is full",
        "free some space (`forkyard clean --dry-run` shows what could go), then run again",
    ),
    errno.EDQUOT: ("the disk quota is used up", "free some space or ask for more, then run again"),
    errno.EROFS: ("the file system is read-only", "set FORKYARD_CACHE to a folder that can be written"),
    errno.EACCES: ("permission denied", "set FORKYARD_CACHE to a folder you may write, or mend its permissions"),
    errno.EFBIG: (
        "there is a limit on file sizes",
        "lift it (`ulimit -f unlimited`) or choose another file system, then run again",
    ),
    errno.EPERM: ("operation not permitted", "set FORKYARD_CACHE to a folder you may write, or mend its permissions"),
}


def storage_error(error: OSError, doing: str) -> StorageError | None:
    """The explained form of an ``OSError`` about space or permission; ``None`` for any other kind."""
    known = _STORAGE_ERRNOS.get(error.errno or 0)
    if known is None:
        return None
    why, next_step = known
    where = str(error.filename) if error.filename else None
    return StorageError(f"could not {doing}", where=where, why=why, next_step=next_step)


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn space and permission errors inside the block into :class:`StorageError`.

    Args:
        doing: what the block does, as in "could not <doing>".
    """
    try:
        yield
    except OSError as error:
        known = storage_error(error, doing)
        if known is None:
            raise
        raise known from error


@dataclass(frozen=True)
class Cache:
    """Paths inside the cache folder. Building one touches nothing on disk."""

    root: Path

    @classmethod
    def default(cls) -> Cache:
        """The cache named by ``FORKYARD_CACHE``, else the platform's cache folder for forkyard.

        Raises:
            UsageError: ``FORKYARD_CACHE`` names the home folder of nobody, or the current folder was deleted.
        """
        settle()
        chosen = os.environ.get("FORKYARD_CACHE")
        root = expanded(chosen) if chosen else Path(platformdirs.user_cache_dir("forkyard"))
        return cls(root.absolute())

    @property
    def downloads(self) -> Path:
        """Archives fetched from registries, named by their sha256."""
        return self.root / "downloads"

    def store(self, family: str) -> Path:
        """The bare git repository holding every object of an engine family."""
        return self.root / "store" / f"{family}.git"

    def tree(self, workspace: str) -> Path:
        """The checked-out patched tree of a recipe."""
        return self.root / "trees" / workspace

    def tree_index(self, workspace: str) -> Path:
        """The git index that belongs to :meth:`tree`; kept outside it so the tree holds sources only."""
        return self.root / "trees" / f".{workspace}.index"

    def build(self, workspace: str, variant: str) -> Path:
        """Everything made while building one payload."""
        return self.root / "build" / workspace / variant

    def toolkit(self, name: str, digest: str) -> Path:
        """A toolkit of the registry, unpacked."""
        return self.root / "toolkits" / f"{name}-{digest}"

    @property
    def ccache(self) -> Path:
        """ccache's folder, unless the user's CCACHE_DIR says otherwise."""
        return self.root / "ccache"

    def backend_ccache(self, variant: str) -> Path:
        """ccache's folder for the GPU code of a variant, with a size limit of its own."""
        return self.root / "ccache-backends" / variant

    @property
    def locks(self) -> Path:
        """Lock files; their content is only for people."""
        return self.root / "locks"

    @property
    def logs(self) -> Path:
        """Compiler output, one file a build."""
        return self.root / "logs"

    @property
    def scratch(self) -> Path:
        """Unfinished work. Anything here without a live owner may be deleted."""
        return self.root / "scratch"

    def prepare(self) -> None:
        """Create the folder and prove that it can be written, and its path given to every program of a build.

        Raises:
            StorageError: it cannot, with the reason.
        """
        checked(self.root, "cache folder", "set FORKYARD_CACHE to a folder whose path has no such character")
        with explained("write to the cache folder"):
            for folder in (self.root, self.downloads, self.locks, self.logs, self.scratch):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except (FileExistsError, NotADirectoryError) as error:
                    msg = "could not write to the cache folder"
                    raise StorageError(
                        msg,
                        where=str(error.filename),
                        why="a file is where a folder should be",
                        next_step="set FORKYARD_CACHE to a folder, or move that file away",
                    ) from error
            with tempfile.TemporaryFile(dir=self.scratch):
                pass
        try:
            # scikit-build-core installs into a folder there, by way of CMake.
            checked(
                Path(tempfile.gettempdir()), "folder for temporary files", "set TMPDIR to one without such a character"
            )
        except FileNotFoundError as error:
            msg = "there is no folder for temporary files"
            raise StorageError(
                msg, why=error.strerror, next_step="set TMPDIR to a folder you may write, then run it again"
            ) from None

    def out_of_room(self, doing: str, because: str) -> StorageError | None:
        """What keeps a mebibyte from being written here now; ``None`` if nothing does.

        Programs we start seldom say why they could not write. After any of them failed, this tells whether the disk
        was to blame.

        Args:
            doing: what was being done, as in "could not <doing>".
            because: what the failure looked like.
        """
        try:
            with tempfile.TemporaryFile(dir=self.scratch) as probe:
                probe.write(bytes(1 << 20))
                probe.flush()
        except OSError as error:
            found = storage_error(error, doing)
            if found is not None:
                return StorageError(
                    found.what, where=str(self.root), why=f"{found.why}: {because}", next_step=found.next_step
                )
        return None


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``data`` so that ``path`` is either as before or complete, even through a power cut.

    Raises:
        StorageError: no space or no permission.
    """
    with explained(f"write {path.name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def write_if_changed(path: Path, data: bytes, *, mode: int = 0o644) -> bool:
    """Write only when the content differs, so that build tools see no change; True if written."""
    try:
        if path.read_bytes() == data and (path.stat().st_mode & 0o777) == mode:
            return False
    except FileNotFoundError:
        pass
    write_atomic(path, data, mode=mode)
    return True


def publish(source: Path, target: Path) -> None:
    """Copy a finished file to its public place in one step, also across file systems."""
    with explained(f"put {target.name} in place"), owned_file(target.parent, ".incoming-") as incoming:
        shutil.copyfile(source, incoming)
        with incoming.open("rb") as stream:
            os.fsync(stream.fileno())
        incoming.chmod(0o644)
        incoming.replace(target)


def folder_size(path: Path) -> int:
    """Bytes of all regular files below ``path`` (0 if it does not exist)."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
