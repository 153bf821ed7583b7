"""Running git on one repository, with nothing of the machine's configuration or environment reaching it.

All plumbing runs with the user's git configuration switched off, so that no hook, filter, attribute or alias of the
machine can change what a tree or commit contains. Only fetching keeps the user's configuration, for proxies and
credentials.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import git

from forkyard.cache import explained
from forkyard.errors import SourceError, ToolchainError
from forkyard.gitstore.complaints import read_complaint
from forkyard.locks import held_locks

SHORT_S = 120.0

# Variables of git's that would move or reshape a repository, and mean nothing to a fetch.
RESHAPING = (
    "GIT_WORK_TREE",
    "GIT_TEMPLATE_DIR",
    "GIT_DEFAULT_HASH",
    "GIT_COMMON_DIR",
    "GIT_LITERAL_PATHSPECS",
    "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
    "GIT_SHALLOW_FILE",
)


class GitFailure(SourceError):
    """git ended with an error; ``text`` is what it said. Callers turn it into what it means."""

    def __init__(self, command: Sequence[str], status: int, text: str) -> None:
        self.command = tuple(command)
        self.status = status
        self.text = text
        self.complaint = read_complaint(text)
        super().__init__(
            "git could not do its part",
            where=f"git {' '.join(command[:3])}",
            why=self.complaint.why,
            next_step=self.complaint.next_step
            or (
                "the object store is damaged: run `forkyard clean sources`, then again"
                if self.complaint.kind == "damaged"
                else "run it again; if it stays so, please report it with your git version"
            ),
        )

    @property
    def corrupt(self) -> bool:
        """Whether git complained about damaged or missing objects, not about reaching or finding them."""
        return self.complaint.kind in ("damaged", "incomplete")


class Repository:
    """A folder git works in; what a subclass adds is what may be done there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # -- running git ---------------------------------------------------------------------------------

    def _environment(self, index: Path | None, *, users_config: bool) -> dict[str, str]:
        env = {
            "GIT_DIR": str(self.path),
            "GIT_OBJECT_DIRECTORY": str(self.path / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": "",
            "GIT_INDEX_FILE": str(index if index is not None else self.path / "unused-index"),
            "GIT_NAMESPACE": "",
            "GIT_CEILING_DIRECTORIES": str(self.path.parent),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_ATTR_NOSYSTEM": "1",
            "TZ": "UTC",
        }
        if not users_config:
            env.update({"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull})
        return env

    @staticmethod
    def _program(environment: Mapping[str, str], *, users_config: bool) -> list[str]:
        """``git``, less the GIT_* variables of the caller's environment that would reach it."""
        foreign = [
            name
            for name in sorted(os.environ)
            if name.startswith("GIT_") and name not in environment and (not users_config or name in RESHAPING)
        ]
        # GitPython can add variables but not take any away.
        return ["env", *(word for name in foreign for word in ("-u", name)), "git"] if foreign else ["git"]

    def _attempt(
        self,
        *arguments: str,
        stdin: bytes | None = None,
        index: Path | None = None,
        work_tree: Path | None = None,
        config: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = SHORT_S,
        users_config: bool = False,
    ) -> tuple[int, bytes, str]:
        """Run git on this repository; returns its exit status, standard output, and what it complained about.

        Raises:
            ToolchainError: there is no git.
        """
        environment = {**self._environment(index, users_config=users_config), **(env or {})}
        command = self._program(environment, users_config=users_config)
        for name, value in (config or {}).items():
            command += ["-c", f"{name}={value}"]
        if work_tree is not None:
            command.append(f"--work-tree={work_tree}")
        command += arguments
        with contextlib.ExitStack() as stack:
            source = None
            if stdin is not None:
                source = stack.enter_context(tempfile.TemporaryFile())
                source.write(stdin)
                source.seek(0)
            try:
                # GitPython's own time limit is a thread that an interrupted forkyard would wait for at its end.
                process = git.Git(str(work_tree or self.path)).execute(
                    command, istream=source, as_process=True, env=environment, pass_fds=held_locks()
                )
            except git.GitCommandNotFound as error:
                msg = "git is not on this machine"
                raise ToolchainError(msg, next_step="install git; `forkyard doctor` names the command") from error
            child = process.proc
            assert child is not None
            try:
                output, problem = child.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                # A program git started may hold the pipes open: what it said is not waited for.
                output, problem = b"", b"git was ended: it took more than %d s" % timeout_s
            except BaseException:
                child.kill()
                child.wait()
                raise
        return int(child.returncode), output, problem.decode("utf-8", "replace").strip("\n")

    def _git(self, *arguments: str, **options: Any) -> bytes:
        """Run git on this repository and return its standard output; ``options`` as for :meth:`_attempt`.

        Raises:
            GitFailure: a non-zero exit.
            ToolchainError: there is no git.
        """
        status, output, problem = self._attempt(*arguments, **options)
        if status != 0:
            raise GitFailure(arguments, status, problem)
        return output

    def _line(self, *arguments: str, index: Path | None = None, stdin: bytes | None = None) -> str:
        return self._git(*arguments, index=index, stdin=stdin).decode("ascii").strip()

    def _free(self, name: str) -> None:
        """Delete a lock file of git's: forkyard's own lock is held, so it can only be left from a killed run."""
        with explained("delete a lock file of a killed git"):
            (self.path / f"{name}.lock").unlink(missing_ok=True)
