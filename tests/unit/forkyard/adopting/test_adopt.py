"""Forks of every shape, turned into stacks of a small project."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.adopting.report import document, markdown, text
from forkyard.console import Silent
from forkyard.errors import PatchError, SourceError, UsageError
from forkyard.gitstore import Store
from forkyard.recipes import load_recipe
from forkyard.sources import obtain
from forkyard.stacks.importing import home, import_series

Edit = Callable[..., str]


def kept(done: Any) -> list[str]:
    return [one["patch"] for one in document(done)["patches"]]


def dropped(done: Any) -> dict[str, str]:
    return {one["subject"]: one["why"] for one in document(done)["dropped"]}


def test_a_plain_branch_becomes_a_stack(world: Any, edited: Edit) -> None:
    author = {
        "GIT_AUTHOR_NAME": "Jö Vörk",
        "GIT_AUTHOR_EMAIL": "jo@example.org",
        "GIT_AUTHOR_DATE": "2026-05-06T07:08:09-03:00",
    }
    world.fork.commit(
        "part : change a\n\nBecause.\n\nSigned-off-by: Jö Vörk <jo@example.org>\n", a_c=edited(n3="x"), env=author
    )
    world.fork.commit("part : add files", new__one_c="int one;\n", two__th="# 2\n")
    (world.fork.path / "a.c").rename(world.fork.path / "moved.c")
    world.fork.commit("part : move a")
    (world.fork.path / "two" / "th").chmod(0o755)
    world.fork.commit("part : make it executable")
    done = world.adopt()
    facts = document(done)
    assert facts["state"] == "written"
    assert kept(done) == [
        "part-change-a.patch",
        "part-add-files.patch",
        "part-move-a.patch",
        "part-make-it-executable.patch",
    ]
    assert world.applied().tree == world.fork.tree()
    folder = world.root / "patches" / "mine"
    first = (folder / "llama.cpp" / "part-change-a.patch").read_text()
    assert "Date: Wed, 6 May 2026 07:08:09 -0300\n" in first
    assert "From: =?UTF-8?q?J=C3=B6=20V=C3=B6rk?= <jo@example.org>" in first
    assert "Because.\n\nSigned-off-by: Jö Vörk <jo@example.org>\nUpstream-Status: Pending\n" in first
    assert facts["patches"][0]["author"] == "Jö Vörk <jo@example.org>"
    assert (folder / "src" / "new" / "one.c").read_text() == "int one;\n"
    assert "To finish" in (folder / "stack.toml").read_text()
    assert [line.split(":")[0] for line in facts["to_do"][:1]] == ["patches/mine/stack.toml"]
    # The stack is one that the other commands take.
    recipe = load_recipe("llama.cpp", world.root)
    obtained = obtain(recipe, world.cache, Silent(), offline=True)
    again = import_series(Store(world.cache.store("llama.cpp")), home(world.root, recipe, "mine"), obtained)
    assert again.exact
    assert again.tree == world.fork.tree()


def test_feature_branches_and_upstream_merged_twice(world: Any, edited: Edit) -> None:
    fork, up = world.fork, world.upstream
    fork.commit("one : a", a_c=edited(n2="mine 2"))
    up.commit("upstream : b", b_c=edited(n20="theirs 20"))
    world.pull("master")
    fork.merge("FETCH_HEAD", message="Merge upstream")
    fork.git("checkout", "--quiet", "-b", "feature")
    fork.commit("two : c", c_c="c\n")
    fork.commit("three : c", c_c="c\nd\n")
    fork.git("checkout", "--quiet", "work")
    fork.commit("four : a", a_c=edited(n2="mine 2", n9="mine 9"))
    fork.merge("feature")
    pin = up.commit("upstream : b again", b_c=edited(n20="theirs 20", n25="theirs 25"))
    world.pull("master")
    fork.merge("FETCH_HEAD", message="Merge upstream again")
    fork.commit("five : b", b_c=edited(n20="theirs 20", n25="theirs 25", n1="mine 1"))
    world.write_recipe(pin)
    done = world.adopt()
    assert done.base.commit == pin
    assert sorted(kept(done)) == ["five-b.patch", "four-a.patch", "one-a.patch", "three-c.patch", "two-c.patch"]
    assert len(document(done)["merges"]) == 3
    assert world.applied().tree == fork.tree()


def test_what_merges_decide_is_one_patch_more(world: Any, edited: Edit) -> None:
    fork, up = world.fork, world.upstream
    fork.commit("one : line five", a_c=edited(n5="mine"))
    pin = up.commit("upstream : line five", a_c=edited(n5="theirs"))
    world.pull("master")
    # A resolution, and an evil change beside it.
    fork.merge("FETCH_HEAD", a_c=edited(n5="both"), evil_c="nobody asked\n")
    fork.commit("two : line twenty", a_c=edited(n5="both", n20="mine"))
    world.write_recipe(pin)
    done = world.adopt()
    assert kept(done) == [
        "one-line-five.patch",
        "two-line-twenty.patch",
        "mine-what-the-merges-of-the-fork-decided.patch",
    ]
    first, _, last = document(done)["patches"]
    assert [(one["path"], one["lines"]) for one in first["merged_with_conflicts"]] == [("a.c", ["6"])]
    assert last["made_of"] == "merges"
    assert any("distribute" in line for line in document(done)["to_do"])
    assert world.applied().tree == fork.tree()
    patch = (world.root / "patches" / "mine" / "llama.cpp" / last["patch"]).read_text()
    assert "-mine\n+both\n" in patch
    assert "Adds-Files: evil.c" in patch


def test_reverted_commits_go_with_their_reverts(world: Any, edited: Edit) -> None:
    fork = world.fork
    fork.commit("keep : a", a_c=edited(n2="keep"))
    fork.commit("try : b", b_c=edited(n7="try"))
    fork.commit("keep : more", a_c=edited(n2="keep", n20="more"))
    fork.git("revert", "--no-edit", "HEAD~1")
    # By content alone.
    fork.commit("try : c", c_c="c\n")
    (fork.path / "c.c").unlink()
    fork.commit("no c after all")
    done = world.adopt()
    assert kept(done) == ["keep-a.patch", "keep-more.patch"]
    assert set(dropped(done)) == {"try : b", 'Revert "try : b"', "try : c", "no c after all"}
    assert dropped(done)["try : b"].startswith("taken back by ")
    assert world.applied().tree == fork.tree()


def test_a_pair_that_is_built_on_stays(world: Any, edited: Edit) -> None:
    fork = world.fork
    first = fork.commit("try : b", b_c=edited(n7="try"))
    fork.commit("on : it", b_c=edited(n7="try harder"))
    fork.commit(f'Revert "try : b"\n\nThis reverts commit {first}.\n', b_c=edited(n7="something else"))
    done = world.adopt()
    assert len(kept(done)) == 3
    assert any("builds on it" in note for note in document(done)["notes"])
    assert world.applied().tree == fork.tree()


def test_a_revert_of_upstream_is_a_patch(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    pin = up.commit("upstream : b", b_c=edited(n20="theirs"))
    world.write_recipe(pin)
    world.pull("master")
    fork.git("merge", "--quiet", "--ff-only", "FETCH_HEAD")
    fork.git("revert", "--no-edit", "HEAD")
    done = world.adopt()
    assert len(kept(done)) == 1
    assert document(done)["patches"][0]["takes_back_upstream"] == pin
    assert world.applied().tree == fork.tree()


def test_a_cherry_pick_of_what_the_base_has_is_dropped(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    fork.commit("own : a", a_c=edited(n2="mine"))
    theirs = up.commit("upstream : b", b_c=edited(n20="theirs"))
    world.pull("master")
    fork.git("cherry-pick", "FETCH_HEAD")
    pin = up.commit("upstream : more", a_c=edited(n28="more"))
    world.pull("master")
    fork.merge("FETCH_HEAD")
    world.write_recipe(pin)
    done = world.adopt()
    assert kept(done) == ["own-a.patch"]
    assert dropped(done) == {"upstream : b": f"upstream as {theirs}"}
    assert world.applied().tree == fork.tree()


def test_a_cherry_pick_of_what_the_pin_has_goes_on_the_way_there(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    theirs = up.commit("upstream : b", b_c=edited(n20="theirs"))
    pin = up.commit("upstream : b again", b_c=edited(n20="theirs, better"))
    later = up.commit("upstream : later", a_c=edited(n28="later"))
    world.pull("master")
    fork.git("update-ref", "refs/remotes/up/master", later)
    fork.git("cherry-pick", theirs)
    fork.commit("own : a", a_c=edited(n2="mine"))
    fork.git("cherry-pick", later)
    world.write_recipe(pin)
    done = world.adopt(upstream="up/master")
    assert kept(done) == ["own-a.patch", "upstream-later.patch"]
    assert dropped(done) == {"upstream : b": f"the pin has it as {theirs[:12]}"}
    assert (
        f"Upstream-Status: Accepted {later}" in (world.root / "patches/mine/llama.cpp/upstream-later.patch").read_text()
    )
    applied = Store(world.cache.store("llama.cpp"))
    assert applied.read_file(world.applied().tree, "b.c") == edited(n20="theirs, better").encode()


def test_a_cherry_pick_stays_where_the_pin_took_it_back_inside_a_larger_commit(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    theirs = up.commit("upstream : b", b_c=edited(n20="theirs"))
    pin = up.commit("upstream : much", b_c=edited(), a_c=edited(n28="more"))
    world.pull("master")
    fork.git("update-ref", "refs/remotes/up/master", pin)
    fork.git("cherry-pick", theirs)
    world.write_recipe(pin)
    done = world.adopt(upstream="up/master")
    assert kept(done) == ["upstream-b.patch"]
    assert dropped(done) == {}
    assert any("it is not there now" in line for line in document(done)["to_do"])
    applied = Store(world.cache.store("llama.cpp"))
    assert applied.read_file(world.applied().tree, "b.c") == edited(n20="theirs").encode()


def test_what_the_base_took_back_inside_a_larger_commit_is_the_branchs_own(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    fork.commit("own : a", a_c=edited(n2="mine"))
    up.commit("upstream : a", a_c=edited(n2="mine"))
    pin = up.commit("upstream : much", a_c=edited(), b_c=edited(n9="more"))
    world.pull("master")
    fork.merge("FETCH_HEAD")
    world.write_recipe(pin)
    done = world.adopt()
    assert kept(done) == ["own-a.patch"]
    assert world.applied().tree == fork.tree()


def test_an_upstream_commit_that_upstream_took_back_stays_when_the_fork_has_it(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    up.commit("upstream : b", b_c=edited(n20="theirs"))
    up.git("revert", "--no-edit", "HEAD")
    pin = up.rev()
    world.pull("master")
    fork.git("merge", "--quiet", "--ff-only", "FETCH_HEAD")
    fork.git("cherry-pick", "HEAD~1")
    world.write_recipe(pin)
    done = world.adopt()
    assert len(kept(done)) == 1
    assert world.applied().tree == fork.tree()


def test_a_fork_newer_than_the_pin_is_carried_back(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    pin = up.rev()
    up.commit("upstream : b", b_c=edited(n20="theirs"))
    newer = up.commit("upstream : b", b_c=edited(n20="theirs", n22="more"))
    fork.git("fetch", "--quiet", str(up.path), "master:refs/remotes/up/master")
    fork.merge("up/master")
    fork.commit("own : a", a_c=edited(n2="mine"))
    done = world.adopt(upstream="up/master")
    assert (done.base.commit, done.base.pin, done.base.distance) == (newer, "newer", 2)
    assert "2 upstream commits that are newer than the pin" in text(done)
    assert pin == world.pin
    store = Store(world.cache.store("llama.cpp"))
    assert store.read_file(world.applied().tree, "a.c") == edited(n2="mine").encode()
    assert store.read_file(world.applied().tree, "b.c") == edited().encode()


def test_upstream_is_found_in_the_clones_own_remote(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    newer = up.commit("upstream : b", b_c=edited(n20="theirs"))
    fork.git("remote", "add", "origin", "git@github.com:Ggml-Org/llama.cpp.git")
    fork.git("fetch", "--quiet", str(up.path), "master:refs/remotes/origin/master")
    fork.merge("origin/master")
    fork.commit("own : a", a_c=edited(n2="mine"))
    recipe = world.root / "recipes" / "llama.cpp.toml"
    source = '[[sources]]\nkind = "git"\nurl = "https://github.com/ggml-org/llama.cpp"\n\n[[sources]]'
    recipe.write_text(recipe.read_text().replace("[[sources]]", source, 1))
    done = world.adopt()
    assert (done.base.commit, done.base.how) == (newer, "origin/master of the fork's clone")


def test_an_import_without_history_is_known_by_its_files(world: Any, edited: Edit, repo_class: Any) -> None:
    fork = repo_class(world.fork.path.with_name("import"), world.fork.clock)
    fork.path.mkdir()
    fork.git("init", "--quiet", "--initial-branch=work")
    first = fork.commit("Import a release", a_c=edited(), b_c=edited(), docs__read="read me\n")
    fork.commit("own : a", a_c=edited(n2="mine"))
    done = world.adopt(repository=fork.path)
    assert done.base.commit == first
    assert "it has the files of the recipe's pin" in done.base.how
    assert world.applied().tree == fork.tree()


@pytest.mark.parametrize("depth", [2, 1])
def test_a_shallow_fork(world: Any, edited: Edit, repo_class: Any, depth: int) -> None:
    world.fork.commit("own : a", a_c=edited(n2="mine"))
    shallow = repo_class(world.fork.path.with_name("shallow"), world.fork.clock)
    subprocess.run(
        ["git", "clone", "--quiet", f"--depth={depth}", "--branch=work", f"file://{world.fork.path}", str(shallow.path)],
        check=True, capture_output=True,
    )  # fmt: skip
    if depth == 2:
        done = world.adopt(repository=shallow.path)
        assert document(done)["fork"]["shallow"]
        assert world.applied().tree == world.fork.tree()
        # The store that all forks share is not cut off by it.
        world.adopt(name="other")
        assert not (world.cache.store("llama.cpp").with_name("llama.cpp.forks.git") / "shallow").exists()
    else:
        with pytest.raises(SourceError, match="cannot be told") as caught:
            world.adopt(repository=shallow.path)
        assert "--unshallow" in str(caught.value)


def test_an_octopus(world: Any, edited: Edit) -> None:
    fork = world.fork
    for name, line in (("one", "n2"), ("two", "n12"), ("three", "n22")):
        fork.git("checkout", "--quiet", "-b", name, "work")
        fork.commit(f"{name} : a", a_c=edited(**{line: name}))
    fork.git("checkout", "--quiet", "work")
    fork.git("merge", "--quiet", "one", "two", "three")
    assert len(fork.git("show", "-s", "--format=%P").split()) >= 3
    done = world.adopt()
    assert sorted(kept(done)) == ["one-a.patch", "three-a.patch", "two-a.patch"]
    assert world.applied().tree == fork.tree()


def test_squash(world: Any, edited: Edit) -> None:
    fork = world.fork
    fork.commit("one : a", a_c=edited(n2="mine"), env={"GIT_AUTHOR_NAME": "Other", "GIT_AUTHOR_EMAIL": "o@example.org"})
    fork.commit("two : b", b_c=edited(n3="mine"))
    done = world.adopt(squash=True)
    assert len(kept(done)) == 1
    patch = (world.root / "patches/mine/llama.cpp" / kept(done)[0]).read_text()
    assert "- one : a\n- two : b\n" in patch
    assert "Co-authored-by: Other <o@example.org>\n" in patch
    assert world.applied().tree == fork.tree()


def test_note_origin(world: Any, edited: Edit) -> None:
    commit = world.fork.commit("one : a", a_c=edited(n2="mine"))
    world.adopt(note_origin=True)
    assert f"Adopted-From: {commit}" in (world.root / "patches/mine/llama.cpp/one-a.patch").read_text()


def test_unrelated_history_names_what_was_tried(world: Any, repo_class: Any) -> None:
    other = repo_class(world.fork.path.with_name("other"), world.fork.clock)
    other.path.mkdir()
    other.git("init", "--quiet", "--initial-branch=work")
    other.commit("something else", x_c="x\n")
    with pytest.raises(SourceError, match="cannot be told") as caught:
        world.adopt(repository=other.path)
    for words in (
        "the recipe's pin",
        "the files of a known pin",
        "as --offline says",
        "--base COMMIT",
        "--upstream REF",
    ):
        assert words in str(caught.value)


def test_a_branch_that_is_its_base(world: Any) -> None:
    with pytest.raises(UsageError, match="nothing of its own"):
        world.adopt()


def test_a_branch_that_upstream_has_entirely(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    fork.commit("own : a", a_c=edited(n2="mine"))
    up.commit("upstream : a, reworded", a_c=edited(n2="mine"))
    pin = up.commit("upstream : more", b_c=edited(n2="more"))
    world.write_recipe(pin)
    world.pull(pin)
    fork.git("update-ref", "refs/remotes/up/master", pin)
    done = world.adopt(upstream="up/master")
    assert document(done)["state"] == "nothing left"
    assert not (world.root / "patches" / "mine").exists()
    assert "nothing of the branch is left" in text(done)


def test_branch_or_repository_that_is_not_there(world: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no branch 'wrok'") as caught:
        world.adopt("wrok")
    assert "did you mean 'work'" in str(caught.value)
    with pytest.raises(UsageError, match="there is no repository"):
        world.adopt(repository=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no git repository"):
        world.adopt(repository=tmp_path / "empty")
    with pytest.raises(UsageError, match="on the network"):
        world.adopt(repository="https://example.invalid/fork.git")


@pytest.mark.parametrize(
    "place", ["ext::sh -c touch% /tmp/x", "--upload-pack=x", "git://example.org/x", "http://example.org/x", "", "a\nb"]
)
def test_a_place_that_is_none(world: Any, place: str) -> None:
    with pytest.raises(UsageError, match="no place of a repository"):
        world.adopt(repository=place)


@pytest.mark.parametrize("branch", ["--upload-pack=x", "work:refs/heads/x", "", "a\x00b", "+work", "wo*", "^work"])
def test_a_branch_that_is_none(world: Any, branch: str, edited: Edit) -> None:
    world.fork.commit("own : a", a_c=edited(n2="mine"))
    with pytest.raises(UsageError, match="no branch"):
        world.adopt(branch)


def test_a_stack_is_never_overwritten(world: Any, edited: Edit) -> None:
    world.fork.commit("own : a", a_c=edited(n2="mine"))
    world.adopt()
    before = {path: path.read_bytes() for path in (world.root / "patches").rglob("*") if path.is_file()}
    world.fork.commit("own : b", a_c=edited(n2="mine", n3="more"))
    with pytest.raises(UsageError, match="there is a stack 'mine' already"):
        world.adopt()
    assert before == {path: path.read_bytes() for path in (world.root / "patches").rglob("*") if path.is_file()}


def test_dry_run_writes_nothing(world: Any, edited: Edit) -> None:
    world.fork.commit("own : a", a_c=edited(n2="mine"))
    done = world.adopt(dry_run=True)
    assert kept(done) == ["own-a.patch"]
    assert list((world.root / "patches").iterdir()) == []
    assert not (world.root / "work").exists()


def test_names_are_made_from_the_branch(world: Any, edited: Edit) -> None:
    world.fork.git("checkout", "--quiet", "-b", "Feature/NUMA_Mirror.v2")
    world.fork.commit("own : a", a_c=edited(n2="mine"))
    assert world.adopt("Feature/NUMA_Mirror.v2", name=None).name == "numa-mirror-v2"
    world.fork.git("branch", "42")
    with pytest.raises(UsageError, match="no name for the stack"):
        world.adopt("42", name=None)


def test_base_is_taken_at_its_word(world: Any, edited: Edit) -> None:
    first = world.fork.commit("not own : a", a_c=edited(n2="other"))
    world.fork.commit("own : a", a_c=edited(n2="other", n20="mine"))
    done = world.adopt(base=first[:12])
    assert (done.base.commit, done.base.how) == (first, f"--base {first[:12]}")
    assert kept(done) == ["own-a.patch"]
    with pytest.raises(UsageError, match="names no commit"):
        world.adopt(name="x", base="f" * 40)
    aside = world.upstream.commit("upstream : b", b_c=edited(n20="theirs"))
    world.pull(aside)
    world.fork.git("branch", "aside", aside)
    with pytest.raises(UsageError, match="is not made on aside") as caught:
        world.adopt(name="x", base="aside")
    assert f"give --base {world.pin[:12]}" in str(caught.value)


def test_a_commit_too_large_for_a_patch(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkyard.adopting.series.LARGEST_PATCH", 1 << 20)
    commit = world.fork.commit("own : model", model__bin=bytes(2 << 20))
    (world.fork.path / "model" / "bin").unlink()
    world.fork.commit("own : no model", a_c="a\n")
    with pytest.raises(PatchError, match="too large") as caught:
        world.adopt()
    assert commit[:12] in str(caught.value)
    assert "model/bin" in str(caught.value)
    assert len(kept(world.adopt(squash=True))) == 1


def test_documents_are_what_they_say(world: Any, edited: Edit) -> None:
    author = {"GIT_AUTHOR_NAME": "A | B"}
    world.fork.commit(b"odd : \xff|pipe\n\nbody\n", a_c=edited(n2="mine"), env=author)
    done = world.adopt()
    facts = json.loads(json.dumps(document(done)))
    assert facts["fork"]["commit"] == done.tip.commit
    assert "A \\| B <author@example.org>" in markdown(done)
    assert "odd-y-pipe.patch" in text(done)


def test_messages_in_other_encodings(world: Any, edited: Edit) -> None:
    fork = world.fork
    fork.commit("gr\xfc\xdfe : a".encode("latin-1"), a_c=edited(n2="mine"))
    fork.git("config", "i18n.commitEncoding", "ISO-8859-1")
    fork.commit("gr\xfc\xdfe : b".encode("latin-1"), b_c=edited(n2="mine"))
    # git itself writes no such commit; bytes that nothing says the encoding of.
    fork.write(c_c="c\n")
    fork.git("add", "--all")
    raw = f"tree {fork.git('write-tree')}\nparent {fork.rev()}\nauthor J\xf6 <> 1700000000 +0000\n"
    raw += "committer J <j@example.org> 1700000000 +0000\n"
    path = fork.path / ".git" / "raw"
    path.write_bytes(raw.encode("latin-1") + b"\ngr\xfc\xdfe : c\n")
    fork.git("update-ref", "refs/heads/work", fork.git("hash-object", "-t", "commit", "-w", str(path)))
    done = world.adopt()
    patches = document(done)["patches"]
    assert [one["subject"] for one in patches] == ["grüße : a", "grüße : b", "grüße : c"]
    assert patches[2]["author"] == "Jö <unknown@users.noreply.invalid>"
    assert "its message is not UTF-8 and was read as Latin-1" in patches[2]["notes"]
    assert world.applied().tree == fork.tree()


def with_source(world: Any, source: str) -> None:
    """Put a source before those of the recipe."""
    recipe = world.root / "recipes" / "llama.cpp.toml"
    recipe.write_text(recipe.read_text().replace("[[sources]]", f"[[sources]]\n{source}\n\n[[sources]]", 1))


def test_upstream_is_asked_where_the_recipe_says_it_is(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    newer = up.commit("upstream : b", b_c=edited(n20="theirs"))
    world.pull(newer)
    fork.merge(newer)
    fork.commit("own : a", a_c=edited(n2="mine"))
    with_source(world, f'kind = "local"\npath = "{up.path}"')
    done = world.adopt()
    assert (done.base.commit, done.base.pin, done.base.distance) == (newer, "newer", 1)
    assert done.base.how == f"HEAD of {up.path}"
    assert kept(done) == ["own-a.patch"]


def test_an_upstream_that_cannot_be_reached_is_named(world: Any, repo_class: Any) -> None:
    other = repo_class(world.fork.path.with_name("other"), world.fork.clock)
    other.path.mkdir()
    other.git("init", "--quiet", "--initial-branch=work")
    other.commit("something else", x_c="x\n")
    # The pin is in the store already; only its history would have to come from there.
    world.fork.commit("own", x_c="x\n")
    world.adopt(name="first")
    with_source(world, 'kind = "git"\nurl = "https://127.0.0.1:1/upstream"')
    with pytest.raises(SourceError, match="cannot be told") as caught:
        world.adopt(repository=other.path, offline=False)
    assert "HEAD of https://127.0.0.1:1/upstream" in str(caught.value)


def test_many_commits_of_its_own_are_a_reason_to_ask(world: Any, edited: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    class Listening(Silent):
        def warn(self, text: str) -> None:
            warned.append(text)

    warned: list[str] = []
    monkeypatch.setattr("forkyard.adopting.base.MANY", 1)
    world.fork.commit("one", x_c="x\n")
    world.fork.commit("two", y_c="x\n")
    world.adopt(reporter=Listening())
    assert "2 commits seem to be the fork's own" in warned[0]
    assert "--upstream" in warned[0]


def test_upstream_on_two_branches(world: Any, edited: Edit) -> None:
    """A release branch of upstream's is pinned, and the fork has merged the main branch as well."""
    up, fork = world.upstream, world.fork
    first = up.rev()
    newer = up.commit("upstream : b", b_c=edited(n20="theirs"))
    up.commit("upstream : more", b_c=edited(n20="theirs", n22="more"))
    newest = up.rev()
    up.git("checkout", "--quiet", "-b", "release", first)
    pin = up.commit("release : fix", a_c=edited(n25="fixed"))
    up.git("checkout", "--quiet", "master")
    world.write_recipe(pin)
    with_source(world, f'kind = "local"\npath = "{up.path}"')
    for one in (pin, newest):
        world.pull(one)
        fork.merge(one)
    fork.commit("own : a", a_c=edited(n2="mine", n25="fixed"))
    done = world.adopt()
    assert done.base.commit == newest
    assert done.base.others == (pin,)
    assert newer not in done.base.others
    assert dropped(done) == {"release : fix": f"the pin has it as {pin[:12]}"}
    assert kept(done) == ["own-a.patch"]
    assert any("its base does not" in note for note in document(done)["notes"])


