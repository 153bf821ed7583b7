"""An upstream with history, a project pinned to it, and series made on it: everything a rebase works on, in small."""

from __future__ import annotations

import atexit
import datetime
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forkyard.cache import Cache
from forkyard.console import Console
from forkyard.gitstore import Author, Entry, Store
from forkyard.gitstore.history import commits
from forkyard.rebasing.carrying import Carried, carry
from forkyard.rebasing.replaying import Base, Replay, replay
from forkyard.rebasing.resolutions import Resolutions
from forkyard.rebasing.session import Session
from forkyard.stacks import apply_stacks, load_stacks
from forkyard.stacks.applying import base_commit
from forkyard.stacks.exporting import export_commits

Files = Mapping[str, Any]
"""Path -> content, or (mode, content)."""

RECIPE = """\
# The recipe of a test.
schema = 1
name = "mine"
family = "llama.cpp"
title = "my engine"
stacks = {stacks}

[pin]
commit = "{commit}"  # the pin
tree = "{tree}"
date = "{date}"
build-number = 0

[[sources]]
kind = "local"
path = "{source}"

[build]
tools = ["llama-server"]
libraries = ["llama"]
headers = ["include/llama.h"]
include-dirs = ["include"]
cpu-target = "ggml-cpu"
licenses = ["LICENSE"]
"""

ABOUT = """\
title = "a stack"
intent = "to be tested"
engines = ["llama.cpp"]
since = "2026-01-01"
order = {order}
"""

STATUS = "Upstream-Status: Pending"
# Making a store takes ten gits, copying an empty one none.
_template: list[Path] = []
FIRST_DAY = datetime.date(2026, 1, 5)


def text(*lines: object) -> bytes:
    """Lines as a file's content."""
    return "".join(f"{line}\n" for line in lines).encode()


def numbered(count: int = 20, **changed: object) -> bytes:
    """``line 1`` to ``line N``; ``l3="x"`` puts another text there, ``l3=None`` leaves the line out."""
    lines = [changed.get(f"l{number}", f"line {number}") for number in range(1, count + 1)]
    return text(*(line for line in lines if line is not None))


