from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import SourceError
from forkyard.gitstore import Author, GitFailure, Store
from forkyard.gitstore.work import WorkRepository, call_in, lend

AUTHOR = Author("A", "a@b", "2026-01-02T00:00:00Z")
FILES: dict[str, Any] = {
    "a.txt": b"a\n",
    "dos.txt": b"a\r\nb\r\n",
    "run.sh": ("100755", b"#!/bin/sh\n"),
    "link": ("120000", b"a.txt"),
    "dir/\u00fc b.c": b"x\n",
    ".gitattributes": b"*.txt text eol=lf ident\n",
    ".gitignore": b"*.o\n",
}
ENV = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "EMAIL": "p@example.org", "GIT_AUTHOR_NAME": "P"}


def git(folder: Path, *words: str, check: bool = True) -> str:
    environment = {**os.environ, **ENV, "GIT_COMMITTER_NAME": "P"}
    done = subprocess.run(["git", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def tips(store: Store, forge: Any) -> tuple[str, str]:
    base = store.commit(forge.tree(FILES), None, AUTHOR, b"base\n")
    return base, store.commit(forge.tree({**FILES, "a.txt": b"b\n"}), base, AUTHOR, b"tip\n")


@pytest.fixture
def work(store: Store, tips: tuple[str, str], tmp_path: Path) -> WorkRepository:
    base, tip = tips
    return WorkRepository.make(tmp_path / "w" / "edit", store, tip, "forkyard/x", {"refs/forkyard/base": base})


def test_a_person_finds_an_ordinary_repository(work: WorkRepository, tips: tuple[str, str]) -> None:
    assert work.exists
    assert git(work.path, "status", "--porcelain") == ""
    assert git(work.path, "symbolic-ref", "--short", "HEAD") == "forkyard/x"
    assert git(work.path, "rev-parse", "HEAD~1", "HEAD").split() == list(tips)
    assert (work.path / "dos.txt").read_bytes() == b"a\r\nb\r\n"
    assert os.access(work.path / "run.sh", os.X_OK)
    assert (work.path / "link").is_symlink()
    assert [path.name for path in work.path.parent.iterdir()] == ["edit"]


def test_it_does_not_need_the_store(work: WorkRepository, store: Store) -> None:
    store.path.rename(store.path.with_name("gone"))
    git(work.path, "fsck", "--strict")
    assert work.resolve("HEAD")


def test_a_place_that_is_taken_is_left_alone(work: WorkRepository, store: Store, tips: tuple[str, str]) -> None:
    with pytest.raises(SourceError, match="edit is there already"):
        WorkRepository.make(work.path, store, tips[1], "b", {})


def test_what_a_killed_run_left_is_no_repository_and_in_nobodys_way(
    store: Store, tips: tuple[str, str], tmp_path: Path
) -> None:
    left = tmp_path / ".edit.new" / ".git"
    left.mkdir(parents=True)
    (left / "forkyard-ready").touch()
    assert not WorkRepository(tmp_path / "edit").exists
    assert WorkRepository.make(tmp_path / "edit", store, tips[1], "b", {}).exists
    assert not left.exists()


def test_a_commit_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(GitFailure):
        WorkRepository.make(tmp_path / "edit", store, "1" * 40, "b", {})
    assert not (tmp_path / "edit").exists()


def test_dirty_paths(work: WorkRepository) -> None:
    assert work.dirty() == []
    (work.path / "a.txt").write_text("x")
    (work.path / "link").unlink()
    (work.path / "run.sh").chmod(0o644)
    (work.path / "new dir").mkdir()
    (work.path / "new dir" / "\u00fc").write_text("x")
    (work.path / "staged").write_text("x")
    (work.path / "ignored.o").write_text("x")
    git(work.path, "add", "staged")
    git(work.path, "mv", "dos.txt", "moved.txt")
    assert work.dirty() == ["a.txt", "dos.txt", "link", "moved.txt", "new dir/\u00fc", "run.sh", "staged"]


def test_the_callers_git_variables_do_not_reach_it(work: WorkRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent")
    assert work.dirty() == []


@pytest.mark.parametrize("operation", ["rebase", "merge", "cherry-pick", "revert", "bisect"])
def test_unfinished_operations_are_seen(work: WorkRepository, operation: str) -> None:
    assert work.operation() is None
    git(work.path, "checkout", "-q", "-b", "side", "HEAD~1")
    (work.path / "a.txt").write_text("other\n")
    git(work.path, "commit", "-qam", "other")
    words = {
        "rebase": ["rebase", "forkyard/x"],
        "merge": ["merge", "forkyard/x"],
        "cherry-pick": ["cherry-pick", "forkyard/x"],
        "revert": ["revert", "--no-edit", "forkyard/x"],
        "bisect": ["bisect", "start"],
    }[operation]
    git(work.path, *words, check=False)
    assert work.operation() == operation


def test_refs_are_set_all_or_none(work: WorkRepository, tips: tuple[str, str]) -> None:
    work.set_refs({"refs/forkyard/one": tips[0], "refs/forkyard/two": tips[1]})
    assert (work.ref("refs/forkyard/one"), work.ref("refs/forkyard/two")) == tips
    with pytest.raises(GitFailure):
        work.set_refs({"refs/forkyard/one": tips[1], "refs/forkyard/three": "1" * 40})
    assert work.ref("refs/forkyard/one") == tips[0]
    work.set_refs({}, gone=["refs/forkyard/one", "refs/forkyard/nosuch"])
    assert work.ref("refs/forkyard/one") is None
    work.set_refs({})


def test_moving_keeps_what_is_not_committed(work: WorkRepository, tips: tuple[str, str]) -> None:
    (work.path / "dos.txt").write_text("mine")
    work.move_to(tips[0])
    assert (work.path / "dos.txt").read_text() == "mine"
    assert (work.path / "a.txt").read_text() == "a\n"
    (work.path / "a.txt").write_text("mine")
    with pytest.raises(GitFailure):
        work.move_to(tips[1])
    assert (work.path / "a.txt").read_text() == "mine"
    assert work.resolve("HEAD") == tips[0]


def test_relabelling_leaves_the_old_commit_in_the_branchs_log(
    work: WorkRepository, store: Store, tips: tuple[str, str]
) -> None:
    other = store.commit(store.tree_of(tips[1]), tips[0], AUTHOR, b"other words\n")
    work.bring(store, other)
    work.relabel(other, "forkyard: because")
    assert git(work.path, "rev-parse", "forkyard/x") == other
    assert work.dirty() == []
    assert git(work.path, "rev-parse", "HEAD@{1}") == tips[1]
    assert "forkyard: because" in git(work.path, "reflog")


def test_a_snapshot_is_what_lies_there(work: WorkRepository) -> None:
    (work.path / "a.txt").write_bytes(b"changed\n")
    (work.path / "new").write_bytes(b"new\n")
    (work.path / "x.o").write_bytes(b"ignored")
    git(work.path, "rm", "-q", "--cached", "dos.txt")
    before = git(work.path, "status", "--porcelain")
    tree = work.snapshot()
    listing = git(work.path, "ls-tree", "-r", "--name-only", tree).splitlines()
    assert "new" in listing
    assert "x.o" not in listing
    assert "dos.txt" in listing
    assert git(work.path, "show", f"{tree}:a.txt") == "changed"
    assert git(work.path, "status", "--porcelain") == before


# -- borrowed history --------------------------------------------------------------------------------


@pytest.fixture
def borrowing(store: Store, forge: Any, tmp_path: Path) -> tuple[WorkRepository, list[str]]:
    """A work repository on a commit of ours that holds upstream's tree, and three commits of upstream's."""
    made: list[str] = []
    for text in (b"a\n", b"b\n", b"c\n"):
        files = {**FILES, "a.txt": text}
        made.append(store.commit(forge.tree(files), made[-1] if made else None, AUTHOR, b"upstream " + text))
    ours = store.commit(store.tree_of(made[-1]), None, AUTHOR, b"base\n")
    tip = store.commit(forge.tree({**FILES, "a.txt": b"mine\n"}), ours, AUTHOR, b"tip\n")
    path = tmp_path / "w" / "b"
    lend([store], path)
    refs = {"refs/forkyard/base": ours}
    work = WorkRepository.make(path, store, tip, "x", refs, lenders=[store], upstream={ours: made[-1]})
    return work, made


def test_upstreams_history_is_shown_before_ours(borrowing: tuple[WorkRepository, list[str]]) -> None:
    work, made = borrowing
    assert "+b" in git(work.path, "show", made[1])
    assert git(work.path, "log", "--format=%s", "-Sb", "--", "a.txt").splitlines() == ["upstream c", "upstream b"]
    assert made[0] in git(work.path, "blame", "-l", "--root", "run.sh")
    assert git(work.path, "status", "--porcelain") == ""
    # forkyard's own git sees our commits as they are.
    assert work._line("rev-list", "--count", "HEAD") == "2"


def test_what_is_borrowed_is_given_before_the_store_goes(
    borrowing: tuple[WorkRepository, list[str]], store: Store
) -> None:
    work, _ = borrowing
    (work.path / "a.txt").write_text("an hour of work\n")
    git(work.path, "add", "a.txt")
    assert call_in(store.path) == [work.path]
    shutil.rmtree(store.path)
    assert work.exists
    git(work.path, "fsck", "--strict")
    assert git(work.path, "diff", "--cached", "--name-only") == "a.txt"
    assert git(work.path, "log", "--format=%s").splitlines() == ["tip", "base"]
    git(work.path, "commit", "-qm", "mine")
    # It borrows no more, so there is nothing to call in.
    assert call_in(store.path) == []


def test_a_repository_whose_lender_is_gone_is_not_whole(
    borrowing: tuple[WorkRepository, list[str]], store: Store
) -> None:
    work, _ = borrowing
    store.path.rename(store.path.with_name("gone"))
    assert not work.exists


def test_a_lender_forgets_who_is_gone(store: Store, tmp_path: Path) -> None:
    for name in ("one", "two"):
        lend([store], tmp_path / name)
    (tmp_path / "two").mkdir()
    lend([store], tmp_path / "three")
    lend([store], tmp_path / "three")
    assert (store.path / "forkyard-borrowers").read_text().split() == [str(tmp_path / "two"), str(tmp_path / "three")]
    assert call_in(store.path) == []
