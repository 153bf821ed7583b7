"""Reading repositories of strangers: nothing of theirs runs, and what is wrong with them is said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.adopting.base import _plain
from forkyard.adopting.fork import locate
from forkyard.adopting.report import document
from forkyard.errors import PatchError, SourceError, UsageError
from forkyard.gitstore import Entry, GitFailure, Store
from forkyard.gitstore.forks import changes_of, fetch_refs, is_shallow, list_refs, remotes

Edit = Callable[..., str]


def test_nothing_in_a_hostile_repository_runs(world: Any, edited: Edit, tmp_path: Path) -> None:
    fork, mark = world.fork, tmp_path / "ran"
    command = f"touch {mark}; false"
    fork.commit("own : a", a_c=edited(n2="mine"))
    fork.commit("own : attributes", **{".gitattributes": "* filter=evil diff=evil merge=evil\n"})
    for hook in (fork.path / ".git" / "hooks", tmp_path / "hooks"):
        hook.mkdir(exist_ok=True)
        for name in ("pre-auto-gc", "reference-transaction", "post-checkout", "post-update", "fsmonitor-watchman"):
            (hook / name).write_text(f"#!/bin/sh\n{command}\n")
            (hook / name).chmod(0o755)
    for key in (
        "core.fsmonitor", "core.sshCommand", "core.gitProxy", "core.editor", "core.pager", "uploadpack.packObjectsHook",
        "filter.evil.clean", "filter.evil.smudge", "diff.evil.textconv", "diff.evil.command", "merge.evil.driver",
        "diff.external", "credential.helper", "alias.upload-pack", "remote.origin.uploadpack", "remote.origin.vcs",
    ):  # fmt: skip
        fork.git("config", key, command)
    fork.git("config", "core.hooksPath", str(tmp_path / "hooks"))
    fork.git("config", "include.path", str(tmp_path / "more"))
    (tmp_path / "more").write_text(f"[uploadpack]\npackObjectsHook = {command}\n")
    mark.unlink(missing_ok=True)
    world.adopt()
    assert not mark.exists()
    assert world.applied().tree == fork.tree()


def test_a_partial_clone_is_refused_and_fetches_nothing(
    world: Any, edited: Edit, repo_class: Any, tmp_path: Path
) -> None:
    fork, mark = world.fork, tmp_path / "ran"
    fork.commit("own : a", a_c=edited(n2="mine"))
    fork.git("config", "uploadpack.allowFilter", "true")
    partial = repo_class(tmp_path / "partial", fork.clock)
    subprocess.run(
        ["git", "clone", "--quiet", "--filter=blob:none", "--no-checkout", f"file://{fork.path}", str(partial.path)],
        check=True, capture_output=True,
    )  # fmt: skip
    partial.git("config", "remote.origin.uploadpack", f"touch {mark}; git-upload-pack")
    with pytest.raises(SourceError, match="partial clone") as caught:
        world.adopt(repository=partial.path)
    assert "--refetch" in str(caught.value)
    assert not mark.exists()


def test_a_repository_of_somebody_else_is_trusted_by_its_user_alone(
    world: Any, edited: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    world.fork.commit("own : a", a_c=edited(n2="mine"))
    tree = world.fork.tree()
    for path in [world.fork.path, *world.fork.path.rglob("*")]:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    with pytest.raises(SourceError, match="belongs to somebody else") as caught:
        world.adopt()
    command = str(caught.value.next_step).partition("run: ")[2]
    assert command.endswith("/.git")
    subprocess.run(command, shell=True, check=True, timeout=1800)
    world.adopt()
    assert world.applied().tree == tree


@pytest.mark.parametrize("path", [".git/config", "../x", "sub/.git/hooks/post-checkout"])
def test_a_tree_that_leads_out_is_refused(world: Any, path: str) -> None:
    """git itself writes no such tree; somebody else's program may."""
    store = Store(world.fork.path / ".git")
    blob = store.write_blob(b"evil\n")
    tree = ""
    for part in reversed(path.split("/")):
        entry = (
            f"40000 {part}\0".encode() + bytes.fromhex(tree)
            if tree
            else f"100644 {part}\0".encode() + bytes.fromhex(blob)
        )
        command = ("hash-object", "-t", "tree", "-w", "--stdin", "--literally")
        tree = store._git(*command, stdin=entry).decode().strip()
    parent = world.fork.rev()
    commit = world.fork.git("commit-tree", tree, "-p", parent, "-m", "evil")
    world.fork.git("update-ref", "refs/heads/evil", commit)
    with pytest.raises((PatchError, SourceError)):
        world.adopt("evil")
    assert list((world.root / "patches").iterdir()) == []
    assert not (world.root / "work").exists()


