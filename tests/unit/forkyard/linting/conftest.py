"""A project whose recipe pins a clone beside it, whose stacks are clean unless a test makes them otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.gitstore import Author, Store
from forkyard.linting import Finding, Report, lint

MESSAGE = b"part : change it\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: file-exists never.c\n"
ABOUT = """\
title = "a stack"
intent = "to be tested"
engines = ["llama.cpp"]
capability = "{name}"
test = ["tests/test_{name}.py"]
measure = "figures"
answers = ["https://example.org/1"]
since = "2026-01-01"
order = {order}
"""
UPSTREAM: dict[str, Any] = {
    ".editorconfig": b"root = true\n[*]\nindent_style = space\n[Makefile]\nindent_style = tab\n[*.txt]\n"
    b"insert_final_newline = unset\ntrim_trailing_whitespace = unset\n[*.wide]\nmax_line_length = 20\n",
    ".clang-format": b"BasedOnStyle: LLVM\nIndentWidth: 4\nAllowShortFunctionsOnASingleLine: None\n",
    "src/a.cpp": b'#include "a.h"\n\nint one() {\n    return 1;\n}\n\nint two() {\n    return  2;\n}\n',
    "src/a.h": b"int one();\nint two();\n",
    "src/deep/own.h": b"int own;\n",
    "Makefile": b"all:\n\tcc\n",
    "CMakeLists.txt": b"project(a)\n",
    "notes.txt": b"notes\n",
    "cut.txt": b"no line feed",
    "b.wide": b"wide\n",
}


class Lab:
    """A project to lint."""

    def __init__(self, root: Path, cache: Cache, forge_of: Any, add_stack: Callable[..., Path]) -> None:
        self.root, self.cache, self._add_stack = root, cache, add_stack
        clone = Store(root / "recipes" / "clone")
        clone.ensure()
        clone.allow_any_fetch()
        self.forge = forge_of(clone)
        self.files: dict[str, Any] = dict(UPSTREAM)
        self.recipe = (root / "recipes" / "mine.toml").read_text()
        (root / "tests").mkdir()
        self.in_recipe: list[str] = []
        self.orders = 0
        self.pin()

    def pin(self, **recipe: str) -> None:
        """Pin ``files`` as they are now."""
        tree = self.forge.tree(self.files)
        commit = self.forge.store.commit(tree, None, Author("a", "a@b", "2026-01-05T00:00:00Z"), b"pin\n")
        stacks = ", ".join(f'"{name}"' for name in self.in_recipe)
        text = self.recipe.replace("1" * 40, commit).replace("2" * 40, tree)
        (self.root / "recipes" / "mine.toml").write_text(text.replace("stacks = []", f"stacks = [{stacks}]"))

    def patch(
        self, changes: Mapping[str, Any], *, on: Mapping[str, Any] | None = None, message: bytes = MESSAGE
    ) -> bytes:
        """The patch that makes changes to upstream's files; ``None`` deletes one."""
        before = {**self.files, **(on or {})}
        after = {path: data for path, data in {**before, **changes}.items() if data is not None}
        return self.forge.patch(before, after, message)

    def edit(self, path: str, old: bytes, new: bytes, *, message: bytes = MESSAGE) -> bytes:
        """The patch that replaces some text of one of upstream's files."""
        data = self.files[path]
        assert data.count(old) == 1
        return self.patch({path: data.replace(old, new)}, message=message)

    def stack(
        self,
        *patches: bytes,
        name: str = "part",
        files: Mapping[str, bytes] | None = None,
        about: str = "",
        more: str = "",
        recipe: bool = True,
        **options: Any,
    ) -> Path:
        """Add a stack of patches called a.patch, b.patch ... to the project, and to the recipe."""
        named = {f"{'abcdefgh'[number]}.patch": data for number, data in enumerate(patches)}
        self.orders += 1
        (self.root / "tests" / f"test_{name}.py").touch()
        text = about or ABOUT.format(name=name, order=self.orders * 10) + more
        folder = self._add_stack(self.root, name, patches=named, files=files, about=text, **options)
        if recipe:
            self.in_recipe.append(name)
            self.pin()
        return folder

    def lint(self, *stacks: str, **options: Any) -> Report:
        """The report on the project."""
        return lint(self.root, self.cache, Silent(), stacks=stacks, **options)

    def found(self, rule: str) -> list[Finding]:
        """The findings of one rule."""
        return [finding for finding in self.lint().findings if finding.rule == rule]

    def rules(self) -> list[str]:
        """The rules that found something."""
        return sorted({finding.rule for finding in self.lint().findings})


@pytest.fixture
def lab(project_root: Path, cache: Cache, forge_of: Any, add_stack: Callable[..., Path]) -> Lab:
    """A project without stacks."""
    return Lab(project_root, cache, forge_of, add_stack)


@pytest.fixture
def line_of() -> Callable[[Lab, Finding], str]:
    """The line of the project's files that a finding points at."""

    def read(lab: Lab, finding: Finding) -> str:
        assert finding.line is not None
        data = (lab.root / finding.file).read_bytes().decode("utf-8", "replace")
        return data.split("\n")[finding.line - 1]

    return read
