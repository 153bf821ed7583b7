"""A small upstream with two stacks on it, in a store of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forkyard.gitstore import Author, Store
from forkyard.pullrequest.branch import Prepared, prepare_branch
from forkyard.sources import Obtained
from forkyard.stacks.applying import base_commit
from forkyard.stacks.model import Stack, load_stack

ABOUT = 'title = "a stack"\nintent = "to be tested"\nengines = ["llama.cpp"]\nsince = "2026-01-01"\n'
DATE = "2026-01-05"
FAMILY = "llama.cpp"
HOME = {
    "src/kv.cpp": b"void llama_kv::shift() {\n    one();\n    two();\n    three();\n}\n" + b"// pad\n" * 20 + b"end\n",
    "src/other.cpp": b"a\nb\nc\nd\ne\n",
    "include/llama.h": b"int llama_api(void);\n",
}
AUTHOR = Author("A. Person", "a@example.org", "2026-01-02T03:04:05+02:00")


@dataclass
class Upstream:
    """Two commits of an upstream, and a project with stacks made on the first."""

    store: Store
    root: Path
    forge: Any
    add_stack: Callable[..., Path]
    home: Obtained
    files: dict[str, bytes]

    def commit(self, files: dict[str, bytes], parent: str | None = None) -> Obtained:
        tree = self.forge.tree(files)
        commit = self.store.commit(tree, parent, AUTHOR, b"upstream\n")
        return Obtained(commit, tree, DATE, 0, "local", "here", ())

    def add(
        self,
        name: str,
        steps: dict[str, dict[str, bytes]],
        *,
        on: dict[str, bytes] | None = None,
        about: str = "",
        message: str = "kv : change {name}\n\nBecause of {name}.\n\nUpstream-Status: Pending\n",
    ) -> Stack:
        """A stack whose patches each change some files of what was there before."""
        current = dict(on or self.files)
        patches = {}
        for patch, change in steps.items():
            new = {**current, **change}
            text = message.format(name=patch.removesuffix(".patch")).encode()
            patches[patch] = self.forge.patch(current, new, text, AUTHOR)
            current = new
        self.add_stack(self.root, name, patches=patches, about=ABOUT + about)
        return load_stack(self.root, name)

    def prepare(self, stack: Stack, target: Obtained | None = None, **options: Any) -> Prepared:
        known = options.pop("known", {stack.name: stack})
        wish = {"patches": (), "usual": [], "known": known, "on_top_of": ()} | options
        return prepare_branch(self.store, FAMILY, self.home, target or self.home, stack, **wish)


@pytest.fixture
def upstream(store: Store, forge: Any, project_root: Path, add_stack: Callable[..., Path]) -> Upstream:
    made = Upstream(store, project_root, forge, add_stack, Obtained("", "", DATE, 0, "local", "here", ()), dict(HOME))
    made.home = made.commit(made.files)
    assert base_commit(store, FAMILY, made.home.commit, DATE, made.home.tree)
    return made


@pytest.fixture
def kv(upstream: Upstream) -> Stack:
    """Two patches of one file, far apart, the second on top of the first."""
    first = HOME["src/kv.cpp"].replace(b"one();", b"first();")
    second = first.replace(b"end\n", b"the end\n")
    return upstream.add("kv", {"first.patch": {"src/kv.cpp": first}, "second.patch": {"src/kv.cpp": second}})
