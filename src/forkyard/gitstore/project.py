"""The project's own repository, read only: files as they were at a revision, and what differs from one."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from forkyard.archives import unpack_below
from forkyard.errors import UsageError
from forkyard.gitstore.running import GitFailure
from forkyard.gitstore.work import WorkRepository


class ProjectRepository(WorkRepository):
    """The repository around a project folder; forkyard never writes to it."""

    def _environment(self, index: Path | None, *, users_config: bool) -> dict[str, str]:
        # Whether this folder may be read at all is the user's to say (safe.directory).
        environment = super()._environment(index, users_config=True)
        # A linked work tree's .git is a file, and its objects are elsewhere: git finds both by itself.
        for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_INDEX_FILE"):
            environment.pop(name, None)
        return environment

    def revision(self, name: str) -> str:
        """Commit id of a revision.

        Raises:
            UsageError: there is no repository, or no such revision in it.
        """
        try:
            return self.resolve(name)
        except GitFailure as error:
            msg = f"the project has no revision {name!r}"
            raise UsageError(
                msg,
                where=str(self.path),
                why=error.text.strip() or None,
                next_step="name a commit, tag or branch of this project, or `worktree` for what lies there now",
            ) from None

    def export_folders(self, revision: str, folders: list[str], into: Path) -> list[str]:
        """Write the files of some top-level folders, as they were at a revision, below ``into``.

        Returns:
            the folders that were there.
        """
        commit = self.revision(revision)
        listing = self._git("ls-tree", "-z", "--name-only", "--full-tree", commit).decode("utf-8", "surrogateescape")
        there = [name for name in folders if name in listing.split("\0")]
        if there:
            with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
                self._git("archive", "--format=tar", "--prefix=r/", f"--output={archive.name}", commit, "--", *there)
                unpack_below(Path(archive.name), PurePosixPath("."), into)
        return there

    def changed_since(self, revision: str) -> list[str]:
        """Paths that differ between a revision and the work tree, files git does not know among them."""
        commit = self.revision(revision)
        known = self._git("diff", "--name-only", "-z", "--no-renames", commit, "--")
        unknown = self._git("ls-files", "--others", "--exclude-standard", "-z", "--full-name")
        names = (known + unknown).decode("utf-8", "surrogateescape").split("\0")
        return sorted({name for name in names if name})
