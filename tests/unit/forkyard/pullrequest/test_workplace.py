"""The person's folder: made whole, renewed while nobody touched it, and never taken from anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from forkyard.errors import SourceError
from forkyard.gitstore.work import WorkRepository
from forkyard.pullrequest.workplace import place_branch
from forkyard.stacks.model import Stack

from .conftest import HOME, Upstream


def other(upstream: Upstream) -> object:
    return upstream.commit({**HOME, "new.txt": b"new\n"}, upstream.home.commit)


def test_a_folder_with_the_branch(upstream: Upstream, kv: Stack) -> None:
    prepared = upstream.prepare(kv)

    place = place_branch(upstream.root, "llama.cpp", upstream.store, prepared)

    assert place.folder == upstream.root / "work" / "pr-kv-llama.cpp"
    assert (place.branch, place.fresh, place.touched, place.same_tree) == ("kv", True, False, True)
    assert len(place.markers) == 2
    assert b"first();" in (place.folder / "src" / "kv.cpp").read_bytes()
    repository = WorkRepository(place.folder)
    assert repository.resolve("kv-base") == prepared.base
    again = place_branch(upstream.root, "llama.cpp", upstream.store, prepared)
    assert (again.fresh, again.touched) == (False, False)


def test_a_folder_nobody_touched_is_made_anew(upstream: Upstream, kv: Stack) -> None:
    place_branch(upstream.root, "llama.cpp", upstream.store, upstream.prepare(kv))

    place = place_branch(upstream.root, "llama.cpp", upstream.store, upstream.prepare(kv, other(upstream)))  # type: ignore[arg-type]

    assert place.fresh
    assert (place.folder / "new.txt").is_file()
    assert [path.name for path in place.folder.parent.iterdir() if "lock" not in path.name] == [place.folder.name]


def test_reworded_commits_are_kept_and_counted(upstream: Upstream, kv: Stack) -> None:
    prepared = upstream.prepare(kv)
    place = place_branch(upstream.root, "llama.cpp", upstream.store, prepared)
    repository = WorkRepository(place.folder)
    repository._git(*("-c", "user.name=P", "-c", "user.email=p@example.org", "commit", "-q", "--amend", "-m", "mine"))

    again = place_branch(upstream.root, "llama.cpp", upstream.store, prepared)

    assert (again.fresh, again.touched, again.same_tree) == (False, True, True)
    assert len(again.markers) == 1


@pytest.mark.parametrize("how", ["commit", "file", "detached", "strange"])
def test_somebodys_work_is_never_replaced(upstream: Upstream, kv: Stack, how: str) -> None:
    place = place_branch(upstream.root, "llama.cpp", upstream.store, upstream.prepare(kv))
    repository = WorkRepository(place.folder)
    author = ("-c", "user.name=P", "-c", "user.email=p@example.org")
    if how == "commit":
        repository._git(*author, "commit", "-q", "--amend", "-m", "mine")
    elif how == "detached":
        repository._git("checkout", "-q", "--detach")
        repository._git(*author, "commit", "-q", "--allow-empty", "-m", "mine")
    elif how == "file":
        (place.folder / "src" / "kv.cpp").write_text("mine\n")
    else:
        (place.folder / ".git" / "forkyard-ready").unlink()
    target = other(upstream)

    with pytest.raises(SourceError, match="somebody's work"):
        place_branch(upstream.root, "llama.cpp", upstream.store, upstream.prepare(kv, target))  # type: ignore[arg-type]

    assert place.folder.is_dir()
    assert not (place.folder / "new.txt").exists()


def test_what_a_killed_run_left_is_no_obstacle(upstream: Upstream, kv: Stack) -> None:
    half = upstream.root / "work" / ".pr-kv-llama.cpp.new"
    half.mkdir(parents=True)
    (half / "rubbish").write_text("x")

    place = place_branch(upstream.root, "llama.cpp", upstream.store, upstream.prepare(kv))

    assert place.fresh
    assert not (place.folder / "rubbish").exists()


def test_history_that_ends_early_is_no_damage(upstream: Upstream, kv: Stack, tmp_path: Path) -> None:
    # What a registry package carries: a commit whose parents are nowhere.
    parent = upstream.home.commit
    child = upstream.commit({**HOME, "new.txt": b"new\n"}, parent)
    store = type(upstream.store)(tmp_path / "shallow.git")
    store.ensure()
    upstream.store.allow_any_fetch()
    store.fetch(f"file://{upstream.store.path}", child.commit)
    store.fetch(f"file://{upstream.store.path}", parent)
    (store.path / "shallow").write_text(f"{child.commit}\n{'0' * 39}1\n")
    upstream.store = store

    place = place_branch(upstream.root, "llama.cpp", store, upstream.prepare(kv, child))

    repository = WorkRepository(place.folder)
    assert (place.folder / ".git" / "shallow").read_text().split() == [child.commit]
    assert len(repository._git("log", "--format=%H").split()) == 3
    assert repository._git("status", "--porcelain") == b""
