"""A small upstream, forks of it, and a project whose recipe pins it: everything from-branch needs, in milliseconds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from forkyard.adopting.adopt import adopt
from forkyard.adopting.outcome import Adoption, Wish
from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.gitstore import Store
from forkyard.stacks import PatchedTree, apply_stacks, load_stacks

ENV = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_COMMITTER_NAME": "Com Mitter",
    "GIT_COMMITTER_EMAIL": "committer@example.org",
}
DATE = "2026-01-02"
LINES = [f"line {number}\n" for number in range(30)]

_RECIPE = """\
schema = 1
name = "llama.cpp"
family = "llama.cpp"
title = "a small engine"
stacks = []

[pin]
commit = "{commit}"
tree = "{tree}"
date = "{date}"

{sources}

[build]
tools = ["llama-server"]
libraries = ["llama"]
headers = ["include/llama.h"]
cpu-target = "ggml-cpu"
"""


@dataclass
class Repo:
    """A repository with short words for what tests do in it."""

    path: Path
    clock: list[int] = field(default_factory=lambda: [0])
    """Days passed, so that every commit has a date of its own."""

    def git(self, *words: str, env: Mapping[str, str] | None = None, ok: bool = True) -> str:
        """Run git; returns its output."""
        self.clock[0] += 1
        day = f"2026-{1 + self.clock[0] // 28 % 12:02}-{1 + self.clock[0] % 28:02}T12:00:00+02:00"
        given = {
            "GIT_AUTHOR_NAME": "Au Thor",
            "GIT_AUTHOR_EMAIL": "author@example.org",
            "GIT_AUTHOR_DATE": day,
            "GIT_COMMITTER_DATE": day,
            **(env or {}),
        }
        done = subprocess.run(
            ["git", *words], cwd=self.path, env={**os.environ, **ENV, **given}, capture_output=True, timeout=1800
        )
        assert not ok or done.returncode == 0, f"git {' '.join(words)}: {done.stdout!r} {done.stderr!r}"
        return done.stdout.decode("utf-8", "surrogateescape").strip()

    def write(self, **files: str | bytes) -> None:
        """Write files; ``__`` in a name is a slash, ``_c`` at its end is ``.c``."""
        for name, content in files.items():
            path = name.replace("__", "/")
            path = path.removesuffix("_c") + ".c" if path.endswith("_c") else path
            target = self.path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, message: str | bytes, *, env: Mapping[str, str] | None = None, **files: str | bytes) -> str:
        """Write files, commit everything, return the commit."""
        self.write(**files)
        self.git("add", "--all")
        note = self.path / ".git" / "message"
        note.write_bytes(message.encode() if isinstance(message, str) else message)
        self.git(
            "commit",
            "--quiet",
            "--allow-empty",
            "--allow-empty-message",
            "--cleanup=verbatim",
            f"--file={note}",
            env=env,
        )
        return self.rev()

    def rev(self, name: str = "HEAD") -> str:
        return self.git("rev-parse", name)

    def tree(self, name: str = "HEAD") -> str:
        return self.git("rev-parse", f"{name}^{{tree}}")

    def merge(self, name: str, *, message: str | None = None, **resolution: str | bytes) -> str:
        """Merge, with the content of some files as given, whatever git thinks of it."""
        self.git("merge", "--quiet", "--no-ff", "--no-commit", *name.split(), ok=False)
        self.write(**resolution)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message or f"Merge {name}")
        return self.rev()


def edit(base: str | None = None, **changes: str) -> str:
    """The file of thirty lines with some replaced: ``edit(n3="x")``; ``base`` is such a file already."""
    lines = (base or "".join(LINES)).splitlines(keepends=True)
    for name, text in changes.items():
        lines[int(name.removeprefix("n"))] = text + "\n" if text else ""
    return "".join(lines)


@dataclass
class World:
    """An upstream, a fork, a project, a cache."""

    root: Path
    cache: Cache
    upstream: Repo
    fork: Repo
    pin: str = ""

    def write_recipe(self, pin: str, sources: str | None = None, stacks: str = "[]") -> None:
        """Pin an upstream commit; the recipe's only source has it and nothing else, unless told otherwise."""
        self.pin = pin
        if sources is None:
            bare = self.root.parent / "pins.git"
            if not bare.exists():
                subprocess.run(["git", "init", "--quiet", "--bare", str(bare)], check=True, env={**os.environ, **ENV})
            subprocess.run(
                ["git", "fetch", "--quiet", "--depth=1", f"file://{self.upstream.path}", pin],
                cwd=bare, env={**os.environ, **ENV}, check=True,
            )  # fmt: skip
            sources = f'[[sources]]\nkind = "local"\npath = "{bare}"\n'
        text = _RECIPE.format(
            commit=pin,
            tree=self.upstream.tree(pin),
            date=self.upstream.git(
                "show", "-s", "--format=%cd", "--date=format-local:%Y-%m-%d", pin, env={"TZ": "UTC"}
            ),
            sources=sources,
        )
        (self.root / "recipes" / "llama.cpp.toml").write_text(text.replace("stacks = []", f"stacks = {stacks}"))

    def adopt(self, branch: str = "work", repository: Path | str | None = None, **options: Any) -> Adoption:
        """Run from-branch."""
        options.setdefault("name", "mine")
        options.setdefault("offline", True)
        place = str(self.fork.path if repository is None else repository)
        reporter = options.pop("reporter", Silent())
        return adopt(self.root, self.cache, reporter, Wish(place, branch, "llama.cpp", **options))

    def applied(self, name: str = "mine") -> PatchedTree:
        """The stack as it was written, applied exactly to the pin."""
        store = Store(self.cache.store("llama.cpp"))
        date = self.upstream.git(
            "show", "-s", "--format=%cd", "--date=format-local:%Y-%m-%d", self.pin, env={"TZ": "UTC"}
        )
        stacks = load_stacks(self.root, [name], "llama.cpp")
        return apply_stacks(store, "llama.cpp", self.pin, date, self.upstream.tree(self.pin), stacks)

    def new_fork(self, at: str = "HEAD") -> None:
        """A fork with a branch ``work`` at an upstream commit."""
        self.fork.git("fetch", "--quiet", str(self.upstream.path), f"{at}:refs/heads/work")
        self.fork.git("checkout", "--quiet", "work")

    def pull(self, at: str) -> None:
        """Have an upstream commit in the fork, under no name."""
        self.fork.git("fetch", "--quiet", str(self.upstream.path), at)


@pytest.fixture
def world(tmp_path: Path, cache: Cache, repository: Path) -> World:
    """An upstream of one commit, which is the pin, and a fork of it."""
    root = tmp_path / "project"
    (root / "recipes").mkdir(parents=True)
    (root / "patches").mkdir()
    shutil.copy(repository / "recipes" / "variants.toml", root / "recipes")
    clock = [0]
    upstream, fork = Repo(tmp_path / "upstream", clock), Repo(tmp_path / "fork", clock)
    for repo in (upstream, fork):
        repo.path.mkdir()
        repo.git("init", "--quiet", "--initial-branch=master")
        repo.git("config", "uploadpack.allowAnySHA1InWant", "true")
    upstream.commit("Begin", a_c="".join(LINES), b_c="".join(LINES), docs__read="read me\n")
    made = World(root, cache, upstream, fork)
    made.write_recipe(upstream.rev())
    made.new_fork("master")
    return made


@pytest.fixture(scope="session")
def edited() -> Callable[..., str]:
    """See :func:`edit`."""
    return edit


@pytest.fixture(scope="session")
def repo_class() -> type[Repo]:
    """See :class:`Repo`."""
    return Repo
