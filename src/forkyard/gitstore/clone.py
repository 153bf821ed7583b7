"""Handing commits to a clone of the user's as a branch, and touching nothing else in it."""

from __future__ import annotations

from pathlib import Path

from forkyard.errors import UsageError
from forkyard.gitstore.formats import COMMITTER
from forkyard.gitstore.running import GitFailure, Repository
from forkyard.gitstore.store import Store


class Clone(Repository):
    """A repository of the user's, wherever its git folder is; its work tree and index are left alone."""

    def _environment(self, index: Path | None, *, users_config: bool) -> dict[str, str]:
        # Whether it may be used is the user's to say (safe.directory), where its parts are is git's to find out.
        environment = super()._environment(index, users_config=True)
        for name in ("GIT_DIR", "GIT_OBJECT_DIRECTORY", "GIT_INDEX_FILE", "GIT_CEILING_DIRECTORIES"):
            del environment[name]
        return environment

    def check(self) -> None:
        """See that it is a repository that may be used.

        Raises:
            UsageError: it is not.
        """
        try:
            self._git("rev-parse", "--git-dir")
        except GitFailure as error:
            said = error.complaint
            msg = "git cannot use this folder" if said.kind != "no-repository" else "this is no git repository"
            raise UsageError(
                msg, where=str(self.path), why=said.why, next_step=said.next_step or "give a clone"
            ) from None

    def has_commit(self, commit: str) -> bool:
        """Whether a commit is there."""
        return self._attempt("cat-file", "-e", f"{commit}^{{commit}}")[0] == 0

    def branch(self, name: str) -> str | None:
        """The commit a branch is at; ``None`` if there is none.

        Raises:
            UsageError: no branch can have that name.
        """
        if self._attempt("check-ref-format", "--branch", name)[0] != 0:
            msg = f"{name!r} is no name for a branch"
            raise UsageError(msg)
        status, output, _ = self._attempt("rev-parse", "--verify", "--quiet", f"refs/heads/{name}^{{commit}}")
        return output.decode("ascii").strip() if status == 0 else None

    def checked_out(self, name: str) -> bool:
        """Whether some work tree of the clone has a branch checked out."""
        listing = self._git("worktree", "list", "--porcelain").decode("utf-8", "surrogateescape")
        return f"branch refs/heads/{name}" in listing.split("\n")

    def give(self, store: Store, tip: str, name: str, *, standing_on: str | None, old: str | None) -> None:
        """Have a branch be at a commit of the store.

        Args:
            standing_on: a commit both have; only what is not reachable from it is copied.
            old: where the branch is now, and must still be.

        Raises:
            GitFailure: it could not be done; the branch is as it was.
        """
        wanted = f"{tip}\n" + (f"^{standing_on}\n" if standing_on is not None else "")
        pack = store._git("pack-objects", "--revs", "--stdout", "--quiet", stdin=wanted.encode(), timeout_s=600.0)
        # A whole tree stays packed; a few commits become like any others of the clone.
        unpack = ["index-pack", "--stdin"] if standing_on is None else ["unpack-objects", "-q"]
        self._git(*unpack, stdin=pack, timeout_s=600.0)
        who = {"GIT_COMMITTER_NAME": COMMITTER[0], "GIT_COMMITTER_EMAIL": COMMITTER[1]}
        self._git("update-ref", "-m", "forkyard stack import", f"refs/heads/{name}", tip, old or "0" * 40, env=who)
