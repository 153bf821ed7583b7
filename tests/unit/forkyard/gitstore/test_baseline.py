"""Where a branch left the default one, in every kind of clone a developer has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from forkyard.gitstore.baseline import default_base
from forkyard.gitstore.project import ProjectRepository


class Clone:
    """A repository in which commits are made."""

    def __init__(self, path: Path, branch: str = "main") -> None:
        self.path = path
        path.mkdir()
        self.git("init", "--quiet", f"--initial-branch={branch}")

    def git(self, *words: str) -> str:
        names = {f"GIT_{who}_{what}": "a@b.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", *words], cwd=self.path, env={**os.environ, **names}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self, text: str) -> str:
        self.git("commit", "--quiet", "--allow-empty", "--message", text)
        return self.git("rev-parse", "HEAD")

    def base(self) -> str:
        repository = ProjectRepository(self.path)
        return repository.revision(default_base(repository))


@pytest.mark.parametrize("branch", ["main", "master"])
def test_on_a_branch_of_ones_own(tmp_path: Path, branch: str) -> None:
    clone = Clone(tmp_path / "clone", branch)
    left = clone.commit("left here")
    clone.git("checkout", "--quiet", "-b", "mine")
    clone.commit("mine")
    assert clone.base() == left
    clone.git("checkout", "--quiet", branch)
    newer = clone.commit("meanwhile")
    assert clone.base() == newer
    clone.git("checkout", "--quiet", "mine")
    assert clone.base() == left


def test_what_is_not_pushed_counts_as_changed(tmp_path: Path) -> None:
    upstream = Clone(tmp_path / "upstream", "trunk")
    pushed = upstream.commit("pushed")
    upstream.git("clone", "--quiet", str(upstream.path), str(tmp_path / "clone"))
    clone = Clone.__new__(Clone)
    clone.path = tmp_path / "clone"
    clone.commit("not pushed")
    # The default branch has a name of its own, which origin/HEAD tells.
    assert clone.base() == pushed


def test_without_a_default_branch_nothing_but_the_work_tree_counts(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone", "mine")
    head = clone.commit("one")
    assert clone.base() == head


def test_an_unrelated_default_branch_is_no_base(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone", "main")
    clone.commit("one")
    clone.git("checkout", "--quiet", "--orphan", "other")
    head = clone.commit("another beginning")
    assert clone.base() == head