def test_upstreams_history_is_at_hand_where_a_clash_is_resolved(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    before = up.commit("upstream : before", b_c=edited(n9="before"))
    world.pull("master")
    fork.merge("FETCH_HEAD")
    fork.commit("own : a", a_c=edited(n2="mine"))
    pin = up.commit("upstream : clash", a_c=edited(n2="theirs"))
    world.pull("master")
    fork.git("update-ref", "refs/remotes/up/master", "FETCH_HEAD")
    world.write_recipe(pin)
    done = world.adopt(upstream="up/master")
    repo = done.folder / "repo"

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=repo, check=True, capture_output=True, text=True).stdout

    assert before in git("log", "--format=%H", "-Sbefore")
    assert "+before" in git("show", before)
    assert before in git("blame", "-l", "HEAD", "--", "b.c")
    # It is still a repository of its own to whoever reads it.
    assert not (repo / ".git" / "shallow").exists()


def test_a_stack_says_which_fork_it_is_from_although_a_clash_was_resolved(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    fork.commit("own : a", a_c=edited(n2="mine"))
    pin = up.commit("upstream : clash", a_c=edited(n2="theirs"))
    world.pull("master")
    fork.git("update-ref", "refs/remotes/up/master", "FETCH_HEAD")
    world.write_recipe(pin)
    done = world.adopt(upstream="up/master")
    repo = done.folder / "repo"

    def git(*words: str, check: bool = True) -> None:
        identity = ["-c", "user.name=P", "-c", "user.email=p@example.org", "-c", "core.editor=true"]
        subprocess.run(["git", *identity, *words], cwd=repo, check=check, capture_output=True)

    git("rebase", "--onto", "pin", "fork-base", "mine", check=False)
    (repo / "a.c").write_text(edited(n2="both"))
    git("add", "a.c")
    git("rebase", "--continue")
    again = world.adopt(repository=str(repo), branch="mine", base=done.home)
    assert again.state == "written"
    about = (world.root / "patches/mine/stack.toml").read_text()
    assert f"at {done.tip.commit[:12]}" in about
    assert f"branch {done.wish.branch} of" in about
    assert "of repo" not in about
    assert document(again)["fork"]["behind"]["commit"] == done.tip.commit
