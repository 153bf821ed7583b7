"""Ordinary repositories for people: an edit of a stack, a conflict to resolve, a branch to propose upstream.

Cleaning the cache never costs anybody's work. Most hold all of their objects. Those that show upstream's history borrow
it from a store, which knows who borrows: before it is deleted each of them gets what the work in it needs, and loses
the history. People use them with their own git and configuration; forkyard reads and writes them without either.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from forkyard.cache import explained, write_atomic
from forkyard.errors import SourceError
from forkyard.gitstore.formats import COMMITTER, Entry
from forkyard.gitstore.running import Repository
from forkyard.gitstore.store import Store

# A killed git leaves its lock files; those of one that forkyard ran are at most this much younger than its mark.
_OURS_S = 60.0
# git's own name for the list of places that objects are borrowed from.
_LENDERS = "objects/info/alternates"
_BORROWERS = "forkyard-borrowers"
_NOBODY = {"NAME": COMMITTER[0], "EMAIL": COMMITTER[1], "DATE": "2000-01-01T00:00:00+00:00"}


class WorkRepository(Repository):
    """A repository with a work tree at ``path``."""

    def _environment(self, index: Path | None, *, users_config: bool) -> dict[str, str]:
        folder = self.path / ".git"
        return {
            **super()._environment(index, users_config=users_config),
            "GIT_DIR": str(folder),
            "GIT_WORK_TREE": str(self.path),
            "GIT_OBJECT_DIRECTORY": str(folder / "objects"),
            "GIT_INDEX_FILE": str(index if index is not None else folder / "index"),
        }

    @property
    def exists(self) -> bool:
        """Whether it was made completely, and what it borrows is there."""
        return (self.path / ".git" / "forkyard-ready").is_file() and all(map(Path.is_dir, self._lenders()))

    def _lenders(self) -> list[Path]:
        """Folders of objects it borrows from."""
        try:
            text = (self.path / ".git" / _LENDERS).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return []
        return [Path(line) for line in text.splitlines() if line]

    @classmethod
    def make(
        cls,
        path: Path,
        store: Store,
        tip: str,
        branch: str,
        refs: Mapping[str, str],
        *,
        lenders: Sequence[Store] = (),
        upstream: Mapping[str, str] | None = None,
    ) -> WorkRepository:
        """Make a repository whose ``branch`` is at ``tip``, checked out.

        It is made beside its place and renamed, so a killed run leaves nothing that looks finished.

        Args:
            refs: further refs, by full name; their commits must be reachable from ``tip``, or from what is lent.
            lenders: stores whose objects are borrowed, ``store`` among them; without any, what ``tip`` needs is copied.
                :func:`lend` must know its final place before anybody works in it.
            upstream: parentless commits of ours and the upstream commits whose trees they hold: a person's git shows
                upstream's history before them. Those that nobody lends are passed over.

        Raises:
            SourceError: there is something at ``path``.
            StorageError: no space or permission.
        """
        if path.exists():
            msg = f"{path.name} is there already"
            raise SourceError(msg, where=str(path), next_step="finish or delete it first")
        new = cls(path.with_name(f".{path.name}.new"))
        with explained(f"make {path}"):
            shutil.rmtree(new.path, ignore_errors=True)
            new.path.mkdir(parents=True)
            new._git("init", "--quiet", "--template=", "--object-format=sha1", f"--initial-branch={branch}")
            new._git("config", "core.autocrlf", "false")
            # A file that was only copied must not look changed, nor an upstream attribute rewrite its line ends.
            attributes = new.path / ".git" / "info" / "attributes"
            attributes.parent.mkdir(exist_ok=True)
            attributes.write_text("* -text -eol -filter -ident -working-tree-encoding\n")
            if lenders:
                (new.path / ".git" / _LENDERS).parent.mkdir(parents=True, exist_ok=True)
                places = "".join(f"{lender.path / 'objects'}\n" for lender in lenders)
                (new.path / ".git" / _LENDERS).write_text(places, encoding="utf-8", errors="surrogateescape")
                new._continue_from(upstream or {})
            else:
                store.allow_any_fetch()
                new.bring(store, tip)
            new._stand_at(tip, branch, refs)
            (new.path / ".git" / "forkyard-ready").touch()
            os.rename(new.path, path)
        return cls(path)

    def start_again(self, tip: str, branch: str, refs: Mapping[str, str]) -> None:
        """Have it be as :meth:`make` would make it; whatever was edited or built in the work tree is deleted.

        Only files that differ are written, so it takes a fraction of the time.

        Raises:
            GitFailure: git could not; what it had done stays.
        """
        with self._moving():
            self._git("symbolic-ref", "HEAD", f"refs/heads/{branch}")
            self._stand_at(tip, branch, refs)
            self._git("clean", "--quiet", "-ffdx")

    def _stand_at(self, tip: str, branch: str, refs: Mapping[str, str]) -> None:
        commits = {f"refs/heads/{branch}": tip, **refs}
        lines = "".join(f"update {name} {commit}\n" for name, commit in commits.items())
        self._git("update-ref", "--stdin", stdin=lines.encode())
        self._git("reset", "--quiet", "--hard", tip)

    def _continue_from(self, upstream: Mapping[str, str]) -> None:
        """Have a person's git see upstream's commits before ours; forkyard's own git goes on seeing ours alone."""
        for ours, theirs in upstream.items():
            status, _, _ = self._attempt("cat-file", "-e", f"{theirs}^{{commit}}")
            if status != 0:
                continue
            head, blank, rest = self._git("cat-file", "commit", ours).partition(b"\n")
            joined = head + blank + f"parent {theirs}\n".encode() + rest
            made = self._line("hash-object", "-t", "commit", "-w", "--stdin", stdin=joined)
            self._git("update-ref", f"refs/replace/{ours}", made)

    def stand_alone(self) -> bool:
        """Give it all objects the work in it needs instead of borrowing them; upstream's history goes.

        Returns:
            whether it borrowed any.

        Raises:
            GitFailure: what it borrows is not there.
        """
        if not self._lenders():
            return False
        replaced = self._git("for-each-ref", "--format=delete %(refname)", "refs/replace")
        self._git("update-ref", "--stdin", stdin=replaced)
        with self._moving():
            self._git("repack", "-a", "-d", "-q", timeout_s=600.0)
        for name in ("shallow", _LENDERS):
            (self.path / ".git" / name).unlink(missing_ok=True)
        return True

    # -- lock files of a killed git ------------------------------------------------------------------

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        """Around a git that changes what is the person's too: if it is killed, its lock files are known for ours.

        A person's own git may be at work here, so a lock file is deleted only if it appeared while a git of
        forkyard's was marked as running. The caller holds the project's lock.
        """
        mark = self.path / ".git" / "forkyard-moving"
        self._sweep(mark)
        before = set(self._locks())
        with explained(f"write in {self.path}"):
            mark.touch()
            os.utime(mark)
        try:
            yield
        except SourceError:
            mark.unlink(missing_ok=True)
            raise
        except BaseException:
            # Interrupted: git was killed, and what it locked stays locked.
            for lock in set(self._locks()) - before:
                lock.unlink(missing_ok=True)
            mark.unlink(missing_ok=True)
            raise
        mark.unlink(missing_ok=True)

    def _sweep(self, mark: Path) -> None:
        """Delete the lock files a killed run left."""
        with explained(f"delete lock files of a killed git in {self.path}"):
            for lock in self._locks():
                # Refs of this name are forkyard's alone.
                ours = lock.is_relative_to(self.path / ".git" / "refs" / "forkyard")
                with contextlib.suppress(FileNotFoundError):
                    if not ours and mark.exists():
                        # The clock of a file system is coarse: either may be a tick before the other.
                        ours = -1.0 <= lock.stat().st_mtime - mark.stat().st_mtime <= _OURS_S
                    if ours:
                        lock.unlink()
            mark.unlink(missing_ok=True)

    def _locks(self) -> Iterator[Path]:
        folder = self.path / ".git"
        for name in ("index.lock", "HEAD.lock", "shallow.lock", "packed-refs.lock"):
            if (folder / name).exists():
                yield folder / name
        yield from (folder / "refs").rglob("*.lock")

    def resolve(self, name: str) -> str:
        """Commit id of a ref or other name of a commit.

        Raises:
            GitFailure: there is none.
        """
        return self._line("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")

    def dirty(self) -> list[str]:
        """Paths that are changed, staged or unknown to git, and not ignored."""
        output = self._git("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
        return sorted(record[3:] for record in output.decode("utf-8", "surrogateescape").split("\0") if record)

    def operation(self) -> str | None:
        """What git operation of the person's own is unfinished here: ``rebase``, ``merge``, ``cherry-pick`` ..."""
        marks = {
            "rebase-merge": "rebase",
            "rebase-apply": "rebase",
            "MERGE_HEAD": "merge",
            "CHERRY_PICK_HEAD": "cherry-pick",
            "REVERT_HEAD": "revert",
            "BISECT_LOG": "bisect",
        }
        return next((word for mark, word in marks.items() if (self.path / ".git" / mark).exists()), None)

    def show_conflict(self, tree: str, stages: Sequence[tuple[int, Entry]], files: Mapping[str, bytes]) -> None:
        """Put an unfinished merge into index and work tree, as git itself would show it.

        Args:
            tree: the merge as far as it goes; its objects must be here.
            stages: (1 before, 2 upstream, 3 patch) and the entry, for each conflicting path.
            files: work tree content of conflicting paths, markers and all.
        """
        with self._moving():
            self._git("read-tree", "--reset", "-u", tree)
        paths = sorted({entry.path for _, entry in stages} | set(files))
        lines = "".join(f"0 {'0' * 40}\t{path}\0" for path in paths)
        lines += "".join(f"{entry.mode} {entry.oid} {stage}\t{entry.path}\0" for stage, entry in stages)
        with self._moving():
            self._git("update-index", "-z", "--index-info", stdin=lines.encode("utf-8", "surrogateescape"))
        for path, data in files.items():
            target = self.path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.write_bytes(data)
        executable = {entry.path for _, entry in stages if entry.mode == "100755"}
        for path in executable & set(files):
            (self.path / path).chmod(0o755)

    def bring(self, store: Store, *wanted: str) -> None:
        """Copy commits, with all they are made on, from the store."""
        with self._moving():
            self._git(
                "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(store.path), *wanted, timeout_s=600.0
            )

    def unmerged(self) -> set[str]:
        """Paths the person has neither added nor removed since the conflict was shown."""
        output = self._git("ls-files", "--unmerged", "-z").decode("utf-8", "surrogateescape")
        return {record.split("\t", 1)[1] for record in output.split("\0") if record}

    def keep_snapshot(self) -> str:
        """A commit of the work tree as it lies there now, on HEAD, kept under ``refs/forkyard/snapshot``."""
        env = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _NOBODY.items()}
        commit = self._git("commit-tree", self.snapshot(), "-p", "HEAD", stdin=b"snapshot\n", env=env)
        name = commit.decode("ascii").strip()
        with self._moving():
            self._git("update-ref", "refs/forkyard/snapshot", name)
        return name

    def snapshot(self) -> str:
        """Tree id of the work tree as it lies there now, ignored files left out; nothing of the person's is changed."""
        index = self.path / ".git" / "forkyard-index"
        index.unlink(missing_ok=True)
        try:
            if (self.path / ".git" / "index").exists():
                # With its time: a change in the very moment the index was written is told by that alone.
                shutil.copy2(self.path / ".git" / "index", index)
            self._git("add", "--all", index=index, config={"core.fileMode": "true", "core.safecrlf": "false"})
            return self._line("write-tree", index=index)
        finally:
            index.unlink(missing_ok=True)

    def set_refs(self, refs: Mapping[str, str], *, gone: Sequence[str] = ()) -> None:
        """Set some refs and delete others, all or none."""
        lines = [f"update {name} {commit}\n" for name, commit in refs.items()]
        lines += [f"delete {name}\n" for name in gone]
        with self._moving():
            self._git("update-ref", "--stdin", stdin="".join(lines).encode())

    def ref(self, name: str) -> str | None:
        """The commit a ref is at; ``None`` if there is no such ref."""
        status, output, _ = self._attempt("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        return output.decode("ascii").strip() if status == 0 else None

    def move_to(self, commit: str) -> None:
        """Have the checked-out branch, the index and the work tree be at ``commit``.

        Raises:
            GitFailure: a change that is not committed would be lost; nothing has moved then.
        """
        with self._moving():
            self._git("reset", "--quiet", "--keep", commit)

    def relabel(self, commit: str, why: str) -> None:
        """Have the checked-out branch be at ``commit``, which has the tree that is checked out already.

        Args:
            why: for the branch's log, where the old commits stay to be found.
        """
        who = {"GIT_COMMITTER_NAME": COMMITTER[0], "GIT_COMMITTER_EMAIL": COMMITTER[1]}
        with self._moving():
            self._git("update-ref", "--create-reflog", "-m", why, "HEAD", commit, env=who)


def lend(lenders: Sequence[Store], path: Path) -> None:
    """Have stores know that a work repository borrows from them, or will at once.

    Raises:
        StorageError: no space or permission.
    """
    for store in lenders:
        known = _borrowers(store.path)
        if path not in known:
            # Those that are gone are forgotten on the way.
            lines = [str(one) for one in (*filter(Path.exists, known), path) if "\n" not in str(one)]
            write_atomic(
                store.path / _BORROWERS, "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
            )


def call_in(store: Path) -> list[Path]:
    """Have everybody who borrows from a store stand alone, as it is about to be deleted.

    Returns:
        the work repositories that borrowed.
    """
    found = []
    for path in _borrowers(store):
        repository = WorkRepository(path)
        # One that is damaged has nothing that could be kept.
        with contextlib.suppress(SourceError):
            if repository.exists and repository.stand_alone():
                found.append(path)
    return found


def _borrowers(store: Path) -> list[Path]:
    try:
        text = (store / _BORROWERS).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [Path(line) for line in text.splitlines() if line]