@dataclass
class Lab:
    """See the module."""

    root: Path
    cache: Cache
    upstream: Store
    days: int = 0
    stacks: list[str] = field(default_factory=list)

    # -- upstream ------------------------------------------------------------------------------------

    def tree(self, files: Files, store: Store | None = None) -> str:
        """Tree id of some files, in upstream's store or another."""
        where = store or self.upstream
        entries = []
        for path, content in files.items():
            mode, data = content if isinstance(content, tuple) else ("100644", content)
            oid = data if mode == "160000" else where.write_blob(data)
            entries.append(Entry(mode, "commit" if mode == "160000" else "blob", oid, path))
        return where.write_tree(entries)

    def commit(self, files: Files, subject: str = "change", parent: str | None = None) -> str:
        """A commit of upstream, a day after the one before."""
        day = FIRST_DAY + datetime.timedelta(days=self.days)
        self.days += 1
        author = Author("Up Stream", "up@example.org", f"{day.isoformat()}T10:00:00+00:00")
        made = self.upstream.commit(self.tree(files), parent, author, f"{subject}\n".encode())
        self.upstream.pin_object(made, f"made/{made}")
        self.upstream._git("update-ref", "refs/heads/main", made)
        self.upstream._git("symbolic-ref", "HEAD", "refs/heads/main")
        return made

    def history(self, *versions: Files) -> list[str]:
        """Commits that follow each other."""
        made: list[str] = []
        for number, files in enumerate(versions):
            made.append(self.commit(files, f"version {number}", made[-1] if made else None))
        return made

    # -- the project ---------------------------------------------------------------------------------

    @property
    def recipe(self) -> Path:
        return self.root / "recipes" / "mine.toml"

    def pin(self, commit: str, **extra: str) -> None:
        """Have the project's recipe pin a commit."""
        facts = {
            "commit": commit,
            "tree": self.upstream.tree_of(commit),
            "date": self.upstream.commit_date(commit),
            "source": self.upstream.path,
        }
        self.recipe.write_text(RECIPE.format(stacks=json.dumps(self.stacks), **{**facts, **extra}))

    def series(
        self,
        pin: str,
        *patches: tuple[str, Files] | tuple[str, Files, str],
        stack: str = "part",
        order: int = 100,
        after: str | None = None,
        whole_files: bool = False,
    ) -> None:
        """Write a stack: each patch by its name, the files of the engine after it, and trailers.

        Args:
            pin: the upstream commit it is made on.
            after: the tree it starts from, where other stacks come before.
        """
        date, tree = self.upstream.commit_date(pin), after or self.upstream.tree_of(pin)
        base = base_commit(self.upstream, "llama.cpp", pin, date, tree)
        tip = base
        for number, (name, files, *trailers) in enumerate(patches):
            message = f"{name} : subject\n\nWhy.\n\n{STATUS}\n" + "".join(f"{line}\n" for line in trailers)
            author = Author("A. Person", "a@example.org", f"2026-01-02T03:04:{number:02}+02:00")
            tip = self.upstream.commit(self.tree(files), tip, author, message.encode())
        facts = commits(self.upstream, f"{base}..{tip}") if patches else []
        exported = export_commits(
            self.upstream, base, facts, [f"{patch[0]}.patch" for patch in patches], whole_files=whole_files
        )
        folder = self.root / "patches" / stack
        (folder / "llama.cpp").mkdir(parents=True, exist_ok=True)
        (folder / "stack.toml").write_text(ABOUT.format(order=order))
        (folder / "llama.cpp" / "series").write_text("".join(f"{name}\n" for name in exported.names))
        for patch in exported.patches:
            (folder / "llama.cpp" / patch.name).write_bytes(patch.data)
        for path, (data, executable) in exported.files.items():
            target = folder / "src" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o755 if executable else 0o644)
        if stack not in self.stacks:
            self.stacks.append(stack)
        self.pin(pin)

    def session(self) -> Session:
        """A fresh forkyard on the project."""
        return Session(self.root, "mine", self.cache, Console(quiet=True))

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        """Mode and content of every file of the project that git would see."""
        return {
            path.relative_to(self.root).as_posix(): (path.stat().st_mode & 0o777, path.read_bytes())
            for name in ("recipes", "patches")
            for path in sorted((self.root / name).rglob("*"))
            if path.is_file()
        }

    # -- without a session ---------------------------------------------------------------------------

    def base(self, commit: str) -> Base:
        return Base(commit, self.upstream.tree_of(commit), self.upstream.commit_date(commit))

    def replay(self, old: str, new: str, records: Mapping[str, Resolutions] | None = None, **options: Any) -> Replay:
        """Replay the project's series from one upstream commit to another, in upstream's own store."""
        stacks = load_stacks(self.root, self.stacks, "llama.cpp")
        was = self.base(old)
        patched = apply_stacks(self.upstream, "llama.cpp", was.commit, was.date, was.tree, stacks)
        known = records or {}
        return replay(
            self.upstream,
            "llama.cpp",
            patched,
            was,
            self.base(new),
            lambda stack: known.get(stack, Resolutions()),
            **options,
        )

    def carry(self, before: Files, upstream: Files, patch: Files, known: Resolutions | None = None) -> Carried:
        """Carry one change over."""
        return carry(self.upstream, self.tree(before), self.tree(upstream), self.tree(patch), known)

    def content(self, entry: Entry) -> Any:
        """Content of a file, or the commit of a submodule."""
        return entry.oid if entry.kind == "commit" else self.upstream._git("cat-file", "blob", entry.oid)

    def files(self, tree: str) -> dict[str, bytes]:
        """Content of every file of a tree."""
        return {entry.path: self.content(entry) for entry in self.upstream.entries(tree) if entry.kind == "blob"}


def make_lab(folder: Path, root: Path, cache: Cache) -> Lab:
    """A lab in folders that are there."""
    store = Store(folder / "upstream.git")
    if not _template:
        store.ensure()
        store.allow_any_fetch()
        kept = Path(tempfile.mkdtemp(prefix="forkyard-lab-"))
        atexit.register(shutil.rmtree, kept, ignore_errors=True)
        _template.append(Path(shutil.copytree(store.path, kept / "store")))
    elif not store.path.exists():
        shutil.copytree(_template[0], store.path)
    return Lab(root, cache, store)


def git(folder: Path, *words: str) -> str:
    """Run git in a folder as a person would, without anybody's configuration."""
    env = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    identity = ["-c", "user.name=Me", "-c", "user.email=me@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def statuses(done: Replay) -> list[str]:
    """What became of each patch."""
    return [one.status for one in done.outcomes]


def verdicts(done: Replay) -> list[str]:
    """The verdict on each patch."""
    return [one.verdict.word for one in done.outcomes]
