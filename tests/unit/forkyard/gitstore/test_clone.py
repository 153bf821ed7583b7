from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import UsageError
from forkyard.gitstore import Author, GitFailure, Store
from forkyard.gitstore.clone import Clone

AUTHOR = Author("A", "a@b", "2026-01-02T00:00:00Z")


def git(folder: Path, *words: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def chain(store: Store, forge: Any) -> list[str]:
    found: list[str] = []
    for number in range(3):
        files = {"f": b"%d\n" % number, "g": b"g"}
        found.append(store.commit(forge.tree(files), found[-1] if found else None, AUTHOR, b"%d\n" % number))
    return found


@pytest.fixture(params=["plain", "bare", "subfolder", "work tree"])
def clone(request: pytest.FixtureRequest, tmp_path: Path, store: Store, chain: list[str]) -> Clone:
    """A repository that has the first commit of the chain on its branch."""
    top = tmp_path / "a clone"
    git(tmp_path, "init", "-q", "-b", "main", *(["--bare"] if request.param == "bare" else []), str(top))
    store.allow_any_fetch()
    git(top, "fetch", "-q", str(store.path), chain[0])
    git(top, "update-ref", "refs/heads/main", chain[0])
    if request.param == "bare":
        return Clone(top)
    git(top, "reset", "-q", "--hard")
    (top / "sub").mkdir()
    if request.param == "work tree":
        git(top, "worktree", "add", "-q", "--detach", str(tmp_path / "other"))
        return Clone(tmp_path / "other")
    return Clone(top / "sub" if request.param == "subfolder" else top)


def test_only_what_is_new_arrives(clone: Clone, store: Store, chain: list[str]) -> None:
    clone.check()
    assert clone.has_commit(chain[0])
    assert not clone.has_commit(chain[2])
    clone.give(store, chain[2], "forkyard/x", standing_on=chain[0], old=None)
    assert clone.branch("forkyard/x") == chain[2]
    assert clone.branch("main") == chain[0]
    git(clone.path, "fsck", "--strict")
    assert git(clone.path, "log", "--format=%s", "forkyard/x").split() == ["2", "1", "0"]


def test_everything_arrives_where_there_is_nothing(tmp_path: Path, store: Store, chain: list[str]) -> None:
    git(tmp_path, "init", "-q", "empty")
    clone = Clone(tmp_path / "empty")
    clone.give(store, chain[2], "x", standing_on=None, old=None)
    git(clone.path, "fsck", "--strict")
    assert clone.branch("x") == chain[2]


def test_a_branch_that_moved_meanwhile_is_not_overwritten(clone: Clone, store: Store, chain: list[str]) -> None:
    clone.give(store, chain[1], "x", standing_on=chain[0], old=None)
    with pytest.raises(GitFailure):
        clone.give(store, chain[2], "x", standing_on=chain[0], old=None)
    with pytest.raises(GitFailure):
        clone.give(store, chain[2], "x", standing_on=chain[0], old=chain[0])
    assert clone.branch("x") == chain[1]
    clone.give(store, chain[2], "x", standing_on=chain[0], old=chain[1])
    assert clone.branch("x") == chain[2]


def test_a_branch_that_is_checked_out_is_seen(clone: Clone) -> None:
    bare = git(clone.path, "rev-parse", "--is-bare-repository") == "true"
    assert clone.checked_out("main") or bare
    assert not clone.checked_out("mai")


def test_what_is_no_repository_or_branch(tmp_path: Path, clone: Clone) -> None:
    (tmp_path / "plain folder").mkdir()
    with pytest.raises(UsageError, match="no git repository"):
        Clone(tmp_path / "plain folder").check()
    for name in ("a..b", "-x", "", "a b", "@{-1}"):
        with pytest.raises(UsageError, match="no name for a branch"):
            clone.branch(name)