def test_submodules_links_and_modes_are_carried(world: Any, edited: Edit) -> None:
    fork = world.fork
    os.symlink("a.c", fork.path / "link")
    fork.commit("own : link")
    fork.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},sub")
    fork.git("commit", "--quiet", "-m", "own : submodule")
    (fork.path / "link").unlink()
    (fork.path / "link").write_text("a file now\n")
    fork.git("add", "link")
    fork.git("commit", "--quiet", "-m", "own : no link")
    fork.git("update-index", "--cacheinfo", f"160000,{'2' * 40},sub")
    fork.git("commit", "--quiet", "-m", "own : submodule again")
    fork.git("update-index", "--chmod=+x", "b.c")
    fork.git("commit", "--quiet", "-m", "own : mode")
    done = world.adopt()
    assert len(document(done)["patches"]) == 5
    assert world.applied().tree == fork.tree()


def test_the_same_file_added_twice_and_a_file_where_a_folder_was(world: Any) -> None:
    fork = world.fork
    fork.commit("own : one", new="one\n")
    (fork.path / "new").unlink()
    fork.commit("own : unrelated", other="x\n")
    fork.commit("own : two", new__inner="two\n")
    (fork.path / "new" / "inner").unlink()
    (fork.path / "new").rmdir()
    fork.commit("own : three", new="three\n")
    world.adopt()
    assert world.applied().tree == fork.tree()
    source = world.root / "patches" / "mine" / "src"
    assert sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()) == [
        "again-2/new/inner", "new", "other",
    ]  # fmt: skip


def test_a_bundle_and_a_linked_work_tree_and_a_remote_branch(world: Any, edited: Edit, tmp_path: Path) -> None:
    fork = world.fork
    fork.commit("own : a", a_c=edited(n2="mine"))
    fork.git("bundle", "create", "--quiet", str(tmp_path / "fork.bundle"), "work")
    world.adopt(name="one", repository=tmp_path / "fork.bundle")
    fork.git("worktree", "add", "--quiet", str(tmp_path / "linked"), "-b", "linked")
    fork.git("remote", "add", "up", "https://example.org/up")
    assert remotes(Store(world.cache.store("llama.cpp")), tmp_path / "linked") == {"up": "https://example.org/up"}
    assert not is_shallow(tmp_path / "linked")
    world.adopt(name="two", repository=tmp_path / "linked")
    fork.git("update-ref", "refs/remotes/me/topic", "work")
    world.adopt("me/topic", name="three", repository=f"file://{fork.path}")
    fork.git("tag", "-a", "-m", "annotated", "v1", "work")
    world.adopt("v1", name="four")
    world.adopt(fork.rev("work"), name="five")
    for name in ("one", "two", "three", "four", "five"):
        assert world.applied(name).tree == fork.tree("work")


def test_locations() -> None:
    assert locate("https://user:secret@example.org/a.git").url == "https://example.org/a.git"
    assert locate("git@example.org:a/b.git").remote
    assert locate("/tmp").folder == Path("/tmp")
    assert locate("file:///tmp").folder == Path("/tmp")
    with pytest.raises(UsageError) as caught:
        locate("git://user:secret@example.org/a.git")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/ggml-org/llama.cpp", "https://GitHub.com/ggml-org/llama.cpp.git", "git@github.com:ggml-org/llama.cpp",
        "ssh://git@github.com/ggml-org/llama.cpp.git/", "https://me:token@github.com/ggml-org/llama.cpp/",
    ],
)  # fmt: skip
def test_urls_of_one_repository_are_one(url: str) -> None:
    assert _plain(url) == "github.com/ggml-org/llama.cpp"


def test_a_ref_that_is_not_there_is_a_failure(world: Any, store: Store) -> None:
    assert list_refs(store, str(world.fork.path))["refs/heads/work"] == world.fork.rev()
    with pytest.raises(GitFailure):
        fetch_refs(store, str(world.fork.path), {"refs/forkyard/x": "refs/heads/none"})


def test_changes_of_a_root_a_rename_and_nothing(world: Any, edited: Edit) -> None:
    fork = world.fork
    store = Store(fork.path / ".git")
    (fork.path / "a.c").rename(fork.path / "z.c")
    moved = fork.commit("move")
    nothing = fork.commit("nothing")
    found = changes_of(store, [fork.rev("work~2"), moved, nothing])
    assert [set(change) for change in found.values()] == [{"a.c", "b.c", "docs/read"}, {"a.c", "z.c"}, set()]
    change = found[moved]["z.c"]
    assert change.modes == ("000000", "100644")
    assert change.reversed.oids[1] == "0" * 40
    assert isinstance(Entry("100644", "blob", change.oids[1], "z.c"), Entry)
