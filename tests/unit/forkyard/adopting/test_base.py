"""What `--base` and `--upstream` may name, and what is found with them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.adopting.report import document, text
from forkyard.errors import SourceError, UsageError

Edit = Callable[..., str]


def kept(done: Any) -> list[str]:
    return [one["patch"] for one in document(done)["patches"]]


@pytest.fixture
def apart(world: Any, edited: Edit) -> Any:
    """A fork of an upstream state newer than the pin, which the fork's repository names nowhere; two own commits."""
    newer = world.upstream.commit("upstream : b", b_c=edited(n20="theirs"))
    world.upstream.commit("upstream : b again", b_c=edited(n20="theirs", n22="more"))
    world.pull(newer)
    world.fork.git("merge", "--quiet", "--ff-only", "FETCH_HEAD")
    world.fork.commit("own : a", a_c=edited(n2="mine"))
    world.fork.commit("own : more", a_c=edited(n2="mine", n12="mine"))
    return world


def test_a_base_that_is_given_does_not_hide_what_upstream_has(world: Any, edited: Edit) -> None:
    """A fix that the pin has, and has changed since, is left out as upstream's and does not conflict."""
    up, fork = world.upstream, world.fork
    base = fork.rev()
    theirs = up.commit("upstream : fix", b_c=edited(n20="fixed"))
    pin = up.commit("upstream : fix it better", b_c=edited(n20="fixed better"))
    world.pull(pin)
    fork.git("cherry-pick", theirs)
    fork.commit("own : a", a_c=edited(n2="mine"))
    world.write_recipe(pin)
    fork.git("update-ref", "refs/heads/seen", pin)
    done = world.adopt(base=base)
    assert document(done)["state"] == "written"
    assert kept(done) == ["own-a.patch"]
    assert document(done)["dropped"][0]["why"] == f"the pin has it as {theirs[:12]}"


@pytest.mark.parametrize(
    "name",
    [
        "{0}",
        "{0:.7}",
        "{0:.4}",
        "work~2",
        "HEAD~2",
        "@~2",
        "work^^",
        "{1:.9}~1",
        "start",
        "start^{{commit}}",
        "refs/tags/start^0",
    ],
)
def test_the_base_is_named_as_git_takes_it(apart: Any, name: str) -> None:
    fork = apart.fork
    base, first = fork.rev("work~2"), fork.rev("work~1")
    fork.git("tag", "--annotate", "--message", "here it starts", "start", base)
    given = name.format(base, first)
    done = apart.adopt(base=given)
    assert (done.base.commit, done.base.how) == (base, f"--base {given}")
    assert kept(done) == ["own-a.patch", "own-more.patch"]


def test_a_branch_may_have_steps_too(apart: Any) -> None:
    assert kept(apart.adopt("work~1", base="work~2")) == ["own-a.patch"]
    first = apart.fork.rev("work~1")
    assert kept(apart.adopt(first[:9], base="work~2", name="two")) == ["own-a.patch"]
    assert kept(apart.adopt(f"{apart.fork.rev('work')[:9]}^", base=f"{first[:5]}^", name="three")) == ["own-a.patch"]


@pytest.mark.parametrize(
    ("name", "why"),
    [("work~99", "leads nowhere from there"), ("wrok", "neither a branch"), ("0000000", "nor a commit")],
)
def test_what_is_not_there_says_what_was_looked_for_and_where(apart: Any, name: str, why: str) -> None:
    for option in ("base", "upstream"):
        with pytest.raises(UsageError, match=f"--{option} names no commit") as caught:
            apart.adopt(**{option: name})
        assert why in str(caught.value.why)
        assert caught.value.where == str(apart.fork.path)
    if name == "wrok":
        assert "did you mean 'work'?" in str(caught.value.next_step)


def test_an_ambiguous_beginning_names_the_candidates(apart: Any, edited: Edit) -> None:
    fork, seen = apart.fork, dict[str, str]()
    tree, tip = fork.tree(), fork.rev()
    for number in range(3000):
        tip = fork.git("commit-tree", tree, "-p", tip, "-m", f"number {number}")
        if tip[:4] in seen:
            break
        seen[tip[:4]] = tip
    fork.git("update-ref", "refs/heads/many", tip)
    with pytest.raises(UsageError, match="the beginning of several commits") as caught:
        apart.adopt("many", base=tip[:4])
    for one in (tip, seen[tip[:4]], f"number {number}"):
        assert one in str(caught.value.why)


@pytest.mark.parametrize(
    "how", ["folder", "url", "bare", "remote with refs", "remote without refs", "branch", "short", "relative"]
)
def test_upstream_is_a_repository_or_a_name(
    apart: Any, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, fork = apart.upstream, apart.fork
    newer = up.rev("master~1")
    if how == "bare":
        subprocess.run(["git", "clone", "--quiet", "--bare", up.path, tmp_path / "bare.git"], check=True)
    elif how.startswith("remote"):
        fork.git("remote", "add", "theirs", "../upstream")
        if how == "remote with refs":
            fork.git("fetch", "--quiet", "theirs")
    elif how in ("branch", "short"):
        fork.git("fetch", "--quiet", str(up.path), "master:refs/heads/main")
    monkeypatch.chdir(tmp_path)
    given = {
        "folder": str(up.path),
        "url": f"file://{up.path}",
        "bare": str(tmp_path / "bare.git"),
        "branch": "main",
        "short": up.rev("master")[:8],
        "relative": "upstream",
    }.get(how, "theirs")
    done = apart.adopt(upstream=given)
    assert (done.base.commit, done.base.how) == (newer, f"--upstream {given}")
    assert kept(done) == ["own-a.patch", "own-more.patch"]


def test_upstream_that_is_nowhere(apart: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no repository"):
        apart.adopt(upstream="/no/such/clone")
    (tmp_path / "empty").mkdir()
    with pytest.raises((UsageError, SourceError)) as caught:
        apart.adopt(upstream=str(tmp_path / "empty"))
    assert caught.value.where == str(tmp_path / "empty")
    with pytest.raises(UsageError, match="on the network"):
        apart.adopt(upstream="https://example.invalid/upstream.git")


def test_the_forks_main_branch_is_suggested(apart: Any, edited: Edit) -> None:
    """Its upstream commits count as the fork's own as long as nobody says whose they are."""
    fork = apart.fork
    fork.git("update-ref", "refs/heads/main", "work~2")
    done = apart.adopt(dry_run=True)
    hint = "1 of the 3 commits that count as the fork's own are also on its branch main: if that is upstream's, give"
    assert any(one == f"{hint} --upstream main" for one in document(done)["notes"])
    assert "--upstream main" in text(done)
    assert kept(apart.adopt(upstream="main")) == ["own-a.patch", "own-more.patch"]


def test_nothing_is_suggested_without_a_reason(apart: Any) -> None:
    fork = apart.fork
    # Where it was before, where it is, and where it was merged.
    fork.git("update-ref", "refs/heads/main", "work~3")
    fork.git("update-ref", "refs/remotes/origin/main", "work")
    fork.git(
        "update-ref", "refs/remotes/origin/master", fork.git("commit-tree", "work^{tree}", "-p", "work", "-m", "x")
    )
    assert not [one for one in document(apart.adopt(dry_run=True))["notes"] if "--upstream" in one]
