"""The project's own repository, read only: files as they were at a revision, and what differs from one.

The project may be the top of its repository, a folder in it, or a linked work tree. Whose it is and whether it may be
read is git's to find out and the user's to say, so the user's configuration is in force here; nothing that is read
depends on it: files are taken as the bytes that were committed, without line ends, filters or attributes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from forkyard.cache import explained
from forkyard.errors import SourceError, UsageError
from forkyard.gitstore.complaints import read_complaint
from forkyard.gitstore.running import GitFailure
from forkyard.gitstore.work import WorkRepository

# Where git looks by itself. A caller's are not ours: in a hook they name another repository or index.
_FOUND_BY_GIT = ("GIT_DIR", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_INDEX_FILE", "GIT_CEILING_DIRECTORIES")
# The user's way to say which configuration counts (safe.directory can be given in each), and where to look.
_USERS = (
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_PARAMETERS",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM",
)
_USERS_LISTS = ("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_")
_REGULAR = ("100644", "100755")
_PLAIN = ("--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=none")


def _users_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name in _USERS or name.startswith(_USERS_LISTS)}


class ProjectRepository(WorkRepository):
    """The repository around a project folder; forkyard never writes to it."""

    def _environment(self, index: Path | None, *, users_config: bool) -> dict[str, str]:
        environment = super()._environment(index, users_config=True)
        for name in _FOUND_BY_GIT:
            environment.pop(name, None)
        if index is not None:
            environment["GIT_INDEX_FILE"] = str(index)
        return {**environment, **_users_variables(os.environ)}

    def prefix(self) -> str:
        """The project folder's path in its repository: empty for its top, else with a slash at the end.

        Raises:
            UsageError: there is no repository, or git may not read it.
        """
        command = ("rev-parse", "--is-inside-work-tree", "--show-prefix")
        # git's words are read below; they must be the English ones.
        status, output, problem = self._attempt(*command, env={"LC_ALL": "C", "LANGUAGE": ""})
        if status == 0:
            inside, _, prefix = output.decode("utf-8", "surrogateescape").partition("\n")
            if inside == "true":
                return prefix.removesuffix("\n")
        said = read_complaint(problem)
        if said.kind == "ownership":
            msg = "git does not trust the project's repository: it belongs to somebody else"
            raise UsageError(msg, where=str(self.path), why=said.lines[0], next_step=said.next_step)
        if status == 0 or said.kind == "no-repository":
            msg = "the project is not in a git work tree, so it has no revisions"
            raise UsageError(
                msg,
                where=str(self.path),
                why=said.lines[0] if said.lines else None,
                next_step="keep the project in git; without it only `worktree` can be named",
            )
        raise GitFailure(command, status, problem)

    def revision(self, name: str) -> str:
        """Commit id of a revision.

        Raises:
            UsageError: there is no repository, or no such revision in it.
        """
        found = self.find_revision(name)
        if found is not None:
            return found
        shallow = self._git("rev-parse", "--is-shallow-repository").strip() == b"true"
        msg = f"the project has no revision {name!r}"
        raise UsageError(
            msg,
            where=str(self.path),
            why="its repository is a shallow clone: older commits are not here" if shallow else None,
            next_step="run `git fetch --unshallow` there, then again"
            if shallow
            else "name a commit, tag or branch of this project, or `worktree` for what lies there now",
        )

    def find_revision(self, name: str) -> str | None:
        """Commit id of a revision; ``None`` if there is none of that name.

        Raises:
            UsageError: there is no repository.
        """
        self.prefix()
        # git reads the name up to the first NUL, and an empty one as HEAD's.
        if not name or "\0" in name:
            return None
        try:
            return self.resolve(name)
        except (GitFailure, UnicodeError):
            return None

    def export_folders(self, revision: str, folders: list[str], into: Path) -> list[str]:
        """Write the files of some folders of the project, as they were committed at a revision, below ``into``.

        Only regular files: a link could lead anywhere, and nothing in those folders is one.

        Args:
            folders: paths below the project folder.

        Returns:
            the folders that were there.

        Raises:
            UsageError: there is no repository or no such revision.
            SourceError: a link or a path that leads out of its folder.
            StorageError: no space or permission.
        """
        prefix = self.prefix()
        commit = self.revision(revision)
        files: dict[str, list[tuple[Path, int]]] = {}
        there = []
        for folder in folders:
            # Asked from the top with the whole path: `git ls-tree` treats paths as literal text.
            listing = self._git("ls-tree", "-r", "-z", "--full-tree", commit, "--", f"{prefix}{folder}/")
            records = [record for record in listing.decode("utf-8", "surrogateescape").split("\0") if record]
            for record in records:
                head, _, path = record.partition("\t")
                mode, _, oid = head.split(" ")
                below = path.removeprefix(prefix)
                if mode not in _REGULAR or ".." in PurePosixPath(below).parts:
                    msg = f"{below} is no ordinary file"
                    raise SourceError(
                        msg,
                        where=f"{revision}:{path}",
                        why=f"its mode is {mode}" if mode not in _REGULAR else "its path leads out of the project",
                    )
                files.setdefault(oid, []).append((into / below, 0o755 if mode == "100755" else 0o644))
            if records:
                there.append(folder)
        with explained("write the project's files as they were"):
            self._write(files)
        return there

    def _write(self, files: Mapping[str, list[tuple[Path, int]]]) -> None:
        if not files:
            return
        with tempfile.TemporaryFile() as answers:
            # One git for all of them; the bytes as committed, whatever attributes and configuration say.
            answers.write(self._git("cat-file", "--batch", stdin="".join(f"{oid}\n" for oid in files).encode()))
            answers.seek(0)
            for places in files.values():
                words = answers.readline().split()
                if len(words) != 3:
                    msg = "a file of the project's repository is missing"
                    raise SourceError(
                        msg,
                        where=str(self.path),
                        why=" ".join(word.decode("ascii", "replace") for word in words),
                        next_step="run `git fsck` in the project",
                    )
                data = answers.read(int(words[2]))
                answers.read(1)
                for path, mode in places:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                    path.chmod(mode)

    def changed_since(self, revision: str) -> list[str]:
        """Paths below the project folder that differ between a revision and the work tree, unknown files among them.

        Raises:
            UsageError: there is no repository or no such revision.
        """
        commit = self.revision(revision)
        with self._own_index() as index:
            known = self._names("diff", "--name-only", "-z", "--relative", *_PLAIN, commit, "--", ".", index=index)
            unknown = self._names("ls-files", "--others", "--exclude-standard", "-z", "--", ".", index=index)
        return sorted(known | unknown)

    def uncommitted(self, paths: Sequence[str]) -> list[str]:
        """Those of some paths below this folder that git could not give back as they are now.

        They are changed, staged or deleted and not committed, or git does not know them, be it that it ignores them. A
        mark in the index that hides a change (``assume-unchanged``) hides nothing here.

        Raises:
            UsageError: there is no repository, or git may not read it.
        """
        head = self.find_revision("HEAD")
        wanted = [f":(literal){path}" for path in paths]
        look = ("diff", "--name-only", "-z", "--relative", *_PLAIN)
        with self._own_index() as own, tempfile.TemporaryDirectory() as folder:
            index = Path(folder) / "index"
            self._git("read-tree", head or "--empty", index=index)
            known = self._names("ls-files", "-z", "--", *wanted, index=index)
            changed = self._names(*look, "--", *wanted, index=index)
            changed |= self._names(*look, "--cached", *([head] if head else []), "--", *wanted, index=own)
        changed |= {path for path in paths if path not in known and os.path.lexists(self.path / path)}
        return sorted(changed)

    @contextlib.contextmanager
    def _own_index(self) -> Iterator[Path]:
        """A copy of the person's index: git writes what it found out about times back to one, whatever one says."""
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder) / "index"
            own = self._git("rev-parse", "--path-format=absolute", "--git-path", "index").removesuffix(b"\n")
            with contextlib.suppress(FileNotFoundError):
                # With its time: what was changed in the very moment it was written is told by that.
                shutil.copy2(os.fsdecode(own), index)
            yield index

    def _names(self, *command: str, index: Path) -> set[str]:
        output = self._git(*command, index=index).decode("utf-8", "surrogateescape")
        return {name for name in output.split("\0") if name}


def top_around(folder: Path) -> Path | None:
    """The top of the work tree a folder is in, be it a linked one or a submodule; ``None`` outside of any."""
    return next((one for one in (folder, *folder.parents) if os.path.lexists(one / ".git")), None)


def uncommitted(root: Path, paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """Files that git could not give back as they are now, each asked of the repository it is in.

    Args:
        root: the project; parts of it may be links, submodules, or other work trees.
        paths: below it, or absolute. A file need not exist.

    Returns:
        those with edits that are not committed, see :meth:`ProjectRepository.uncommitted`; and those that exist and are
        in no repository.

    Raises:
        UsageError: git may not read a repository.
    """
    owned: dict[Path, dict[str, str]] = {}
    edited, alone = [], []
    for path in paths:
        place = root / path
        real = Path(os.path.realpath(place.parent)) / place.name
        owner = top_around(real.parent)
        if owner is not None:
            owned.setdefault(owner, {})[real.relative_to(owner).as_posix()] = path
        elif os.path.lexists(place):
            alone.append(path)
    for owner, names in owned.items():
        edited += [names[name] for name in ProjectRepository(owner).uncommitted(list(names))]
    return sorted(edited), sorted(alone)
