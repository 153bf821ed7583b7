"""The toy engine as a project of its own: a git repository, a recipe, a cache and an output folder, all disposable.

Tests drive the real ``forkyard`` command on it in child processes. Building it takes about two seconds, so a test can
afford to break a build in every way there is and build again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from forkyard.gitstore import EXPORT_CONFIG, EXPORT_OPTIONS

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINE = REPOSITORY / "tests" / "resources" / "toy-engine"
TIMEOUT_S = 1800.0
VARIANT = "sse42"
DATE = "2026-01-02"

_GIT_ENV = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "A Toymaker",
    "GIT_AUTHOR_EMAIL": "toymaker@example.invalid",
    "GIT_AUTHOR_DATE": f"{DATE}T12:00:00+00:00",
    "GIT_COMMITTER_NAME": "A Toymaker",
    "GIT_COMMITTER_EMAIL": "toymaker@example.invalid",
    "GIT_COMMITTER_DATE": f"{DATE}T12:00:00+00:00",
}

_RECIPE = """\
schema = 1
name = "toy"
family = "llama.cpp"
title = "a toy engine"
stacks = {stacks}

[pin]
commit = "{commit}"
tree = "{tree}"
date = "{date}"
build-number = 7

{sources}

[build]
tools = ["llama-server", "llama-bench", "llama-cli", "llama-perplexity", "llama-quantize"]
libraries = ["ggml-base", "ggml-cpu", "ggml", "llama", "mtmd"]
cpu-target = "ggml-cpu"
headers = ["include/llama.h", "ggml/include/ggml.h"]
include-dirs = ["include", "ggml/include"]
licenses = ["LICENSE"]

[build.options]
BUILD_SHARED_LIBS = true
GGML_OPENMP = false
"""

_BINDINGS = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "forkyard-llm"
version = "0.0.1"

[tool.hatch.build.targets.wheel]
packages = ["forkyard_llm"]
"""

_STACK = """\
title = "Changes of the toy"
intent = "Something to patch the toy engine with."
engines = ["llama.cpp"]
since = "2026-01-02"
"""

_STATUS = "Upstream-Status: Pending"
Change = tuple[str, str, str]
"""Path, old text, new text; a file that is not there has no old text and becomes a new file."""


@dataclass(frozen=True)
class Answer:
    """What a finished forkyard said."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON document on standard output; anything beside it there is an error."""
        document = json.loads(self.stdout)
        assert isinstance(document, dict)
        return document

    @property
    def built(self) -> dict[str, Any]:
        """The first payload of a successful build."""
        assert self.status == 0, f"exit {self.status}\n{self.stdout}\n{self.stderr}"
        first = self.json["built"][0]
        assert isinstance(first, dict)
        return first


