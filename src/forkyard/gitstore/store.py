"""A bare store per engine family: objects that were checked, and the trees and commits made from them.

All plumbing runs on a private index. The store's refs only keep what we made from being collected.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import git

from forkyard.cache import explained, storage_error
from forkyard.errors import PatchError, SourceError
from forkyard.gitstore.answers import Answers
from forkyard.gitstore.commits import write_commit
from forkyard.gitstore.formats import COMMITTER, EXPORT_CONFIG, EXPORT_OPTIONS, Author, Entry, blob_id
from forkyard.gitstore.running import GitFailure, Repository
from forkyard.locks import held_locks

FETCH_S = 3600.0


class Store(Repository):
    """A bare repository that holds objects; its refs only keep what we made from being collected.

    What is a function of its arguments alone, and was done by this very object, is not done a second time.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.answers = Answers()
        """What was worked out about trees and commits; may come from an earlier run."""
        self._mails: dict[tuple[bytes, bool], tuple[Author, bytes, bytes]] = {}
        self.applied: dict[Any, str] = {}
        """Trees that patches gave, by the tree they were applied to and what they are."""

    # -- the store itself ----------------------------------------------------------------------------

    def ensure(self) -> None:
        """Create the repository when it is missing or was only half made."""
        if (self.path / "forkyard-ready").exists():
            return
        with explained("create the object store"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._free("config")
            self._free("HEAD")
            self._git("init", "--quiet", "--bare", "--template=", "--object-format=sha1", str(self.path))
            for name, value in (
                ("gc.auto", "0"),
                ("core.logAllRefUpdates", "false"),
                ("core.autocrlf", "false"),
                ("core.fsync", "pack,pack-metadata,reference"),
                ("fetch.unpackLimit", "1"),
            ):
                self._git("config", name, value)
            # Overrides every .gitattributes: files come out as the bytes that were hashed.
            attributes = self.path / "info" / "attributes"
            attributes.parent.mkdir(exist_ok=True)
            attributes.write_text("* -text -eol -filter -ident -working-tree-encoding\n")
            (self.path / "forkyard-ready").touch()

    def has(self, oid: str, kind: str = "") -> bool:
        """Whether an object (of a kind, as ``commit``) is in the store."""
        suffix = "^{" + kind + "}" if kind else ""
        try:
            self._git("cat-file", "-e", oid + suffix)
        except GitFailure:
            return False
        return True

    def has_all(self, oids: Iterable[str]) -> bool:
        """Whether all of some objects are in the store."""
        listing = "".join(f"{oid}\n" for oid in oids).encode()
        return b" missing\n" not in self._git("cat-file", "--batch-check", stdin=listing)

    def tree_of(self, commit: str) -> str:
        """Tree id of a commit."""
        return self._line("rev-parse", "--verify", f"{commit}^{{tree}}")

    def commit_date(self, commit: str) -> str:
        """Committer date of a commit as ``YYYY-MM-DD`` in UTC."""
        return self._git("show", "-s", "--format=%cd", "--date=format-local:%Y-%m-%d", commit).decode("ascii").strip()

    def commit_count(self, commit: str) -> int:
        """Commits reachable from ``commit``; 0 when the store is shallow and the count would be wrong."""
        if (self.path / "shallow").exists():
            return 0
        return int(self._line("rev-list", "--count", commit))

    def pin_object(self, oid: str, name: str) -> None:
        """Keep ``oid`` from ever being collected, under ``refs/forkyard/<name>``."""
        self._free(f"refs/forkyard/{name}")
        self._git("update-ref", f"refs/forkyard/{name}", oid)

    def fetch(
        self,
        location: str,
        commit: str,
        *,
        history: str | None = "none",
        progress: Callable[[int, int | None], None] | None = None,
    ) -> None:
        """Fetch one commit from a URL or path. git names every object it receives by its content.

        Args:
            commit: its id, or the name of a ref there.
            history: ``none`` of it, back to a day (``YYYY-MM-DD``), or all there is (``None``).
            progress: told objects received so far, and in all once known.

        Raises:
            GitFailure: it could not be fetched.
            StorageError: the disk is full.
        """
        self._free("shallow")
        environment = self._environment(None, users_config=True)
        command = [
            *self._program(environment, users_config=True),
            "-c",
            "protocol.ext.allow=never",
            "-c",
            "http.lowSpeedLimit=1000",
            "-c",
            "http.lowSpeedTime=60",
        ]
        command += [
            "fetch",
            "--progress",
            "--no-tags",
            "--no-write-fetch-head",
            *([] if history is None else ["--depth=1"] if history == "none" else [f"--shallow-since={history}"]),
            "--end-of-options",
            location,
            commit,
        ]
        said: list[str] = []

        def listen(line: str) -> None:
            counted = re.match(r"(?:remote: )?(?:Receiving|Counting) objects:\s+\d+% \((\d+)/(\d+)\)", line)
            if counted is None:
                said.append(line)
            elif progress is not None:
                progress(int(counted[1]), int(counted[2]))

        process = git.Git(str(self.path)).execute(
            command,
            as_process=True,
            universal_newlines=True,
            env=environment,
            pass_fds=held_locks(),
        )
        timer = threading.Timer(FETCH_S, process.terminate)
        timer.daemon = True
        timer.start()
        try:
            git.cmd.handle_process_output(process, None, listen, decode_streams=False)
            process.wait()
        except git.GitCommandError as error:
            text = "\n".join(said) or str(error)
            failure = GitFailure(["fetch"], error.status if isinstance(error.status, int) else 1, text)
            if failure.complaint.kind == "disk-full":
                raise _disk_full(self.path) from error
            raise failure from error
        finally:
            timer.cancel()

    def take(self, location: Path, commit: str) -> None:
        """Copy a commit with all it is made on from a repository on this disk.

        Raises:
            GitFailure: it is not there.
        """
        command = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--end-of-options", str(location), commit)
        # Whether a repository of somebody else may be read is the user's to say (safe.directory).
        self._git(*command, users_config=True)

    def allow_any_fetch(self) -> None:
        """Let :meth:`fetch` from another store take any object of this one."""
        self._git("config", "uploadpack.allowAnySHA1InWant", "true")

    # -- trees ---------------------------------------------------------------------------------------

    def entries(self, tree: str) -> list[Entry]:
        """Every file of a tree, in git's order."""
        listing = self._git("ls-tree", "-r", "-z", "--full-tree", tree).decode("utf-8", "surrogateescape")
        found = []
        for record in listing.split("\0"):
            if record:
                head, _, path = record.partition("\t")
                mode, kind, oid = head.split(" ")
                found.append(Entry(mode, kind, oid, path))
        return found

    def read_file(self, tree: str, path: str) -> bytes | None:
        """Content of one file of a tree; ``None`` if it is not there."""
        try:
            return self._git("cat-file", "blob", f"{tree}:{path}")
        except GitFailure:
            return None

    def add_folder(self, folder: Path, *, skip: Sequence[str] = ()) -> list[Entry]:
        """Put every file below ``folder`` into the store as it is, byte for byte.

        Args:
            skip: paths (files or folders) left out.

        Returns:
            one entry a file.
        """
        entries: list[tuple[str, str]] = []
        links: list[Entry] = []
        for path in _files_below(folder, skip):
            full = folder / path
            info = full.lstat()
            if stat.S_ISLNK(info.st_mode):
                target = os.readlink(full).encode("utf-8", "surrogateescape")
                oid = self._line("hash-object", "-w", "--stdin", stdin=target)
                links.append(Entry("120000", "blob", oid, path))
            else:
                entries.append(("100755" if info.st_mode & stat.S_IXUSR else "100644", path))
        names = "".join(f"{_quoted(path)}\n" for _, path in entries).encode("utf-8", "surrogateescape")
        if any("\n" in path for _, path in entries):
            msg = "a file name contains a line break"
            raise SourceError(msg, where=str(folder))
        with explained("write to the object store"):
            oids = (
                self._git("hash-object", "-w", "--no-filters", "--stdin-paths", stdin=names, work_tree=folder)
                .decode("ascii")
                .split()
            )
        found = [Entry(mode, "blob", oid, path) for (mode, path), oid in zip(entries, oids, strict=True)]
        return sorted([*found, *links], key=lambda entry: entry.path)

    def write_blob(self, data: bytes) -> str:
        """Put one file's content into the store; returns its object id."""
        return self._line("hash-object", "-w", "--no-filters", "--stdin", stdin=data)

    def write_tree(self, entries: Iterable[Entry]) -> str:
        """Tree id of a listing; objects it names need not be in the store."""
        with self.index() as index:
            text = "".join(f"{entry.mode} {entry.oid}\t{entry.path}\0" for entry in entries)
            self._git("update-index", "-z", "--index-info", index=index, stdin=text.encode("utf-8", "surrogateescape"))
            return self._line("write-tree", "--missing-ok", index=index)

    def without(self, tree: str, paths: Iterable[str]) -> str:
        """Tree id of ``tree`` less some paths."""
        dropped = set(paths)
        if not dropped:
            return tree
        return self.write_tree(entry for entry in self.entries(tree) if entry.path not in dropped)

    def missing_blobs(self, tree: str) -> list[Entry]:
        """Files of a tree whose content the store does not hold (submodules are not files)."""
        entries = [entry for entry in self.entries(tree) if entry.kind == "blob"]
        listing = "".join(f"{entry.oid}\n" for entry in entries).encode()
        answers = self._git("cat-file", "--batch-check=%(objectname)", stdin=listing).decode("ascii").splitlines()
        return [entry for entry, answer in zip(entries, answers, strict=True) if answer.endswith(" missing")]

    @contextlib.contextmanager
    def index(self, tree: str | None = None) -> Iterator[Path]:
        """A private index for the length of the block, holding ``tree`` if given."""
        with tempfile.TemporaryDirectory(prefix="index-", dir=self.path) as folder:
            path = Path(folder) / "index"
            if tree is not None:
                self._git("read-tree", tree, index=path)
            yield path

    def read_tree(self, index: Path, tree: str) -> None:
        """Have an index hold a tree."""
        self._git("read-tree", tree, index=index)

    # -- commits -------------------------------------------------------------------------------------

    def commit(self, tree: str, parent: str | None, author: Author, message: bytes) -> str:
        """Commit a tree so that the id depends on nothing but the arguments."""
        words = (author.name, author.email, author.date, hashlib.sha256(message).hexdigest())
        question = ("commit", tree, parent, *words)
        return str(self.answers.ask(question, lambda: self._commit(tree, parent, author, message)))

    def _commit(self, tree: str, parent: str | None, author: Author, message: bytes) -> str:
        with explained("write to the object store"):
            written = write_commit(self.path / "objects", tree, parent, author, message)
        if written is not None:
            return written
        parents = ["-p", parent] if parent is not None else []
        env = {
            "GIT_AUTHOR_NAME": author.name,
            "GIT_AUTHOR_EMAIL": author.email,
            "GIT_AUTHOR_DATE": author.date,
            "GIT_COMMITTER_NAME": COMMITTER[0],
            "GIT_COMMITTER_EMAIL": COMMITTER[1],
            "GIT_COMMITTER_DATE": author.date,
        }
        config = {"commit.gpgSign": "false", "i18n.commitEncoding": "UTF-8"}
        return self._git("commit-tree", tree, *parents, stdin=message, env=env, config=config).decode("ascii").strip()

    def mail_info(self, patch: bytes, *, foreign: bool = False) -> tuple[Author, bytes, bytes]:
        """Split a mailed patch: its author, the commit message, and the diff.

        Args:
            foreign: it is not one of our exports: what stands in brackets with ``PATCH`` is no part of the subject.

        Raises:
            PatchError: it is no mailed patch.
        """
        key = (hashlib.sha256(patch).digest(), foreign)
        if key not in self._mails:
            self._mails[key] = self._mail_info(patch, foreign=foreign)
        return self._mails[key]

    def _mail_info(self, patch: bytes, *, foreign: bool) -> tuple[Author, bytes, bytes]:
        with tempfile.TemporaryDirectory(prefix="mail-", dir=self.path) as folder:
            message, diff = Path(folder) / "message", Path(folder) / "diff"
            try:
                subject = "-b" if foreign else "-k"
                facts = self._git("mailinfo", subject, "--encoding=UTF-8", str(message), str(diff), stdin=patch)
            except GitFailure as error:
                msg = "not a patch as `git format-patch` writes it"
                raise PatchError(msg, why=error.complaint.why.replace(f"{folder}/", "its ")) from error
            # Only a line feed ends a line here: names and subjects may hold other characters that Python splits at.
            fields = dict(line.split(": ", 1) for line in facts.decode("utf-8", "replace").split("\n") if ": " in line)
            missing = [name for name in ("Author", "Email", "Subject", "Date") if not fields.get(name)]
            if missing:
                msg = "not a patch as `git format-patch` writes it"
                raise PatchError(msg, why=f"it has no {', '.join(missing)}")
            body = message.read_bytes()
            text = fields["Subject"].encode() + b"\n" + (b"\n" + body if body.strip() else b"")
            return Author(fields["Author"], fields["Email"], fields["Date"]), text, diff.read_bytes()

    def apply_diff(self, index: Path, diff: bytes) -> None:
        """Apply a diff to an index exactly; git itself never guesses (no fuzz), offsets are the caller's to refuse.

        Raises:
            GitFailure: it does not apply.
        """
        self._git("apply", "--cached", "--whitespace=nowarn", "-", stdin=diff, index=index)

    def add_file(self, index: Path, path: str, data: bytes, *, executable: bool = False) -> str:
        """Add one file to an index; returns its object id."""
        oid = self.write_blob(data)
        mode = "100755" if executable else "100644"
        self._git("update-index", "--add", "--cacheinfo", f"{mode},{oid},{path}", index=index)
        return oid

    def index_has(self, index: Path, path: str) -> bool:
        """Whether an index holds a path, something below it, or a file where one of its folders would be."""
        above = [str(parent) for parent in PurePosixPath(path).parents if parent.name]
        if self._git("ls-files", "-z", "--", f":(literal){path}", index=index):
            return True
        files = (
            self._git("ls-files", "-z", "--", *(f":(literal){name}" for name in above), index=index) if above else b""
        )
        return any(name.decode("utf-8", "surrogateescape") in above for name in files.split(b"\0") if name)

    def write_index(self, index: Path) -> str:
        """Tree id of an index."""
        return self._line("write-tree", "--missing-ok", index=index)

    def export(self, commit: str, *, exclude: Iterable[str] = ()) -> bytes:
        """A commit as a mailed patch, byte for byte the same wherever it is done, less some whole files."""
        paths = [f":(exclude,literal){path}" for path in exclude]
        return self._git(
            "format-patch",
            "-1",
            "--stdout",
            *EXPORT_OPTIONS,
            commit,
            "--",
            ".",
            *paths,
            config=EXPORT_CONFIG,
            work_tree=self.path,
        )

    def export_range(self, base: str, tip: str) -> list[bytes]:
        """Every commit of ``base..tip`` as :meth:`export` gives it, oldest first, by one git."""
        with tempfile.TemporaryDirectory(prefix="export-", dir=self.path) as folder:
            self._git(
                "format-patch",
                f"--output-directory={folder}",
                *EXPORT_OPTIONS,
                f"{base}..{tip}",
                config=EXPORT_CONFIG,
                work_tree=self.path,
            )
            # Numbered names of four digits or more; sorted as numbers, for the ten thousandth patch.
            files = sorted(Path(folder).iterdir(), key=lambda path: int(path.name.split("-", 1)[0]))
            return [path.read_bytes() for path in files]

    def diff(self, old: str, new: str, *, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> bytes:
        """The difference of two trees as ``git apply`` reads it, for some paths or all but some."""
        words = [f":(literal){path}" for path in only] or ["."]
        words += [f":(exclude,literal){path}" for path in exclude]
        return self._git(
            "diff-tree", "-r", "-p", "--binary", "--full-index", "--no-renames", old, new, "--", *words,
            config=EXPORT_CONFIG, work_tree=self.path,
        )  # fmt: skip

    # -- work trees ----------------------------------------------------------------------------------

    def check_out(self, tree: str, folder: Path, index: Path, *, keep: Sequence[str] = ()) -> None:
        """Make ``folder`` hold exactly ``tree``, touching only files that differ.

        Anything else in the folder is removed, except the paths in ``keep``. Files that were changed behind
        our back are put right.

        Raises:
            StorageError: no space or permission.
            SourceError: an object is missing or damaged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock = index.with_name(index.name + ".lock")
        # We hold forkyard's own lock on the tree: a lock file of git's can only be left from a killed run.
        lock.unlink(missing_ok=True)
        try:
            try:
                self._git("read-tree", "--reset", "-u", tree, index=index, work_tree=folder)
            except GitFailure as error:
                if error.complaint.kind == "disk-full":
                    raise
                # An index torn by a kill is worth nothing; start from an empty one.
                index.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
                self._git("read-tree", "--reset", "-u", tree, index=index, work_tree=folder)
            kept = [word for path in keep for word in ("-e", "/" + path)]
            self._git("clean", "-ffdxq", *kept, index=index, work_tree=folder)
        except GitFailure as error:
            if error.complaint.kind == "disk-full":
                raise _disk_full(folder) from error
            msg = "the patched tree could not be checked out"
            raise SourceError(
                msg, where=str(folder), why=error.complaint.why, next_step="run `forkyard clean sources`, then again"
            ) from error

    def verify_checkout(self, tree: str, folder: Path, *, keep: Sequence[str] = ()) -> int:
        """Hash every file of a checked-out tree against its object id, and see that there are no others.

        Args:
            keep: files that may be there besides.

        Returns:
            the number of files.

        Raises:
            SourceError: one differs or is missing; names it and both ids.
        """
        entries = [entry for entry in self.entries(tree) if entry.kind == "blob"]
        for entry in entries:
            path = folder / entry.path
            try:
                data = (
                    os.readlink(path).encode("utf-8", "surrogateescape")
                    if entry.mode == "120000"
                    else path.read_bytes()
                )
                linked = entry.mode != "120000" and path.is_symlink()
                found = "a symbolic link" if linked else blob_id(data)
            except OSError as error:
                found = error.strerror or "unreadable"
            if found != entry.oid:
                msg = f"{entry.path} is not what the commit says"
                raise SourceError(
                    msg,
                    where=str(path),
                    why=f"expected object {entry.oid}, found {found}",
                    next_step="run again: the tree is then put right; if not, run `forkyard clean sources` first",
                )
        strays = set(_files_below(folder, ())) - {entry.path for entry in entries} - set(keep)
        if strays:
            msg = f"{min(strays)} is in the checked-out tree but not in its commit"
            raise SourceError(msg, where=str(folder / min(strays)), next_step="run again: it is then removed")
        return len(entries)


def _quoted(path: str) -> str:
    """A path as git reads it from a list: one that starts with a quote, or holds what git strips, is C-quoted."""
    if not path.startswith('"') and "\r" not in path:
        return path
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r") + '"'


def _files_below(folder: Path, skip: Sequence[str]) -> Iterator[str]:
    skipped = {path.rstrip("/") for path in skip}
    for current, folders, names in os.walk(folder):
        base = Path(current).relative_to(folder).as_posix()
        prefix = "" if base == "." else base + "/"
        links = [name for name in folders if os.path.islink(os.path.join(current, name))]
        folders[:] = sorted(name for name in folders if name not in links and prefix + name not in skipped)
        for name in sorted([*names, *links]):
            if prefix + name not in skipped:
                yield prefix + name


def _disk_full(where: Path) -> Exception:
    full = storage_error(OSError(28, "No space left on device", str(where)), "write git objects")
    assert full is not None
    return full