def git(folder: Path, *arguments: str) -> str:
    """Run git in a repository of a test and return what it printed."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **_GIT_ENV}, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stderr}"
    return done.stdout


_ASSEMBLER = """\
#!/bin/sh
# Takes long for one of the toy's own files, once, where Toy.start_compiling() asks for it.
case "$*" in *.dir/src/*) mv "$HOME/slow" "$HOME/compiling" 2> /dev/null && sleep "$(cat "$HOME/compiling")";; esac
exec {real} "$@"
"""


@dataclass
class Toy:
    """A minimal forkyard project around the toy engine."""

    root: Path
    """The project: recipes, patches, wheels, bindings."""
    engine: Path
    """The engine's repository."""
    cache: Path
    out: Path
    home: Path
    """``HOME`` of every forkyard of this toy, and so the mark by which its processes are known."""
    environment: dict[str, str] = field(default_factory=dict)
    """Added to every forkyard's environment."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    # -- the project -----------------------------------------------------------------------------

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        return self.root / "recipes" / "toy.toml"

    @property
    def series(self) -> Path:
        """Folder of the stack's patches."""
        return self.root / "patches" / "changes" / "llama.cpp"

    @property
    def local_source(self) -> str:
        """The recipe's usual source: the repository on this disk."""
        return f'[[sources]]\nkind = "local"\npath = "{self.engine}"\n'

    @property
    def commit(self) -> str:
        """The engine's present commit."""
        return git(self.engine, "rev-parse", "HEAD").strip()

    @property
    def tree(self) -> str:
        """The tree of the engine's present commit."""
        return git(self.engine, "rev-parse", "HEAD^{tree}").strip()

    def write_recipe(self, *, sources: str | None = None, tree: str | None = None, stacks: Sequence[str] = ()) -> None:
        """Write the recipe for the engine's present commit."""
        text = _RECIPE.format(
            commit=self.commit,
            tree=tree or self.tree,
            date=DATE,
            stacks=json.dumps(list(stacks)),
            sources=self.local_source if sources is None else sources,
        )
        self.recipe.write_text(text)

    def edit_recipe(self, old: str, new: str) -> None:
        """Replace a piece of the recipe that must be there."""
        text = self.recipe.read_text()
        assert old in text
        self.recipe.write_text(text.replace(old, new, 1))

    def change_engine(self, path: str, old: str, new: str) -> None:
        """Commit a change of the engine and pin it."""
        _edit(self.engine / path, old, new)
        git(self.engine, "commit", "--quiet", "--all", "--message", f"Change {path}")
        self.write_recipe()

    def stack(
        self,
        name: str,
        patches: Mapping[str, Sequence[Change]],
        *,
        on: str = "HEAD",
        order: int = 100,
        test: Sequence[str] = (),
        requires: Sequence[str] = (),
        conflicts: Sequence[str] = (),
        headers: Sequence[str] = (),
        adds: Mapping[str, Sequence[str]] | None = None,
        in_recipe: bool = True,
    ) -> None:
        """Write a stack whose patches follow each other, and put it into the recipe.

        Args:
            patches: name without ``.patch`` -> what it changes.
            on: the stack it is made on, or a commit.
            adds: of the files a patch makes, those that are whole files of ours.
        """
        folder = self.root / "patches" / name / "llama.cpp"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.patch"):
            old.unlink()
        tips = git(self.engine, "for-each-ref", "--format=%(refname)", "refs/stacks").split()
        start = f"refs/stacks/{on}" if f"refs/stacks/{on}" in tips else on
        with_worktree = self.engine.with_name("patching")
        git(self.engine, "worktree", "add", "--quiet", "--detach", str(with_worktree), start)
        try:
            for patch, changes in patches.items():
                for path, old_text, new in changes:
                    (with_worktree / path).parent.mkdir(parents=True, exist_ok=True)
                    (with_worktree / path).touch()
                    _edit(with_worktree / path, old_text, new)
                whole = (adds or {}).get(patch, ())
                for path in whole:
                    source = folder.parent / "src" / path
                    source.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(with_worktree / path, source)
                message = "\n".join([f"{patch}\n\n{_STATUS}", *(f"Adds-Files: {path}" for path in whole)])
                git(with_worktree, "add", "--all")
                git(with_worktree, "commit", "--quiet", "--allow-empty", "--message", message)
                (folder / f"{patch}.patch").write_text(self._export(with_worktree, whole))
            git(self.engine, "update-ref", f"refs/stacks/{name}", git(with_worktree, "rev-parse", "HEAD").strip())
        finally:
            git(self.engine, "worktree", "remove", "--force", str(with_worktree))
        (folder / "series").write_text("".join(f"{patch}.patch\n" for patch in patches))
        about = {"order": order, "test": list(test), "requires": list(requires), "conflicts": list(conflicts)}
        about["headers"] = list(headers)
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in about.items())
        (folder.parent / "stack.toml").write_text(_STACK + lines)
        text = self.recipe.read_text()
        (line,) = (line for line in text.splitlines() if line.startswith("stacks = "))
        names = json.loads(line.removeprefix("stacks = "))
        if in_recipe and name not in names:
            self.edit_recipe(line, f"stacks = {json.dumps([*names, name])}")

    def write_test(self, path: str, text: str) -> None:
        """Write a test of the toy project, with the real conftest.py that chooses tests by patch."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        shutil.copy(REPOSITORY / "tests" / "conftest.py", self.root / "tests" / "conftest.py")

    @staticmethod
    def _export(work_tree: Path, whole: Sequence[str] = ()) -> str:
        config = [word for key, value in EXPORT_CONFIG.items() for word in ("-c", f"{key}={value}")]
        paths = [".", *(f":(exclude,literal){path}" for path in whole)]
        return git(work_tree, *config, "format-patch", "-1", "--stdout", *EXPORT_OPTIONS, "HEAD", "--", *paths)

    def patch(self, *changes: tuple[str, str, str], name: str = "0001-change.patch", onto: str = "HEAD") -> Path:
        """Write a one-patch series that makes ``changes`` (path, old, new) to the pinned engine; use it in the recipe.

        Args:
            onto: the commit the patch is made on.
        """
        with_worktree = self.engine.with_name("patching")
        git(self.engine, "worktree", "add", "--quiet", "--detach", str(with_worktree), onto)
        try:
            for path, old, new in changes:
                _edit(with_worktree / path, old, new)
            git(with_worktree, "commit", "--quiet", "--all", "--message", f"Change the toy\n\n{_STATUS}")
            text = self._export(with_worktree)
        finally:
            git(self.engine, "worktree", "remove", "--force", str(with_worktree))
        self.series.mkdir(parents=True, exist_ok=True)
        (self.series.parent / "stack.toml").write_text(_STACK)
        (self.series / "series").write_text(f"{name}\n")
        (self.series / name).write_text(text)
        if 'stacks = ["changes"]' not in self.recipe.read_text():
            self.edit_recipe("stacks = []", 'stacks = ["changes"]')
        return self.series / name

    # -- running forkyard ------------------------------------------------------------------------

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a forkyard of this toy."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FORKYARD", "CCACHE"))}
        return {
            **kept,
            "FORKYARD_ROOT": str(self.root),
            "FORKYARD_CACHE": str(self.cache),
            "HOME": str(self.home),
            "PATH": f"{self.home / 'programs'}:{kept['PATH']}",
            **self.environment,
            **(extra or {}),
        }

    def command(self, *arguments: str) -> list[str]:
        """The forkyard command with the JSON answer."""
        return [sys.executable, "-m", "forkyard", *arguments, "--json"]

    def build_arguments(self, *arguments: str, variant: str = VARIANT) -> list[str]:
        """Words of an ordinary build of the toy into its own output folder, without ccache."""
        ccache = [] if "--with-ccache" in arguments else ["--no-ccache"]
        words = [word for word in arguments if word != "--with-ccache"]
        return ["build", variant, "--out", str(self.out), *ccache, *words]

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Answer:
        """Run forkyard to its end."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=cwd or self.home,
            env=self.env(env),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)

    def build(self, *arguments: str, variant: str = VARIANT, env: Mapping[str, str] | None = None) -> Answer:
        """Build the toy."""
        return self.run(*self.build_arguments(*arguments, variant=variant), env=env)

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start forkyard as the leader of its own process group."""
        child = subprocess.Popen(
            self.command(*arguments),
            cwd=self.home,
            env=self.env(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(child)
        return child

    def start_build(self, *arguments: str, variant: str = VARIANT) -> subprocess.Popen[str]:
        """Start an ordinary build."""
        return self.start(*self.build_arguments(*arguments, variant=variant))

    def start_compiling(self, *arguments: str, takes_s: float = 5.0, within_s: float = 60.0) -> subprocess.Popen[str]:
        """Start forkyard and wait until it compiles; the first of the toy's own files then takes ``takes_s`` seconds.

        What the caller does next happens in the middle of a build, however seldom a busy machine lets the test run.
        """
        asked, begun = self.home / "slow", self.home / "compiling"
        asked.write_text(f"{takes_s}\n")
        child = self.start(*arguments)
        deadline = time.monotonic() + within_s
        while not begun.exists():
            if time.monotonic() >= deadline or child.poll() is not None:
                pytest.fail("the build ended or stood still before it compiled anything")
            time.sleep(0.01)
        return child

    # -- looking at what there is ----------------------------------------------------------------

    def wheels(self) -> list[Path]:
        """Payload wheels in the output folder."""
        return sorted(self.out.glob("forkyard_toy_*.whl"))

    def processes(self) -> dict[int, str]:
        """Living processes of this toy's forkyards, by the HOME they were given; their command lines."""
        mark = b"HOME=" + os.fsencode(self.home) + b"\0"
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes() + b"\0":
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    if state not in "ZX":
                        found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
        return found

    def wait_until_alone(self, within_s: float = 10.0) -> dict[int, str]:
        """Wait until no process of this toy is left; whatever still runs at the end of the time."""
        deadline = time.monotonic() + within_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def assert_sound(self) -> None:
        """Nothing half-made has a name under which anybody would use it, and nothing hidden is left in ``out``."""
        assert_complete_wheels(self.out)
        assert_sound_cache(self.cache)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} does not hold {old!r}"
    path.write_text(text.replace(old, new, 1))


def finish(child: subprocess.Popen[str]) -> Answer:
    """Wait for a started forkyard."""
    stdout, stderr = child.communicate(timeout=TIMEOUT_S)
    assert "Traceback" not in stderr, stderr
    return Answer(child.returncode, stdout, stderr)


def assert_complete_wheels(out: Path, *, hidden_allowed: bool = False) -> None:
    """Every file in an output folder is a whole wheel (``hidden_allowed``: or a killed run's unfinished copy)."""
    for path in out.iterdir() if out.is_dir() else ():
        if hidden_allowed and path.name.startswith(".incoming-"):
            continue
        assert path.suffix == ".whl", f"{path.name} is no wheel"
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None, path


def assert_sound_cache(cache: Path) -> None:
    """Every finished thing in a cache is what its name or record says."""
    for path in (cache / "downloads").glob("*.tar.gz"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.removesuffix(".tar.gz"), path
    for record in (cache / "wheels").glob("*/record.json"):
        facts = json.loads(record.read_bytes())
        assert hashlib.sha256((record.parent / facts["wheel"]).read_bytes()).hexdigest() == facts["sha256"], record
    for path in (cache / "wheels").glob("*/[!.]*.whl"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None, path
    for store in (cache / "store").glob("*.git"):
        if not (store / "forkyard-ready").exists():
            continue
        for line in git(store, "--git-dir", str(store), "for-each-ref", "--format=%(objectname)").split():
            git(store, "--git-dir", str(store), "cat-file", "-e", line)
        git(store, "--git-dir", str(store), "fsck", "--no-dangling", "--connectivity-only")
        for path in (store / "forkyard-pins").glob("*.json"):
            git(store, "--git-dir", str(store), "cat-file", "-e", json.loads(path.read_bytes())["tree"] + "^{tree}")


def make_toy(folder: Path) -> Toy:
    """A fresh toy project below ``folder``."""
    root, engine = folder / "project", folder / "engine"
    (root / "recipes").mkdir(parents=True)
    shutil.copy(REPOSITORY / "recipes" / "variants.toml", root / "recipes")
    shutil.copytree(REPOSITORY / "wheels", root / "wheels")
    package = root / "bindings" / "forkyard_llm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Stands in for the bindings."""\n')
    (root / "bindings" / "pyproject.toml").write_text(_BINDINGS)
    (root / "patches").mkdir()
    shutil.copytree(ENGINE, engine)
    git(engine, "init", "--quiet", "--initial-branch=main")
    # What a server would answer: commits by their id.
    git(engine, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(engine, "add", "--all")
    git(engine, "commit", "--quiet", "--message", "Make a toy")
    home = folder / "home"
    (home / "programs").mkdir(parents=True)
    # The same text in every toy, because the compiler's programs are part of what a wheel is made from.
    (home / "programs" / "as").write_text(_ASSEMBLER.format(real=shutil.which("as")))
    (home / "programs" / "as").chmod(0o755)
    toy = Toy(root, engine, folder / "cache", folder / "out", home)
    toy.write_recipe()
    return toy


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    """A toy project of the test's own; whatever it started and left running is ended afterwards."""
    made = make_toy(tmp_path)
    yield made
    for child in made.started:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """The answer of a build of the unchanged toy that nothing disturbed; its wheel is what every other must equal."""
    return make_toy(tmp_path_factory.mktemp("undisturbed")).build()
